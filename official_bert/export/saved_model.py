"""A pretraining run's encoder as a SavedModel, called as TF Hub's BERT encoders are."""

import os

import tensorflow as tf
import tf_keras
from absl import logging
from official.core import task_factory
from official.nlp.configs import bert

from official_bert import checkpoints, configuration
from official_bert.input import kept_casing
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords import files, schema
from tfrecords.errors import UserError

INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


def pretrainer_config(model_dir: str) -> LargeBatchPretrainConfig:
    """The task section of a pretraining run's `params.yaml`.

    Raises:
      UserError: no such file, or it is not a pretraining run's.
    """
    saved = configuration.read_saved(model_dir).get("task", {})
    model = saved.get("model") or {}
    if "cls_heads" not in model or "encoder" not in model:
        raise UserError(
            f"{model_dir} is not a pretraining run: its params.yaml has no task.model with an "
            "encoder and cls_heads"
        )
    config = LargeBatchPretrainConfig()
    config.model = bert.PretrainerConfig()
    config.override({"model": model, "train_data": saved["train_data"]}, is_strict=True)
    return config


def load_pretrainer(model_dir: str) -> tuple[tf_keras.Model, str]:
    """A run's `BertPretrainerV2` with the weights of its newest checkpoint, and its prefix."""
    config = pretrainer_config(model_dir)
    model = task_factory.get_task(config).build_model()
    return model, checkpoints.restore_model(model_dir, model)


def hub_encoder(encoder_network: tf_keras.Model, seq_length: int | None = None) -> tf_keras.Model:
    """The encoder behind TF Hub's interface for text encoders.

    Args:
      encoder_network: a Model Garden BERT encoder.
      seq_length: a fixed length, or None for any.

    Returns:
      A model from a dict of int32 (batch, length) tensors `input_word_ids`, `input_mask`,
      `input_type_ids` to a dict of `sequence_output` (batch, length, hidden) and
      `pooled_output` (batch, hidden).
    """
    inputs = {
        name: tf_keras.layers.Input((seq_length,), dtype=tf.int32, name=name) for name in INPUTS
    }
    outputs = encoder_network(inputs)
    names = ("sequence_output", "pooled_output")
    return tf_keras.Model(inputs, {name: outputs[name] for name in names}, name="bert_encoder")


def export(model_dir: str, output_dir: str) -> str:
    """Writes `output_dir/encoder`, a SavedModel of the newest checkpoint's encoder.

    The pooler is the trained one, of the next-sentence head; a run without that head has none, and
    a warning says that `pooled_output` is untrained. Optimizer slots stay behind. The
    vocabulary that the run keeps lies in the SavedModel's assets, as `assets/vocab.txt`, with
    `do_lower_case` as a variable beside it (TF Hub's convention: `.resolved_object.vocab_file` and
    `.do_lower_case`).

    Args:
      model_dir: a pretraining run.
      output_dir: created where it is missing; must not hold an `encoder` already.

    Returns:
      The path of the SavedModel.

    Raises:
      UserError: no run, no checkpoint, or an output that is already there.
    """
    path = os.path.join(output_dir, "encoder")
    if tf.io.gfile.exists(path):
        raise UserError(f"{path} exists already; choose another --output_dir or remove it")
    config = pretrainer_config(model_dir)
    prefix = checkpoints.latest(model_dir)
    pretrainer = task_factory.get_task(config).build_model()
    checkpoints.restore_model(prefix, pretrainer)
    checkpoints.restore_encoder(prefix, pretrainer.encoder_network)
    if not config.model.cls_heads:
        logging.warning(
            "%s was trained without a next-sentence head: pooled_output is untrained; use "
            "sequence_output, or finetune",
            model_dir,
        )
    encoder = hub_encoder(pretrainer.encoder_network)
    vocabulary = os.path.join(model_dir, schema.VOCABULARY_FILE)
    lower_case = kept_casing(model_dir)
    if tf.io.gfile.exists(vocabulary) and lower_case is not None:
        encoder.vocab_file = tf.saved_model.Asset(vocabulary)
        encoder.do_lower_case = tf.Variable(lower_case, trainable=False)
    tf.io.gfile.makedirs(output_dir)
    with files.atomic_path(path) as temporary:
        encoder.save(temporary, include_optimizer=False, save_format="tf")
    return path
