"""One finetuning run on labelled texts: GLUE's tasks, and any CSV or TSV file."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from official.nlp.tasks import sentence_prediction

from official_bert import classification_scores as scores
from official_bert import (
    cluster,
    continuation,
    devices,
    finetune_plan,
    glue,
    interruption,
    packed_rows,
    preflight,
    runner,
    starting_point,
    tables,
)
from official_bert.classification_input import Labelled
from official_bert.classification_task import (
    LABELS,
    ClassificationConfig,
    ClassificationDataConfig,
    ClassificationTask,
    config_labels,
)
from tfrecords import files
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

GLUE, CLASSIFY = "glue", "classify"
_SHARED = ("new_pooler", "micro_batch_size", "num_lengths")
# The flags that only these tasks have.
OWN_FLAGS = {
    GLUE: ("glue_task", "data_dir", *_SHARED),
    CLASSIFY: (
        "train_file", "dev_file", "text_column", "text_pair_column", "label_column", *_SHARED,
    ),
}  # fmt: skip
SEQ_LENGTH = 128
# On a CPU, small groups of one length save more than their own cost.
_CPU_GROUP = 8
_BEGUN_WITH = (
    "task.model", "task.train_data", "task.train_file_sha256", "task.init_checkpoint",
    "task.new_pooler", "task.labels",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """What classification adds to `finetune_plan.Settings`.

    Attributes:
        task: `glue` or `classify`.
        glue_task: one of `glue.TASKS`.
        data_dir: folder with the GLUE task's files.
        train_file: CSV or TSV file to train on.
        dev_file: CSV or TSV file to predict and score.
        text_column: the column of the text.
        text_pair_column: the column of the second text; empty for single texts.
        label_column: the column of the label.
        new_pooler: whether the pooler is drawn anew, not restored.
        micro_batch_size: rows of a replica's share that have one length; None: chosen by device.
        num_lengths: how many lengths rows are cut to, besides being cut to --seq_length.

    Raises:
        UserError: a flag that the task needs is not given, or a number out of its range.
    """

    task: str
    glue_task: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    dev_file: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    new_pooler: bool = False
    micro_batch_size: int | None = None
    num_lengths: int = 4

    def __post_init__(self) -> None:
        needed = {
            GLUE: ("glue_task", "data_dir"),
            CLASSIFY: ("train_file", "dev_file", "text_column", "label_column"),
        }
        for name in needed[self.task]:
            if not getattr(self, name):
                raise UserError(f"--task={self.task} needs --{name}; give it")
        if self.task == GLUE and self.glue_task not in glue.TASKS:
            raise UserError(
                f"--glue_task is {self.glue_task!r}; expected one of {', '.join(glue.TASKS)}"
            )
        if self.num_lengths < 1:
            raise UserError(f"--num_lengths is {self.num_lengths}; expected at least 1")
        if self.micro_batch_size is not None and self.micro_batch_size < 0:
            raise UserError(f"--micro_batch_size is {self.micro_batch_size}; expected at least 0")

    def data_files(self) -> dict[str, str]:
        """The paths of all files that are read, by name.

        Raises:
            UserError: `data_dir` is not the folder of the GLUE task.
        """
        if self.task == CLASSIFY:
            return {"--train_file": str(self.train_file), "--dev_file": str(self.dev_file)}
        task = glue.TASKS[str(self.glue_task)]
        folder = glue.folder_of(task, str(self.data_dir))
        return {name: os.path.join(folder, name) for name in (glue.TRAIN, *dict(task.dev).values())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The texts of a run, read and checked.

    Attributes:
        train: to train on.
        dev: to predict and score, with what distinguishes each.
        labels: the classes; None where a number is predicted.
        metrics: names of `classification_scores`.
    """

    train: tables.Texts
    dev: tuple[tuple[str, tables.Texts], ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]

    def targets(self, given: tables.Texts) -> np.ndarray:
        """Class numbers, int32, or numbers to regress to, float32; refuses any other label."""
        if self.labels is None:
            return np.array(tables.numbers(given, *glue.SCORE_RANGE), np.float32)
        return np.array(tables.label_ids(given, self.labels), np.int32)


def read(chosen: ClassificationSettings) -> Data:
    """Reads and checks all files.

    Raises:
        UserError: one is missing, or not what it should be.
    """
    data = _read_glue(chosen) if chosen.task == GLUE else _read_files(chosen)
    for given in (data.train, *(texts for _, texts in data.dev)):
        data.targets(given)
        if given.left_out:
            print(f"{given.path}: {given.left_out} lines with missing fields; left out")
    return data


def _read_glue(chosen: ClassificationSettings) -> Data:
    assert chosen.glue_task is not None and chosen.data_dir is not None
    task = glue.TASKS[chosen.glue_task]
    folder = glue.folder_of(task, chosen.data_dir)
    return Data(
        train=glue.read(task, os.path.join(folder, glue.TRAIN)),
        dev=tuple((name, glue.read(task, os.path.join(folder, path))) for name, path in task.dev),
        labels=task.labels,
        metrics=task.metrics,
    )


def _read_files(chosen: ClassificationSettings) -> Data:
    assert chosen.train_file and chosen.dev_file and chosen.text_column and chosen.label_column
    train, dev = (
        tables.texts(
            tables.read_delimited(path),
            first=chosen.text_column,
            second=chosen.text_pair_column or None,
            label=chosen.label_column,
        )
        for path in (chosen.train_file, chosen.dev_file)
    )
    return Data(
        train=train,
        dev=(("", dev),),
        labels=tables.label_set(train),
        metrics=(scores.ACCURACY, scores.MACRO_F1),
    )


def config(
    settings: finetune_plan.Settings,
    chosen: ClassificationSettings,
    start: starting_point.StartingPoint,
    data: Data,
) -> ClassificationConfig:
    """The task's config: data, classes and the encoder to start from."""
    seq_length = finetune_plan.row_length(settings, start.encoder, default=SEQ_LENGTH)

    def data_config(path: str, is_training: bool) -> ClassificationDataConfig:
        return ClassificationDataConfig(
            input_path=path,
            is_training=is_training,
            global_batch_size=settings.batch_size,
            seq_length=seq_length,
            vocab_file=start.vocabulary.path,
            do_lower_case=start.lower_case,
            seed=settings.seed,
        )

    return ClassificationConfig(
        seed=settings.seed,
        init_checkpoint=start.checkpoint,
        model=sentence_prediction.ModelConfig(
            num_classes=1 if data.labels is None else len(data.labels),
            use_encoder_pooler=True,
            encoder=start.encoder,
        ),
        train_file_sha256=files.sha256(data.train.path),
        micro_batch_size=chosen.micro_batch_size or 0,
        num_lengths=chosen.num_lengths,
        new_pooler=chosen.new_pooler,
        labels=None if data.labels is None else list(data.labels),
        pairs=data.train.second is not None,
        metrics=list(data.metrics),
        train_data=data_config(data.train.path, True),
        validation_data=data_config(",".join(texts.path for _, texts in data.dev), False),
    )


def run(
    settings: finetune_plan.Settings,
    chosen: ClassificationSettings,
    stop: interruption.StopRequest,
    strategy: tf.distribute.Strategy | None = None,
) -> dict[str, float]:
    """Finetunes and evaluates.

    Args:
        settings: of any task.
        chosen: of this one.
        stop: ends the run at a step boundary.
        strategy: for a process with several runs; built from the settings when None.

    Returns:
        The task's metrics in percent.
    """
    start = starting_point.find(
        settings.init_checkpoint, settings.config_file, settings.vocab_file, settings.lower_case
    )
    if chosen.new_pooler and not settings.init_checkpoint:
        raise UserError(
            "--new_pooler without --init_checkpoint: from random weights the pooler is new anyway; "
            "leave it out, or give --init_checkpoint"
        )
    data = read(chosen)
    task_config = config(settings, chosen, start, data)
    params = finetune_plan.experiment(settings, task_config, settings.steps(len(data.train)))
    preflight.check(params, "train_and_eval", settings.model_dir)
    continuation.check_begun(params, settings.model_dir, _BEGUN_WITH)
    # Before anything is computed: TensorFlow wants a strategy over several workers first of all.
    strategy = strategy or devices.build_strategy(params.runtime)
    if chosen.micro_batch_size is None:
        micro = _group_size(settings.batch_size, strategy)
        params = params.replace(task=task_config.replace(micro_batch_size=micro))
    is_chief = cluster.this_worker(strategy).is_chief
    seq_length = task_config.train_data.seq_length

    def labelled(name: str, given: tables.Texts) -> Labelled:
        rows = _rows(
            start.vocabulary, start.lower_case, tuple(given.first),
            None if given.second is None else tuple(given.second), seq_length,
        )  # fmt: skip
        return Labelled(rows=rows, labels=data.targets(given), name=name)

    def keep() -> None:
        folder = settings.model_dir
        files.write_bytes(os.path.join(folder, starting_point.VOCABULARY), start.vocabulary.content)
        content = json.dumps(config_labels(data.labels), indent=2, ensure_ascii=False) + "\n"
        files.write_text(os.path.join(folder, LABELS), content)

    task = ClassificationTask(
        params.task,
        logging_dir=settings.model_dir if is_chief else None,
        train=labelled("", data.train),
        dev=[labelled(name, given) for name, given in data.dev],
        keep=keep if is_chief else None,
    )
    result = runner.run(
        params, settings.model_dir, description="finetune", task=task, strategy=strategy, stop=stop
    )
    if not result.evaluation:
        # The run was finished before this call; its answers are those of this call's dev file.
        result = runner.run(params, settings.model_dir, "eval", task=task, strategy=strategy)
    return dict(result.evaluation)


def main_score(chosen: ClassificationSettings, values: Mapping[str, float]) -> float:
    """What runs are compared by.

    The mean of a GLUE task's metrics over its dev sets, as GLUE's board takes it; the accuracy of
    any other file's classes.

    Args:
        chosen: the task.
        values: what `run` returned.
    """
    if chosen.task == CLASSIFY:
        return values[scores.ACCURACY]
    return float(np.mean(list(values.values())))


def _group_size(batch_size: int, strategy: tf.distribute.Strategy) -> int:
    share = batch_size // strategy.num_replicas_in_sync
    if not devices.on_cpus(strategy) or share <= _CPU_GROUP or share % _CPU_GROUP:
        return 0
    return _CPU_GROUP


@functools.lru_cache(maxsize=4)
def _rows(
    vocabulary: Vocabulary,
    lower_case: bool,
    first: tuple[str, ...],
    second: tuple[str, ...] | None,
    seq_length: int,
) -> packed_rows.Rows:
    """As `packed_rows.pack`; the runs of a sweep share them."""
    return packed_rows.pack(vocabulary, lower_case, first, second, seq_length)
