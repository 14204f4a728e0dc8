"""`metrics.jsonl`: one JSON object a line, in step order, consistent with the checkpoints."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from tfrecords import files
from tfrecords.errors import UserError

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"


class MetricsLog:
    """Appends rows to a JSON-lines file; a restarted run cuts it back to its checkpoint.

    A number that is NaN or infinite is written as null.

    Args:
      path: the file; created with the first row.
      every_step: whether each step has a row, so that one that is missing shows.

    Example:
      >>> log = MetricsLog("run/metrics.jsonl")
      >>> log.cut_back(500)       # rows after the restored step are going to be written again
      >>> log.append([{"step": 501, "loss": 6.25}])
    """

    def __init__(self, path: str, *, every_step: bool = True) -> None:
        self.path = path
        self.every_step = every_step

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows at the end, and hands them to the file system before it returns."""
        with tf.io.gfile.GFile(self.path, "a") as stream:
            stream.write("".join(_line(row) for row in rows))

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`, and a last line that a kill left unfinished.

        Raises:
          UserError: rows up to `step` are damaged, as far as that can be told: where some steps
            only have a row, damage at the very end is dropped, with a warning.
        """
        if tf.io.gfile.exists(self.path):
            rows = read(self.path, through=step, torn_end=not self.every_step)
            write(self.path, [row for row in rows if row["step"] <= step])


def write(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Makes a file hold these rows and no others, atomically."""
    files.write_text(path, "".join(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> str:
    """JSON has no NaN and no infinity, such as the gradient's norm in a skipped step: null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def read(
    path: str | os.PathLike[str], through: int | None = None, *, torn_end: bool = False
) -> list[dict[str, Any]]:
    """All whole rows of a metrics file, in order; an unfinished last line is left out.

    Args:
      path: the file.
      through: the last step that is wanted, if not all: once its row is read, a damaged line ends
        the rows, as a machine leaves one that loses its power after its last checkpoint.
      torn_end: whether damaged lines that no whole one follows end the rows as well, with a
        warning.

    Raises:
      UserError: a line is not JSON, or no object with a number as its step.
    """
    rows: list[dict[str, Any]] = []
    lines = files.read_bytes(path).split(b"\n")[:-1]
    for number, line in enumerate(lines):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if through is not None and rows and rows[-1]["step"] >= through:
                break
            if torn_end and not any(map(_is_row, lines[number:])):
                logging.warning(
                    "%s: its last %d lines are damaged (%s), and left out",
                    os.fspath(path), len(lines) - number, error,
                )  # fmt: skip
                break
            raise UserError(
                f"{os.fspath(path)} is damaged: {error}; restore it from a copy, or move the run's "
                "folder away to begin again"
            ) from error
    return rows


def _is_row(line: bytes) -> bool:
    try:
        _row(line)
    except ValueError:
        return False
    return True


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8"))
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise ValueError(f"expected an object with a number as its step, not {line[:60]!r}")
    return row
