"""What may change when a run is continued in the same folder, and what makes it another run.

Model, data and optimizer make a run what it is. A schedule may be lengthened while no step has
had another rate than the new schedule would have given it: still on the plateau, more
`train_steps` with a longer constant phase end bit-equal to a run so planned from the start.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf
import yaml
from official.core import config_definitions

from official_bert import checkpoints, configuration, optimization
from official_bert.input import PretrainDataConfig
from tfrecords import files, schema
from tfrecords.errors import UserError

CHANGES = "changes.jsonl"
DATA = "data.json"

_SCHEDULE = "trainer.optimizer_config.learning_rate.warmup_constant_decay"
_SECTIONS = (
    "task.model",
    "task.train_data",
    "task.init_checkpoint",
    "task.seed",
    "trainer.optimizer_config",
    "runtime.num_workers",
)
# A run that damage has stopped may go on without the damaged records. Shards may be moved: what
# they are is compared, not where.
_FREE = (
    "task.train_data.on_corrupt",
    "task.train_data.corrupt_budget",
    "task.train_data.input_path",
)
# How a step is carried out may change; it is written down, for the bits change with it.
_RECORDED = (
    "trainer.train_steps",
    "task.micro_batch_size",
    "runtime.mixed_precision_dtype",
    "runtime.loss_scale",
    "runtime.enable_xla",
    "runtime.num_gpus",
)
_LENGTHS = tuple(
    f"{_SCHEDULE}.{name}"
    for name in ("total_steps", "warmup_steps", "constant_steps", "warmup_ratio", "constant_ratio")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A field that a continued run has another value of.

    Attributes:
      field: its dotted name.
      was: the value in `params.yaml`.
      now: the value asked for.
    """

    field: str
    was: Any
    now: Any


def check(
    params: config_definitions.ExperimentConfig, model_dir: str, mode: str
) -> tuple[Change, ...]:
    """Refuses a `model_dir` that holds another experiment; evaluation asks for the model only.

    Args:
      params: the config of the run about to start, completed.
      model_dir: its folder.
      mode: `train`, `eval` or `train_and_eval`.

    Returns:
      The changes that are accepted; none where the folder holds no run yet.

    Raises:
      UserError: naming the first field that may not change, and both values.
    """
    if "train" not in mode:
        configuration.check_same_run(params, model_dir, ("task.model",))
        return ()
    configuration.check_same_run(params, model_dir, _SECTIONS, but=(*_FREE, *_LENGTHS))
    _check_shards(params, model_dir)
    changes = tuple(
        Change(field=field, was=was, now=now)
        for field, was, now in configuration.differences(
            params, model_dir, (*_SECTIONS, *_RECORDED)
        )
    )
    lengths = [change for change in changes if change.field in _LENGTHS]
    if lengths:
        _check_rates_used(params, model_dir, lengths[0])
    return changes


def _check_shards(params: config_definitions.ExperimentConfig, model_dir: str) -> None:
    path = os.path.join(model_dir, DATA)
    data = params.task.train_data
    if not isinstance(data, PretrainDataConfig) or not tf.io.gfile.exists(path):
        return
    before, now = json.loads(files.read_bytes(path)), shards_of(data)
    if before != now:
        raise UserError(
            f"{model_dir} holds a different experiment: the shards in {data.input_path} are not "
            f"those it was begun with (sha256 of manifest.json was {before['manifest_sha256'][:12]}"
            f", is {now['manifest_sha256'][:12]}); give task.train_data.input_path of those, or "
            "choose another --model_dir"
        )


def shards_of(data: PretrainDataConfig) -> dict[str, str]:
    """What `DATA` holds: the hash of the manifest, which has the hash of every shard."""
    path = os.path.join(data.input_path, schema.MANIFEST_FILE)
    return {"manifest_sha256": files.sha256(path)}


def keep_shards(data: PretrainDataConfig, model_dir: str) -> None:
    """Writes down which shards a run was begun with."""
    text = json.dumps(shards_of(data)) + "\n"
    files.write_text(os.path.join(model_dir, DATA), text)


def _check_rates_used(
    params: config_definitions.ExperimentConfig, model_dir: str, change: Change
) -> None:
    steps = _steps_done(model_dir)
    before = _saved_optimization(model_dir, params)
    old = _rates(before[0], before[1], steps)
    new = _rates(params.trainer.optimizer_config, params.trainer.train_steps, steps)
    different = np.flatnonzero(old != new)
    if different.size:
        step = int(different[0]) + 1
        raise UserError(
            f"{model_dir} holds a different experiment: {change.field} was {change.was!r}, now "
            f"{change.now!r}, which gives step {step}, of {steps} done, the learning rate "
            f"{new[step - 1]:.6g} instead of {old[step - 1]:.6g}; only a run still on its plateau "
            "can be lengthened, by trainer.train_steps and the constant phase together: choose "
            "another --model_dir, or restore the old value"
        )


def _steps_done(model_dir: str) -> int:
    prefix = checkpoints.newest_whole(model_dir)
    if prefix is None:
        return 0
    reader = tf.train.load_checkpoint(prefix)
    return int(reader.get_tensor("global_step/.ATTRIBUTES/VARIABLE_VALUE"))


def _saved_optimization(
    model_dir: str, params: config_definitions.ExperimentConfig
) -> tuple[Any, int]:
    saved = configuration.read_saved(model_dir)["trainer"]
    config = params.trainer.optimizer_config.replace()
    config.override(saved["optimizer_config"], is_strict=False)
    return config, saved["train_steps"]


def _rates(config: Any, train_steps: int, steps: int) -> np.ndarray:
    schedule = optimization.build_learning_rate(config, train_steps)
    if not callable(schedule):
        return np.full(steps, schedule, np.float32)
    return np.asarray(schedule(np.arange(steps)), np.float32)


def as_rows(changes: tuple[Change, ...], step: int) -> list[dict[str, Any]]:
    """The changes as rows of `CHANGES`, made at a step."""
    return [
        {"step": step, **{name: _plain(value) for name, value in dataclasses.asdict(each).items()}}
        for each in changes
    ]


def _plain(value: Any) -> Any:
    return yaml.safe_load(yaml.safe_dump(value))


def path(model_dir: str) -> str:
    """The file of accepted changes of a run."""
    return os.path.join(model_dir, CHANGES)
