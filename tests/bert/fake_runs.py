"""Folders that look like those of training runs; nothing is trained."""

import math
import os
import pathlib

from official.core import config_definitions

from official_bert import configuration, continuation, metrics_log, run_files

SKIPPED = 7


def write(
    folder: pathlib.Path, params: config_definitions.ExperimentConfig, steps: int, pieces: int = 1
) -> pathlib.Path:
    """A run of `steps` steps whose loss at step s is 10 - s / 100; step 7 was skipped.

    With at least two pieces the rows have norms of 3 and 5: the noise scale of a batch B cut in N
    is B (25 - 9) / (9 N - 25), by the two formulas of appendix A.1 of arXiv 1812.06162.
    """
    configuration.save(params, os.fspath(folder))
    log(folder, metrics_log.METRICS, [_row(step, pieces) for step in range(1, steps + 1)])
    return folder


def _row(step: int, pieces: int) -> dict:
    row = {
        "step": step,
        "loss": 10 - step / 100,
        "masked_lm_accuracy": step / 1000,
        "learning_rate": 0.001 * step,
        "gradient_norm": 3.0,
        "skipped_steps": int(step >= SKIPPED),
    }
    if pieces > 1:
        row["piece_gradient_norm"] = 5.0
    if step == SKIPPED:
        row |= {"gradient_norm": math.nan, "loss": math.nan}
    if step % 2 == 0:
        row["trust_ratio_median"] = 0.05
    return row


def log(folder: pathlib.Path, name: str, rows: list[dict]) -> None:
    """Adds rows to one of the run's files."""
    metrics_log.MetricsLog(os.fspath(folder / name)).append(rows)


def finish(folder: pathlib.Path, accuracy: float) -> None:
    """Adds evaluations, speeds and a change to a run."""
    log(folder, metrics_log.EVALUATIONS, [
        {"step": 4, "masked_lm_loss": 8.0, "masked_lm_accuracy": 0.01},
        {"step": 8, "masked_lm_loss": 7.5, "masked_lm_accuracy": accuracy},
    ])  # fmt: skip
    log(folder, run_files.SPEED, [
        {"step": step, "seconds": 2.0, "examples_per_second": speed}
        for step, speed in ((2, 1.0), (4, 1250.0), (6, 1300.0))
    ])  # fmt: skip
    log(folder, continuation.CHANGES, [
        {"step": 5, "field": "trainer.train_steps", "was": 6, "now": 20},
    ])  # fmt: skip
