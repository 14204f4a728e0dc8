"""Whether a run's encoder is as large as the one that its init_checkpoint holds."""

import os
from collections.abc import Iterator

import tensorflow as tf
from official.core import config_definitions

from official_bert import configuration

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


def problems(params: config_definitions.ExperimentConfig, init_checkpoint: str) -> Iterator[str]:
    """Every size that differs, and how to set it; nothing where the checkpoint's is not known.

    Args:
      params: the config of the run about to start.
      init_checkpoint: the folder or the prefix it starts from; the `params.yaml` there says the
        size.
    """
    is_folder = tf.io.gfile.isdir(init_checkpoint)
    folder = init_checkpoint if is_folder else os.path.dirname(init_checkpoint)
    for name, was, wanted in configuration.differences(params, folder, [_SECTION]):
        if name.rsplit(".", 1)[-1] in _SIZES and was is not None and wanted is not None:
            yield (
                f"{name} is {wanted}, but {folder}, where this run starts, has {was}; add "
                f"--params_override={name}={was}, or take all sizes over with "
                f"--config_file={os.path.join(folder, configuration.PARAMS_FILE)} as the last one"
            )
