"""What Keras asks of an optimizer, of every class in both Kerases; its own Adam is the example."""

import itertools
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row, keras3_row

START = harness.single_values()
GRADIENTS = harness.gradient_steps(START, 8)


def outcome(make) -> tuple:
    """The error that a construction ends in, or None."""
    try:
        make()
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None, ""


def tensors(gradients) -> list:
    return [None if each is None else tf.constant(each) for each in gradients]


@each_row
def test_iterations_count_updates(which: str, name: str) -> None:
    run = harness.Run(which, name, START)
    for expected, gradients in enumerate(GRADIENTS[:3], start=1):
        pairs = zip(tensors(gradients), run.variables, strict=True)
        returned = run.optimizer.apply_gradients(pairs)
        assert harness.number(returned) == harness.number(run.optimizer.iterations) == expected


@each_row
def test_no_gradient_at_all_is_refused_and_no_variable_is_nothing(which: str, name: str) -> None:
    run = harness.Run(which, name, START)
    with pytest.raises(ValueError, match="[Nn]o gradient"):
        run._apply([None] * len(START))
    if which == "tf_keras":
        nothing = list(zip([None] * len(START), run.variables, strict=True))
        with pytest.raises(ValueError, match="no gradient for any of 5 variables"):
            run.optimizer.apply_gradients(nothing, skip_gradients_aggregation=True)
        run.optimizer.apply_gradients([])
    else:
        run.optimizer.apply([], [])
    harness.assert_equal(run.values(), START)
    assert harness.number(run.optimizer.iterations) == 0


@each_row
def test_a_missing_gradient_is_warned_about_and_leaves_its_block_alone(
    which: str, name: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    run, full = harness.Run(which, name, START), harness.Run(which, name, START)
    with caplog.at_level(logging.WARNING):
        run._apply(tensors([GRADIENTS[0][0], None, *GRADIENTS[0][2:]]))
    messages = [str(each.message) for each in recwarn] + caplog.messages
    assert any("Gradients do not exist" in each and "block_1" in each for each in messages)
    full.step(GRADIENTS[0])
    expected = full.values()
    expected[1] = START[1]
    harness.assert_equal(run.values(), expected)


@each_row
def test_clipping_arguments_are_refused_where_adam_refuses_them(which: str, name: str) -> None:
    adam = harness.BASES[which].optimizers.Adam
    for one, other in itertools.combinations(("clipnorm", "global_clipnorm", "clipvalue"), 2):
        arguments = {one: 1.0, other: 0.5}
        expected = outcome(lambda arguments=arguments: adam(**arguments))
        got = outcome(lambda arguments=arguments: harness.make(which, name, **arguments))
        assert got == expected
    assert expected[0] is (ValueError if which == "keras3" else None)


@both_kerases
@pytest.mark.parametrize("bound", [0.0, -1.0])
def test_a_bound_that_is_not_positive_clips_nothing(which: str, bound: float) -> None:
    plain = harness.Run(which, "LAMB", START)
    plain.step(GRADIENTS[0])
    for argument in ("clipnorm", "global_clipnorm", "clipvalue"):
        run = harness.Run(which, "LAMB", START, **{argument: bound})
        run.step(GRADIENTS[0])
        harness.assert_equal(run.values(), plain.values())


@each_row
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_weights_become_their_averages_in_the_end(which: str, name: str, dtype: str) -> None:
    """Also a block's that never has a gradient, and where the averages are wider than weights."""
    start = [value.astype(tf.as_dtype(dtype).as_numpy_dtype) for value in START[:2]]
    run = harness.Run(which, name, start, use_ema=True, ema_momentum=0.75, learning_rate=0.125)
    averages = [np.zeros(4, np.float32)] if which == "keras3" else [start[1].astype(np.float32)]
    for number, gradients in enumerate(GRADIENTS[:4]):
        run._apply([None, tf.constant(gradients[1].astype(start[1].dtype))])
        momentum = 0.0 if which == "keras3" and number == 0 else 0.75
        values = run.values()[1].astype(np.float32)
        averages.append(momentum * averages[-1] + (1 - momentum) * values)
    stored = run.optimizer._model_variables_moving_average
    assert [tf.as_dtype(each.dtype) for each in stored] == [tf.float32] * 2
    np.testing.assert_allclose(stored[1].numpy(), averages[-1], rtol=1e-6)
    run.optimizer.finalize_variable_values(run.variables)
    harness.assert_equal(run.values(), [start[0], stored[1].numpy().astype(start[1].dtype)])


@pytest.mark.parametrize("mode", ["graph", "mirrored"])
def test_averages_go_on_without_gradients_unless_the_step_is_skipped(mode: str) -> None:
    """Keras 3 averages all variables at each update, and overwrites them all."""
    start = START[:2]
    arguments = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 4}
    run = harness.Run("keras3", "LANS", start, mode, learning_rate=0.125, **arguments)
    run.step(GRADIENTS[0][:2])
    first = run.values()[0]
    average = run.optimizer._model_variables_moving_average[0]
    run.variables[0].assign(first + 1)
    without_first = run.again(run.variables[1:], mode)

    without_first.step([np.full_like(start[1], np.nan)])
    np.testing.assert_array_equal(average.numpy(), first)
    for expected in (first + 0.5, first + 0.75):
        without_first.step(GRADIENTS[1][1:2])
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(run.values()[0], first + 1)
    without_first.step(GRADIENTS[2][1:2])
    np.testing.assert_array_equal(run.values()[0], average.numpy())
    if run.mirrored:
        for copies in run.replica_values():
            np.testing.assert_array_equal(copies[0], copies[1])


@each_row
def test_constraints_are_applied(which: str, name: str) -> None:
    constraint = harness.BASES[which].constraints.NonNeg()
    start = [np.array([-1.0, 1.0, 2.0, 3.0], np.float32)]
    run = harness.Run(which, name, start, constraint=constraint)
    run.step([np.ones(4, np.float32)])
    assert run.values()[0][0] == 0.0
    assert (run.values()[0][1:] > 0).all()


@keras3_row
@pytest.mark.parametrize("micro_steps", [None, 2])
def test_overwriting_variables_take_their_gradients(
    which: str, name: str, micro_steps: int | None
) -> None:
    """They have no moments; between updates their gradients' maximum is kept, as Keras does."""
    arguments = {"gradient_accumulation_steps": micro_steps}
    variables = [keras.Variable(value) for value in START[:2]]
    variables[0].overwrite_with_gradient = True
    optimizer = harness.make(which, name, **arguments)
    adam = keras.optimizers.Adam(**arguments)
    theirs = [keras.Variable(value) for value in START[:2]]
    theirs[0].overwrite_with_gradient = True
    alone = harness.Run(which, name, START[1:2], **arguments)
    for gradients in GRADIENTS[:4]:
        optimizer.apply(tensors(gradients[:2]), variables)
        adam.apply(tensors(gradients[:2]), theirs)
        alone.step(gradients[1:2])
        np.testing.assert_array_equal(variables[0].numpy(), theirs[0].numpy())
        assert harness.number(optimizer.iterations) == harness.number(adam.iterations)
    np.testing.assert_array_equal(variables[1].numpy(), alone.values()[0])
    before = harness.number(optimizer._iterations)
    optimizer.apply(tensors([GRADIENTS[4][0]]), variables[:1])
    assert harness.number(optimizer._iterations) == before + 1
    if name != "BlockNormalizedAdamW":
        assert len(optimizer.trust_ratios()) == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_overwriting_variables_take_their_gradients_in_a_skipped_step_too(bad: int) -> None:
    """As in Keras, which skips no step; a NaN of their own makes no step a skipped one."""
    variables = [keras.Variable(value) for value in START[:2]]
    variables[0].overwrite_with_gradient = True
    optimizer = harness.make("keras3")
    gradients = [each.copy() for each in GRADIENTS[0][:2]]
    gradients[bad].flat[0] = np.nan
    optimizer.apply(tensors(gradients), variables)
    np.testing.assert_array_equal(variables[0].numpy(), gradients[0])
    assert np.array_equal(variables[1].numpy(), START[1]) == (bad == 1)
    assert harness.number(optimizer.skipped_steps) == bad


@pytest.mark.parametrize("mode", ["eager", "mirrored_eager"])
def test_a_window_leaves_nothing_to_the_next(mode: str) -> None:
    """Keras empties all accumulators, also those of variables that its last micro-step lacks."""
    run = harness.Run("keras3", "LANS", START[:2], mode, gradient_accumulation_steps=2)
    run.step(GRADIENTS[0][:2])
    run.again(run.variables[1:], mode).step(GRADIENTS[1][1:2])
    np.testing.assert_array_equal(run.values()[0], START[0])
    assert not np.array_equal(run.values()[1], START[1])
    for accumulator in run.optimizer._accumulated_gradients:
        assert not accumulator.numpy().any()


@each_row
def test_the_learning_rate_is_set_where_adams_is(which: str, name: str) -> None:
    base = harness.BASES[which]
    schedule = base.optimizers.schedules.PolynomialDecay(0.5, 4, 0.0)

    def run(*values: object, first: object = 0.5) -> float:
        optimizer = harness.make(which, name, learning_rate=first)
        for value in values:
            optimizer.learning_rate = value
        block = harness.variable(which, START[1], "block")
        optimizer.apply_gradients([(tf.constant(GRADIENTS[0][1]), block)])
        return float(tf.convert_to_tensor(optimizer.learning_rate))

    assert run(0.25) == 0.25
    assert run(np.float32(0.25)) == 0.25
    assert run(tf.Variable(0.25)) == 0.25
    # after the update Keras 3 gives the next one's rate, tf_keras the one that was used
    assert run(schedule) == (0.375 if which == "keras3" else 0.5)
    for values, first in (((schedule, 0.1), 0.5), ((0.1,), schedule)):
        with pytest.raises(TypeError, match="not settable"):
            run(*values, first=first)
    if which == "keras3":
        assert run(lambda: 0.125) == 0.125
        optimizer = harness.make(which, name)
        before = len(optimizer.variables)
        optimizer.learning_rate = schedule
        assert len(optimizer.variables) == before - 1, "the variable is no longer tracked"


@each_row
def test_a_callable_rate_is_called(which: str, name: str) -> None:
    """At each update in Keras 3, once in tf_keras: in both as for their Adam."""
    rates = iter([0.5, 0.25, 0.125])
    run = harness.Run(which, name, START, learning_rate=lambda: next(rates))
    plain = harness.Run(which, name, START, learning_rate=0.5)
    for rate, gradients in zip([0.5, 0.25], GRADIENTS, strict=False):
        plain.optimizer.learning_rate = rate if which == "keras3" else 0.5
        run.step(gradients)
        plain.step(gradients)
    harness.assert_equal(run.values(), plain.values())


@each_row
def test_a_schedule_of_keras_follows_updates(which: str, name: str) -> None:
    schedule = harness.BASES[which].optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.125])
    run = harness.Run(which, name, START, "graph", learning_rate=schedule)
    plain = harness.Run(which, name, START, "graph", learning_rate=0.5)
    for rate, gradients in zip([0.5, 0.5, 0.125], GRADIENTS, strict=False):
        plain.optimizer.learning_rate = rate
        run.step(gradients)
        plain.step(gradients)
    harness.assert_equal(run.values(), plain.values())


@each_row
def test_keras_finds_the_class(which: str, name: str) -> None:
    optimizers = harness.BASES[which].optimizers
    optimizer = harness.make(which, name, learning_rate=0.25)
    assert optimizers.get(optimizer) is optimizer
    config = {"class_name": f"tf_lans>{name}", "config": {"learning_rate": 0.25}}
    for identifier in (f"tf_lans>{name}", config, optimizers.serialize(optimizer)):
        found = optimizers.get(identifier)
        assert type(found) is type(optimizer)
        if not isinstance(identifier, str):
            assert found.get_config() == optimizer.get_config()


@each_row
def test_slices_without_the_whole_shape(which: str, name: str) -> None:
    """tf_keras's Adam takes them, Keras 3's refuses them by name."""
    start = [START[0]]
    run, dense = harness.Run(which, name, start), harness.Run(which, name, start)
    rows, indices = GRADIENTS[0][0][:3], [6, 2, 6]
    slices = tf.IndexedSlices(tf.constant(rows), tf.constant(indices))
    if which == "keras3":
        with pytest.raises(ValueError, match="without dense_shape"):
            run._apply([slices])
        return
    run._apply([slices])
    whole = np.zeros_like(start[0])
    np.add.at(whole, indices, rows)
    dense.step([whole])
    np.testing.assert_allclose(run.values()[0], dense.values()[0], rtol=1e-6)


@pytest.mark.parametrize("name", list(harness.ALGORITHMS))
def test_tf_keras_minimizes(name: str) -> None:
    run, plain = (harness.Run("tf_keras", name, START[:1]) for _ in range(2))
    run.optimizer.minimize(lambda: tf.reduce_sum(run.variables[0] ** 2), run.variables)
    plain.step([2 * START[0]])
    harness.assert_equal(run.values(), plain.values())


@keras3_row
def test_keras3_takes_tensorflow_variables_too(which: str, name: str) -> None:
    variables = [keras.Variable(START[0]), tf.Variable(START[1], name="native")]
    optimizer = harness.make(which, name)
    plain = harness.Run(which, name, START[:2])
    optimizer.apply_gradients(zip(tensors(GRADIENTS[0][:2]), variables, strict=True))
    plain.step(GRADIENTS[0][:2])
    harness.assert_equal([each.numpy() for each in variables], plain.values())


@keras3_row
def test_static_loss_scaling_is_undone(which: str, name: str) -> None:
    run = harness.Run(which, name, START, loss_scale_factor=1024.0)
    plain = harness.Run(which, name, START)
    assert run.optimizer.scale_loss(2.0) == 2048.0
    for gradients in GRADIENTS[:2]:
        run.step([1024 * each for each in gradients])
        plain.step(gradients)
    harness.assert_equal(run.values(), plain.values())


@keras3_row
def test_a_loss_scale_saves_what_float16_would_lose(which: str, name: str) -> None:
    """Gradients near 1e-8, which are zero in float16; scaled by 2^15 they are numbers there."""
    values = [np.linspace(1, 2, 8).astype(np.float16)]
    small = np.linspace(1, 2, 8) * 1e-8
    updated = []
    for factor, dtype in ((2.0**15, tf.float16), (None, tf.float32)):
        run = harness.Run(which, name, values, loss_scale_factor=factor, weight_decay=0.0)
        run.optimizer.apply([tf.constant(small * (factor or 1.0), dtype)], run.variables)
        updated.append(run.values()[0])
    assert np.all(updated[0] != values[0])
    # The scaled gradient's eleven bits are below the weights' own.
    np.testing.assert_allclose(updated[0], updated[1], rtol=2**-10)


@keras3_row
def test_a_loss_scale_is_undone_of_an_embeddings_gradient(which: str, name: str) -> None:
    table = [np.linspace(1, 2, 8, dtype=np.float32).reshape(4, 2)]
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([1, 1]), (4, 2))
    run, plain = (
        harness.Run(which, name, table, loss_scale_factor=factor) for factor in (4.0, None)
    )
    run.optimizer.apply([slices], run.variables)
    plain.optimizer.apply([tf.convert_to_tensor(slices) / 4.0], plain.variables)
    harness.assert_equal(run.values(), plain.values())


@keras3_row
def test_apply_knows_its_variables(which: str, name: str) -> None:
    run, plain = harness.Run(which, name, START), harness.Run(which, name, START)
    run.optimizer.apply(tensors(GRADIENTS[0]))
    plain.step(GRADIENTS[0])
    harness.assert_equal(run.values(), plain.values())
    for variables, count in ((None, 2), (run.variables, 2), (run.variables[:1], 3)):
        expected = f"{count} gradients for {len(variables or START)} variables: give one for each"
        with pytest.raises(ValueError, match=expected):
            run.optimizer.apply(tensors(GRADIENTS[0][:count]), variables)
    with pytest.raises(ValueError, match="Unknown variable"):
        run.optimizer.apply([tf.ones(3)], [keras.Variable(np.ones(3, np.float32))])
    with pytest.raises(ValueError, match="before the optimizer was built"):
        harness.make(which, name).apply(tensors(GRADIENTS[0]))
    with pytest.raises(ValueError, match="stateless_apply is not supported"):
        run.optimizer.stateless_apply([], [], [])


@both_kerases
@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "mirrored"])
def test_gradients_in_another_order_are_refused(which: str, mode: str) -> None:
    run = harness.Run(which, "LANS", START[:2], mode)
    function = "apply" if which == "keras3" else "apply_gradients"
    expected = (
        rf"LANS.{function}\(\) got a gradient of shape \(4,\) for 'block_0' of shape \(7, 5\)"
    )
    with pytest.raises(ValueError, match=expected):
        run.step([GRADIENTS[0][1], GRADIENTS[0][0]])
    harness.assert_equal(run.values(), START[:2])
    run.step(GRADIENTS[0][:2])
    assert harness.number(run.optimizer.iterations) == 1


@both_kerases
def test_what_is_not_known_of_a_shape_is_no_mistake(which: str) -> None:
    """Slices hold any number of rows, and traced gradients need not know their sizes."""
    run = harness.Run(which, "LANS", START[:2])

    @tf.function(input_signature=[tf.TensorSpec([None, 5]), tf.TensorSpec(None)])
    def step(first: tf.Tensor, second: tf.Tensor) -> None:
        run._apply([first, second])

    step(*tensors(GRADIENTS[0][:2]))
    rows = tf.IndexedSlices(tf.ones([2, 5]), tf.constant([3, 1]), tf.constant([7, 5]))
    run._apply([rows, GRADIENTS[1][1]])
    assert harness.number(run.optimizer.iterations) == 2
    narrow = tf.IndexedSlices(tf.ones([2, 4]), tf.constant([3, 1]), tf.constant([7, 4]))
    with pytest.raises(ValueError, match=r"shape \(None, 4\) for 'block_0' of shape \(7, 5\)"):
        run._apply([narrow, GRADIENTS[1][1]])


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "graph") for name in harness.ALGORITHMS), ("LANS", "mirrored")]
)
def test_one_of_several_optimizers(name: str, mode: str) -> None:
    """Keras's MultiOptimizer gives each block to the optimizer whose pattern fits its path."""
    which = "keras3"
    sgd = keras.optimizers.SGD
    routes = keras.optimizers.OptimizerMap

    def make_both() -> keras.optimizers.Optimizer:
        ours = harness.make(which, name, use_ema=True)
        return keras.optimizers.MultiOptimizer(routes(ours, {"block_1": sgd(0.5)}))

    together = harness.Run(which, make_both, START, mode)
    both = together.optimizer
    ours = both.optimizers[1]
    for gradients in GRADIENTS[:3]:
        together.step(gradients)
    got = together.values()
    alone = harness.Run(which, name, START, mode, use_ema=True)
    for gradients in GRADIENTS[:3]:
        alone.step(gradients)
    expected = alone.values()
    expected[1] = START[1] - 0.5 * sum(each[1] for each in GRADIENTS[:3])
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)
    harness.assert_equal([*got[:1], *got[2:]], [*expected[:1], *expected[2:]])
    assert harness.number(ours.iterations) == harness.number(both.iterations) == 3
    both.finalize_variable_values(together.variables)
    averages = [each.numpy() for each in ours._model_variables_moving_average]
    harness.assert_equal([*together.values()[:1], *together.values()[2:]], averages)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(both))
    assert {type(each) for each in again.optimizers} == {type(ours), sgd}


@both_kerases
@pytest.mark.parametrize(
    "dtype", [tf.bfloat16, tf.float16, tf.float64], ids=lambda dtype: dtype.name
)
def test_every_floating_dtype_is_kept(which: str, dtype: tf.DType) -> None:
    start = [value.astype(dtype.as_numpy_dtype) for value in START[:2]]
    run = harness.Run(which, "LANS", start, "graph", learning_rate=0.125, use_ema=True)
    run.step([value.astype(start[0].dtype) for value in GRADIENTS[0][:2]])
    assert [value.dtype for value in run.values()] == [start[0].dtype] * 2
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    state = [each for each in run.optimizer.variables if len(each.shape)]
    assert len(state) == 6
    assert {tf.as_dtype(each.dtype) for each in state} == {wide}
    assert all(
        np.isfinite(value).all() and not np.array_equal(value, before)
        for value, before in zip(run.values(), start, strict=True)
    )
