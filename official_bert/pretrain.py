r"""Runs both pretraining phases: short sequences first, then long ones from the same weights.

Phase 2 starts from all of phase 1's weights, the next-sentence layer included, with fresh
moments and its own schedule, as arXiv 2006.13484 (section 4) and BERT before it did.

Example::

  python -m official_bert.pretrain --phase1=bert_tiny_phase1.yaml --phase2=bert_tiny_phase2.yaml \
    --input_path=shards --model_dir=run

Leaves `run/phase1` and `run/phase2`; run again, it continues where it stands.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from absl import flags
from official.core import config_definitions

from official_bert import (
    checkpoints,
    cluster,
    configuration,
    devices,
    experiments,
    interruption,
    preflight,
    run_data,
    run_folder,
    runner,
)
from official_bert.pretraining_task import with_heads_of_data
from tfrecords.errors import UserError

# Of a model: what one phase may have another value of than the other.
_FREE = ("dropout_rate", "attention_dropout_rate", "initializer_range", "mlm_initializer_range")

FLAGS = flags.FlagValues()
flags.DEFINE_string("phase1", None, "Recipe of phase 1.", required=True, flag_values=FLAGS)
flags.DEFINE_string("phase2", None, "Recipe of phase 2.", required=True, flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "Folder of both phases.", required=True, flag_values=FLAGS)
flags.DEFINE_string(
    "input_path", "", "Folder written by tfrecords.build; overrides the recipes'.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "params_override", "", "As in official_bert.train; applies to both phases.", flag_values=FLAGS
)

run_data.define_flags(FLAGS)
interruption.define_flags(FLAGS)


def phase_params(
    recipe: str, input_path: str = "", params_override: str = ""
) -> config_definitions.ExperimentConfig:
    """One phase's config: recipe, then overrides, then where its data lie."""
    params = configuration.load(experiments.PRETRAINING, [recipe], params_override)
    if not input_path:
        return params
    data = {"train_data": {"input_path": input_path}, "validation_data": {"input_path": input_path}}
    return params.replace(task=params.task.replace(**data))


def body(flag_values: flags.FlagValues, stop: interruption.StopRequest) -> None:
    """Checks both phases before it starts the first."""
    experiments.register()
    run_folder.check_path(flag_values.model_dir)
    folders = [os.path.join(flag_values.model_dir, name) for name in ("phase1", "phase2")]
    phases = [
        phase_params(recipe, flag_values.input_path, flag_values.params_override)
        for recipe in (flag_values.phase1, flag_values.phase2)
    ]
    _check_runtime(*phases)
    for params, folder in zip(phases, folders, strict=True):
        preflight.check(params, "train_and_eval", folder)
    _check_models(*phases)
    given = phases[1].task.init_checkpoint
    if given and os.path.normpath(given) != os.path.normpath(folders[0]):
        raise UserError(
            f"task.init_checkpoint of --phase2 is {given}; expected none, since phase 2 starts "
            f"from {folders[0]}: leave it out, or run the phases by official_bert.train"
        )
    # Before anything is computed: TensorFlow wants a strategy over several workers first of all.
    strategy = devices.build_strategy(phases[0].runtime)
    workers, replicas = cluster.input_pipelines(strategy), strategy.num_replicas_in_sync
    phases[1] = phases[1].replace(task=phases[1].task.replace(init_checkpoint=folders[0]))
    for params, folder in zip(phases, folders, strict=True):
        preflight.check_batches(params, "train_and_eval", workers=workers, replicas=replicas)
        runner.check_model_dir(
            params, folder, strategy=strategy, repartition=flag_values.repartition
        )
    _check_order(phases[0].trainer.train_steps, *folders)
    _run_phases(phases, folders, strategy, stop, repartition=flag_values.repartition)


def _check_order(steps: int, first: str, second: str) -> None:
    """Refuses to train more of phase 1 where phase 2 has gone on from an earlier end of it."""
    done, begun = (
        max((int(prefix.rpartition("-")[2]) for prefix in checkpoints.listed(folder)), default=0)
        for folder in (first, second)
    )
    if begun and done < steps:
        raise UserError(
            f"{second} has begun, at step {begun}, but {first} is at step {done} of {steps}; "
            "expected phase 1 at its end, which phase 2 starts from: restore it, or its "
            f"trainer.train_steps; or continue --model_dir={second} alone by official_bert.train; "
            "or choose another --model_dir"
        )


def _check_runtime(
    first: config_definitions.ExperimentConfig, second: config_definitions.ExperimentConfig
) -> None:
    for field in ("distribution_strategy", "num_gpus", "all_reduce_alg", "tpu"):
        values = [getattr(params.runtime, field) for params in (first, second)]
        if values[0] != values[1]:
            raise UserError(
                f"runtime.{field} is {values[0]!r} in --phase1 and {values[1]!r} in --phase2; "
                "expected the same, since both run in this process: set it with --params_override"
            )


def _check_models(
    first: config_definitions.ExperimentConfig, second: config_definitions.ExperimentConfig
) -> None:
    """Refuses a second model that cannot start from the first one's weights."""
    start, end = (
        with_heads_of_data(params, "train_and_eval").task.model for params in (first, second)
    )
    if not end.cls_heads:  # what phase 2 has no use for is not restored
        start = start.replace(cls_heads=[])
    was, now = (dict(_values(model.as_dict(), "task.model")) for model in (start, end))
    for name in {**was, **now}:
        if was.get(name) != now.get(name) and name.rpartition(".")[2] not in _FREE:
            raise UserError(
                f"{name} is {was.get(name)!r} in --phase1 and {now.get(name)!r} in --phase2; "
                "expected the same, since phase 2 starts from the weights of phase 1: give both "
                "recipes one task.model"
            )


def _values(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The fields of nested dictionaries and lists, each with its dotted name."""
    if isinstance(section, dict):
        for name, value in section.items():
            yield from _values(value, f"{path}.{name}")
    elif isinstance(section, list | tuple):
        yield f"the number of {path}", len(section)
        for index, value in enumerate(section):
            yield from _values(value, f"{path}[{index}]")
    else:
        yield path, section


def _run_phases(
    phases: Sequence[config_definitions.ExperimentConfig],
    folders: Sequence[str],
    strategy: tf.distribute.Strategy,
    stop: interruption.StopRequest,
    *,
    repartition: bool,
) -> None:
    for number, (params, folder) in enumerate(zip(phases, folders, strict=True), start=1):
        result = runner.run(
            params,
            folder,
            description=f"phase {number}",
            strategy=strategy,
            stop=stop,
            repartition=repartition,
        )
        values = "  ".join(f"{name} {value:.4f}" for name, value in result.evaluation.items())
        if cluster.this_worker(strategy).is_chief:
            print(f"phase {number}: step {result.global_step}  {values}")
        tf_keras.backend.clear_session()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return interruption.exit_code(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
