"""What may change when a run is continued in the same folder, and what makes it another run.

Model, data and optimizer make a run what it is. A schedule may be lengthened while no step has
had another rate than the new schedule would have given it: still on the plateau, more
`train_steps` with a longer constant phase end bit-equal to a run so planned from the start.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import yaml
from official.core import config_definitions

import tfrecords
from official_bert import checkpoints, configuration, optimization, run_data, run_folder
from official_bert.input import TOKENIZER_CONFIG, PretrainDataConfig, kept_casing
from tfrecords import files, schema
from tfrecords.errors import UserError

CHANGES = "changes.jsonl"

_SCHEDULE = "trainer.optimizer_config.learning_rate.warmup_constant_decay"
_SECTIONS = (
    "task.model",
    "task.train_data",
    "task.train_file_sha256",
    "task.init_checkpoint",
    "task.seed",
    "trainer.optimizer_config",
)
# A run that damage has stopped may go on without the damaged records. Shards may be moved: what
# they are is compared, not where.
_FREE = (
    "task.train_data.on_corrupt",
    "task.train_data.corrupt_budget",
    "task.train_data.input_path",
)
_WORKERS = "runtime.num_workers"
# How a step is carried out may change; it is written down, for the bits change with it.
_RECORDED = (
    "trainer.train_steps",
    "task.micro_batch_size",
    "runtime.mixed_precision_dtype",
    "runtime.loss_scale",
    "runtime.enable_xla",
    "runtime.num_gpus",
    "runtime.distribution_strategy",
    "runtime.deterministic_ops",
    _WORKERS,
)
_START, _VOCABULARY = "task.init_checkpoint", "task.train_data.vocab_file"
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


def with_start(
    params: config_definitions.ExperimentConfig, model_dir: str
) -> config_definitions.ExperimentConfig:
    """The config of a run that goes on, with the weights it started from where it names none now.

    A run goes on from a checkpoint of its own. One that has lost them all starts again, and is to
    do so from where it did.

    Args:
      params: the config; one that names a start is returned as it is.
      model_dir: folder of the run, which need not have begun; "" for none.
    """
    if params.task.init_checkpoint or not model_dir:
        return params
    for _, was, _ in configuration.differences(params, model_dir, (_START,)):
        if was:
            params = params.replace(task=params.task.replace(init_checkpoint=was))
    return params


def check(
    params: config_definitions.ExperimentConfig,
    model_dir: str,
    mode: str,
    *,
    repartition: bool = False,
) -> tuple[Change, ...]:
    """Refuses a `model_dir` that holds something else; evaluation asks for the model only.

    Args:
      params: the config of the run about to start, completed.
      model_dir: its folder.
      mode: `train`, `eval` or `train_and_eval`.
      repartition: whether pretraining may go on with another number of workers.

    Returns:
      The changes that are accepted; none where the folder holds no run yet.

    Raises:
      UserError: naming the first field that may not change, and both values, or the files of a
        folder that holds no run, or a path that is no folder's.
    """
    run_folder.check_path(model_dir)
    if "train" not in mode:
        configuration.check_same_run(params, model_dir, ("task.model",))
        return ()
    check_begun(params, model_dir, _SECTIONS, but=(*_FREE, *_LENGTHS))
    if not repartition:
        _check_workers(params, model_dir)
    _check_shards(params, model_dir)
    _check_folder(params, model_dir)
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


def check_begun(
    params: config_definitions.ExperimentConfig,
    model_dir: str,
    sections: Sequence[str],
    but: Collection[str] = (),
) -> None:
    """As `configuration.check_same_run`, but what a run was begun with may lie elsewhere by now.

    Args:
      params: the config of the run about to start.
      model_dir: its folder.
      sections: dotted names of the parts that must be the same.
      but: dotted names of fields in them that may change.

    Raises:
      UserError: naming the first field that differs, and both values.
    """
    moved = {
        field
        for field, was, now in configuration.differences(params, model_dir, (_START, _VOCABULARY))
        if (_is_same_start(was, now) if field == _START else _is_kept_vocabulary(now, model_dir))
    }
    configuration.check_same_run(params, model_dir, sections, but={*but, *moved})


def _is_same_start(was: str | None, now: str) -> bool:
    """Whether the weights to start from may be those that a run started from.

    Those that lie no longer where they lay were moved, or are not needed: a run that has a
    checkpoint of its own goes on from that.
    """
    if not was or not now:
        return not was and not now
    return checkpoints.is_same(was, now) or checkpoints.fingerprint(was) is None


def _is_kept_vocabulary(now: str, model_dir: str) -> bool:
    """Whether a vocabulary is the one that the run of a folder has a copy of."""
    paths = (now, os.path.join(model_dir, schema.VOCABULARY_FILE))
    if not now or not all(map(tf.io.gfile.exists, paths)):
        return False
    return files.sha256(paths[0]) == files.sha256(paths[1])


def _check_workers(params: config_definitions.ExperimentConfig, model_dir: str) -> None:
    """Refuses to deal pretraining's examples out anew; finetuning's order knows no workers."""
    if not isinstance(params.task.train_data, PretrainDataConfig):
        return
    for field, was, now in configuration.differences(params, model_dir, (_WORKERS,)):
        raise UserError(
            f"{model_dir} holds a different experiment: {field} was {was!r}, now {now!r}, and what "
            f"was read of the epoch follows from their number; start {was!r} workers, or give "
            "--repartition to go on with a new epoch"
        )


def _check_shards(params: config_definitions.ExperimentConfig, model_dir: str) -> None:
    data = params.task.train_data
    if not isinstance(data, PretrainDataConfig):
        return
    known = run_data.read(model_dir)
    if known is None:
        return
    before, now = known.manifest_sha256, run_data.manifest_sha256(data)
    if before != now:
        raise UserError(
            f"{model_dir} holds a different experiment: the shards in {data.input_path} are not "
            f"those it was begun with (sha256 of manifest.json was {before[:12]}, is {now[:12]}); "
            "give task.train_data.input_path of those, or choose another --model_dir"
        )


def _check_folder(params: config_definitions.ExperimentConfig, model_dir: str) -> None:
    """Refuses a folder of something else; finetuning has looked at its own before."""
    data = params.task.train_data
    if not isinstance(data, PretrainDataConfig):
        return

    def is_early(name: str) -> bool:
        if name == run_data.FILE:  # compared before
            return True
        manifest = tfrecords.Manifest.load(data.input_path)
        path = os.path.join(model_dir, name)
        if name == schema.VOCABULARY_FILE:
            return files.sha256(path) == files.sha256(manifest.vocabulary_file)
        casing = manifest.lower_case
        return name == TOKENIZER_CONFIG and kept_casing(model_dir) == casing

    run_folder.check(model_dir, is_early)


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
