"""What a finetuning finds in the folder it is given: nothing, itself, or something else."""

import re

import tensorflow as tf

from official_bert import configuration, starting_point, sweep
from official_bert.classification_task import LABELS
from tfrecords import files
from tfrecords.errors import UserError

_SWEEP = re.compile(rf"{re.escape(sweep.RESULTS)}|{re.escape(sweep.BEST)}|rate-.*-seed-.*")
_RUN = re.compile(rf"{re.escape(configuration.PARAMS_FILE)}|checkpoint|ckpt-.*\.index")
# What a run that is killed before its first params.yaml has left, and what a launcher leaves.
_EARLY = {starting_point.VOCABULARY, LABELS, ".lock", "logs"}
_SHOWN = 3


def check(model_dir: str, *, several: bool) -> None:
    """Refuses a folder in which a run, or a sweep of several, would do harm or be harmed.

    Args:
        model_dir: the folder; it need not exist.
        several: whether a sweep is asked for, which has its runs in folders of its own.

    Raises:
        UserError: a single run was asked for in a sweep's folder, or the folder holds neither.

    Example:
        >>> check("a_new_folder", several=False)
    """
    names = _entries(model_dir)
    if any(map(_SWEEP.fullmatch, names)):
        if several:
            return
        raise UserError(
            f"{model_dir} holds a sweep; give its --seeds or --learning_rates to continue it, or "
            "another --model_dir for a single run"
        )
    if any(map(_RUN.fullmatch, names)):
        return
    foreign = [name for name in names if name not in _EARLY and files.PARTIAL not in name]
    if foreign:
        more = ", ..." if len(foreign) > _SHOWN else ""
        raise UserError(
            f"{model_dir} holds something else ({', '.join(foreign[:_SHOWN])}{more}); expected a "
            "new or empty folder, or one of finetune's: give another --model_dir"
        )


def _entries(folder: str) -> list[str]:
    if not tf.io.gfile.isdir(folder):
        return []
    # Object stores end the names of folders with a slash.
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
