"""Whether a run's checkpoints fit on the disk they go to."""

import os
import pathlib
import re
import shutil
import tempfile

from official.core import config_definitions
from official.nlp.configs import bert

from official_bert import estimates
from official_bert.pretraining_task import LargeBatchPretrainConfig

_CHECKPOINT = re.compile(r"(?P<prefix>ckpt-(?P<number>\d+))(\.index|\.data-.*|_temp)")


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

    What a killed save or sweep left counts as free, since a run deletes it before it saves.

    Args:
      params: the run's config.
      model_dir: its folder, which need not be there yet.
    """
    free, size = free_bytes(model_dir), checkpoint_bytes(params)
    if free is None or not os.path.isdir(model_dir):
        return free, size, 0
    whole, remains = _checkpoints(pathlib.Path(model_dir))
    most = params.trainer.max_to_keep
    swept = sum(map(sum, list(whole.values())[:-most]))
    return free + swept + remains, size, min(len(whole), most)


def is_finished(params: config_definitions.ExperimentConfig, model_dir: str) -> bool:
    """Whether a local folder holds the checkpoint of the last step, so that none is to come."""
    last = f"ckpt-{params.trainer.train_steps}.index"
    return "://" not in model_dir and os.path.exists(os.path.join(model_dir, last))


def _checkpoints(folder: pathlib.Path) -> tuple[dict[int, list[int]], int]:
    """The bytes of each whole checkpoint's files, by step ascending, and those of remains."""
    sizes: dict[int, list[int]] = {}
    indexed: set[int] = set()
    remains = 0
    for path in folder.iterdir():
        name = _CHECKPOINT.fullmatch(path.name)
        if name is None:
            continue
        number = int(name["number"])
        if path.is_dir():
            remains += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        else:
            sizes.setdefault(number, []).append(path.stat().st_size)
        if path.suffix == ".index":
            indexed.add(number)
    remains += sum(sum(found) for number, found in sizes.items() if number not in indexed)
    return {number: sizes[number] for number in sorted(indexed)}, remains


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
