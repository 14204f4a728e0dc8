"""Ends a run whose gradients or losses stay non-finite.

The optimizer skips a step with a non-finite gradient on any replica and counts it; a few are
harmless, many in a row mean that training is over, and going on would only burn machine hours.
Under an optimizer that does not skip, the losses tell the same.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from official_bert import checkpoints
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
    """Counts the steps lost in a row, skipped or with a loss that is not finite.

    It counts over restarts too.

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
            skipped = row.get("skipped_steps", self._before)
            is_lost = skipped > self._before or _has_lost_loss(row)
            self.in_a_row = self.in_a_row + 1 if is_lost else 0
            self._before = skipped
        return last if self.in_a_row >= self.limit else None


def _has_lost_loss(row: Mapping[str, Any]) -> bool:
    """Whether the loss is not finite, which is all that an optimizer without skips tells."""
    loss = row.get("loss", 0.0)
    return loss is None or not math.isfinite(loss)


def sound_checkpoint(model_dir: str, before: int | None = None) -> str | None:
    """The newest checkpoint of a run without a number that is not finite; None where none is.

    Args:
      model_dir: the run's folder.
      before: the step from which on no checkpoint is asked for: the first lost one, where the
        optimizer did not skip it.
    """
    for prefix in reversed(checkpoints.listed(model_dir)):
        step = int(prefix.rpartition("-")[2])
        if (before is None or step < before) and _is_finite(prefix):
            return prefix
    return None


def _is_finite(prefix: str) -> bool:
    try:
        reader = tf.train.load_checkpoint(prefix)
        return all(
            np.isfinite(reader.get_tensor(name)).all()
            for name, dtype in reader.get_variable_to_dtype_map().items()
            if dtype.is_floating
        )
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError):  # damaged
        return False


def diverged(
    row: Mapping[str, Any],
    in_a_row: int,
    gradient_norms: Mapping[str, float],
    checkpoint: str | None,
    *,
    skips: bool = True,
    fixed_loss_scale: float | None = None,
) -> Diverged:
    """The error that ends the run.

    Args:
      row: the last step's row.
      in_a_row: the steps lost.
      gradient_norms: by block, in that step.
      checkpoint: where the weights as they were before are saved; None where they are not.
      skips: whether the optimizer skipped these steps; otherwise their losses told.
      fixed_loss_scale: `runtime.loss_scale` where that is a number.
    """
    ranked = sorted(gradient_norms.items(), key=_by_size)
    largest = ", ".join(f"{path} {norm:.3g}" for path, norm in ranked[:_SHOWN]) or "not watched"
    step = row["step"]
    lost = "gradients" if skips else "losses"
    found = (
        f"the {lost} of steps {step - in_a_row + 1} to {step} were not finite, {in_a_row} in a row"
    )
    kept, start = "No finite weights from before them are kept", ""
    if checkpoint is not None:
        kept = f"The weights before them are in {checkpoint}"
        start = " with task.init_checkpoint"
    scaled = ""
    if fixed_loss_scale is not None:
        scaled = f"set runtime.loss_scale ({fixed_loss_scale:g}) to dynamic, "
    return Diverged(
        f"{found} (trainer.max_skipped_steps); loss {row.get('loss')}; largest "
        f"gradient norms by block, of the last: {largest}. {kept}: {scaled}lower the learning rate "
        f"or lengthen the warm-up in another --model_dir{start}, or look at the data of these "
        "steps",
        found,
    )


def _by_size(item: tuple[str, float]) -> tuple[bool, float]:
    norm = item[1]
    return (not math.isnan(norm), -norm if not math.isnan(norm) else 0.0)
