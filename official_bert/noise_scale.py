"""The gradient noise scale: the batch size up to which a larger batch still pays.

A batch of B examples estimates the true gradient G with a noise of covariance Sigma / B, Sigma
being the covariance of one example's gradient. Their ratio is the simple noise scale

    B_simple = tr(Sigma) / |G|^2        (in examples)

of McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training",
arXiv 1812.06162. A step that sums the gradients of N pieces knows two norms, one of a small batch
and one of a large one, which is all that the estimate of their appendix A.1 needs. Both norms are
noisy, and |G|^2 and tr(Sigma) are unbiased only each for itself: they are averaged over steps
first, and divided last. Where the batch is far below the noise scale, hundreds of steps may be
needed before |G|^2 stands out; the standard error says how far it does.

What it is not: the number is that of plain gradient descent on a loss of equal curvature in all
directions, and it grows as the loss falls. Read its order of magnitude.

The loss of the global batch divides by all its masked words, so that a piece counts by its words:
pieces differ also where all examples agree. That adds to B_simple the squared coefficient of
variation of the masked words in an example, which is less than one example where their spread is
less than their mean.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

BIG, SMALL = "gradient_norm", "piece_gradient_norm"
WINDOW = 100
# Within this factor of the noise scale a batch is neither small nor large.
_NEAR = 4.0

Rows = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """The noise scale over some steps.

    Attributes:
        noise_scale: B_simple, in examples.
        squared_gradient_norm: |G|^2, the true gradient's, mean over the steps; above 0.
        covariance_trace: tr(Sigma) of one example's gradient, mean over the steps.
        standard_error: of the noise scale, in examples, from the spread over the steps; None for
            a single step.
        steps: how many they are.
    """

    noise_scale: float
    squared_gradient_norm: float
    covariance_trace: float
    standard_error: float | None
    steps: int

    @property
    def rounded(self) -> str:
        """The noise scale and its standard error, to two digits, such as `1,700 +- 400`."""
        if self.standard_error is None:
            return _rounded(self.noise_scale)
        return f"{_rounded(self.noise_scale)} +- {_rounded(self.standard_error)}"

    def saved_by_doubling(self, batch_size: int) -> float:
        """The share of the steps that twice the batch saves, between 0 and 1/2.

        In the model of arXiv 1812.06162, section 2.3, a run at batch B takes
        S_min (1 + B_simple / B) steps, so that the share is B_simple / (2 (B + B_simple)).
        """
        return 0.5 * self.noise_scale / (batch_size + self.noise_scale)

    def verdict(self, batch_size: int) -> str:
        """One sentence that answers: is my batch too large?"""
        ratio = batch_size / self.noise_scale if self.noise_scale else math.inf
        saved = f"twice the batch would save about {self.saved_by_doubling(batch_size):.0%} of the"
        scale = f"the noise scale of about {_rounded(self.noise_scale)} examples"
        batch = f"the batch of {batch_size:,} examples"
        if ratio < 1 / _NEAR:
            return f"No: {batch} is far below {scale}; {saved} steps."
        if ratio <= _NEAR:
            return f"It is about right: {batch} is near {scale}; {saved} steps."
        return f"Yes, for the examples it costs: {batch} is far above {scale}; {saved} steps."


def _rounded(examples: float) -> str:
    """Two digits, which is all that can be trusted."""
    two_digits = f"{examples:.2g}"
    return f"{float(two_digits):,.0f}" if examples >= 10 else two_digits


def piece_gradient_norm(sum_of_squared_norms: Any, pieces: Any) -> Any:
    """sqrt(mean_i ||N c_i||^2) = sqrt(N sum_i ||c_i||^2), the norm of one piece's estimate.

    The contributions c_i of N pieces add up to the gradient of the global batch, so that N c_i is
    what piece i alone would have taken it for.

    Args:
        sum_of_squared_norms: sum_i ||c_i||^2, a number or a floating tensor.
        pieces: N, a number, or a tensor of the same type.

    Example:
        >>> piece_gradient_norm(0.5, 8)
        2.0
    """
    return (sum_of_squared_norms * pieces) ** 0.5


def estimates(
    big_norms: Any, small_norms: Any, *, big_batch: float, small_batch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased estimates of |G|^2 and tr(Sigma), one of each a step.

    By appendix A.1 of arXiv 1812.06162::

        |G|^2 = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small)
        S = (|G_small|^2 - |G_big|^2) / (1 / B_small - 1 / B_big)

    Args:
        big_norms: |G_big|, the norm of the gradient of B_big examples; shape (steps,).
        small_norms: |G_small|, root mean square over pieces of B_small examples; same shape.
        big_batch: B_big.
        small_batch: B_small, below B_big.

    Returns:
        |G|^2 and S, float64 of shape (steps,). A single |G|^2 may well be negative.

    Raises:
        ValueError: the batches are not 0 < B_small < B_big.
    """
    if not 0 < small_batch < big_batch:
        raise ValueError(
            f"small_batch is {small_batch} and big_batch {big_batch}; expected 0 < small < big"
        )
    big, small = (np.square(np.asarray(norms, np.float64)) for norms in (big_norms, small_norms))
    squared_gradient = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    return squared_gradient, (small - big) / (1 / small_batch - 1 / big_batch)


def estimate(
    big_norms: Any, small_norms: Any, *, big_batch: float, small_batch: float
) -> NoiseScale | None:
    """The noise scale from norms of several steps; arguments as in `estimates`.

    Returns:
        None where there is no step, or where the noise hides the gradient: the mean of |G|^2 is
        not positive.

    Example:
        >>> estimate([3.0], [5.0], big_batch=64, small_batch=8).noise_scale
        21.787...
    """
    parts = estimates(big_norms, small_norms, big_batch=big_batch, small_batch=small_batch)
    steps = len(parts[0])
    if not steps:
        return None
    squared_gradient, trace = (float(np.mean(part)) for part in parts)
    if not squared_gradient > 0:
        return None
    trace = max(trace, 0.0)  # pieces that agree leave rounding of either sign
    scale = trace / squared_gradient
    # First order in the deviations of both means, which the same steps' norms correlate.
    deviations = (parts[1] - scale * parts[0]) / squared_gradient
    return NoiseScale(
        noise_scale=scale,
        squared_gradient_norm=squared_gradient,
        covariance_trace=trace,
        standard_error=float(np.std(deviations, ddof=1) / steps**0.5) if steps > 1 else None,
        steps=steps,
    )


def from_rows(
    rows: Rows, batch_size: int, pieces: int | None, window: int = WINDOW
) -> NoiseScale | None:
    """The noise scale over the last steps of a run.

    Args:
        rows: of `metrics.jsonl`, in order. Skipped steps, rows without both norms, and those
            whose own `pieces` is another are left out.
        batch_size: examples of a global batch.
        pieces: N, in how many equal pieces it was cut; None where that is not known.
        window: how many of the last rows with both norms count.

    Returns:
        None where it cannot be told: fewer than two pieces, no such row, or a mean of |G|^2
        that is not positive.
    """
    if pieces is None or pieces < 2:
        return None
    norms = _norms(rows, pieces)[-window:]
    return _estimate(norms, batch_size, pieces)


def over_run(
    rows: Rows, batch_size: int, pieces: int | None, window: int = WINDOW
) -> list[tuple[int, NoiseScale]]:
    """The noise scale over one window of steps after the other.

    Args:
        rows: as in `from_rows`, as are the next two.
        batch_size: examples of a global batch.
        pieces: N, in how many equal pieces it was cut.
        window: rows with both norms in a window; what is left at the end is no window.

    Returns:
        The last step of each window and its noise scale; windows that tell none are left out.
    """
    if pieces is None or pieces < 2:
        return []
    norms = _norms(rows, pieces)
    windows = [norms[end - window : end] for end in range(window, len(norms) + 1, window)]
    found = [(part[-1][0], _estimate(part, batch_size, pieces)) for part in windows]
    return [(step, scale) for step, scale in found if scale is not None]


def _norms(rows: Rows, pieces: int) -> list[tuple[int, float, float]]:
    """Step, |G_big| and |G_small| of the rows of so many pieces that were not skipped."""
    found, skipped = [], 0
    for row in rows:
        is_skipped = row.get("skipped_steps", 0) > skipped
        skipped = row.get("skipped_steps", 0)
        big, small = row.get(BIG), row.get(SMALL)
        is_cut_so = row.get("pieces", pieces) == pieces
        if not is_skipped and is_cut_so and big is not None and small is not None:
            found.append((row["step"], big, small))
    return found


def _estimate(
    norms: Sequence[tuple[int, float, float]], batch_size: int, pieces: int
) -> NoiseScale | None:
    return estimate(
        [big for _, big, _ in norms],
        [small for *_, small in norms],
        big_batch=batch_size,
        small_batch=batch_size / pieces,
    )
