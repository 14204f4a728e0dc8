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
from collections.abc import Sequence

import tf_keras
from absl import flags
from official.core import config_definitions

from official_bert import configuration, experiments, preflight, runner
from tfrecords import command

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


def phase_params(
    recipe: str, input_path: str = "", params_override: str = ""
) -> config_definitions.ExperimentConfig:
    """One phase's config: recipe, then overrides, then where its data lie."""
    params = configuration.load(experiments.PRETRAINING, [recipe], params_override)
    if not input_path:
        return params
    data = {"train_data": {"input_path": input_path}, "validation_data": {"input_path": input_path}}
    return params.replace(task=params.task.replace(**data))


def body(flag_values: flags.FlagValues) -> None:
    """Checks both phases before it starts the first."""
    experiments.register()
    folders = [os.path.join(flag_values.model_dir, name) for name in ("phase1", "phase2")]
    phases = [
        phase_params(recipe, flag_values.input_path, flag_values.params_override)
        for recipe in (flag_values.phase1, flag_values.phase2)
    ]
    for params in phases:
        preflight.check(params, "train_and_eval")
    phases[1] = phases[1].replace(task=phases[1].task.replace(init_checkpoint=folders[0]))
    for params, folder in zip(phases, folders, strict=True):
        runner.check_model_dir(params, folder)
    for number, (params, folder) in enumerate(zip(phases, folders, strict=True), start=1):
        result = runner.run(params, folder, description=f"phase {number}")
        values = "  ".join(f"{name} {value:.4f}" for name, value in result.evaluation.items())
        print(f"phase {number}: step {result.global_step}  {values}")
        tf_keras.backend.clear_session()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
