"""Who takes turns, in which order round after round, and what is compared then.

Who ran before leaves caches, threads that still spin and a warm processor. A rotation would give
each contender the same predecessor in every round; here it changes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tfrecords.errors import UserError

T = TypeVar("T")
CONFIDENCE = 0.95


def order(contenders: Sequence[T], number: int) -> list[T]:
    """The order of one round: a row of a Williams design, the balanced Latin square.

    Of n contenders a cycle has n rounds, 2 n where n is odd. In each cycle every contender has
    every place equally often, and follows every other one within a round equally often: once, or
    twice where n is odd. In part of a cycle nobody has a place, or a predecessor, more than twice.

    Williams, "Experimental designs balanced for the estimation of residual effects of treatments",
    Australian Journal of Scientific Research A 2 (1949).

    Args:
        contenders: all of them, in an order that does not change.
        number: of the round, from 0.

    Returns:
        The same contenders.

    Example:
        >>> ["".join(order("abcd", number)) for number in range(4)]
        ['abdc', 'bcad', 'cdba', 'dacb']
    """
    count = len(contenders)
    # 0, 1, n - 1, 2, n - 2, ...: the steps between neighbours differ all, or twice where n is odd.
    row = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    shift = number
    if count % 2:
        # Its mirrors have the other half of the steps. Two rows on, so that nobody who ends a round
        # begins the next.
        cycle, is_mirrored = divmod(number, 2)
        shift = cycle + 2 * is_mirrored
        row = row[::-1] if is_mirrored else row
    return [contenders[(each + shift) % count] for each in row]


def chosen(names: Iterable[str], only: Sequence[str]) -> list[str]:
    """The contenders whose names contain one of the parts that `--only` has; all if it has none.

    Raises:
        UserError: a part is in no name.
    """
    known = list(names)
    for part in only:
        if not any(part in name for name in known):
            listed = ", ".join(f"{name!r}" for name in known)
            raise UserError(f"--only has {part!r}, which is part of no name; expected {listed}")
    return [name for name in known if not only or any(part in name for part in only)]


def ratios(ones: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """What one contender took, or did, over another.

    Args:
        ones: a figure for each round.
        others: those of the other one in the same rounds, whose turns lay close.

    Returns:
        "median", "lowest" and "highest" of the ratios within each round, and the ratio
        "of_medians" over all rounds.

    Example:
        >>> ratios([1.0, 6.0, 2.0], [1.0, 2.0, 1.0])
        {'median': 2.0, 'lowest': 1.0, 'highest': 3.0, 'of_medians': 2.0}
    """
    within = [one / other for one, other in zip(ones, others, strict=True)]
    return {
        "median": statistics.median(within),
        "lowest": min(within),
        "highest": max(within),
        "of_medians": statistics.median(ones) / statistics.median(others),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """An interval of the median of what the values were drawn from, whatever its distribution.

    A value lies below that median with probability 1/2, so that the number of those that do is
    binomial, and so is the chance that the median lies beyond the k-th lowest or highest value.

    Args:
        values: independent of one another.

    Returns:
        The k-th lowest value and the k-th highest, and the confidence that the median lies between
        them: k is the greatest that leaves it at `CONFIDENCE`, or 1, for fewer than six values.

    Example:
        >>> median_interval([3.0, 1.0, 2.0, 5.0, 4.0])
        (1.0, 5.0, 0.9375)
        >>> median_interval(range(9))
        (1, 7, 0.9609375)
    """
    ordered, count = sorted(values), len(values)

    def confidence(left_out: int) -> float:
        return 1 - 2 * sum(math.comb(count, each) for each in range(left_out + 1)) / 2**count

    left_out = 0
    while confidence(left_out + 1) >= CONFIDENCE:
        left_out += 1
    return ordered[left_out], ordered[-1 - left_out], confidence(left_out)
