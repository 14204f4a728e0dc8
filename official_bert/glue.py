"""The tasks of GLUE (arXiv 1804.07461): which files, which columns, which labels, which metric."""

import dataclasses
import os

import tensorflow as tf

from official_bert import classification_scores as scores
from official_bert import tables
from tfrecords.errors import UserError

TRAIN = "train.tsv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task as its files have it.

    Attributes:
        folder: the name of its folder in the official download.
        first: the column of the text, by name or, without a header, by number.
        label: the column of the label.
        second: the column of the second text; None for single sentences.
        labels: the labels in the order of their numbers; None for a score from 0 to 5.
        metrics: the official ones, of `classification_scores`.
        dev: the files to score on; what distinguishes each in names of metrics and files.
        has_header: whether the first line names the columns.
        columns: fields of a line, where there is no header.
        tolerant: whether lines with missing fields are left out, as the official scripts do.
    """

    folder: str
    first: str | int
    label: str | int
    second: str | int | None = None
    labels: tuple[str, ...] | None = ("0", "1")
    metrics: tuple[str, ...] = (scores.ACCURACY,)
    dev: tuple[tuple[str, str], ...] = (("", "dev.tsv"),)
    has_header: bool = True
    columns: int = 0
    tolerant: bool = False


_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    "sst-2": GlueTask(folder="SST-2", first="sentence", label="label"),
    "mrpc": GlueTask(
        folder="MRPC",
        first="#1 String",
        second="#2 String",
        label="Quality",
        metrics=(scores.ACCURACY, scores.F1),
    ),
    "rte": GlueTask(
        folder="RTE", first="sentence1", second="sentence2", label="label", labels=_ENTAILMENT
    ),
    "cola": GlueTask(
        folder="CoLA",
        first=3,
        label=1,
        metrics=(scores.MATTHEWS,),
        has_header=False,
        columns=4,
    ),
    "mnli": GlueTask(
        folder="MNLI",
        first="sentence1",
        second="sentence2",
        label="gold_label",
        labels=("contradiction", "entailment", "neutral"),
        dev=(("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
    ),
    "qnli": GlueTask(
        folder="QNLI", first="question", second="sentence", label="label", labels=_ENTAILMENT
    ),
    "qqp": GlueTask(
        folder="QQP",
        first="question1",
        second="question2",
        label="is_duplicate",
        metrics=(scores.ACCURACY, scores.F1),
        tolerant=True,
    ),
    "sts-b": GlueTask(
        folder="STS-B",
        first="sentence1",
        second="sentence2",
        label="score",
        labels=None,
        metrics=(scores.PEARSON, scores.SPEARMAN),
    ),
}
SCORE_RANGE = (0.0, 5.0)


def folder_of(task: GlueTask, data_dir: str) -> str:
    """`data_dir`, or the task's own folder in it, whichever has the training file.

    Raises:
        UserError: neither has.
    """
    inner = os.path.join(data_dir, task.folder)
    for folder in (data_dir, inner):
        if tf.io.gfile.exists(os.path.join(folder, TRAIN)):
            return folder
    raise UserError(
        f"no {TRAIN} in {data_dir} or {inner}; expected the folder of {task.folder} as GLUE "
        "distributes it, or the one above"
    )


def read(task: GlueTask, path: str) -> tables.Texts:
    """The texts and labels of one of a task's files.

    Raises:
        UserError: the file is missing or not what GLUE distributes.
    """
    table = tables.read_plain(
        path, has_header=task.has_header, columns=task.columns, tolerant=task.tolerant
    )
    return tables.texts(table, first=task.first, second=task.second, label=task.label)
