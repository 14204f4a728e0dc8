"""The training step on TensorFlow: gradients of micro-batches summed in a loop, then the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.large_batch_data import Rows
from benchmarks.large_batch_model import loss_sums


class Trainer:
    """A model and, from `use` on, an optimizer; see `large_batch_run` for the contract.

    The gradient's program is traced once, whatever the optimizer and the batch.
    """

    def __init__(self, model: keras.Model, micro_batch: int) -> None:
        self.model = model
        self.variables = model.trainable_variables
        self._micro_batch = micro_batch
        # XLA on a CPU was slower on one core than the kernels of oneDNN, which fuse less.
        compiled = bool(tf.config.list_physical_devices("GPU"))
        length, masked = (each.shape[1] for each in model.inputs)
        rows = [tf.TensorSpec([None, size], tf.int32) for size in (length, masked, masked)]
        rows.append(tf.TensorSpec([None, masked], tf.float32))
        self._signature = rows
        self._sums = tf.function(
            self._loss_sums, autograph=False, jit_compile=compiled, input_signature=rows
        )
        self._part = tf.function(self._gradients, autograph=False, jit_compile=compiled)
        self._accumulated = tf.function(self._accumulate, autograph=False, input_signature=rows)
        self._step: Any = None

    def use(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Takes a built optimizer."""

        def step(*rows: tf.Tensor) -> tf.Tensor:
            loss, gradients = self._accumulated(*rows)
            optimizer.apply(gradients, self.variables)
            return loss

        self._step = tf.function(step, autograph=False, input_signature=self._signature)

    def step(self, rows: Rows) -> float:
        """One update; the loss before it."""
        return float(self._step(*rows))

    def gradient(self, rows: Rows) -> list[np.ndarray]:
        """The gradient of sum(w l) / sum(w), by variable."""
        return [each.numpy() for each in self._accumulated(*rows)[1]]

    def evaluate(self, rows: Rows, weights: Sequence[np.ndarray] | None = None) -> float:
        """sum(w l) / sum(w), of the model's own weights or of others."""
        own = None if weights is None else [each.numpy() for each in self.variables]
        self._assign(weights)
        losses = weight = 0.0
        for begin in range(0, len(rows.ids), self._micro_batch):
            part = [each[begin : begin + self._micro_batch] for each in rows]
            sums = self._sums(*part)
            losses, weight = losses + float(sums[0]), weight + float(sums[1])
        self._assign(own)
        return losses / weight

    def store(self) -> None:
        """Leaves all state in the variables, where it is anyway."""

    def release(self) -> None:
        """Forgets no state, for there is none but in the variables."""

    def _assign(self, weights: Sequence[np.ndarray] | None) -> None:
        if weights is not None:
            for variable, value in zip(self.variables, weights, strict=True):
                variable.assign(value)

    def _loss_sums(self, *rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        word_ids, positions, ids, weights = rows
        logits = self.model([word_ids, positions], training=False)
        return loss_sums(logits, ids, weights)

    def _gradients(self, total: tf.Tensor, *rows: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        word_ids, positions, ids, weights = rows
        values = [variable.value for variable in self.variables]
        with tf.GradientTape() as tape:
            logits = self.model([word_ids, positions], training=True)
            loss = loss_sums(logits, ids, weights)[0] / total
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        return loss, [tf.convert_to_tensor(each) for each in gradients]

    def _accumulate(self, *rows: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """A batch no larger than a micro-batch is one; a larger one is a multiple of it."""
        count = tf.shape(rows[0])[0]
        size = tf.minimum(count, self._micro_batch)
        total = tf.reduce_sum(rows[3])

        def add(begin: tf.Tensor, loss: tf.Tensor, sums: list[tf.Tensor]) -> tuple[Any, ...]:
            part = [each[begin : begin + size] for each in rows]
            more, gradients = self._part(total, *part)
            added = [one + two for one, two in zip(sums, gradients, strict=True)]
            return begin + size, loss + more, added

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in self.variables]
        _, loss, sums = tf.while_loop(
            lambda begin, *_: begin < count, add, (tf.constant(0), tf.constant(0.0), zeros)
        )
        return loss, sums
