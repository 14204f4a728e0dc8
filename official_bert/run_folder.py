"""What a run finds in the folder it is given: nothing, a run, or something else."""

import os
import re
from collections.abc import Callable

import tensorflow as tf

from official_bert import configuration
from tfrecords import files
from tfrecords.errors import UserError

_RUN = re.compile(rf"{re.escape(configuration.PARAMS_FILE)}|ckpt-\d+\.index")
# TensorFlow finds files by patterns, also where it deletes checkpoints.
_PATTERN = re.compile(r"[*?\[\]\\]")
# What launchers, schedulers, TensorBoard, file systems and users put beside a run before it
# begins. None of it has the name of a file that a run writes.
_BESIDE = re.compile(
    r"\..*|lost\+found|(.*[-_])?logs?|.*\.(log|out|err)|.*\.ya?ml"
    r"|events\.out\.tfevents\..*|train|validation|plugins"
)
_SHOWN = 3


def names(folder: str) -> list[str]:
    """What lies in a folder, in order; nothing where there is none."""
    if not tf.io.gfile.isdir(folder):
        return []
    # Object stores end the names of folders with a slash.
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))


def check_path(model_dir: str) -> None:
    """Refuses a path that names no folder and where none can be made.

    Args:
        model_dir: the folder; it need not exist.

    Raises:
        UserError: the path is empty, or it is a file or would lie below one.

    Example:
        >>> check_path("a_new_folder")
    """
    if not model_dir:
        raise UserError("--model_dir is empty; expected the folder of the run: name it")
    if "://" in model_dir:
        return
    above = os.path.abspath(model_dir)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise UserError(
            f"--model_dir is {model_dir}, but {above} is no folder; expected the run's, or a path "
            "where one can be made: give another"
        )


def check(model_dir: str, is_early: Callable[[str], bool]) -> None:
    """Refuses a folder whose files a run would overwrite, or whose name is a pattern.

    Args:
        model_dir: the folder; it need not exist.
        is_early: whether a file of that name is one that a run leaves which is killed before its
            first `params.yaml`.

    Raises:
        UserError: the folder holds something else than a run, or the beginning of one; or its
            name has a character that patterns of files have.

    Example:
        >>> check("a_new_folder", is_early=lambda name: False)
    """
    character = _PATTERN.search(model_dir)
    if character:
        raise UserError(
            f"--model_dir is {model_dir}; expected no {character[0]!r}, which has a meaning in "
            "patterns of files: give another, or rename the folder"
        )
    found = names(model_dir)
    if any(map(_RUN.fullmatch, found)):
        return
    foreign = [
        name
        for name in found
        if not (_BESIDE.fullmatch(name) or files.PARTIAL in name or is_early(name))
    ]
    if foreign:
        more = ", ..." if len(foreign) > _SHOWN else ""
        raise UserError(
            f"{model_dir} holds something else ({', '.join(foreign[:_SHOWN])}{more}); expected a "
            "new or empty folder, or the run to continue: give another --model_dir"
        )
