"""Runs that diverge end, and what counts their skipped steps outlives restarts."""

import numpy as np
import pytest

from official_bert import checkpoints, guard, metrics_log, runner
from tests.bert.resumed_runs import SCHEDULE
from tfrecords.errors import UserError


def test_a_run_that_diverges_ends(tmp_path, tiny) -> None:
    """At a rate of 1e30 the weights leave float32 after one update; the gradients are NaN."""
    rate = {f"{SCHEDULE}peak_learning_rate": 1e30}
    params = tiny(trainer__train_steps=40, trainer__max_skipped_steps=5, **rate)
    with pytest.raises(UserError, match="not finite, 5 in a row") as caught:
        runner.run(params, str(tmp_path), "train")
    rows = metrics_log.read(tmp_path / metrics_log.METRICS)
    last = rows[-1]["step"]
    assert last < 12 and rows[-1]["skipped_steps"] >= 5
    assert "largest gradient norms by block" in str(caught.value)
    assert "ckpt-" in str(caught.value)
    assert checkpoints.latest(str(tmp_path))
    # Started again it ends at once: the count is in the log.
    with pytest.raises(UserError, match="in a row"):
        runner.run(params, str(tmp_path), "train")


def test_the_guard_counts_over_restarts() -> None:
    def rows(*skipped: int) -> list[dict]:
        return [{"step": n, "skipped_steps": count} for n, count in enumerate(skipped, start=1)]

    counting = guard.SkippedStepsGuard(3, rows(0, 1, 2))
    assert counting.in_a_row == 2
    assert counting.see(rows(2)) is None and counting.in_a_row == 0
    assert counting.see(rows(3, 4)) is None
    assert counting.see(rows(5)) == {"step": 1, "skipped_steps": 5}
    inside = guard.SkippedStepsGuard(2)
    assert inside.see(rows(1, 2, 3, 3)) is None
    assert inside.see(rows(4, 5, 6))["step"] == 3 and inside.in_a_row == 3
    lost = guard.SkippedStepsGuard(2)
    assert lost.see([{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}])["step"] == 2
    raised = guard.SkippedStepsGuard(2, rows(1, 2, 2, 2))
    assert raised.in_a_row == 0 and raised.see(rows(3)) is None
    message = str(guard.diverged({"step": 9, "loss": None}, 3, {"a": 1.0, "b": np.nan}, "ckpt-4"))
    assert "steps 7 to 9" in message and "b nan, a 1" in message
    assert "loss_scale" not in message
    scaled = guard.diverged({"step": 9}, 3, {}, "ckpt-4", fixed_loss_scale=2.0**100)
    assert "set runtime.loss_scale (1.26765e+30) to dynamic, lower the" in str(scaled)
