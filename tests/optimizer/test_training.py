"""Real training loops: fit in each of its ways, and Model Garden's way of taking a step."""

import numpy as np
import pytest
import tensorflow as tf

from tests.optimizer import harness
from tests.optimizer.harness import both_kerases
from tf_lans import compiled_update

STEPS_PER_EXECUTION = {"steps_per_execution": 4}


@pytest.mark.parametrize(
    ("which", "arguments"),
    [
        ("keras3", {"jit_compile": "auto"}),
        ("keras3", {"jit_compile": True}),
        ("keras3", {"jit_compile": False, **STEPS_PER_EXECUTION}),
        ("keras3", {"jit_compile": True, **STEPS_PER_EXECUTION}),
        ("keras3", {"run_eagerly": True}),
        ("tf_keras", {}),
        ("tf_keras", {"jit_compile": True}),
        ("tf_keras", {"jit_compile": False, **STEPS_PER_EXECUTION}),
        ("tf_keras", {"run_eagerly": True}),
    ],
    ids=str,
)
def test_fit_learns(which: str, arguments: dict) -> None:
    model = harness.make_model(which, compile_arguments=arguments)
    losses = harness.fit(model, 8)
    assert losses[-1] < 0.5 * losses[0]
    assert harness.number(model.optimizer.iterations) == 32


@both_kerases
def test_fit_ends_on_the_averages(which: str) -> None:
    model = harness.make_model(which, use_ema=True, ema_momentum=0.5)
    harness.fit(model, 1)
    averages = [each.numpy() for each in model.optimizer._model_variables_moving_average]
    harness.assert_equal(model.get_weights(), averages)


@pytest.mark.parametrize(
    ("which", "micro_steps"), [("keras3", None), ("keras3", 8), ("tf_keras", None)]
)
def test_averages_that_no_update_has_entered_replace_no_weights(
    which: str, micro_steps: int | None
) -> None:
    accumulation = {"gradient_accumulation_steps": micro_steps} if micro_steps else {}
    model = harness.make_model(which, use_ema=True, **accumulation)
    start = model.get_weights()
    inputs, targets = harness.data()
    # Skipped for what is not finite, or short of the window.
    model.fit(inputs * (1 if micro_steps else np.nan), targets, len(inputs) // 4, verbose=0)
    assert harness.number(model.optimizer.iterations) == 0
    harness.assert_equal(model.get_weights(), start)


def test_a_custom_loop_in_a_distributed_function() -> None:
    """Model Garden's way: apply_gradients in a replica context inside strategy.run."""
    which = "tf_keras"
    inputs, targets = harness.data()
    strategy = harness.two_replicas()
    single = harness.make_model(which)
    with strategy.scope():
        model = harness.make_model(which)

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


@both_kerases
def test_one_program_for_each_block_shape(which: str) -> None:
    start = [np.ones((3, 7), np.float32)] * 4 + [np.ones(11, np.float32)] * 3
    epsilon = 3e-6 if which == "keras3" else 4e-6  # the Kerases share their programs
    run = harness.Run(which, "LANS", start, "graph", epsilon=epsilon)
    before = compiled_update.block_program.cache_info().currsize
    for _ in range(3):
        run.step([value + 1 for value in start])
    assert compiled_update.block_program.cache_info().currsize - before == 2
