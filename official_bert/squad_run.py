"""One finetuning run on SQuAD files."""

import dataclasses
import os

import tensorflow as tf
from official.nlp.data import question_answering_dataloader
from official.nlp.tasks import question_answering

from official_bert import (
    cluster,
    continuation,
    devices,
    finetune_plan,
    interruption,
    preflight,
    runner,
    squad,
    squad_rows,
    squad_task,
    starting_point,
)
from tfrecords import files
from tfrecords.errors import UserError

# Known before the slow part, the windows; the runner checks the rest of a begun run.
_BEGUN_WITH = ("task.model", "task.train_data", "task.train_file_sha256", "task.init_checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadSettings:
    """What question answering adds to `finetune_plan.Settings`.

    Attributes:
        train_file: SQuAD file to train on.
        dev_file: SQuAD file to predict and score.
        doc_stride: word pieces between windows.
        n_best: answers kept for each question.
        max_answer_length: in word pieces.
        null_score_diff_threshold: of SQuAD v2.0, how much "no answer" must be ahead of the best
            answer to be predicted.
        strict: whether answers that do not stand where they say are refused.
        micro_batch_size: rows of a replica of one forward and backward pass; None or 0: its whole
            share.

    Raises:
        UserError: a number out of its range; names the flag.
    """

    train_file: str
    dev_file: str
    doc_stride: int = 128
    n_best: int = 20
    max_answer_length: int = 30
    null_score_diff_threshold: float = 0.0
    strict: bool = False
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("doc_stride", "n_best", "max_answer_length"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 0:
            raise UserError(f"--micro_batch_size is {self.micro_batch_size}; expected at least 0")

    def data_files(self) -> dict[str, str]:
        """The paths of all files that are read, by name."""
        return {"--train_file": self.train_file, "--dev_file": self.dev_file}


def config(
    settings: finetune_plan.Settings,
    squad_settings: SquadSettings,
    start: starting_point.StartingPoint,
    version_2: bool = False,
) -> squad_task.SquadConfig:
    """The task's config: data, windows and the encoder to start from."""
    seq_length = finetune_plan.row_length(settings, start.encoder, default=384)

    def data(path: str, is_training: bool) -> question_answering_dataloader.QADataConfig:
        return question_answering_dataloader.QADataConfig(
            input_path=path,
            is_training=is_training,
            global_batch_size=settings.batch_size,
            seq_length=seq_length,
            doc_stride=squad_settings.doc_stride,
            vocab_file=start.vocabulary.path,
            do_lower_case=start.lower_case,
            seed=settings.seed,
            version_2_with_negative=version_2,
        )

    return squad_task.SquadConfig(
        seed=settings.seed,
        train_file_sha256=files.sha256(squad_settings.train_file),
        strict=squad_settings.strict,
        micro_batch_size=squad_settings.micro_batch_size or 0,
        init_checkpoint=start.checkpoint,
        model=question_answering.ModelConfig(encoder=start.encoder),
        n_best_size=squad_settings.n_best,
        max_answer_length=squad_settings.max_answer_length,
        null_score_diff_threshold=squad_settings.null_score_diff_threshold,
        train_data=data(squad_settings.train_file, True),
        validation_data=data(squad_settings.dev_file, False),
    )


def run(
    settings: finetune_plan.Settings,
    squad_settings: SquadSettings,
    stop: interruption.StopRequest,
    strategy: tf.distribute.Strategy | None = None,
    cut: squad_rows.Cutter | None = None,
) -> dict[str, float]:
    """Finetunes and evaluates.

    Args:
        settings: of any task.
        squad_settings: of this one.
        stop: ends the run at a step boundary.
        strategy: for a process with several runs; built from the settings when None.
        cut: turns files into rows; shared by a process's runs, once for all of them.

    Returns:
        `exact_match` and `f1` in percent and, of SQuAD v2.0, what else `squad_answers.score` has.

    Raises:
        UserError: something does not fit, told before the windows are cut.
    """
    start = starting_point.find(
        settings.init_checkpoint, settings.config_file, settings.vocab_file, settings.lower_case
    )
    loaded = squad.load_pair(
        squad_settings.train_file, squad_settings.dev_file, squad_settings.strict
    )
    _check_threshold(squad_settings, loaded[0].version_2)
    task_config = config(settings, squad_settings, start, loaded[0].version_2)
    planned = finetune_plan.experiment(settings, task_config, train_steps=1)
    preflight.check(planned, "train_and_eval", settings.model_dir)
    continuation.check_begun(planned, settings.model_dir, _BEGUN_WITH)
    # Before anything is computed: TensorFlow wants a strategy over several workers first of all.
    strategy = strategy or devices.build_strategy(planned.runtime)
    worker = cluster.this_worker(strategy)
    preflight.check_batches(
        planned,
        "train_and_eval",
        workers=cluster.input_pipelines(strategy),
        replicas=strategy.num_replicas_in_sync,
    )

    def keep() -> None:
        vocabulary = os.path.join(settings.model_dir, starting_point.VOCABULARY)
        files.write_bytes(vocabulary, start.vocabulary.content)

    task = squad_task.SquadTask(
        task_config,
        logging_dir=settings.model_dir,
        loaded=loaded,
        cut=cut,
        keep=keep if worker.is_chief else None,
    )
    params = finetune_plan.experiment(settings, task_config, settings.steps(len(task.rows.train)))
    if worker.is_chief:
        _report_mismatches(task)
    result = runner.run(
        params, settings.model_dir, description="finetune", task=task, strategy=strategy, stop=stop
    )
    if not result.evaluation:
        # The run was finished before this call; its answers are those of this call's dev file.
        result = runner.run(params, settings.model_dir, "eval", task=task, strategy=strategy)
    return dict(result.evaluation)


def _check_threshold(squad_settings: SquadSettings, version_2: bool) -> None:
    if squad_settings.null_score_diff_threshold and not version_2:
        raise UserError(
            f"--null_score_diff_threshold is {squad_settings.null_score_diff_threshold}, but "
            f"{squad_settings.dev_file} is SQuAD v1.1, where every question has an answer: leave "
            "it out, or give SQuAD v2.0 files"
        )


def _report_mismatches(task: squad_task.SquadTask) -> None:
    for path, identifiers, fate in (
        (task.train_squad.path, task.rows.skipped, "left out"),
        (task.dev_squad.path, task.dev_squad.mismatches, "scored by their text all the same"),
    ):
        if identifiers:
            print(
                f"{path}: {len(identifiers)} questions have answers that do not stand in the "
                f"context at answer_start; {fate}: {squad.shown(identifiers)}"
            )
