"""Gradients that cannot be their variables', told before a program of the update is built.

What is asked is static: a traced step asks once, and no device is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tf_lans.block_selection import block_path


def check_gradients(function: str, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Refuses gradients that are not one (or None) for each variable, of its shape.

    Raises:
        ValueError: they are fewer or more, or the shape of one is another.
    """
    if len(gradients) != len(variables):
        raise ValueError(
            f"{function} got {len(gradients)} gradients for {len(variables)} variables: give one "
            "for each, None where a variable has none"
        )
    check_shapes(function, zip(gradients, variables, strict=True))


def check_shapes(function: str, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Refuses a gradient whose static shape cannot be its variable's.

    Raises:
        ValueError: there is one.
    """
    for gradient, variable in pairs:
        given, wanted = _static_shape(gradient), tuple(variable.shape)
        if given is not None and not _compatible(given, wanted):
            raise ValueError(
                f"{function} got a gradient of shape {given} for {block_path(variable)!r} of shape "
                f"{wanted}: give the gradients in the order of the variables"
            )


def _static_shape(gradient: Any) -> tuple[int | None, ...] | None:
    """What is known of the shape without computing anything; None for nothing."""
    if hasattr(gradient, "dense_shape"):  # TensorFlow's slices: the whole has any number of rows
        rows = _static_shape(gradient.values)
        return None if rows is None else (None, *rows[1:])
    shape = getattr(gradient, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return tuple(shape)


def _compatible(given: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(given) == len(wanted) and all(
        None in (one, other) or one == other for one, other in zip(given, wanted, strict=True)
    )
