"""Runs an optimizer over given gradients, in each way the backend can execute a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest

import tf_lans.keras3
from tests.problems import clipped, gradient_steps, random_values  # noqa: F401 - for the tests

BACKEND = keras.backend.backend()
MODES = {"jax": ("eager", "jit"), "torch": ("eager",)}[BACKEND]
ALGORITHMS = {"LANS": "lans", "LAMB": "lamb", "BlockNormalizedAdamW": "block_normalized_adamw"}
RATE = float(np.float32(0.01))  # Keras stores the rate in float32

only_jax = pytest.mark.skipif(BACKEND != "jax", reason=f"{BACKEND} has no such thing, JAX has")
each_mode = pytest.mark.parametrize("mode", MODES)
each_class = pytest.mark.parametrize("name", list(ALGORITHMS))


def wide_types() -> contextlib.AbstractContextManager:
    """Where float64 exists: JAX has it only when asked."""
    if BACKEND == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


class Run:
    """An optimizer, its variables and a step function in one execution mode."""

    def __init__(
        self,
        name: str,
        values: Sequence[Any],
        mode: str = "eager",
        *,
        dtype: str | None = None,
        constraint: Any = None,
        **arguments: Any,
    ) -> None:
        self.variables = [
            keras.Variable(
                value, dtype=dtype or str(np.asarray(value).dtype), name=f"block_{index}"
            )
            for index, value in enumerate(values)
        ]
        for variable in self.variables:
            variable.constraint = constraint
        arguments.setdefault("learning_rate", RATE)
        self.optimizer = getattr(tf_lans.keras3, name)(**arguments)
        self.optimizer.build(self.variables)
        self._mode = mode
        self._compiled: Any = None

    def step(self, gradients: Sequence[Any]) -> None:
        """One step, or micro-step, on the gradients; None for a variable that has none."""
        tensors = [
            None if gradient is None else keras.ops.convert_to_tensor(gradient, dtype=each.dtype)
            for gradient, each in zip(gradients, self.variables, strict=True)
        ]
        if self._mode == "jit":
            self._step_compiled(tensors)
        else:
            self.optimizer.apply(tensors, self.variables)

    def _step_compiled(self, gradients: Sequence[Any]) -> None:
        import jax

        if self._compiled is None:
            self._compiled = jax.jit(
                lambda values, state, grads: self.optimizer.stateless_apply(state, grads, values),
                donate_argnums=(0, 1),
            )
        state = self.optimizer.variables
        new = self._compiled(
            [each.value for each in self.variables], [each.value for each in state], gradients
        )
        for variable, value in zip([*self.variables, *state], [*new[0], *new[1]], strict=True):
            variable.assign(value)

    def programs(self) -> int:
        """How many programs the steps have needed."""
        return self._compiled._cache_size()

    def values(self) -> list[np.ndarray]:
        return [numpy(each) for each in self.variables]

    def state(self) -> list[np.ndarray]:
        """Every number there is, the variables' and the optimizer's."""
        return [*self.values(), *(numpy(each) for each in self.optimizer.variables)]


def numpy(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def assert_equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> None:
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def start_values(
    shapes: Sequence[tuple[int, ...]] = (
        (7, 5),
        (4,),
        (),
        (3, 2, 4),
        (1, 6),
        (2, 3, 2, 3),
        (0, 3),
    ),
) -> list[np.ndarray]:
    return random_values(shapes)


def single_values(**arguments: Any) -> list[np.ndarray]:
    return [value.astype(np.float32) for value in start_values(**arguments)]
