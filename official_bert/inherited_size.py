"""Whether a run can start from its init_checkpoint: weights of an encoder as large as its own."""

import os
from collections.abc import Iterator

import tensorflow as tf
from official.core import config_definitions

from official_bert import checkpoints, configuration, continuation
from tfrecords.errors import UserError

_SECTION = "task.model.encoder"
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "embedding_size",
)


def problems(params: config_definitions.ExperimentConfig, model_dir: str) -> Iterator[str]:
    """Why a run that has no checkpoint of its own cannot start; nothing for random weights.

    Args:
      params: the config of the run about to start.
      model_dir: its folder, which may say what the run started from before; "" for none.
    """
    try:
        start = continuation.with_start(params, model_dir).task.init_checkpoint
        if not start:
            return
        checkpoints.latest(start)
    except UserError as error:
        yield str(error)
        return
    yield from _size_problems(params, start)


def _size_problems(params: config_definitions.ExperimentConfig, start: str) -> Iterator[str]:
    """Every size that differs, and how to set it; nothing where the checkpoint's is not known.

    Args:
      params: the config of the run about to start.
      start: the folder or the prefix it starts from; the `params.yaml` there says the size.
    """
    folder = start if tf.io.gfile.isdir(start) else os.path.dirname(start)
    for name, was, wanted in configuration.differences(params, folder, [_SECTION]):
        if name.rsplit(".", 1)[-1] in _SIZES and was is not None and wanted is not None:
            yield (
                f"{name} is {wanted}, but {folder}, where this run starts, has {was}; add "
                f"--params_override={name}={was}, or take all sizes over with "
                f"--config_file={os.path.join(folder, configuration.PARAMS_FILE)} as the last one"
            )
