"""A tiny study for tests: its settings, its text, and records as its runs would leave them."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import large_batch_methods, large_batch_queue
from benchmarks.large_batch_data import Text
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_settings import ModelSizes, Run, Study

SIZES = ModelSizes(layers=1, width=16, vocab_size=64, seq_length=16, max_predictions=3)
STUDY = Study(data="none", sizes=SIZES, examples=64, batches=(8, 16), draws=2, rates=2, seeds=2)


def text_of(count: int, seed: int = 0) -> Text:
    rows = np.random.default_rng(seed).integers(5, 64, (count + 20, 16)).astype(np.uint16)
    rows[:, 0], rows[:, -1] = 2, 3
    return Text(
        train=rows[20:],
        validation=rows[:10],
        test=rows[10:20],
        vocab_size=64,
        source="made up",
        sha256="none",
    )


def run_of(method: str, **changes: Any) -> Run:
    run = large_batch_methods.drawn(STUDY, METHODS[method], 0)
    return dataclasses.replace(run, **changes)


def record_of(
    run: Run, loss: float, diverged: bool = False, study: Study = STUDY
) -> dict[str, Any]:
    return {
        "kind": "run",
        "study": study.key,
        "run": run.key(study),
        "settings": dataclasses.asdict(run),
        "curve": [[0, None, 4.0], [2, 3.9, 3.5], [4, 3.4, loss]],
        "validation_loss": loss,
        "test_loss": loss + 0.1,
        "diverged": diverged,
        "seconds": 1.0,
        "date": "2000-01-01",
        "source": "made up",
        "processor": "none",
        "versions": {},
    }


def play(
    limit: int | None = None,
    diverges: str = "",
    study: Study = STUDY,
    records: Iterable[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The records of a study whose losses follow from the runs' keys, after those it has."""
    records = list(records)
    while limit is None or len(records) < limit:
        done = large_batch_queue.of_study(study, records)
        run = next(large_batch_queue.remaining(study, done), None)
        if run is None:
            break
        loss = 2 + int(run.key(study), 16) / 16**16
        records.append(record_of(run, loss, run.method == diverges, study))
    return records
