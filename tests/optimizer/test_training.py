"""Real training loops: fit, saving, restoring, and Model Garden's way of taking a step."""

import numpy as np
import pytest
import tensorflow as tf

from tests.optimizer import harness
from tf_lans import compiled_update

BOTH = pytest.mark.parametrize("which", harness.KERASES)
NAMES = ["LANS", "LAMB", "BlockNormalizedAdamW"]


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 5)).astype(np.float32)
    return inputs, inputs @ generator.normal(size=(5, 1)).astype(np.float32)


def make_model(which: str, name: str = "LANS", jit_compile: object = None, **arguments):
    base, package = harness.BASES[which], harness.PACKAGES[which]
    base.utils.set_random_seed(0)
    model = base.Sequential(
        [base.layers.Input((5,)), base.layers.Dense(8, "tanh"), base.layers.Dense(1)]
    )
    arguments.setdefault("learning_rate", package.WarmupConstantDecay(0.05, 80, 10, 10))
    optimizer = getattr(package, name)(exclude_from_weight_decay=["bias"], **arguments)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def fit(model, epochs: int) -> list[float]:
    inputs, targets = data()
    history = model.fit(inputs, targets, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize(
    ("which", "jit"),
    [("keras3", "auto"), ("keras3", True), ("keras3", False), ("tf_keras", None),
     ("tf_keras", True)],
)  # fmt: skip
def test_fit_learns(which: str, jit: object) -> None:
    losses = fit(make_model(which, jit_compile=jit), 15)
    assert losses[-1] < 0.2 * losses[0]


@BOTH
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".keras", ""])
def test_a_saved_model_resumes_bit_for_bit(which: str, name: str, suffix: str, tmp_path) -> None:
    if which == "keras3" and not suffix:
        pytest.skip("Keras 3 does not load a SavedModel as a model")
    base = harness.BASES[which]
    straight, broken = make_model(which, name), make_model(which, name)
    fit(straight, 4)
    fit(broken, 2)
    path = tmp_path / f"model{suffix}"
    broken.save(path)
    restored = base.models.load_model(path)
    before, after = broken.optimizer, restored.optimizer
    if not suffix:  # load_model restores no optimizer's state from a SavedModel; the file has it
        after.build(restored.trainable_variables)
        status = tf.train.Checkpoint(restored).restore(str(path / "variables" / "variables"))
        status.expect_partial()
    assert type(after) is type(before)
    assert after.get_config() == before.get_config()
    assert len(after.variables) == len(before.variables)
    fit(restored, 2)
    for one, other in zip(straight.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert harness.number(after.iterations) == harness.number(straight.optimizer.iterations)


@BOTH
def test_a_checkpoint_holds_all_state(which: str, tmp_path) -> None:
    trained, fresh = make_model(which), make_model(which)
    fit(trained, 2)
    trained.optimizer.skipped_steps.assign(3)
    path = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer).save(tmp_path / "c")
    fit(fresh, 1)
    status = tf.train.Checkpoint(model=fresh, optimizer=fresh.optimizer).restore(path)
    status.assert_existing_objects_matched()
    for one, other in zip(trained.optimizer.variables, fresh.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    fit(trained, 1)
    fit(fresh, 1)
    for one, other in zip(trained.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert harness.number(fresh.optimizer.skipped_steps) == 3


@BOTH
def test_a_custom_loop_in_a_distributed_function(which: str) -> None:
    """Model Garden's way: apply_gradients in a replica context inside strategy.run."""
    inputs, targets = data()
    strategy = harness.two_replicas()
    single = make_model(which)
    with strategy.scope():
        model = make_model(which)

    def step(model, features, labels, global_batch_size: int) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(features) - labels)) / global_batch_size
        weights = model.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    @tf.function
    def distributed_step(features, labels) -> None:
        strategy.run(step, args=(model, features, labels, 16))

    plain_step = tf.function(lambda features, labels: step(single, features, labels, 16))
    for begin in range(0, 64, 16):
        halves = [
            strategy.experimental_distribute_values_from_function(
                lambda context, array=array, begin=begin: tf.constant(
                    array[begin + 8 * context.replica_id_in_sync_group :][:8]
                )
            )
            for array in (inputs, targets)
        ]
        distributed_step(*halves)
        plain_step(
            tf.constant(inputs[begin : begin + 16]), tf.constant(targets[begin : begin + 16])
        )
    assert harness.number(model.optimizer.iterations) == 4
    for one, other in zip(single.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@BOTH
def test_one_program_for_each_block_shape(which: str) -> None:
    start = [np.ones((3, 7), np.float32)] * 4 + [np.ones(11, np.float32)] * 3
    epsilon = 3e-6 if which == "keras3" else 4e-6  # the Kerases share their programs
    run = harness.Run(which, "LANS", start, "graph", epsilon=epsilon)
    before = compiled_update.block_program.cache_info().currsize
    for _ in range(3):
        run.step([value + 1 for value in start])
    assert compiled_update.block_program.cache_info().currsize - before == 2


@BOTH
def test_the_learning_rate_can_be_set(which: str) -> None:
    run = harness.Run(which, "LANS", [np.ones(3, np.float32)], "graph", learning_rate=0.5)
    run.step([np.ones(3, np.float32)])
    run.optimizer.learning_rate = 0.0
    before = run.values()[0]
    run.step([np.ones(3, np.float32)])
    np.testing.assert_array_equal(before, run.values()[0])
    assert not np.array_equal(before, np.ones(3))
