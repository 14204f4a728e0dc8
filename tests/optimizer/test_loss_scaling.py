"""Inside a LossScaleOptimizer: what each of the two skips and counts, and where it is refused."""

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row
from tf_lans import loss_scale

START = harness.single_values()
GRADIENTS = harness.gradient_steps(START, 6)
SCALE = 1024.0
WRAPPERS = {
    "keras3": keras.optimizers.LossScaleOptimizer,
    "tf_keras": tf_keras.mixed_precision.LossScaleOptimizer,
}


def wrapped(which: str, name: str = "LANS", **arguments: Any) -> Callable[[], Any]:
    """What makes the optimizer inside one that scales the loss, and grows every two steps."""
    return lambda: WRAPPERS[which](
        harness.make(which, name, **arguments), initial_scale=SCALE, dynamic_growth_steps=2
    )


def scale(optimizer: Any) -> float:
    loss_scale = getattr(optimizer, "loss_scale", None)
    return float(optimizer.dynamic_scale.numpy() if loss_scale is None else loss_scale)


def scaled(which: str, gradients: list[np.ndarray], factor: float) -> list[np.ndarray]:
    """What the wrapper is given: Keras 3's divides by the scale itself, tf_keras's user does."""
    return [each * np.float32(factor if which == "keras3" else 1.0) for each in gradients]


@pytest.fixture
def policy() -> Iterator[Callable[[str, str], None]]:
    """Sets a global dtype policy until the test ends."""
    kerases = {"keras3": keras, "tf_keras": tf_keras}
    yield lambda which, name: kerases[which].mixed_precision.set_global_policy(name)
    for each in kerases.values():
        each.mixed_precision.set_global_policy("float32")


@each_row
def test_overflow_and_recovery(which: str, name: str) -> None:
    """The outer skip is the outer's: it changes no weight, no moment and no `skipped_steps`.

    tf_keras's wrapper advances `iterations` where it skips; Keras 3's does not.
    """
    run = harness.Run(which, wrapped(which, name), START, "graph")
    inner = run.optimizer.inner_optimizer
    plain = harness.Run(which, name, START, "graph")
    overflow = [np.full_like(value, np.inf) for value in START]
    run.step(scaled(which, GRADIENTS[0], SCALE))
    plain.step(GRADIENTS[0])
    harness.assert_equal(run.values(), plain.values())
    for halvings in (1, 2):
        run.step(overflow)
        assert scale(run.optimizer) == SCALE / 2**halvings
    harness.assert_equal(run.values(), plain.values())
    assert harness.number(inner.skipped_steps) == 0
    assert harness.number(inner.iterations) == (1 if which == "keras3" else 3)
    if which == "tf_keras":
        plain.optimizer.iterations.assign(3)
    for gradients in GRADIENTS[1:3]:
        run.step(scaled(which, gradients, SCALE / 4))
        plain.step(gradients)
    harness.assert_equal(run.values(), plain.values())
    assert scale(run.optimizer) == SCALE / 2


@both_kerases
def test_the_inner_skips_what_only_the_norm_shows(which: str) -> None:
    """Finite gradients whose squares overflow: the outer counts a step, the inner a skip."""
    run = harness.Run(which, wrapped(which), START, "graph")
    run.step([np.full_like(value, 1e30) for value in START])
    inner = run.optimizer.inner_optimizer
    harness.assert_equal(run.values(), START)
    assert harness.number(inner.skipped_steps) == 1
    assert harness.number(inner.iterations) == 0
    assert scale(run.optimizer) == SCALE


def test_accumulation_inside_loss_scaling() -> None:
    """An overflowing micro-step is no micro-step: the window waits for another."""
    arguments = {"gradient_accumulation_steps": 2}
    run = harness.Run("keras3", wrapped("keras3", **arguments), START, "graph")
    plain = harness.Run("keras3", "LANS", START, "graph", **arguments)
    overflow = [np.full_like(value, np.inf) for value in START]
    run.step(scaled("keras3", GRADIENTS[0], SCALE))
    run.step(overflow)
    run.step(scaled("keras3", GRADIENTS[1], SCALE / 2))
    for gradients in GRADIENTS[:2]:
        plain.step(gradients)
    harness.assert_equal(run.values(), plain.values())
    assert harness.number(run.optimizer.inner_optimizer.iterations) == 1


@both_kerases
def test_slices_inside_loss_scaling(which: str) -> None:
    run = harness.Run(which, wrapped(which), START[:1])
    plain = harness.Run(which, "LANS", START[:1])
    rows, indices = GRADIENTS[0][0][:3], tf.constant([6, 2, 6])
    for each, factor in ((run, SCALE if which == "keras3" else 1.0), (plain, 1.0)):
        each._apply([tf.IndexedSlices(rows * np.float32(factor), indices, tf.constant([7, 5]))])
    harness.assert_equal(run.values(), plain.values())


@pytest.mark.parametrize("mode", ["mirrored", "mirrored_eager"])
def test_keras3_loss_scaling_under_several_replicas_is_refused(mode: str) -> None:
    def in_both() -> keras.optimizers.Optimizer:
        routes = keras.optimizers.OptimizerMap(harness.make("keras3"))
        return WRAPPERS["keras3"](keras.optimizers.MultiOptimizer(routes))

    for make in (wrapped("keras3"), in_both):
        run = harness.Run("keras3", make, START, mode)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="one replica's gradients.*mixed_bfloat16"):
                run.step(GRADIENTS[0])
        harness.assert_equal(run.values(), START)


def test_keras3_mixed_float16_under_several_replicas_is_refused(policy: Callable) -> None:
    """`compile` wraps the optimizer by itself under this policy."""
    policy("keras3", "mixed_float16")
    with harness.two_replicas().scope():
        model = harness.make_model("keras3")
    with pytest.raises(RuntimeError, match="LossScaleOptimizer under 2 replicas.*mixed_bfloat16"):
        harness.fit(model, 1)


@pytest.mark.parametrize("mode", ["mirrored", "mirrored_eager"])
def test_tf_keras_loss_scaling_sees_the_overflow_of_any_replica(mode: str) -> None:
    run = harness.Run("tf_keras", wrapped("tf_keras"), START, mode)
    plain = harness.Run("tf_keras", "LANS", START, mode)
    overflow = [np.full_like(value, np.inf) for value in START]
    run.step(GRADIENTS[0], second=overflow)
    harness.assert_equal(run.values(), START)
    assert scale(run.optimizer) == SCALE / 2
    plain.optimizer.iterations.assign(1)
    run.step(GRADIENTS[0])
    plain.step(GRADIENTS[0])
    harness.assert_equal(run.values(), plain.values())


@both_kerases
@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_policies_train(which: str, name: str, policy: Callable) -> None:
    policy(which, name)
    model = harness.make_model(which, use_ema=True, ema_momentum=0.5)
    assert hasattr(model.optimizer, "inner_optimizer") == (name == "mixed_float16")
    losses = harness.fit(model, 8)
    assert losses[-1] < 0.5 * losses[0]
    stored = np.float32 if name.startswith("mixed") else tf.bfloat16.as_numpy_dtype
    assert all(value.dtype == stored for value in model.get_weights())


@both_kerases
def test_a_model_under_loss_scaling_resumes(
    which: str, policy: Callable, tmp_path: pathlib.Path
) -> None:
    policy(which, "mixed_float16")
    straight, broken = harness.make_model(which), harness.make_model(which)
    harness.fit(straight, 2)
    harness.fit(broken, 1)
    broken.save(tmp_path / "model.keras")
    again = harness.BASES[which].models.load_model(tmp_path / "model.keras")
    harness.fit(again, 1)
    harness.assert_equal(again.get_weights(), straight.get_weights())
    assert type(again.optimizer) is type(straight.optimizer)


def watched_fit(
    which: str, inputs: list[float], optimizer: Any, target: float = 0.0, steps: int = 1, **watch
) -> tuple[Any, Any]:
    """A fit under mixed_float16 of batches that each hold one number, and its watch."""
    base = harness.BASES[which]
    base.utils.set_random_seed(0)
    model = base.Sequential([base.layers.Input((3,)), base.layers.Dense(1, name="dense")])
    model.compile(optimizer, "mse", jit_compile=False, steps_per_execution=steps)
    callback = harness.PACKAGES[which].LargeBatchDiagnostics(**watch)
    values = np.repeat(np.float32(inputs), 4)[:, None] * np.ones((1, 3), np.float32)
    targets = np.full((len(values), 1), target, np.float32)
    model.fit(values, targets, 4, shuffle=False, verbose=0, callbacks=[callback])
    return model.optimizer, callback


@pytest.mark.parametrize(
    ("which", "arguments", "steps", "bad"),
    [
        ("keras3", {}, 1, 5),
        ("keras3", {}, 4, 8),  # asked after each execution of four
        ("keras3", {"gradient_accumulation_steps": 4}, 1, 5),
        ("tf_keras", {}, 1, 5),
        ("tf_keras", {}, 4, 8),
    ],
    ids=str,
)
def test_a_run_that_only_overflows_is_stopped(
    which: str, arguments: dict, steps: int, bad: int, policy: Callable, caplog: Any
) -> None:
    """NaN comes after four good batches; each overflow halves the scale once."""
    policy(which, "mixed_float16")
    inputs = [0.01] * 4 + [np.nan] * 26
    made = harness.make(which, learning_rate=0.01, **arguments)
    with caplog.at_level(logging.ERROR, "tf_lans"):
        optimizer, _ = watched_fit(which, inputs, made, steps=steps, max_skipped_steps=5)
    assert scale(optimizer) == 2.0 ** (15 - bad)
    assert f"stopped: the last {bad} steps were skipped" in caplog.text
    assert "does not tell" in caplog.text


@both_kerases
def test_the_first_overflows_of_a_healthy_run_do_not_stop_it(
    which: str, policy: Callable, caplog: Any
) -> None:
    """The bias's gradient is 2 * 300 times the scale; 600 times 2^6 fits into float16's 65504."""
    policy(which, "mixed_float16")
    made = harness.make(which, learning_rate=0.01)
    optimizer, watch = watched_fit(which, [0.01] * 12, made, target=300.0, interval=1)
    assert scale(optimizer) == 2.0**6
    assert watch.history[-1]["skipped_steps"] == 0
    assert "stopped" not in caplog.text
    updates = harness.number(optimizer.inner_optimizer.iterations)
    assert updates == (3 if which == "keras3" else 12)


@both_kerases
def test_overflows_that_are_not_in_a_row_do_not_stop_a_run(which: str, policy: Callable) -> None:
    policy(which, "mixed_float16")
    made = harness.make(which, learning_rate=0.01)
    optimizer, _ = watched_fit(which, [np.nan, 0.01] * 6, made, max_skipped_steps=2)
    assert scale(optimizer) == 2.0 ** (15 - 6)


def test_behind_a_fixed_scale_the_optimizer_skips_and_names_the_blocks(caplog: Any) -> None:
    inner = harness.make("tf_keras", learning_rate=0.01)
    fixed = WRAPPERS["tf_keras"](inner, dynamic=False, initial_scale=SCALE)
    optimizer, _ = watched_fit("tf_keras", [np.nan] * 12, fixed, max_skipped_steps=5)
    assert harness.number(inner.skipped_steps) == 5
    assert loss_scale.loss_scale_now(optimizer) is None
    assert "dense/kernel" in caplog.text


@pytest.mark.parametrize(
    ("before", "now", "batches", "in_a_row"),
    [
        ((8.0, 0, 1.0), (4.0, 0, 1.0), 1, 4),
        ((8.0, 0, 1.0), (16.0, 0, 1.0), 1, 0),  # grown, with a count of 0 too
        ((8.0, 5, 1.0), (8.0, 6, 1.0), 1, 0),
        ((1.0, 0, 1.0), (1.0, 0, 1.0), 1, 4),  # no lower scale in tf_keras
        ((2.0, 0, 1.0), (1.0, 0, 1.0), 4, 4),  # of four, one is certain
        ((0.0, 0, 0.0), (0.0, 0, 0.0), 4, 7),  # Keras 3's has underflowed
        ((8.0, 0, 0.0), (2.0, 0, 0.0), 4, 1),  # a good one among the four
    ],
    ids=str,
)
def test_the_scale_tells_of_overflows_in_a_row(
    before: tuple, now: tuple, batches: int, in_a_row: int
) -> None:
    looks = loss_scale.LossScale(*before), loss_scale.LossScale(*now)
    assert loss_scale.overflows_in_a_row(3, *looks, batches) == in_a_row


def test_trust_ratios_after_steps_that_only_the_wrapper_counted() -> None:
    """No gradient has come in: the ratios are those of steps with a zero gradient."""
    run = harness.Run("tf_keras", wrapped("tf_keras", "LAMB"), START)
    run.step([np.full_like(value, np.inf) for value in START])
    inner = run.optimizer.inner_optimizer
    assert (harness.number(inner.iterations), harness.number(inner.skipped_steps)) == (1, 0)
    ratios = [float(ratio) for ratio in inner.trust_ratios().values()]
    np.testing.assert_allclose(ratios, 1 / inner.weight_decay, rtol=1e-5)
