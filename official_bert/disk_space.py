"""Whether a run's checkpoints fit on the disk they go to."""

import os
import shutil
import tempfile

import tensorflow as tf
from official.core import config_definitions
from official.nlp.configs import bert

from official_bert import estimates
from official_bert.pretraining_task import LargeBatchPretrainConfig


def problem(model_dir: str, free: int | None, size: int | None, kept: int) -> str | None:
    """Why a disk is too small for the run's next checkpoint beside the one before it.

    Args:
      model_dir: folder of the run, for the words.
      free: bytes that are free; None where that is not known.
      size: bytes of a checkpoint; None where that is not known.
      kept: checkpoints that lie there already.
    """
    if free is None or not size:
        return None
    # A new checkpoint is whole before the oldest goes.
    needed = max(1, 2 - kept)
    if free >= needed * size:
        return None
    return (
        f"the disk of {model_dir} has {estimates.in_words(free)} free, a checkpoint takes about "
        f"{estimates.in_words(size)}; expected room for {needed} more: free some, or choose "
        "another --model_dir"
    )


def own_problem(params: config_definitions.ExperimentConfig) -> str | None:
    """Why the folder of temporary files is too small for a worker that is not the chief.

    Every worker takes part in a save, and all but the chief delete what they wrote at once.

    Args:
      params: the run's config.
    """
    folder = tempfile.gettempdir()
    free, size = free_bytes(folder), checkpoint_bytes(params)
    if free is None or not size or free >= size:
        return None
    return (
        f"the disk of {folder} has {estimates.in_words(free)} free, and a worker that is not the "
        f"first writes a checkpoint of about {estimates.in_words(size)} there, which it deletes at "
        "once: free some, or name another folder in TMPDIR"
    )


def warning(
    model_dir: str, free: int | None, size: int | None, kept: int, *, max_to_keep: int
) -> str | None:
    """What is said of a disk that has room for the next checkpoint, but not for all to be kept.

    Args:
      model_dir: as in `problem`, as are the next three.
      free: bytes.
      size: bytes.
      kept: checkpoints.
      max_to_keep: checkpoints that the run keeps; while it saves there is one more.
    """
    if free is None or not size or problem(model_dir, free, size, kept):
        return None
    needed = max_to_keep + 1 - kept
    if free >= needed * size:
        return None
    return (
        f"the disk of {model_dir} has {estimates.in_words(free)} free, room for "
        f"{free // size} more checkpoints of about {estimates.in_words(size)}; trainer.max_to_keep "
        f"{max_to_keep} needs room for {needed}: free some, or lower it"
    )


def free_bytes(path: str) -> int | None:
    """Bytes free where `path` lies or will lie; None for a file system that does not tell."""
    if "://" in path:
        return None
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def numbers(
    params: config_definitions.ExperimentConfig, model_dir: str
) -> tuple[int | None, int | None, int]:
    """What `problem` and `warning` go by: free bytes, bytes of a checkpoint, checkpoints there are.

    Args:
      params: the run's config.
      model_dir: its folder, which need not be there yet.
    """
    kept = 0
    if "://" not in model_dir and tf.io.gfile.isdir(model_dir):
        kept = len(tf.io.gfile.glob(os.path.join(model_dir, "ckpt-*.index")))
    return free_bytes(model_dir), checkpoint_bytes(params), kept


def checkpoint_bytes(params: config_definitions.ExperimentConfig) -> int | None:
    """The size of a checkpoint, of a finetuning about; None for an encoder that is no BERT."""
    task = params.task
    if not estimates.is_bert(task):
        return None
    chosen = params.trainer.optimizer_config
    if isinstance(task, LargeBatchPretrainConfig):
        count = estimates.parameters(task.model, task.train_data.use_next_sentence_label)
    else:
        # Heads are small beside the encoder: the masked LM's stands for any other.
        count = estimates.parameters(bert.PretrainerConfig(encoder=task.model.encoder))
    return estimates.checkpoint_bytes(count, estimates.slots(chosen), ema=chosen.ema is not None)
