"""What the paper leaves open and the design decides: each decision, seen to hold."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_lans
from tests import reference
from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row
from tests.reference import FLOAT32_TOLERANCE
from tf_lans import block_selection

RATE = float(np.float32(0.01))
NORM_CLIPPINGS = ({"clipnorm": 0.7}, {"global_clipnorm": 0.7})


@each_row
def test_zero_gradients_and_zero_variables(which: str, name: str) -> None:
    start = [np.ones((3, 2), np.float32), np.zeros(4, np.float32), np.zeros((0, 3), np.float32)]
    run = harness.Run(which, name, start, "graph", learning_rate=0.01, weight_decay=0.0)
    zeros = [np.zeros_like(value) for value in start]
    run.step(zeros)
    for before, after in zip(start, run.values(), strict=True):
        np.testing.assert_array_equal(before, after)
    run.step([zeros[0], np.ones(4, np.float32), zeros[2]])
    assert np.all(run.values()[1] < 0), "a zero-initialised block learns, with ratio 1"
    assert all(np.all(np.isfinite(value)) for value in run.state())


@both_kerases
@pytest.mark.parametrize(
    ("mode", "bad"), [*((m, np.nan) for m in harness.MODES), ("graph", np.inf)]
)
def test_a_nonfinite_gradient_changes_nothing_but_its_count(
    which: str, mode: str, bad: float
) -> None:
    start = harness.single_values()
    gradients = harness.gradient_steps(start, 3)
    run = harness.Run(which, "LANS", start, mode, learning_rate=0.01, use_ema=True)
    run.step(gradients[0])
    before = run.state()
    poisoned = [value.copy() for value in gradients[1]]
    poisoned[3][0, 1, 0] = bad
    run.step(gradients[1], second=poisoned)  # the second replica's only, where there is one
    harness.assert_equal(run.state(), before)
    assert harness.number(run.optimizer.skipped_steps) == 1
    assert harness.number(run.optimizer.iterations) == 1
    run.step(gradients[2])
    assert harness.number(run.optimizer.iterations) == 2
    if run.mirrored:
        for copies in run.replica_values():
            np.testing.assert_array_equal(copies[0], copies[1])


@both_kerases
def test_nonfinite_gradients_pass_where_skipping_is_off(which: str) -> None:
    start = harness.single_values()
    run = harness.Run(which, "LANS", start, "graph", skip_nonfinite=False)
    gradients = harness.gradient_steps(start, 1)[0]
    gradients[0][0, 0] = np.nan
    run.step(gradients)
    assert np.isnan(run.values()[0]).all()
    assert harness.number(run.optimizer.skipped_steps) == 0
    assert harness.number(run.optimizer.iterations) == 1


@each_row
@pytest.mark.parametrize("mode", ["graph", "mirrored"])
@pytest.mark.parametrize("clipping", [*NORM_CLIPPINGS, {"clipvalue": 0.3}], ids=str)
def test_clipping_acts_once_on_the_global_gradient(
    which: str, name: str, mode: str, clipping: dict
) -> None:
    start = harness.single_values()
    # an epsilon of the gradient's size, so that LAMB feels its scale
    run = harness.Run(which, name, start, mode, learning_rate=0.01, epsilon=0.1, **clipping)
    expected = reference.Reference(harness.ALGORITHMS[name], start, epsilon=0.1)
    for gradients in harness.gradient_steps(start, 5):
        run.step(gradients)
        expected.step(harness.clipped(gradients, **clipping), RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@both_kerases
@pytest.mark.parametrize("name", ["LANS", "BlockNormalizedAdamW"])
@pytest.mark.parametrize("clipping", NORM_CLIPPINGS, ids=str)
def test_a_bound_on_norms_changes_no_bit_where_gradients_are_normalized(
    which: str, name: str, clipping: dict
) -> None:
    start = harness.single_values()
    plain, clipped = (
        harness.Run(which, name, start, "graph", learning_rate=0.01, **arguments)
        for arguments in ({}, clipping)
    )
    for gradients in harness.gradient_steps(start, 5):
        plain.step(gradients)
        clipped.step(gradients)
    harness.assert_equal(clipped.state(), plain.state())


@both_kerases
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_slices_are_summed_before_the_norm(which: str, mode: str) -> None:
    start = [np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)]
    sparse = harness.Run(which, "LANS", start, learning_rate=0.01)
    rows = np.array([[1, 2, 3], [4, 5, 6], [-1, 1, 0]], np.float32)

    def step() -> None:
        slices = tf.IndexedSlices(tf.constant(rows), tf.constant([4, 1, 4]), tf.constant([5, 3]))
        sparse._apply([slices])

    {"eager": step, "graph": tf.function(step), "xla": tf.function(step, jit_compile=True)}[mode]()
    dense = np.zeros((5, 3), np.float32)
    np.add.at(dense, [4, 1, 4], rows)
    expected = reference.Reference("lans", start)
    expected.step([dense], RATE)
    assert reference.relative_error(sparse.values(), expected.values, start) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_accumulated_slices_are_one_gradient(mode: str) -> None:
    start = [np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)]
    run = harness.Run("keras3", "LANS", start, learning_rate=0.01, gradient_accumulation_steps=2)
    parts = (([[1, 2, 3], [4, 5, 6]], [4, 4]), ([[-1, 1, 0], [2, 0, 2]], [1, 4]))
    mean = np.zeros((5, 3), np.float32)

    def micro_step(rows: tf.Tensor, indices: tf.Tensor) -> None:
        run._apply([tf.IndexedSlices(rows, indices, tf.constant([5, 3]))])

    step = tf.function(micro_step) if mode == "graph" else micro_step
    for rows, indices in parts:
        step(tf.constant(rows, tf.float32), tf.constant(indices))
        np.add.at(mean, indices, np.divide(rows, 2))
    expected = reference.Reference("lans", start)
    expected.step([mean], RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@both_kerases
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_sixteen_bit_variables_keep_moving(which: str, dtype: tf.DType) -> None:
    start = [np.ones((16, 4), dtype.as_numpy_dtype)]
    gradients = [np.ones((16, 4), dtype.as_numpy_dtype)]
    run = harness.Run(which, "LANS", start, "graph", learning_rate=0.05, weight_decay=0.0)
    places = []
    for _ in range(30):
        run.step(gradients)
        places.append(float(run.values()[0][0, 0]))
    assert all(later < earlier for earlier, later in zip(places, places[1:], strict=False))
    moments = [each for each in run.optimizer.variables if tuple(each.shape) == (16, 4)]
    assert [tf.as_dtype(each.dtype) for each in moments] == [tf.float32, tf.float32]


def test_bfloat16_moves_where_keras_lamb_stands_still() -> None:
    """Keras keeps v in bfloat16, where beta_2 = 0.999 rounds to 1."""
    start = [np.ones((16, 4), tf.bfloat16.as_numpy_dtype)]
    arguments = {"learning_rate": 0.05, "weight_decay": 0.0}
    theirs = harness.Run("keras3", keras.optimizers.Lamb, start, **arguments)
    ours = harness.Run("keras3", "LAMB", start, **arguments)
    for run in (theirs, ours):
        for _ in range(20):
            run.step([np.ones_like(start[0])])
    harness.assert_equal(theirs.values(), start)
    assert float(ours.values()[0][0, 0]) < 0.5


@both_kerases
def test_the_ratio_of_a_block_without_gradients_is_what_a_step_makes_of_it(which: str) -> None:
    start = harness.single_values()[:1]
    run = harness.Run(which, "LAMB", start, learning_rate=0.01)
    zeros = [np.zeros_like(start[0])]
    run.step(zeros)
    before = run.values()[0].astype(np.float64)
    (ratio,) = map(float, run.optimizer.trust_ratios().values())
    run.step(zeros)
    # x - eta ratio lambda x: three products and a difference, each rounded by 2^-24 at most
    np.testing.assert_allclose(run.values()[0], before * (1 - 1e-4 * ratio), rtol=4 * 2.0**-24)
    assert ratio == pytest.approx(100, rel=1e-5)


@each_row
def test_keras_does_not_decay_a_second_time(which: str, name: str) -> None:
    start = harness.single_values()
    arguments = {"learning_rate": 0.01, "weight_decay": 0.5, "jit_compile": False}
    run = harness.Run(which, name, start, "graph", **arguments)
    expected = reference.Reference(harness.ALGORITHMS[name], start, weight_decay=0.5)
    for gradients in harness.gradient_steps(start, 5):
        run.step(gradients)
        expected.step(gradients, RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@both_kerases
@pytest.mark.parametrize("mode", ["eager", "graph", "mirrored"])
def test_moving_average_and_overwriting(which: str, mode: str) -> None:
    start = harness.single_values()
    run = harness.Run(
        which,
        "LANS",
        start,
        mode,
        learning_rate=0.01,
        use_ema=True,
        ema_momentum=0.8,
        ema_overwrite_frequency=3,
    )
    expected = reference.Reference("lans", start)
    # tf_keras starts the average at the first weights, Keras 3 at the first update's
    average = [value.astype(np.float64) for value in start] if which == "tf_keras" else None
    for number, gradients in enumerate(harness.gradient_steps(start, 7), start=1):
        run.step(gradients)
        expected.step(gradients, RATE)
        if average is None:
            average = list(expected.values)
        else:
            average = [
                0.8 * old + 0.2 * new for old, new in zip(average, expected.values, strict=True)
            ]
        if number % 3 == 0:
            expected.values = list(average)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_keras_swaps_averages_with_float32_weights_only(policy: str) -> None:
    """SwapEMAWeights adds averages, which are float32, to weights without a cast."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = harness.make_model("keras3", use_ema=True)
        harness.fit(model, 1)
        callback = keras.callbacks.SwapEMAWeights()
        callback.set_model(model)
        refused = pytest.raises(ValueError, match="Incompatible type conversion")
        with refused if policy == "bfloat16" else contextlib.nullcontext():
            callback.on_test_begin()
    finally:
        keras.config.set_dtype_policy(before)


@both_kerases
@pytest.mark.parametrize("mode", ["eager", "graph", "mirrored"])
def test_constraints_hold_and_a_skipped_step_leaves_them_alone(which: str, mode: str) -> None:
    start = [np.array([-1.0, 1.0, 2.0], np.float32)]
    constraint = harness.BASES[which].constraints.NonNeg()
    run = harness.Run(which, "LANS", start, mode, constraint, learning_rate=0.01)
    run.step([np.array([np.nan, 1, 1], np.float32)])
    np.testing.assert_array_equal(run.values()[0], start[0])
    run.step([np.array([1, 1, 1], np.float32)])
    assert run.values()[0][0] == 0.0
    assert (run.values()[0][1:] > 0).all()


@pytest.mark.parametrize("mode", harness.MODES)
def test_accumulated_micro_steps_are_one_update(mode: str) -> None:
    """Keras 3's own accumulation fails in graph mode under MirroredStrategy."""
    start = harness.single_values()
    schedule = harness.PACKAGES["keras3"].WarmupConstantDecay(0.02, 6, 2, 1)
    run = harness.Run(
        "keras3", "LAMB", start, mode, learning_rate=schedule, gradient_accumulation_steps=4,
        global_clipnorm=3.0, epsilon=0.1,
    )  # fmt: skip
    expected = reference.Reference("lamb", start, epsilon=0.1)
    steps = harness.gradient_steps(start, 24)
    for update in range(6):
        window = steps[4 * update : 4 * update + 4]
        for micro_step, gradients in enumerate(window):
            assert harness.number(run.optimizer.iterations) == update, micro_step
            run.step(gradients)
        mean = [np.mean(each, axis=0) for each in zip(*window, strict=True)]
        expected.step(harness.clipped(mean, global_clipnorm=3.0), float(schedule(update)))
    assert harness.number(run.optimizer.iterations) == 6
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("mode", harness.MODES)
def test_a_nonfinite_micro_step_discards_its_window(mode: str) -> None:
    start = harness.single_values()
    arguments = {"learning_rate": 0.01, "gradient_accumulation_steps": 2}
    run = harness.Run("keras3", "LANS", start, mode, **arguments)
    clean = harness.Run("keras3", "LANS", start, mode, **arguments)
    steps = harness.gradient_steps(start, 6)
    poisoned = [value.copy() for value in steps[2]]
    poisoned[0][0, 0] = np.inf
    for gradients in (steps[0], steps[1], poisoned, steps[3], steps[4], steps[5]):
        run.step(gradients)
    for gradients in (steps[0], steps[1], steps[4], steps[5]):
        clean.step(gradients)
    harness.assert_equal(run.state(), clean.state())
    assert harness.number(run.optimizer.skipped_steps) == 1
    assert harness.number(run.optimizer.iterations) == 2


@pytest.mark.parametrize("mode", harness.MODES)
def test_a_nonfinite_micro_step_enters_the_mean_where_skipping_is_off(mode: str) -> None:
    start = harness.single_values()
    run = harness.Run(
        "keras3", "LANS", start, mode, learning_rate=0.01, gradient_accumulation_steps=2,
        skip_nonfinite=False,
    )  # fmt: skip
    first, second = harness.gradient_steps(start, 2)
    expected = reference.Reference("lans", start)
    expected.step([(one + two) / 2 for one, two in zip(first, second, strict=True)], RATE)
    first[0][0, 0] = np.nan
    run.step(first)
    harness.assert_equal(run.values(), start)
    run.step(second)
    assert np.isnan(run.values()[0]).all()
    rest = run.values()[1:], expected.values[1:], start[1:]
    assert reference.relative_error(*rest) <= FLOAT32_TOLERANCE
    assert harness.number(run.optimizer.skipped_steps) == 0
    assert harness.number(run.optimizer.iterations) == 1


@both_kerases
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_schedules_count_updates_and_skipped_steps_do_not_move_them(which: str, mode: str) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay(0.02, 8, 3, 2)
    start = harness.single_values()
    run = harness.Run(which, "LANS", start, mode, learning_rate=schedule)
    expected = reference.Reference("lans", start)
    for number, gradients in enumerate(harness.gradient_steps(start, 5)):
        run.step([np.full_like(value, np.nan) for value in gradients])
        run.step(gradients)
        expected.step(gradients, float(schedule(number)))
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@both_kerases
def test_wrong_distribution_contexts_are_refused_by_name(which: str) -> None:
    start = harness.single_values()
    run = harness.Run(which, "LANS", start, "mirrored")
    gradients = list(map(tf.constant, start))
    with harness.two_replicas().scope(), pytest.raises(RuntimeError, match="strategy.run"):
        run._apply(gradients)
    outside = harness.Run(which, "LANS", start)
    with pytest.raises(RuntimeError, match="strategy.scope"):
        harness.two_replicas().run(outside._apply, args=(gradients,))


def test_patterns_over_no_variables_are_no_mistake() -> None:
    settings = tf_lans.LANS(exclude_from_weight_decay=["bias"]).hyperparameters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block_selection.warn_of_unmatched(settings, [])
