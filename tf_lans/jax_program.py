"""What the portable update asks of XLA on JAX: sums in one pass, and updates in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from tf_lans.update_rules import LONGEST_ROW


def sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each array, all of one shape, in one pass over memory where XLA compiles it.

    Rows are summed first, by one reduction of several operands, then the row sums.
    """
    if arrays[0].ndim < 2 or not 0 < arrays[0].shape[-1] <= LONGEST_ROW:
        return tuple(jnp.sum(array) for array in arrays)
    zeros = tuple(jnp.zeros((), array.dtype) for array in arrays)
    last = (arrays[0].ndim - 1,)
    return tuple(jnp.sum(rows) for rows in jax.lax.reduce(arrays, zeros, _add, last))


def either(
    condition: Any, true: Callable[[], Iterable[Any]], false: Callable[[], Iterable[Any]]
) -> Iterable[Any]:
    """The items of one of two functions, of which only that one runs.

    Under `jax.jit` this is a conditional and no selection: XLA fuses a selection's condition,
    here of all gradients, into every block's arithmetic, which made programs slow to compile and
    the update copy every moment. Outside, a conditional would be compiled at every call.
    """
    if isinstance(condition, jax.core.Tracer):
        return jax.lax.cond(condition, lambda: list(true()), lambda: list(false()))
    return true() if condition else false()


def _add(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(one + two for one, two in zip(left, right, strict=True))
