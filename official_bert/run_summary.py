"""One run as it lies on disk, and the figures that pages about runs show of it.

Nothing here knows more than the files of a `model_dir` say: what they do not say is None.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from official.modeling.hyperparams import base_config

import tfrecords
from official_bert import configuration, continuation, metrics_log, noise_scale, run_files
from tfrecords import schema

LAST_SHARE = 20

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training run.

    Attributes:
        model_dir: its folder.
        params: its config, as nested dictionaries.
        steps: rows of `metrics.jsonl`, one a step.
        evaluations: rows of `evaluations.jsonl`.
        speeds: rows of `speed.jsonl`.
        changes: rows of `changes.jsonl`: what was changed while it ran.
    """

    model_dir: str
    params: Mapping[str, Any]
    steps: Rows
    evaluations: Rows
    speeds: Rows
    changes: Rows

    @classmethod
    def load(
        cls, model_dir: str, params: base_config.Config | Mapping[str, Any] | None = None
    ) -> "Run":
        """Reads a run's folder; a file that is not there has no rows.

        Args:
            model_dir: the folder.
            params: the config; None means `params.yaml`.

        Raises:
            UserError: there is no `params.yaml`, or a line of a file is damaged.
        """
        if params is None:
            params = configuration.read_saved(model_dir)
        elif isinstance(params, base_config.Config):
            params = params.as_dict()
        names = {
            "steps": metrics_log.METRICS,
            "evaluations": metrics_log.EVALUATIONS,
            "speeds": run_files.SPEED,
            "changes": continuation.CHANGES,
        }
        rows = {field: _rows(os.path.join(model_dir, name)) for field, name in names.items()}
        return cls(model_dir=model_dir, params=params, **rows)

    def get(self, path: str) -> Any:
        """A field of the config by its dotted name, such as `trainer.train_steps`, or None."""
        value: Any = self.params
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def choice(self, path: str) -> tuple[str | None, Mapping[str, Any]]:
        """What one of Model Garden's choices chose, and the fields it chose."""
        kind = self.get(f"{path}.type")
        return kind, self.get(f"{path}.{kind}") or {}

    @property
    def last_step(self) -> int:
        """Steps done."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def batch_size(self) -> int | None:
        """Examples of a global batch."""
        return self.get("task.train_data.global_batch_size")

    @property
    def optimizer(self) -> str | None:
        """The optimizer's type, as the config names it."""
        return self.choice("trainer.optimizer_config.optimizer")[0]

    @property
    def peak_learning_rate(self) -> float | None:
        """The schedule's peak; of a schedule without that field, the highest rate so far."""
        _, schedule = self.choice("trainer.optimizer_config.learning_rate")
        if "peak_learning_rate" in schedule:
            return schedule["peak_learning_rate"]
        return max((rate for _, rate in self.curve("learning_rate")), default=None)

    @property
    def first_loss(self) -> float | None:
        """Training loss of the first step."""
        return next((loss for _, loss in self.curve("loss")), None)

    @property
    def last_loss(self) -> float | None:
        """Training loss, mean of the last twentieth of the steps; one batch's is noisy."""
        losses = [loss for _, loss in self.curve("loss")]
        return statistics.fmean(losses[-max(1, len(losses) // LAST_SHARE) :]) if losses else None

    @property
    def skipped_steps(self) -> int | None:
        """Steps that changed nothing, for a gradient that was not finite."""
        return self.steps[-1].get("skipped_steps") if self.steps else None

    @property
    def examples_per_second(self) -> float | None:
        """The median of the recorded speeds, so that compiling and waiting weigh little."""
        speeds = [speed for _, speed in _curve(self.speeds, "examples_per_second")]
        return statistics.median(speeds) if speeds else None

    @property
    def last_evaluation(self) -> Mapping[str, Any]:
        """The last row of evaluations, its step included; empty where there is none."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def pieces(self) -> int | None:
        """In how many pieces a batch is cut: as the last step says, or else the config.

        With micro-batches it is batch / micro-batch for any number of replicas; without, it is
        the number of replicas, which the config names for one device and for GPUs. A run that
        was continued with other pieces is read by the last ones.
        """
        if self.steps and "pieces" in self.steps[-1]:
            return int(self.steps[-1]["pieces"])
        micro_batch_size = self.get("task.micro_batch_size")
        if self.batch_size and micro_batch_size:
            return self.batch_size // micro_batch_size
        strategy = self.get("runtime.distribution_strategy")
        if strategy == "one_device":
            return 1
        workers = 1 if strategy == "mirrored" else self.get("runtime.num_workers")
        # Zero GPUs may stand for all CPUs there are, which no file says.
        return (workers or 0) * (self.get("runtime.num_gpus") or 0) or None

    @property
    def noise_scale(self) -> noise_scale.NoiseScale | None:
        """The gradient noise scale over the last twentieth of the steps, or a few more."""
        if not self.batch_size:
            return None
        window = max(noise_scale.WINDOW, len(self.steps) // LAST_SHARE)
        return noise_scale.from_rows(self.steps, self.batch_size, self.pieces, window)

    @property
    def manifest(self) -> tfrecords.Manifest | None:
        """The manifest of the shards it read, where they are still there.

        Raises:
            UserError: the manifest is damaged, or of another format version.
        """
        shards = self.get("task.train_data.input_path")
        if not isinstance(shards, str) or not shards:
            return None
        if not tf.io.gfile.exists(os.path.join(shards, schema.MANIFEST_FILE)):
            return None
        return tfrecords.Manifest.load(shards)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a quantity, for the steps that have it."""
        return list(_curve(self.steps, name))

    def evaluation_curve(self, name: str) -> list[tuple[int, float]]:
        """The same, of the evaluations."""
        return list(_curve(self.evaluations, name))


def _curve(rows: Rows, name: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        if row.get(name) is not None:
            yield row["step"], row[name]


def _rows(path: str) -> list[dict[str, Any]]:
    return metrics_log.read(path) if tf.io.gfile.exists(path) else []


def flattened(values: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names.

    Example:
        >>> flattened({"trainer": {"train_steps": 3}, "task": {}})
        {'trainer.train_steps': 3}
    """
    if not isinstance(values, Mapping):
        return {path: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flattened(value, f"{path}.{key}" if path else str(key))
    return found


def shown(value: Any) -> str:
    """A setting as YAML would have it, in a line: null, true, 0.01, [bias], text without quotes."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
