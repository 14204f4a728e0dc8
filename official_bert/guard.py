"""Ends a run whose gradients stay non-finite.

The optimizer skips a step with a non-finite gradient on any replica and counts it; a few are
harmless, many in a row mean that training is over, and going on would only burn machine hours.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tfrecords.errors import UserError

_SHOWN = 5


class Diverged(UserError):  # noqa: N818 - what happened, as `Stopped`
    """Training went to numbers that are not finite.

    Args:
      message: the whole line for the user.
      found: its part without any advice; the whole line when None.
    """

    def __init__(self, message: str, found: str | None = None) -> None:
        super().__init__(message)
        self.found = message if found is None else found


class SkippedStepsGuard:
    """Counts the steps skipped in a row, over restarts too.

    Args:
      limit: so many in a row end the run.
      rows: the rows of `metrics.jsonl` so far.

    Example:
      >>> guard = SkippedStepsGuard(2, [{"step": 1, "skipped_steps": 1}])
      >>> guard.see([{"step": 2, "skipped_steps": 1}])
      >>> guard.in_a_row
      0
    """

    def __init__(self, limit: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.limit = limit
        self.in_a_row = 0
        self._before = 0
        self.see(rows)

    def see(self, rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Counts the next rows.

        Returns:
          The last of them if the limit is reached there, or was and has not been left since;
          None otherwise.
        """
        last: Mapping[str, Any] | None = None
        for row in rows:
            last = row
            skipped = row.get("skipped_steps", self._before + _is_lost(row))
            self.in_a_row = self.in_a_row + 1 if skipped > self._before else 0
            self._before = skipped
        return last if self.in_a_row >= self.limit else None


def _is_lost(row: Mapping[str, Any]) -> bool:
    """Whether the loss is not finite, which is all that other optimizers than ours tell."""
    loss = row.get("loss", 0.0)
    return loss is None or not math.isfinite(loss)


def diverged(
    row: Mapping[str, Any], in_a_row: int, gradient_norms: Mapping[str, float], checkpoint: str
) -> Diverged:
    """The error that ends the run.

    Args:
      row: the last step's row.
      in_a_row: the steps skipped.
      gradient_norms: by block, in that step.
      checkpoint: where the weights as they were before are saved.
    """
    ranked = sorted(gradient_norms.items(), key=_by_size)
    largest = ", ".join(f"{path} {norm:.3g}" for path, norm in ranked[:_SHOWN]) or "not watched"
    step = row["step"]
    found = (
        f"the gradients of steps {step - in_a_row + 1} to {step} were not finite, "
        f"{in_a_row} in a row"
    )
    return Diverged(
        f"{found} (trainer.max_skipped_steps); loss {row.get('loss')}; largest "
        f"gradient norms by block, of the last: {largest}. The weights before them are in "
        f"{checkpoint}: lower the learning rate or lengthen the warm-up in another --model_dir "
        "with task.init_checkpoint, or look at the data of these steps",
        found,
    )


def _by_size(item: tuple[str, float]) -> tuple[bool, float]:
    norm = item[1]
    return (not math.isnan(norm), -norm if not math.isnan(norm) else 0.0)
