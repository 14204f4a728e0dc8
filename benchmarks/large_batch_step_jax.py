"""The training step on JAX: one program that scans over micro-batches, then updates in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from benchmarks.large_batch_data import Rows
from benchmarks.large_batch_model import loss_sums


class Trainer:
    """A model and, from `use` on, an optimizer; see `large_batch_run` for the contract."""

    def __init__(self, model: keras.Model, micro_batch: int) -> None:
        self.model = model
        self.variables = model.trainable_variables
        self._micro_batch = micro_batch
        self._optimizer: Any = None
        self._state: Any = None
        self._sums = jax.jit(self._loss_sums)
        self._accumulated = jax.jit(self._accumulate)

    def use(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Takes a built optimizer; from here on all state is here, until `store`."""
        self._optimizer = optimizer

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, rows: Rows) -> tuple[Any, Any]:
            weights, others, slots = state
            loss, gradients, others = self._accumulate(weights, others, rows)
            weights, slots = optimizer.stateless_apply(slots, gradients, weights)
            return (list(weights), others, list(slots)), loss

        self._step = step
        # Copies, since the step takes their memory.
        self._state = jax.tree.map(
            jnp.copy,
            (*self._values(), [each.value for each in optimizer.variables]),
        )

    def step(self, rows: Rows) -> float:
        """One update; the loss before it."""
        self._state, loss = self._step(self._state, rows)
        return float(loss)

    def gradient(self, rows: Rows) -> list[np.ndarray]:
        """The gradient of sum(w l) / sum(w), by variable."""
        return [np.asarray(each) for each in self._accumulated(*self._values(), rows)[1]]

    def evaluate(self, rows: Rows, weights: Sequence[np.ndarray] | None = None) -> float:
        """sum(w l) / sum(w), of the model's own weights or of others."""
        own, others = self._values()
        used = own if weights is None else [jnp.asarray(each) for each in weights]
        losses = weight = 0.0
        for begin in range(0, len(rows.ids), self._micro_batch):
            part = Rows(*(each[begin : begin + self._micro_batch] for each in rows))
            sums = self._sums(used, others, part)
            losses, weight = losses + float(sums[0]), weight + float(sums[1])
        return losses / weight

    def store(self) -> None:
        """Leaves all state in the variables."""
        if self._state is not None:
            targets = (self.variables, self.model.non_trainable_variables)
            for variables, values in zip(
                (*targets, self._optimizer.variables), self._state, strict=True
            ):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(jnp.copy(value))

    def release(self) -> None:
        """Leaves no state here: what is assigned to the variables is what counts."""
        self._optimizer = self._state = None

    def _values(self) -> tuple[list[Any], list[Any]]:
        if self._state is not None:
            return self._state[0], self._state[1]
        variables = (self.variables, self.model.non_trainable_variables)
        return tuple([each.value for each in group] for group in variables)  # type: ignore

    def _loss_sums(self, weights: Any, others: Any, rows: Rows) -> tuple[Any, Any]:
        inputs = [rows.word_ids, rows.positions]
        logits, _ = self.model.stateless_call(weights, others, inputs, training=False)
        return loss_sums(logits, rows.ids, rows.weights)

    def _accumulate(self, weights: Any, others: Any, rows: Rows) -> tuple[Any, Any, Any]:
        """A batch no larger than a micro-batch is one; a larger one is a multiple of it."""
        total = jnp.sum(rows.weights)
        size = min(self._micro_batch, len(rows.ids))

        def loss_of(weights: Any, others: Any, part: Rows) -> tuple[Any, Any]:
            inputs = [part.word_ids, part.positions]
            logits, others = self.model.stateless_call(weights, others, inputs, training=True)
            return loss_sums(logits, part.ids, part.weights)[0] / total, others

        def add(carry: tuple[Any, Any, Any], part: Rows) -> tuple[Any, None]:
            loss, sums, others = carry
            (more, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                weights, others, part
            )
            return (loss + more, jax.tree.map(jnp.add, sums, gradients), others), None

        parts = Rows(*(each.reshape(-1, size, each.shape[1]) for each in rows))
        zeros = jax.tree.map(jnp.zeros_like, list(weights))
        (loss, sums, others), _ = jax.lax.scan(add, (0.0, zeros, list(others)), parts)
        return loss, sums, others
