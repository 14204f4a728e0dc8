"""What a finetuning finds in the folder it is given: nothing, itself, or something else."""

import re

from official_bert import run_folder, starting_point, sweep
from official_bert.classification_task import LABELS
from tfrecords.errors import UserError

_SWEEP = re.compile(rf"{re.escape(sweep.RESULTS)}|{re.escape(sweep.BEST)}|rate-.*-seed-.*")
# What a run that is killed before its first params.yaml has left.
_EARLY = {starting_point.VOCABULARY, LABELS}


def check(model_dir: str, *, several: bool) -> None:
    """Refuses a folder in which a run, or a sweep of several, would do harm or be harmed.

    Args:
        model_dir: the folder; it need not exist.
        several: whether a sweep is asked for, which has its runs in folders of its own.

    Raises:
        UserError: a single run was asked for in a sweep's folder, or the folder holds neither, or
            the path is no folder's.

    Example:
        >>> check("a_new_folder", several=False)
    """
    run_folder.check_path(model_dir)
    if any(map(_SWEEP.fullmatch, run_folder.names(model_dir))):
        if several:
            return
        raise UserError(
            f"{model_dir} holds a sweep; give its --seeds or --learning_rates to continue it, or "
            "another --model_dir for a single run"
        )
    run_folder.check(model_dir, is_early=_EARLY.__contains__)
