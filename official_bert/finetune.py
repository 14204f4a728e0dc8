r"""Finetunes a pretrained BERT: question answering, GLUE's tasks, or classes of any texts.

Examples::

  python -m official_bert.finetune --task=squad --train_file=train.json --dev_file=dev.json \
    --init_checkpoint=run/phase2 --model_dir=finetuned

  python -m official_bert.finetune --task=glue --glue_task=sst-2 --data_dir=SST-2 \
    --init_checkpoint=run/phase2 --model_dir=sst-2 --seeds=5 --learning_rates=1e-4,3e-4

  python -m official_bert.finetune --task=classify --train_file=train.csv --dev_file=dev.csv \
    --text_column=text --label_column=label --init_checkpoint=run/phase2 --model_dir=classes

The encoder's size, the vocabulary and the casing are those of the pretraining run. Without
--init_checkpoint the encoder starts from random weights, its size taken from --config_file and its
vocabulary from --vocab_file: the baseline of every pretraining. Leaves predictions,
`eval_metrics.json`, `vocab.txt`, checkpoints and `metrics.jsonl` in --model_dir; run again with the
same flags, it continues where it stands. With --seeds or --learning_rates every run has a folder of
its own in --model_dir, beside `results.json`, `results.md` and `best.json`. --recipe reads flags
from a file.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from official_bert import (
    classification_run,
    classification_task,
    cluster,
    devices,
    experiments,
    finetune_folder,
    finetune_plan,
    finetune_recipe,
    glue,
    guard,
    interruption,
    squad,
    squad_rows,
    squad_run,
    squad_task,
    sweep,
)
from tfrecords import files
from tfrecords.errors import UserError

SQUAD = "squad"
TASKS = (SQUAD, classification_run.GLUE, classification_run.CLASSIFY)

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    finetune_recipe.FLAG, "", "YAML file of flags by name, or a packaged one such as "
    "bert_large_squad.yaml; flags of the command line win.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum("task", SQUAD, TASKS, "What to finetune for.", flag_values=FLAGS)
flags.DEFINE_string(
    "train_file", None, "File to train on: SQuAD's JSON, or CSV or TSV.", flag_values=FLAGS
)
flags.DEFINE_string("dev_file", None, "File to predict and score.", flag_values=FLAGS)
flags.DEFINE_enum("glue_task", None, tuple(glue.TASKS), "GLUE's task.", flag_values=FLAGS)
flags.DEFINE_string(
    "data_dir", None, "Folder of the GLUE task's TSV files, or the one above.", flag_values=FLAGS
)
flags.DEFINE_string("text_column", None, "classify: column of the text.", flag_values=FLAGS)
flags.DEFINE_string(
    "text_pair_column", None, "classify: column of a second text, if any.", flag_values=FLAGS
)
flags.DEFINE_string("label_column", None, "classify: column of the label.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir", None, "Folder of the run, or of all runs.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
    "init_checkpoint", "", "A pretraining --model_dir, or a checkpoint in one; a folder that "
    "official_bert.convert wrote; a SavedModel that official_bert.export wrote; empty: random "
    "weights.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "config_file", "", "Recipe or params.yaml with the encoder's size; needed, with "
    "--vocab_file, for random weights, and where --init_checkpoint has no params.yaml beside it.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "vocab_file", "", "WordPiece vocabulary; empty: the pretraining run's.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "lower_case", None, "Casing of the text; unset: the pretraining run's, or cased if the "
    "vocabulary has capitals.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "optimizer",
    finetune_plan.OPTIMIZERS[0],
    finetune_plan.OPTIMIZERS,
    "Optimizer.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "learning_rate", None, "Peak rate, after a linear warmup and before a linear decay; unset: by "
    f"optimizer, {finetune_plan.LEARNING_RATES}.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "learning_rates", None, "Several peak rates, such as 1e-4,3e-4; a run each.", flag_values=FLAGS
)
flags.DEFINE_float(
    "warmup_ratio", 0.1, "Share of the steps over which the rate rises.", flag_values=FLAGS
)
flags.DEFINE_float("weight_decay", 0.01, "On all but biases and norms.", flag_values=FLAGS)
flags.DEFINE_float("epochs", 2.0, "Passes over the training data.", flag_values=FLAGS)
flags.DEFINE_integer("train_steps", None, "Steps, in place of --epochs.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Rows in a global batch.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seq_length", None, "Word pieces in a row; unset: 384 for squad, 128 for others, or all the "
    "encoder has.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("doc_stride", 128, "squad: word pieces between windows.", flag_values=FLAGS)
flags.DEFINE_integer("n_best", 20, "squad: answers kept for each question.", flag_values=FLAGS)
flags.DEFINE_integer("max_answer_length", 30, "squad: in word pieces.", flag_values=FLAGS)
flags.DEFINE_float(
    "null_score_diff_threshold", 0.0, "squad v2.0: how much \"no answer\" must be ahead of the "
    "best answer to be predicted.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "strict", False, "squad: refuse answers that do not stand where the file says.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "new_pooler", False, "glue, classify: draw the pooler anew instead of restoring the one that "
    "pretraining trained for next sentences.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "num_lengths", 4, "glue, classify: static lengths that rows are cut to; 1: --seq_length or "
    "the longest row, whichever is less.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "micro_batch_size", None, "Rows of a replica of one forward pass, which glue and classify cut "
    "to one length; 0: all; unset: all, or 8 on a CPU for glue and classify.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "seed", 0, "Draws new weights, dropout and the data's order.", flag_values=FLAGS
)
flags.DEFINE_string(
    "seeds", None, "Several seeds, a run each: how many, from 0 on, or a list such as 3,5,8.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "distribution_strategy", "one_device", devices.STRATEGIES, "As in training; "
    "multi_worker_mirrored: python -m official_bert.launch --command=official_bert.finetune.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("num_gpus", 0, "As in training.", flag_values=FLAGS)
flags.DEFINE_enum(
    "mixed_precision_dtype", "float32", tuple(filter(None, devices.PRECISIONS)), "As in training.",
    flag_values=FLAGS,
)  # fmt: skip
interruption.define_flags(FLAGS)

Metrics = Mapping[str, float]


def from_flags(kind: type[Any], flag_values: flags.FlagValues) -> Any:
    """A dataclass of settings, each field from the flag of its name."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: flag_values[name].value for name in names if name in flag_values})


def _refuse_foreign(flag_values: flags.FlagValues, given: Collection[str]) -> None:
    """Refuses flags of the command line that the chosen task does not read."""
    squad_flags = [field.name for field in dataclasses.fields(squad_run.SquadSettings)]
    own = {SQUAD: squad_flags, **classification_run.OWN_FLAGS}
    others = {name for names in own.values() for name in names}.difference(own[flag_values.task])
    if found := sorted(others.intersection(given)):
        names = ", ".join(f"--{name}" for name in found)
        raise UserError(f"{names}: not read by --task={flag_values.task}; leave it out")


def _task(
    flag_values: flags.FlagValues, stop: interruption.StopRequest
) -> tuple[Any, Callable[..., Metrics], Callable[[Metrics], float]]:
    """The chosen task's settings, its run, and what its runs are compared by."""
    if flag_values.task == SQUAD:
        for name in ("train_file", "dev_file"):
            if not flag_values[name].value:
                raise UserError(f"--task={SQUAD} needs --{name}; give it")
        chosen = from_flags(squad_run.SquadSettings, flag_values)
        run_once: Any = functools.partial(squad_run.run, cut=squad_rows.Cutter())
        score: Callable[[Metrics], float] = lambda metrics: metrics[squad.F1]  # noqa: E731
    else:
        chosen = from_flags(classification_run.ClassificationSettings, flag_values)
        run_once = classification_run.run
        score = lambda metrics: classification_run.main_score(chosen, metrics)  # noqa: E731

    def run(
        settings: finetune_plan.Settings, strategy: tf.distribute.Strategy | None = None
    ) -> Metrics:
        return run_once(settings, chosen, stop, strategy)

    return chosen, run, score


def body(flag_values: flags.FlagValues, stop: interruption.StopRequest) -> None:
    """Runs the task that the flags ask for, once or several times."""
    experiments.register()
    given = [name for name in flag_values if flag_values[name].present]
    if flag_values.recipe:
        finetune_recipe.apply(flag_values.recipe, flag_values)
    _refuse_foreign(flag_values, given)
    settings = from_flags(finetune_plan.Settings, flag_values)
    chosen, run, score = _task(flag_values, stop)
    several = flag_values.seeds is not None or flag_values.learning_rates is not None
    finetune_folder.check(settings.model_dir, several=several)
    strategy = devices.build_strategy(finetune_plan.runtime(settings))
    is_chief = cluster.this_worker(strategy).is_chief
    if not several:
        try:
            metrics = run(settings, strategy)
        except guard.Diverged as error:
            raise UserError(
                f"{error.found}; lower --learning_rate or lengthen --warmup_ratio, in another "
                "--model_dir"
            ) from error
        if is_chief:
            _report(flag_values, metrics)
        return
    for one, many in (("seed", "seeds"), ("learning_rate", "learning_rates")):
        if flag_values[one].present and flag_values[many].value is not None:
            raise UserError(f"--{one} and --{many} are given; leave one out")
    rates = flag_values.learning_rates
    results = sweep.run(
        settings,
        sweep.Task(
            run=run,
            main_score=score,
            settings=sweep.shared_settings(settings, chosen),
            data=_digests(chosen.data_files()),
        ),
        (settings.peak_learning_rate,) if rates is None else sweep.learning_rates(rates),
        (settings.seed,) if flag_values.seeds is None else sweep.seeds(flag_values.seeds),
        strategy,
        stop,
    )
    if is_chief:
        print(sweep.table(results), end="")
        print(f"results: {os.path.join(flag_values.model_dir, sweep.TABLE)}")


def _digests(paths: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of files; a run tells which is missing."""
    there = {name: path for name, path in paths.items() if tf.io.gfile.exists(path)}
    return {name: files.sha256(path) for name, path in there.items() if not tf.io.gfile.isdir(path)}


def _report(flag_values: flags.FlagValues, metrics: Metrics) -> None:
    task = flag_values.task
    if task == SQUAD:
        said = f"exact match {metrics[squad.EXACT_MATCH]:.2f}, F1 {metrics[squad.F1]:.2f}"
        where, name = flag_values.dev_file, squad_task.PREDICTIONS
    else:
        said = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        where = flag_values.glue_task if task == classification_run.GLUE else flag_values.dev_file
        name = classification_task.PREDICTIONS
    print(f"{where}: {said}")
    print(f"answers: {os.path.join(flag_values.model_dir, name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return interruption.exit_code(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
