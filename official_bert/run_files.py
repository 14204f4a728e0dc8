"""What a run leaves on disk beside its checkpoints; only the chief leaves anything."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from official.core import config_definitions

from official_bert import configuration, continuation, metrics_log, run_data
from official_bert.input import PretrainDataConfig, keep_tokenization
from tfrecords import files

SPEED = "speed.jsonl"
TRAIN_SUMMARIES = "train"
# The steps that a running estimate looks back on.
WINDOW = 100
# For what a process that this one replaces may still save, or a file server find out.
PATIENCE_SECONDS = 120.0


class RunFiles:
    """The logs and summaries of a run that trains.

    Args:
      params: the config.
      model_dir: the run's folder.
      writes: whether this process leaves files: the chief does while it trains.

    Attributes:
      recent: the last rows of `metrics.jsonl`, at most `WINDOW`.
    """

    def __init__(
        self, params: config_definitions.ExperimentConfig, model_dir: str, writes: bool
    ) -> None:
        self.params, self.model_dir, self.writes = params, model_dir, writes
        self.metrics = metrics_log.MetricsLog(self._path(metrics_log.METRICS))
        self.evaluations = metrics_log.MetricsLog(
            self._path(metrics_log.EVALUATIONS), every_step=False
        )
        self.speed = metrics_log.MetricsLog(self._path(SPEED), every_step=False)
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self.summaries = tf.summary.create_noop_writer()
        self._seconds, self._steps = 0.0, 0

    @property
    def logs(self) -> tuple[str, ...]:
        """The files that rows are appended to; they need not be there yet."""
        return self.metrics.path, self.evaluations.path, self.speed.path

    def _path(self, name: str) -> str:
        return os.path.join(self.model_dir, name)

    def summary_folder(self, name: str) -> str | None:
        """Where TensorBoard's files of that name go; None where nothing is left."""
        return self._path(name) if self.writes else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the same folder, on a local file system.

        Raises:
          TimeoutError: another one does, and has not ended within `PATIENCE_SECONDS`.
        """
        if not self.writes:
            yield
            return
        tf.io.gfile.makedirs(self.model_dir)
        with files.lock(self._path(".lock"), PATIENCE_SECONDS):
            yield

    def begin(
        self,
        step: int,
        changes: Sequence[continuation.Change],
        partitions: Sequence[run_data.Partition],
    ) -> list[dict[str, Any]]:
        """Settles the folder at the restored step.

        Args:
          step: steps done.
          changes: what is different from the run so far.
          partitions: who has shared the epochs of pretraining; none for another task.

        Returns:
          The rows of `metrics.jsonl` up to `step`.
        """
        before = self._rows_before(step)
        self.recent.extend(before[-WINDOW:])
        if not self.writes:
            return before
        # Before the config that no longer shows them, should this process be killed between.
        self._record(continuation.as_rows(tuple(changes), step))
        data = self.params.task.train_data
        if isinstance(data, PretrainDataConfig):
            known = run_data.RunData(
                manifest_sha256=run_data.manifest_sha256(data), partitions=tuple(partitions)
            )
            run_data.write(self.model_dir, known)
            keep_tokenization(data, self.model_dir)
        configuration.save(self.params, self.model_dir)
        files.remove_partial(self.model_dir)
        for log in (self.metrics, self.evaluations, self.speed):
            log.cut_back(step)
        self.summaries = tf.summary.create_file_writer(
            os.path.join(self._path(TRAIN_SUMMARIES), "blocks")
        )
        return before

    def _record(self, changes: Sequence[Mapping[str, Any]]) -> None:
        path = continuation.path(self.model_dir)
        before = metrics_log.read(path) if tf.io.gfile.exists(path) else []
        new = [row for row in changes if row not in before]
        if new:
            metrics_log.write(path, [*before, *new])

    def _rows_before(self, step: int) -> list[dict[str, Any]]:
        if not tf.io.gfile.exists(self.metrics.path):
            return []
        return [
            row for row in metrics_log.read(self.metrics.path, through=step) if row["step"] <= step
        ]

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation at `step` was finished."""
        if not tf.io.gfile.exists(self.evaluations.path):
            return False
        return any(row["step"] == step for row in metrics_log.read(self.evaluations.path))

    def add_steps(self, rows: Sequence[Mapping[str, Any]], seconds: float, summary: bool) -> None:
        """Adds a loop's rows.

        Args:
          rows: one a step.
          seconds: what the loop took.
          summary: whether its last step is one of those that are summarised.
        """
        self.recent.extend(rows)
        self._seconds += seconds
        self._steps += len(rows)
        if not self.writes:
            return
        self.metrics.append(rows)
        if not summary:
            return
        examples = self._steps * self.params.task.train_data.global_batch_size
        speed = {
            "step": rows[-1]["step"],
            "seconds": round(self._seconds, 3),
            "examples_per_second": round(examples / self._seconds, 3),
        }
        self.speed.append([speed])
        self.summarize(rows[-1]["step"], {"examples_per_second": speed["examples_per_second"]})
        self._seconds, self._steps = 0.0, 0

    def add_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Adds an evaluation's values."""
        if self.writes:
            self.evaluations.append([{"step": step, **values}])

    def summarize(
        self,
        step: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Adds values to TensorBoard's files."""
        with self.summaries.as_default(step=step):
            _each(tf.summary.scalar, scalars)
            _each(tf.summary.histogram, histograms or {})
        self.summaries.flush()


def _each(write: Callable[[str, Any], Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        write(name, value)
