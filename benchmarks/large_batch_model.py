"""The study's model: a small BERT in plain Keras 3, on any of its backends.

Post-normalised encoder layers, approximate GELU and a masked-LM head with tied embeddings, as in
google-research/bert, with one segment and without dropout or next-sentence prediction. Each
projection is a variable of its own, a block for the optimizers, also where one product computes
several.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from benchmarks.large_batch_settings import ModelSizes
from tfrecords.errors import UserError

_INITIAL_DEVIATION = 0.02
_EPSILON = 1e-12
_HEAD_WIDTH = 64

Builder = Callable[[ModelSizes], keras.Model]


class _Block(keras.layers.Layer):
    """A layer that makes its variables by name, as BERT initialises them."""

    def _kernel(self, name: str, *shape: int) -> Any:
        initializer = keras.initializers.TruncatedNormal(stddev=_INITIAL_DEVIATION)
        return self.add_weight(name=name, shape=shape, initializer=initializer)

    def _bias(self, name: str, size: int) -> Any:
        return self.add_weight(name=name, shape=(size,), initializer="zeros")


class Normalization(_Block):
    """Layer normalisation over the last axis."""

    def build(self, input_shape: tuple[Any, ...]) -> None:
        """Creates gamma and beta."""
        self.gamma = self.add_weight(name="gamma", shape=input_shape[-1:], initializer="ones")
        self.beta = self._bias("beta", input_shape[-1])

    def call(self, inputs: Any) -> Any:
        """The normalised inputs, of their shape."""
        mean = ops.mean(inputs, axis=-1, keepdims=True)
        centred = inputs - mean
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        return centred * (ops.rsqrt(variance + _EPSILON) * self.gamma) + self.beta


class Attention(_Block):
    """Self-attention of full rows: no padding, hence no mask."""

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Creates the four projections."""
        width = input_shape[-1]
        names = ("query", "key", "value", "output")
        self.kernels = [self._kernel(f"{name}_kernel", width, width) for name in names]
        self.biases = [self._bias(f"{name}_bias", width) for name in names]

    def call(self, inputs: Any) -> Any:
        """[rows, length, width] to the same."""
        length, width = inputs.shape[1:]
        # One product is faster than three.
        kernel = ops.concatenate([ops.convert_to_tensor(each) for each in self.kernels[:3]], 1)
        bias = ops.concatenate([ops.convert_to_tensor(each) for each in self.biases[:3]], 0)
        mixed = ops.matmul(ops.reshape(inputs, (-1, width)), kernel) + bias
        mixed = ops.reshape(mixed, (-1, length, 3, self.heads, width // self.heads))
        query, key, value = ops.unstack(ops.transpose(mixed, (2, 0, 3, 1, 4)), 3, axis=0)
        query = query * (width // self.heads) ** -0.5
        scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), axis=-1)
        context = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))
        outputs = ops.matmul(ops.reshape(context, (-1, width)), self.kernels[3]) + self.biases[3]
        return ops.reshape(outputs, (-1, length, width))


class FeedForward(_Block):
    """Two dense layers with GELU between them."""

    def __init__(self, inner: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Creates both dense layers."""
        width = input_shape[-1]
        self.inner_kernel = self._kernel("intermediate_kernel", width, self.inner)
        self.inner_bias = self._bias("intermediate_bias", self.inner)
        self.outer_kernel = self._kernel("output_kernel", self.inner, width)
        self.outer_bias = self._bias("output_bias", width)

    def call(self, inputs: Any) -> Any:
        """[rows, length, width] to the same."""
        length, width = inputs.shape[1:]
        flat = ops.reshape(inputs, (-1, width))
        inner = ops.gelu(ops.matmul(flat, self.inner_kernel) + self.inner_bias, approximate=True)
        outputs = ops.matmul(inner, self.outer_kernel) + self.outer_bias
        return ops.reshape(outputs, (-1, length, width))


class Embeddings(_Block):
    """Word and position embeddings; the word embeddings are also the head's output kernel."""

    def __init__(self, vocab_size: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size, self.width = vocab_size, width

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Creates both tables."""
        self.words = self._kernel("word_embeddings", self.vocab_size, self.width)
        self.positions = self._kernel("position_embeddings", input_shape[-1], self.width)

    def call(self, word_ids: Any) -> Any:
        """[rows, length] to [rows, length, width]."""
        return ops.take(self.words, word_ids, axis=0) + self.positions


class Head(_Block):
    """Logits at the masked positions only."""

    def __init__(self, embeddings: Embeddings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embeddings = embeddings

    def build(self, sequence_shape: tuple[int, ...], positions_shape: tuple[int, ...]) -> None:
        """Creates the dense layer before the tied kernel, and the output's bias."""
        width = sequence_shape[-1]
        self.kernel = self._kernel("transform_kernel", width, width)
        self.bias = self._bias("transform_bias", width)
        self.normalization = Normalization(name="layer_norm")
        self.normalization.build((None, width))
        self.output_bias = self._bias("output_bias", self.embeddings.vocab_size)

    def call(self, sequence: Any, positions: Any) -> Any:
        """[rows, length, width] and [rows, masked] to [rows, masked, vocabulary]."""
        length, width = sequence.shape[1:]
        rows = ops.arange(ops.shape(positions)[0], dtype="int32")
        places = ops.reshape(rows[:, None] * length + positions, (-1,))
        masked = ops.take(ops.reshape(sequence, (-1, width)), places, axis=0)
        masked = ops.gelu(ops.matmul(masked, self.kernel) + self.bias, approximate=True)
        masked = self.normalization(masked)
        logits = ops.matmul(masked, ops.transpose(self.embeddings.words)) + self.output_bias
        return ops.reshape(logits, (-1, positions.shape[1], self.embeddings.vocab_size))


def bert(sizes: ModelSizes) -> keras.Model:
    """The study's own model.

    Args:
        sizes: its sizes.

    Returns:
        A model from `[word_ids, positions]`, int32 [rows, length] and [rows, masked], to logits,
        float32 [rows, masked, vocabulary].
    """
    word_ids = keras.Input((sizes.seq_length,), dtype="int32", name="word_ids")
    positions = keras.Input((sizes.max_predictions,), dtype="int32", name="positions")
    embeddings = Embeddings(sizes.vocab_size, sizes.width, name="embeddings")
    hidden = Normalization(name="embeddings_layer_norm")(embeddings(word_ids))
    for number in range(sizes.layers):
        name = f"layer_{number}"
        attended = Attention(max(1, sizes.width // _HEAD_WIDTH), name=f"{name}_attention")(hidden)
        hidden = Normalization(name=f"{name}_attention_layer_norm")(hidden + attended)
        fed = FeedForward(4 * sizes.width, name=f"{name}_feed_forward")(hidden)
        hidden = Normalization(name=f"{name}_output_layer_norm")(hidden + fed)
    logits = Head(embeddings, name="masked_lm")(hidden, positions)
    return keras.Model([word_ids, positions], logits)


def builder(name: str) -> Builder:
    """The function that `--model` names.

    Args:
        name: `module:function`; empty for `bert`.

    Raises:
        UserError: there is no such function.
    """
    if not name:
        return bert
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--model={name}: {error}; expected module:function") from error
    if not callable(found):
        raise UserError(f"--model={name}: no function; expected module:function")
    return found


def loss_sums(logits: Any, ids: Any, weights: Any) -> tuple[Any, Any]:
    """sum(w l) and sum(w) over masked positions, l the cross entropy.

    Args:
        logits: [rows, masked, vocabulary].
        ids: int32 [rows, masked], what stood there.
        weights: float32 [rows, masked].
    """
    each = keras.losses.sparse_categorical_crossentropy(ids, logits, from_logits=True)
    return ops.sum(weights * each), ops.sum(weights)
