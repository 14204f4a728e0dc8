"""What an export starts from: a pretrained model with its vocabulary, wherever it was trained."""

import dataclasses
import os
from collections.abc import Collection

import tensorflow as tf
import tf_keras
from absl import logging
from official.core import task_factory
from official.nlp.configs import bert

from official_bert import (
    checkpoints,
    configuration,
    experiments,
    saved_encoders,
    starting_point,
)
from official_bert.export import architecture, output
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

# What a folder's marker calls the heads that nobody has trained.
UNTRAINED = "untrained"

# Where a checkpoint keeps a whole pretrainer, and where the pooler of its next-sentence head.
_WHOLE = "model"
_TRAINED_POOLER = "next_sentence.pooler_dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A pretrained BERT, read from its checkpoint.

    Attributes:
        path: the run, folder or checkpoint prefix, as the user gave it.
        checkpoint: the prefix that was read.
        config: the model's config: encoder, heads.
        vocabulary: the word pieces that the embedding rows stand for.
        lower_case: whether text is lower-cased before it is cut into them.
        model: Model Garden's `BertPretrainerV2`, every variable created and restored. Its
            encoder's pooler holds the weights of the next-sentence head's, the one that
            pretraining moved.
        has_next_sentence: whether there is a trained next-sentence head; without one
            `pooled_output` is untrained.
    """

    path: str
    checkpoint: str
    config: bert.PretrainerConfig
    vocabulary: Vocabulary
    lower_case: bool
    model: tf_keras.Model
    has_next_sentence: bool


def load(
    model_dir: str,
    config_file: str = "",
    vocab_file: str = "",
    lower_case: bool | None = None,
) -> Source:
    """Reads a pretrained model; what is given explicitly wins over what its folder says.

    Args:
        model_dir: a pretraining run's `--model_dir`, a folder that `official_bert.convert` wrote,
            or any Model Garden BERT checkpoint: its folder or prefix.
        config_file: a recipe or `params.yaml` with the model's size; needed only where no
            `params.yaml` lies beside the checkpoint.
        vocab_file: the vocabulary; empty: the folder's own.
        lower_case: the casing; None: the folder's own.

    Raises:
        UserError: no checkpoint, one of another architecture than the config, no config or
            vocabulary, or a run that is no pretraining.

    Example:
        >>> load("run/phase2").has_next_sentence
        True
    """
    if not model_dir:
        raise UserError("--model_dir is empty; give a pretraining run or a checkpoint's prefix")
    experiments.register()
    start = starting_point.find(model_dir, config_file, vocab_file, lower_case)
    if saved_encoders.folder_of(start.checkpoint) is not None:
        raise UserError(
            f"--model_dir {model_dir} is a SavedModel, an export already; give the run or the "
            "checkpoint that it was exported from"
        )
    folder = os.path.dirname(start.checkpoint)
    config = pretrainer_config(folder, config_file)
    model = _build(config)
    untrained = _restore(start.checkpoint, model) | set(output.about(folder).get(UNTRAINED, []))
    if not architecture.has_pooler_head(config) or not _has_labels(folder, config_file):
        untrained |= {architecture.POOLER, architecture.NEXT_SENTENCE_HEAD}
    _warn(model_dir, untrained)
    return Source(
        path=model_dir,
        checkpoint=start.checkpoint,
        config=config,
        vocabulary=start.vocabulary,
        lower_case=start.lower_case,
        model=model,
        has_next_sentence=architecture.NEXT_SENTENCE_HEAD not in untrained,
    )


def _build(config: bert.PretrainerConfig) -> tf_keras.Model:
    """A new model; heads that a checkpoint then lacks have the same weights each time."""
    tf_keras.utils.set_random_seed(0)
    model = task_factory.get_task(LargeBatchPretrainConfig(model=config)).build_model()
    # A seed in force while functions are traced would become part of them, and freeze dropout.
    tf.random.set_seed(None)
    return model


def _restore(prefix: str, model: tf_keras.Model) -> set[str]:
    """Restores what a checkpoint has of a pretrainer; the heads (`architecture.HEADS`) it lacks."""
    held = checkpoints.children(prefix)
    for name in (_WHOLE, "pretrainer"):
        if "encoder_network" in checkpoints.children(prefix, name):
            checkpoints.restore_items(prefix, {name: model})
            architecture.share_pooler(model)
            return set()
    items = {name: item for name, item in model.checkpoint_items.items() if name in held}
    if "encoder" not in items:
        items[_WHOLE] = model.encoder_network
    checkpoints.restore_items(prefix, items)
    if _TRAINED_POOLER in items:
        architecture.share_pooler(model)
    heads = {architecture.NEXT_SENTENCE_HEAD}
    return heads if "masked_lm" in items else heads | {architecture.MASKED_LM_HEAD}


def _has_labels(folder: str, config_file: str) -> bool:
    """Whether a run trained on next-sentence labels; true where nothing says that it did not."""
    if tf.io.gfile.exists(os.path.join(folder, configuration.PARAMS_FILE)):
        data = configuration.read_saved(folder).get("task", {}).get("train_data") or {}
        return bool(data.get("use_next_sentence_label", True))
    if not config_file:
        return True
    params = configuration.load(experiments.PRETRAINING, [config_file])
    return bool(params.task.train_data.use_next_sentence_label)


def _warn(path: str, untrained: Collection[str]) -> None:
    if architecture.MASKED_LM_HEAD in untrained:
        logging.warning("%s holds no masked-LM head: its weights here are new and untrained", path)
    if architecture.NEXT_SENTENCE_HEAD not in untrained:
        return
    logging.warning(
        "%s holds no trained next-sentence head: its logits are left out, and pooled_output is %s",
        path,
        "untrained: use sequence_output, or finetune"
        if architecture.POOLER in untrained
        else "the one it came with",
    )


def pretrainer_config(run: str, config_file: str = "") -> bert.PretrainerConfig:
    """The model section of a pretraining config.

    Args:
        run: the folder whose `params.yaml` says it.
        config_file: a recipe or `params.yaml` that says it instead.

    Raises:
        UserError: no such file, or it is not a pretraining run's.
    """
    if config_file:
        return configuration.load(experiments.PRETRAINING, [config_file]).task.model
    model = configuration.read_saved(run).get("task", {}).get("model") or {}
    if "cls_heads" not in model or "encoder" not in model:
        raise UserError(
            f"{run} is not a pretraining run: its {configuration.PARAMS_FILE} has no task.model "
            "with an encoder and cls_heads; expected the --model_dir of official_bert.train or "
            "official_bert.convert"
        )
    config = bert.PretrainerConfig()
    config.override(model, is_strict=True)
    return config
