"""The optimizers in a whole Keras training, without TensorFlow."""

import pathlib
import sys
from typing import Any

import keras
import numpy as np
import pytest

import tf_lans.keras3
from tests.backends import harness
from tests.backends.harness import each_class, only_jax

# The torch backend would call torch.compile, which needs a C++ compiler.
COMPILATIONS = {"jax": (True, False, "auto"), "torch": (False, "auto")}[harness.BACKEND]


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 8)).astype(np.float32)
    return x, x @ generator.normal(size=(8, 1)).astype(np.float32)


def model(optimizer: Any, **arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "tanh", name="one"), keras.layers.Dense(1, name="two")]
    network = keras.Sequential([keras.Input((8,)), *layers])
    network.compile(optimizer=optimizer, loss="mse", **arguments)
    return network


def fit(network: keras.Model, epochs: int, batch_size: int = 16) -> list[float]:
    x, y = data()
    history = network.fit(x, y, batch_size, epochs, verbose=0, shuffle=False)
    return history.history["loss"]


@each_class
@pytest.mark.parametrize("jit_compile", COMPILATIONS)
@pytest.mark.parametrize("micro_steps", [None, 4])
def test_fit_learns(name: str, jit_compile: bool | str, micro_steps: int | None) -> None:
    optimizer = getattr(tf_lans.keras3, name)(0.03, gradient_accumulation_steps=micro_steps)
    network = model(optimizer, jit_compile=jit_compile)
    losses = fit(network, 10)
    assert losses[-1] < 0.8 * losses[0]
    assert int(optimizer.iterations) == 40 // (micro_steps or 1)
    assert int(optimizer.skipped_steps) == 0


def test_micro_batches_train_like_the_whole_batch() -> None:
    whole = model(tf_lans.keras3.LANS(0.03))
    fit(whole, 4, batch_size=64)
    parts = model(tf_lans.keras3.LANS(0.03, gradient_accumulation_steps=4))
    fit(parts, 4, batch_size=16)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        # Two orders of summation, float32, four updates.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_fit_ends_on_the_averages() -> None:
    optimizer = tf_lans.keras3.LANS(0.03, use_ema=True, ema_momentum=0.5)
    network = model(optimizer)
    fit(network, 2)
    averages = [harness.numpy(each) for each in optimizer._model_variables_moving_average]
    harness.assert_equal(network.get_weights(), averages)
    assert any(np.any(each) for each in averages)


@pytest.mark.parametrize("micro_steps", [None, 8])
def test_averages_that_no_update_has_entered_replace_no_weights(micro_steps: int | None) -> None:
    optimizer = tf_lans.keras3.LANS(0.03, use_ema=True, gradient_accumulation_steps=micro_steps)
    network = model(optimizer)
    start = network.get_weights()
    x, y = data()
    # Skipped for what is not finite, or short of the window.
    network.fit(x * (1 if micro_steps else np.nan), y, 16, verbose=0)
    assert int(optimizer.iterations) == 0
    harness.assert_equal(network.get_weights(), start)


def test_training_goes_on_from_the_averages() -> None:
    """Keras's own optimizers fail here on JAX: weights and averages share their buffers."""
    network = model(tf_lans.keras3.LANS(0.03, use_ema=True, ema_momentum=0.5))
    first, second = fit(network, 2), fit(network, 2)
    assert second[-1] < first[0]


@pytest.mark.parametrize("dtype_policy", ["mixed_bfloat16", "bfloat16"])
def test_fit_learns_in_bfloat16(dtype_policy: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        losses = fit(model(tf_lans.keras3.LANS(0.03)), 10)
    finally:
        keras.config.set_dtype_policy(before)
    assert losses[-1] < 0.5 * losses[0]


@each_class
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 3, "use_ema": True}])
def test_saved_training_goes_on_bit_for_bit(
    name: str, arguments: dict, tmp_path: pathlib.Path
) -> None:
    schedule = tf_lans.keras3.WarmupConstantDecay(0.03, 20, 4, 2)
    network = model(getattr(tf_lans.keras3, name)(schedule, **arguments))
    # 8 micro-steps: in threes, the window is open when the model is saved.
    fit(network, 2)
    network.save(tmp_path / "model.keras")
    fit(network, 1)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(network.optimizer)
    fit(loaded, 1)
    harness.assert_equal(loaded.get_weights(), network.get_weights())
    pairs = zip(loaded.optimizer.variables, network.optimizer.variables, strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(harness.numpy(one), harness.numpy(other))


def test_trust_ratios_of_a_model() -> None:
    optimizer = tf_lans.keras3.LANS(0.03, exclude_from_layer_adaptation=["bias"])
    network = model(optimizer)
    with pytest.raises(ValueError, match="before the optimizer was built"):
        optimizer.trust_ratios()
    fit(network, 1)
    ratios = {path: float(ratio) for path, ratio in optimizer.trust_ratios().items()}
    assert [path.split("/", 1)[1] for path in ratios] == ["one/kernel", "two/kernel"]
    assert all(0 < ratio < 100 and ratio != 1 for ratio in ratios.values())


@only_jax
def test_a_custom_jax_loop() -> None:
    """Keras's stateless API in a step that the user compiles: the numbers of `fit`."""
    import jax

    fitted = model(tf_lans.keras3.LANS(0.03))
    fit(fitted, 2)
    network = model(optimizer := tf_lans.keras3.LANS(0.03))
    optimizer.build(network.trainable_variables)

    def loss(weights: list, x: Any, y: Any) -> Any:
        predictions, _ = network.stateless_call(weights, [], x, training=True)
        return keras.ops.mean(keras.ops.square(predictions - y))

    @jax.jit
    def step(weights: list, state: list, x: Any, y: Any) -> tuple:
        gradients = jax.grad(loss)(weights, x, y)
        return optimizer.stateless_apply(state, gradients, weights)

    weights = [each.value for each in network.trainable_variables]
    state = [each.value for each in optimizer.variables]
    x, y = data()
    for _ in range(2):
        for first in range(0, 64, 16):
            weights, state = step(weights, state, x[first : first + 16], y[first : first + 16])
    for one, other in zip(weights, fitted.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_run_that_only_skips_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(tf_lans.keras3.LANS(0.01), "mse")
    inputs = np.ones((48, 3), np.float32)
    inputs[8:] = np.inf
    watch = tf_lans.keras3.LargeBatchDiagnostics(max_skipped_steps=3, interval=1)
    with caplog.at_level("ERROR", "tf_lans"):
        model.fit(inputs, np.ones((48, 1)), 4, shuffle=False, verbose=0, callbacks=[watch])
    assert "the last 3 steps were skipped" in caplog.text
    assert (int(model.optimizer.iterations), int(model.optimizer.skipped_steps)) == (2, 3)
    assert [row["step"] for row in watch.history] == [1, 2, 2, 2, 2]
    assert all(row["weight_norm"] > 0 for row in watch.history)


@pytest.mark.parametrize("interval", [1, 4])
def test_a_run_that_only_overflows_is_stopped(
    interval: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked every four batches, it finds one bad one for certain among the first four."""
    scaled = keras.optimizers.LossScaleOptimizer(tf_lans.keras3.LANS(0.01))
    network = model(scaled)
    watch = tf_lans.keras3.LargeBatchDiagnostics(max_skipped_steps=4, interval=interval)
    x, y = np.ones((64, 8), np.float32), np.ones((64, 1), np.float32)
    x[8:] = np.nan
    with caplog.at_level("ERROR", "tf_lans"):
        network.fit(x, y, 4, shuffle=False, verbose=0, callbacks=[watch])
    skipped = {1: 4, 4: 2 + 4}[interval]
    assert float(harness.numpy(scaled.dynamic_scale)) == 2.0 ** (15 - skipped)
    assert f"the last {4 if interval == 1 else 5} steps were skipped" in caplog.text
    assert (int(scaled.iterations), int(scaled.inner_optimizer.skipped_steps)) == (2, 0)


class Disk(keras.utils.PyDataset):
    """Two batches, until it fails."""

    fails = False

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self.fails:
            raise OSError("the disk is gone")
        return data()[0][:4], data()[1][:4]


@pytest.mark.parametrize("use_ema", [False, True])
def test_what_fails_in_the_first_step_is_what_is_told(use_ema: bool) -> None:
    """On JAX Keras ends `fit` while the values of all variables are away."""
    network = model(tf_lans.keras3.LANS(0.03, use_ema=use_ema))
    disk = Disk()
    network.fit(disk, verbose=0)
    disk.fails = True
    with pytest.raises(OSError, match="the disk is gone"):
        network.fit(disk, verbose=0)


def test_all_names_come_without_tensorflow() -> None:
    names: dict[str, object] = {}
    exec("from tf_lans import *", names)
    assert names["LANS"] is tf_lans.keras3.LANS
    assert "tensorflow" not in sys.modules


def test_between_looks_the_optimizer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = tf_lans.keras3.LargeBatchDiagnostics(max_skipped_steps=6, interval=4)
    asked: list[int] = []
    find = watch._optimizer
    monkeypatch.setattr(watch, "_optimizer", lambda: asked.append(watch._batches) or find())
    network = model(tf_lans.keras3.LANS(0.03))
    x, y = data()
    inputs = np.concatenate([x, x * np.nan, x * np.nan, x * np.nan])
    network.fit(inputs, np.tile(y, (4, 1)), 8, shuffle=False, verbose=0, callbacks=[watch])
    # It begins, then every four batches, and the epoch ends; eight of 32 batches were good.
    assert asked[0] == 0 and all(batch % 4 == 0 for batch in asked)
    assert int(network.optimizer.iterations) == 8
    assert 6 <= int(network.optimizer.skipped_steps) <= 6 + 4
