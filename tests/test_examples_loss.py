"""The loss of examples/keras_hub_pretrain.py: the mean over the words of the global batch."""

import pathlib
import types
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import tf_lans
import tfrecords
from tests.examples import load, read


@pytest.fixture(scope="module")
def pretraining() -> types.ModuleType:
    return load("keras_hub_pretrain")


def tiny(shards: pathlib.Path) -> keras.Model:
    """A model without biases: that of attention's keys has no gradient but rounding noise."""
    keras.utils.set_random_seed(0)
    vocabulary_size = tfrecords.Manifest.load(shards).vocab_size
    backbone = keras_hub.models.RoformerV2Backbone(
        vocabulary_size, 1, 2, 16, 32, head_size=8, dropout=0.0
    )
    return keras_hub.models.RoformerV2MaskedLM(backbone)


def compiled(model: keras.Model, **loss_arguments: str) -> keras.Model:
    model.compile(
        optimizer=tf_lans.LANS(0.02),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss_arguments),
        weighted_metrics=[],
        jit_compile=False,
    )
    return model


@pytest.fixture
def uneven(pretraining: types.ModuleType, example_shards: pathlib.Path) -> Callable:
    """One batch whose second half has no word to guess; with or without the scaling."""

    def make(scaled: bool) -> tf.data.Dataset:
        def thin(x: dict, y: tf.Tensor, weight: tf.Tensor) -> tuple:
            keep = tf.concat([tf.ones([8, 1]), tf.zeros([24, 1])], 0)
            return x, y, weight * keep

        batch = read(example_shards, "train", global_batch_size=32).take(1).map(thin)
        batch = batch.map(pretraining.whole_batch_mean) if scaled else batch
        return pretraining.for_model(tiny(example_shards), batch)

    return make


def trained(model: keras.Model, batch: tf.data.Dataset) -> float:
    return model.fit(batch, epochs=1, shuffle=False, verbose=0).history["loss"][0]


def test_the_scaled_loss_is_the_mean_over_the_words_of_the_global_batch(
    uneven: Callable, example_shards: pathlib.Path
) -> None:
    ((x, y, weight),) = uneven(scaled=False)
    logits = np.asarray(tiny(example_shards)(x), np.float64)
    log_sums = np.log(np.exp(logits).sum(-1))
    losses = log_sums - np.take_along_axis(logits, y.numpy()[..., None], -1)[..., 0]
    expected = (losses * weight.numpy()).sum() / weight.numpy().sum()

    one = trained(compiled(tiny(example_shards)), uneven(scaled=True))
    keras_mean = trained(
        compiled(tiny(example_shards), reduction="mean_with_sample_weight"), uneven(scaled=False)
    )
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two = trained(compiled(tiny(example_shards)), uneven(scaled=True))
        keras_mean_of_two = trained(
            compiled(tiny(example_shards), reduction="mean_with_sample_weight"),
            uneven(scaled=False),
        )
    assert one == pytest.approx(expected, rel=1e-5)
    assert two == pytest.approx(expected, rel=1e-5)
    assert keras_mean == pytest.approx(expected, rel=1e-5)
    # The second replica has no words at all and counts as much as the first.
    assert keras_mean_of_two == pytest.approx(expected / 2, rel=1e-5)


def test_the_scale_of_the_loss_does_not_change_the_update(
    uneven: Callable, example_shards: pathlib.Path
) -> None:
    scaled, plain = compiled(tiny(example_shards)), compiled(tiny(example_shards))
    start = plain.get_weights()
    losses = [trained(scaled, uneven(scaled=True)), trained(plain, uneven(scaled=False))]
    assert losses[0] > 2 * losses[1]
    for first, one, other in zip(start, scaled.get_weights(), plain.get_weights(), strict=True):
        assert (one != first).any()
        # Float32: the gradients are rounded after different factors.
        np.testing.assert_allclose(one - first, other - first, rtol=0, atol=2e-6)
