"""What a Keras LossScaleOptimizer tells of the batches that it kept from the optimizer inside."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tf_lans.diagnostics import plain


class LossScale(NamedTuple):
    """A look at a dynamic loss scale.

    Attributes:
        scale: the factor on the loss.
        good_steps: the batches without overflow since the scale was last changed.
        lowest: the scale that is not halved any more.
    """

    scale: float
    good_steps: int
    lowest: float


def loss_scale_now(optimizer: Any) -> LossScale | None:
    """The dynamic loss scale of an optimizer of either Keras; None where it has none."""
    if not hasattr(optimizer, "initial_scale"):
        return None
    if hasattr(optimizer, "dynamic"):  # tf_keras's
        if not optimizer.dynamic:
            return None
        scale, good_steps = optimizer.loss_scale, optimizer.dynamic_counter
        return LossScale(float(plain(scale)), int(plain(good_steps)), lowest=1.0)
    if not hasattr(optimizer, "dynamic_scale"):  # Keras 3's, before it is built
        return LossScale(float(optimizer.initial_scale), 0, lowest=0.0)
    scale, good_steps = optimizer.dynamic_scale, optimizer.step_counter
    return LossScale(float(plain(scale)), int(plain(good_steps)), lowest=0.0)


def overflows_in_a_row(so_far: int, before: LossScale, now: LossScale, batches: int) -> int:
    """The overflows in a row up to now, of which there were `so_far` so many batches ago.

    An overflow halves the scale and takes the count of good steps to 0. So does a growth, but the
    scale rises. Several batches overflowed only if the scale was halved as often; of a scale that
    is not halved any more, the last batch is known to have overflowed, and counts alone.

    Example:
        >>> first = LossScale(32768.0, 0, lowest=1.0)
        >>> overflows_in_a_row(0, first, LossScale(4096.0, 0, lowest=1.0), 3)
        3
        >>> overflows_in_a_row(2, first, LossScale(16384.0, 0, lowest=1.0), 3)
        1
        >>> overflows_in_a_row(2, first, LossScale(32768.0, 3, lowest=1.0), 3)
        0
    """
    if now.good_steps > 0 or now.scale > before.scale:
        return 0
    halvings = round(math.log2(before.scale / now.scale)) if now.scale else batches
    if halvings < batches and now.scale > now.lowest:
        return 1
    return so_far + max(1, min(halvings, batches))
