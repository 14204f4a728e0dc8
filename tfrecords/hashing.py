"""Random bits as a pure function of integers: the same on every machine, in any order."""

from typing import Any

import numpy as np
import tensorflow as tf

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
# A sort key is a non-negative int32: its low bits are a place, its high ones random.
_PLACE_BITS = 12
MAX_PLACES = 1 << _PLACE_BITS


def _splitmix64(state: np.ndarray) -> np.ndarray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def mix(*words: Any) -> np.ndarray:
    """Hashes a tuple of 64-bit integers, element by element.

    Args:
        *words: integers or integer arrays that broadcast together; negative ones wrap.

    Returns:
        A uint64 array of the broadcast shape.

    Source: the output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
    number generators", 2014), applied once a word.

    Example:
        >>> mix(0, np.arange(3)).dtype
        dtype('uint64')
    """
    state = np.zeros((1,), np.uint64)
    for word in words:
        state = _splitmix64(state ^ np.atleast_1d(np.asarray(word)).astype(np.uint64))
    return state


def uniform(bits: np.ndarray) -> np.ndarray:
    """Turns 64 random bits into a float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def below(bits: np.ndarray, bound: Any) -> np.ndarray:
    """Turns 64 random bits into an int64 in [0, bound), where `bound` may be an array."""
    return (uniform(bits) * bound).astype(np.int64)


def order_keys(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sort keys that put places in random order, no two of them equal: int32, non-negative.

    Args:
        bits: uint64, random.
        places: integers below `MAX_PLACES`, which broadcast with `bits`.
    """
    high = (bits >> np.uint64(33 + _PLACE_BITS)).astype(np.int32)
    return (high << _PLACE_BITS) | places.astype(np.int32)


def places_of(keys: np.ndarray) -> np.ndarray:
    """The places that `order_keys` was given."""
    return keys & (MAX_PLACES - 1)


def order_keys_tensor(bits: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """`order_keys` as operations of TensorFlow."""
    high = tf.bitwise.right_shift(bits, tf.constant(33 + _PLACE_BITS, tf.uint64))
    return tf.cast(high, tf.int32) * MAX_PLACES + tf.cast(places, tf.int32)


def uniform_tensor(bits: tf.Tensor) -> tf.Tensor:
    """`uniform` as operations of TensorFlow: the same numbers."""
    high = tf.bitwise.right_shift(bits, tf.constant(11, tf.uint64))
    return tf.cast(high, tf.float64) * 2.0**-53


def below_tensor(bits: tf.Tensor, bound: int) -> tf.Tensor:
    """`below` as operations of TensorFlow: the same numbers."""
    return tf.cast(uniform_tensor(bits) * bound, tf.int64)


def mix_tensors(*words: tf.Tensor) -> tf.Tensor:
    """`mix` as operations of TensorFlow, for input pipelines: the same bits.

    Args:
        *words: int64 or uint64 tensors that broadcast together.

    Returns:
        A uint64 tensor of the broadcast shape, of rank 1 at least.
    """
    xor, shift = tf.bitwise.bitwise_xor, tf.bitwise.right_shift
    state = tf.zeros((1,), tf.uint64)
    for word in words:
        state = xor(state, tf.cast(word, tf.uint64)) + _GOLDEN
        state = xor(state, shift(state, tf.constant(30, tf.uint64))) * _FIRST
        state = xor(state, shift(state, tf.constant(27, tf.uint64))) * _SECOND
        state = xor(state, shift(state, tf.constant(31, tf.uint64)))
    return state


def order_of(bits: tf.Tensor) -> tf.Tensor:
    """The indices that sort uint64 bits: int64, in the order of a random permutation."""
    signed = tf.bitcast(tf.bitwise.bitwise_xor(bits, tf.constant(1 << 63, tf.uint64)), tf.int64)
    return tf.cast(tf.argsort(signed, stable=True), tf.int64)
