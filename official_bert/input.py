"""Shards written by `tfrecords.build` behind Model Garden's data-loader contract."""

import dataclasses
import os

import tensorflow as tf
from official.core import config_definitions
from official.nlp.data import data_loader, data_loader_factory

import tfrecords
from tfrecords import files
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary


@dataclasses.dataclass
class PretrainDataConfig(config_definitions.DataConfig):
    """What a pretraining run reads.

    Attributes:
      input_path: the folder that `tfrecords.build` wrote.
      global_batch_size: examples per step over all replicas and workers.
      is_training: the endless `train` split, or one pass over `eval`.
      seq_length: tokens per example; the folder must hold that length.
      use_next_sentence_label: whether the next-sentence loss is trained.
      seed: draws the order of the examples; the same for every worker.
      vocab_file: empty, or the vocabulary this run insists on: it must be the folder's own.
    """

    input_path: str = ""
    global_batch_size: int = 512
    is_training: bool = True
    seq_length: int = 128
    use_next_sentence_label: bool = True
    seed: int = 0
    vocab_file: str = ""


@data_loader_factory.register_data_loader_cls(PretrainDataConfig)
class PretrainDataLoader(data_loader.DataLoader):
    """Reads the batches of one input pipeline, from any step on."""

    def __init__(self, params: PretrainDataConfig):
        self._params = params

    def load(
        self, input_context: tf.distribute.InputContext | None = None, start_step: int = 0
    ) -> tf.data.Dataset:
        """A dataset of this pipeline's batches.

        Args:
          input_context: which pipeline of how many this is; None means the only one.
          start_step: batches consumed before, by this run or an earlier one: the position in
            the data is a step number and nothing else.
        """
        params = self._params
        return tfrecords.read(
            params.input_path,
            split="train" if params.is_training else "eval",
            seq_length=params.seq_length,
            global_batch_size=params.global_batch_size,
            input_context=input_context,
            seed=params.seed,
            start_step=start_step,
            training=params.is_training,
        )


def keep_vocabulary(params: PretrainDataConfig, model_dir: str) -> None:
    """Copies the shards' vocabulary into a run's folder: its weights mean nothing without it."""
    manifest = tfrecords.Manifest.load(params.input_path)
    copy = os.path.join(model_dir, os.path.basename(manifest.vocabulary_file))
    files.write_bytes(copy, files.read_bytes(manifest.vocabulary_file))


def check_shards(params: PretrainDataConfig, vocab_size: int) -> tfrecords.Manifest:
    """Holds a data config against the manifest of its folder, before anything is built.

    Args:
      params: the data config.
      vocab_size: rows of the model's embedding table.

    Returns:
      The manifest.

    Raises:
      UserError: no such folder, a missing or damaged shard, another sequence length, another
        vocabulary than the model's or `vocab_file`, an empty split.
    """
    if not params.input_path:
        raise UserError(
            "task.train_data.input_path is empty; give the folder that tfrecords.build wrote, "
            "for example --params_override=task.train_data.input_path=shards"
        )
    manifest = tfrecords.Manifest.load(params.input_path)
    split = "train" if params.is_training else "eval"
    manifest.check_shards(split, params.seq_length)
    manifest.check_vocab_size(vocab_size)
    if params.vocab_file:
        manifest.check_vocabulary(Vocabulary.load(params.vocab_file))
    if manifest.num_examples(split, params.seq_length) == 0:
        raise UserError(
            f"the {split} split of {params.input_path} is empty; "
            "build with a larger corpus or another --eval_fraction"
        )
    return manifest
