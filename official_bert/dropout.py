"""Dropout whose masks are a function of (seed, global step, replica, micro-batch, layer).

Keras draws them from generators whose position no checkpoint holds, so a resumed run would see
others. Here a step enters a key, everything inside it folds in what tells it from its neighbours,
and a layer's mask is a pure function of the key and the layer's number: the same bits on every
device, with XLA and without.
"""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

_GENERATOR = "_random_generator"
_ALGORITHM = tf.random.Algorithm.PHILOX


class _ActiveKey(threading.local):
    """Replicas are traced in threads of their own."""

    value: tf.Tensor | None = None


_active = _ActiveKey()


def step_key(seed: int, step: tf.Tensor, replica: int | tf.Tensor = 0) -> tf.Tensor:
    """The key of one replica's part of one step: int32, shape [2].

    Args:
      seed: at least 0 and below 2^32.
      step: the global step.
      replica: its number among all of them.
    """
    seed_bits = tf.bitcast(tf.constant(seed, tf.uint32), tf.int32)
    key = tf.stack([seed_bits, tf.cast(step, tf.int32)])
    return folded(key, replica)


def folded(key: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Another key, drawn by `key` and an integer, neither of which it shows.

    TensorFlow's own `stateless_fold_in` leaves the integer in the clear as the new key's second
    word, so what is added to or folded into that word later could meet another integer.
    """
    hidden = tf.random.stateless_uniform([2], key, None, None, tf.int32, alg=_ALGORITHM)
    mixed = tf.stack([hidden[0], hidden[1] ^ tf.cast(number, tf.int32)])
    return tf.random.stateless_uniform([2], mixed, None, None, tf.int32, alg=_ALGORITHM)


@contextlib.contextmanager
def keyed(key: tf.Tensor | None) -> Iterator[None]:
    """Dropout layers prepared by `install` draw from `key` while this is entered.

    None leaves them to Keras's own generators.
    """
    before, _active.value = _active.value, key
    try:
        yield
    finally:
        _active.value = before


def active_key() -> tf.Tensor | None:
    """The key entered in this thread, or None."""
    return _active.value


def install(model: tf_keras.Model) -> int:
    """Prepares every dropout layer of a built model; without a key they work as before.

    Args:
      model: the model; its layers are numbered in their order.

    Returns:
      How many layers were prepared.
    """
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, _GENERATOR)]
    for number, layer in enumerate(layers):
        generator = getattr(layer, _GENERATOR)
        if not isinstance(generator, _KeyedGenerator):
            setattr(layer, _GENERATOR, _KeyedGenerator(number, generator))
    return len(layers)


class _KeyedGenerator:
    """What a dropout layer of tf_keras asks for its mask."""

    def __init__(self, layer: int, otherwise: Any) -> None:
        self._layer = layer
        self._otherwise = otherwise

    def dropout(self, inputs: tf.Tensor, rate: float, noise_shape: Any = None) -> tf.Tensor:
        key = active_key()
        if key is None:
            return self._otherwise.dropout(inputs, rate, noise_shape=noise_shape)
        shape = inputs.shape if noise_shape is None else noise_shape
        return dropped(inputs, rate, folded(key, self._layer), shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._otherwise, name)


def dropped(
    inputs: tf.Tensor, rate: float, key: tf.Tensor, noise_shape: Sequence[int] | None = None
) -> tf.Tensor:
    """`inputs` with a share of `rate` set to zero, the rest scaled to keep the mean.

    y = x k / (1 - p), with k = 0 where 16 random bits, read as an integer, are below p 2^16,
    p being `rate` rounded to a multiple of 2^-16. Two elements share a 32-bit word, so half as
    many are drawn as by `tf.nn.dropout`.

    Args:
      inputs: floating point, of static shape.
      rate: the share, 0 <= rate < 1.
      key: int32, shape [2].
      noise_shape: the mask's shape, broadcast against `inputs`; None for that of `inputs`.

    Raises:
      ValueError: the shape is not static.

    Example:
      >>> dropped(tf.ones([4]), 0.5, tf.constant([1, 2])).shape
      TensorShape([4])
    """
    shape = tf.TensorShape(inputs.shape if noise_shape is None else noise_shape)
    if not shape.is_fully_defined():
        raise ValueError(f"dropout of a step needs static shapes, got {shape}")
    threshold = round(rate * 2**16)
    kept = _halves(shape.as_list() or [1], key, threshold)
    scale = tf.constant(2**16 / (2**16 - threshold), inputs.dtype)
    return inputs * (tf.cast(tf.reshape(kept, shape), inputs.dtype) * scale)


def _halves(shape: list[int], key: tf.Tensor, threshold: int) -> tf.Tensor:
    """Whether the low, then the high halves of the drawn words reach the threshold."""
    *outer, last = shape
    words = tf.random.stateless_uniform(
        [*outer, math.ceil(last / 2)], key, None, None, tf.uint32, alg=_ALGORITHM
    )
    low = tf.bitwise.bitwise_and(words, tf.constant(0xFFFF, tf.uint32))
    kept = tf.concat(
        [
            low >= tf.constant(threshold, tf.uint32),
            words >= tf.constant(threshold << 16, tf.uint32),
        ],
        axis=-1,
    )
    return kept if last % 2 == 0 else kept[..., :last]
