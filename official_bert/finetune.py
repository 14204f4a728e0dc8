r"""Finetunes a pretrained BERT for question answering, and answers a dev file's questions.

Example::

  python -m official_bert.finetune --task=squad --train_file=train.json --dev_file=dev.json \
    --init_checkpoint=run/phase2 --model_dir=finetuned

The encoder's size, the vocabulary and the casing are those of the pretraining run. Without
--init_checkpoint the encoder starts from random weights, its size taken from --config_file: the
baseline of every pretraining. Leaves `predictions.json`, `nbest_predictions.json`,
`eval_metrics.json`, `vocab.txt`, checkpoints and `metrics.jsonl` in --model_dir; run again with
the same flags, it continues where it stands.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from official.core import config_definitions
from official.nlp.data import question_answering_dataloader
from official.nlp.tasks import question_answering

from official_bert import (
    configuration,
    devices,
    experiments,
    interruption,
    optimization,
    preflight,
    runner,
    squad,
    squad_task,
    starting_point,
    trainer,
)
from tfrecords import files
from tfrecords.errors import UserError

_OPTIMIZERS = ("block_normalized_adamw", "adamw", "lans", "lamb")
# Layer-wise methods set each block's step as a share of its weights, Adam-like ones in absolute
# terms. No published values exist for these on SQuAD; sweep --learning_rate for your model.
_LEARNING_RATES = {"block_normalized_adamw": 1e-4, "adamw": 1e-4, "lans": 2e-3, "lamb": 2e-3}
_NO_DECAY = ["layer_norm", "bias"]
_LOOP = 10
# Known before the slow part, the windows; the runner checks the rest of a begun run.
_BEGUN_WITH = ("task.model", "task.train_data", "task.init_checkpoint")

FLAGS = flags.FlagValues()
flags.DEFINE_enum("task", "squad", ["squad"], "What to finetune for.", flag_values=FLAGS)
flags.DEFINE_string(
    "train_file", None, "SQuAD v1.1 file to train on.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
    "dev_file", None, "SQuAD v1.1 file to predict and score.", required=True, flag_values=FLAGS
)
flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True, flag_values=FLAGS)
flags.DEFINE_string(
    "init_checkpoint", "", "A pretraining --model_dir, or a checkpoint in one; empty: random "
    "weights.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "config_file", "", "Recipe or params.yaml with the encoder's size; needed only where "
    "--init_checkpoint has no params.yaml beside it.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "vocab_file", "", "WordPiece vocabulary; empty: the pretraining run's.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "lower_case", None, "Casing of the text; unset: the pretraining run's, or cased if the "
    "vocabulary has capitals.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum("optimizer", _OPTIMIZERS[0], _OPTIMIZERS, "Optimizer.", flag_values=FLAGS)
flags.DEFINE_float(
    "learning_rate", None, "Peak rate, after a linear warmup of a tenth of the run and before a "
    f"linear decay; unset: by optimizer, {_LEARNING_RATES}.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float("weight_decay", 0.01, "On all but biases and norms.", flag_values=FLAGS)
flags.DEFINE_float("epochs", 2.0, "Passes over the train file.", flag_values=FLAGS)
flags.DEFINE_integer("train_steps", None, "Steps, in place of --epochs.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Windows in a global batch.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seq_length", None, "Word pieces in a window; unset: 384, or all the encoder has.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("doc_stride", 128, "Word pieces between windows.", flag_values=FLAGS)
flags.DEFINE_integer("n_best", 20, "Answers kept for each question.", flag_values=FLAGS)
flags.DEFINE_integer("max_answer_length", 30, "In word pieces.", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Draws new weights and the data's order.", flag_values=FLAGS)
flags.DEFINE_enum(
    "distribution_strategy", "one_device", ("one_device", "mirrored"), "As in training.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("num_gpus", 0, "As in training.", flag_values=FLAGS)


def squad_config(
    flag_values: flags.FlagValues, start: starting_point.StartingPoint
) -> squad_task.SquadConfig:
    """The task's config: data, windows and the encoder to start from."""
    positions = start.encoder.get().max_position_embeddings
    seq_length = flag_values.seq_length
    if seq_length is None:
        seq_length = min(384, positions)
    if seq_length > positions:
        raise UserError(
            f"--seq_length is {seq_length}, the encoder has max_position_embeddings {positions}; "
            "lower it"
        )

    def data(path: str, is_training: bool) -> question_answering_dataloader.QADataConfig:
        return question_answering_dataloader.QADataConfig(
            input_path=path,
            is_training=is_training,
            global_batch_size=flag_values.batch_size,
            seq_length=seq_length,
            doc_stride=flag_values.doc_stride,
            vocab_file=start.vocabulary.path,
            do_lower_case=start.lower_case,
            seed=flag_values.seed,
        )

    return squad_task.SquadConfig(
        seed=flag_values.seed,
        init_checkpoint=start.checkpoint,
        model=question_answering.ModelConfig(encoder=start.encoder),
        n_best_size=flag_values.n_best,
        max_answer_length=flag_values.max_answer_length,
        train_data=data(flag_values.train_file, True),
        validation_data=data(flag_values.dev_file, False),
    )


def optimization_config(
    optimizer: str, learning_rate: float | None, weight_decay: float
) -> optimization.OptimizationConfig:
    """An optimizer with linear warmup over a tenth of the run, then linear decay to 0."""
    fields: dict[str, Any] = {"exclude_from_weight_decay": _NO_DECAY}
    fields["weight_decay_rate" if optimizer == "adamw" else "weight_decay"] = weight_decay
    rate = _LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    return optimization.OptimizationConfig(
        {
            "optimizer": {"type": optimizer, optimizer: fields},
            "learning_rate": {
                "type": "warmup_constant_decay",
                "warmup_constant_decay": {"peak_learning_rate": rate, "warmup_ratio": 0.1},
            },
        }
    )


def experiment(
    flag_values: flags.FlagValues, task: squad_task.SquadConfig, train_steps: int
) -> config_definitions.ExperimentConfig:
    """The whole config of a run of `train_steps`, evaluated at its end."""
    return config_definitions.ExperimentConfig(
        runtime=devices.RuntimeConfig(
            distribution_strategy=flag_values.distribution_strategy,
            num_gpus=flag_values.num_gpus,
            mixed_precision_dtype="float32",
        ),
        task=task,
        trainer=trainer.TrainerConfig(
            train_steps=train_steps,
            steps_per_loop=_LOOP,
            summary_interval=_LOOP,
            checkpoint_interval=max(1, train_steps // 5),
            validation_interval=train_steps,
            max_to_keep=2,
            recovery_max_trials=-1,
            optimizer_config=optimization_config(
                flag_values.optimizer, flag_values.learning_rate, flag_values.weight_decay
            ),
        ),
    )


def check_numbers(flag_values: flags.FlagValues) -> None:
    """Refuses what no run can be made of.

    Raises:
        UserError: naming the flag.
    """
    for name in ("batch_size", "n_best", "max_answer_length", "train_steps"):
        value = flag_values[name].value
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; expected at least 1")
    if flag_values.epochs <= 0:
        raise UserError(f"--epochs is {flag_values.epochs}; expected more than 0")


def finetune_squad(
    flag_values: flags.FlagValues, stop: interruption.StopRequest
) -> dict[str, float]:
    """Finetunes and evaluates; returns `exact_match` and `f1` in percent."""
    start = starting_point.find(
        flag_values.init_checkpoint,
        flag_values.config_file,
        flag_values.vocab_file,
        flag_values.lower_case,
    )
    model_dir = flag_values.model_dir
    task_config = squad_config(flag_values, start)
    planned = experiment(flag_values, task_config, train_steps=1)
    preflight.check(planned, "train_and_eval")
    configuration.check_same_run(planned, model_dir, _BEGUN_WITH)
    task = squad_task.SquadTask(task_config, logging_dir=model_dir)
    _report_skipped(task)
    steps = flag_values.train_steps or max(
        1, round(flag_values.epochs * len(task.train_windows) / flag_values.batch_size)
    )
    params = experiment(flag_values, task_config, steps)
    files.write_bytes(os.path.join(model_dir, starting_point.VOCABULARY), start.vocabulary.content)
    result = runner.run(params, model_dir, description="finetune", task=task, stop=stop)
    if not result.evaluation:
        # The run was finished before this call; its answers are those of this call's dev file.
        result = runner.run(params, model_dir, "eval", task=task)
    return dict(result.evaluation)


def _report_skipped(task: squad_task.SquadTask) -> None:
    for path, identifiers, fate in (
        (task.train_squad.path, task.skipped, "left out"),
        (task.dev_squad.path, task.dev_squad.mismatches, "scored by their text all the same"),
    ):
        if identifiers:
            shown = ", ".join(identifiers[:5]) + (", ..." if len(identifiers) > 5 else "")
            print(
                f"{path}: {len(identifiers)} questions have answers that do not stand in the "
                f"context at answer_start; {fate}: {shown}"
            )


def body(flag_values: flags.FlagValues, stop: interruption.StopRequest) -> None:
    """Runs the task that the flags ask for."""
    experiments.register()
    check_numbers(flag_values)
    scores = finetune_squad(flag_values, stop)
    print(
        f"{flag_values.dev_file}: exact match {scores[squad.EXACT_MATCH]:.2f}, "
        f"F1 {scores[squad.F1]:.2f}"
    )
    print(f"answers: {os.path.join(flag_values.model_dir, squad_task.PREDICTIONS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return interruption.exit_code(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
