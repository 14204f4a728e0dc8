"""`keras.distribution` on two JAX devices: the numbers of one, the state where the weights are."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest

import tf_lans.keras3
from tests.backends import harness
from tests.backends.harness import each_class, only_jax
from tests.backends.test_training import fit, model

pytestmark = only_jax

STATEFUL = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5}


def data_parallel() -> keras.distribution.DataParallel:
    return keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))


def model_parallel() -> keras.distribution.ModelParallel:
    devices = keras.distribution.list_devices("cpu")
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*one/kernel"] = (None, "model")
    layouts[".*one/bias"] = ("model",)
    layouts[".*two/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


@pytest.fixture
def undistributed() -> Iterator[None]:
    assert len(keras.distribution.list_devices("cpu")) == 2
    yield
    keras.distribution.set_distribution(None)


@pytest.mark.usefixtures("undistributed")
@pytest.mark.parametrize("distribution", [data_parallel, model_parallel])
@pytest.mark.parametrize("arguments", [{}, STATEFUL], ids=["plain", "stateful"])
@each_class
def test_two_devices_train_like_one(name: str, distribution, arguments: dict) -> None:
    make = getattr(tf_lans.keras3, name)
    alone = model(make(0.03, **arguments))
    fit(alone, 2)
    keras.distribution.set_distribution(distribution())
    together = model(make(0.03, **arguments))
    fit(together, 2)
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        # Two orders of summation, float32, at most eight updates.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    if name != "BlockNormalizedAdamW":
        ratios = [
            [float(ratio) for ratio in each.optimizer.trust_ratios().values()]
            for each in (alone, together)
        ]
        np.testing.assert_allclose(*ratios, rtol=1e-4)


@pytest.mark.usefixtures("undistributed")
def test_state_is_sharded_like_its_variable() -> None:
    import jax

    keras.distribution.set_distribution(model_parallel())
    network = model(optimizer := tf_lans.keras3.LANS(0.03, **STATEFUL))
    optimizer.build(network.trainable_variables)
    for trained in (False, True):
        if trained:
            fit(network, 1)
        for index, variable in enumerate(network.trainable_variables):
            state = [
                optimizer._momentums[index],
                optimizer._velocities[index],
                optimizer._model_variables_moving_average[index],
                optimizer._accumulated_gradients[index],
            ]
            for each in state:
                assert each.value.sharding.is_equivalent_to(
                    variable.value.sharding, len(variable.shape)
                ), (variable.path, each.path)
    kernel = network.trainable_variables[0].value
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "model")
    shard = optimizer._momentums[0].value.addressable_shards[0].data
    assert (kernel.shape, shard.shape) == ((8, 16), (8, 8))


@pytest.mark.usefixtures("undistributed")
def test_norms_are_those_of_the_whole_variable() -> None:
    """Half of the kernel is zero, and with it all that one of the two devices holds."""
    start = np.zeros((8, 16), np.float32)
    start[:, :8] = np.random.default_rng(0).normal(size=(8, 8))
    gradient = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    values = []
    for distribution in (None, model_parallel()):
        keras.distribution.set_distribution(distribution)
        layer = keras.layers.Dense(16, use_bias=False, name="one")
        layer.build((None, 8))
        layer.kernel.assign(start)
        optimizer = tf_lans.keras3.LANS(0.03)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [layer.kernel])
        values.append(harness.numpy(layer.kernel))
    assert [each.data.shape for each in layer.kernel.value.addressable_shards] == [(8, 8)] * 2
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-7)
    assert (values[0][:, 8:] != 0).all()
