"""Shards written by `tfrecords.build` behind Model Garden's data-loader contract."""

import dataclasses
import json
import os
from typing import Any

import tensorflow as tf
from official.core import config_definitions
from official.nlp.data import data_loader, data_loader_factory

import tfrecords
from tfrecords import decoding, files, reader, schema
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

TOKENIZER_CONFIG = "tokenizer_config.json"


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
      masked_lm_prob: of dynamic records, the share of tokens to guess; None means what the folder
        was built with, as for the next two.
      max_predictions_per_seq: of dynamic records, the most masked positions of a row.
      whole_word_mask: of dynamic records, whether the pieces of a word are masked together.
      on_corrupt: `raise` stops at a damaged record and names it, `skip` reads on without it.
      corrupt_budget: how many damaged records `skip` tolerates, in each worker and since each
        start.
    """

    input_path: str = ""
    global_batch_size: int = 512
    is_training: bool = True
    seq_length: int = 128
    use_next_sentence_label: bool = True
    seed: int = 0
    vocab_file: str = ""
    masked_lm_prob: float | None = None
    max_predictions_per_seq: int | None = None
    whole_word_mask: bool | None = None
    on_corrupt: str = "raise"
    corrupt_budget: int = 0


@data_loader_factory.register_data_loader_cls(PretrainDataConfig)
class PretrainDataLoader(data_loader.DataLoader):
    """Reads the batches of one input pipeline, from any step on."""

    def __init__(self, params: PretrainDataConfig):
        self._params = params

    def load(
        self,
        input_context: tf.distribute.InputContext | None = None,
        start_step: int = 0,
        *,
        first_step: int = 0,
        first_epoch: int = 0,
    ) -> tf.data.Dataset:
        """A dataset of this pipeline's batches.

        Args:
          input_context: which pipeline of how many this is; None means the only one.
          start_step: batches consumed before, by this run or an earlier one: the position in
            the data is a step number and nothing else.
          first_step: as in `tfrecords.read`.
          first_epoch: likewise.
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
            first_step=first_step,
            first_epoch=first_epoch,
            training=params.is_training,
            on_corrupt=params.on_corrupt,
            corrupt_budget=params.corrupt_budget,
            **_masking(params),
        )


def replica_batches(
    dataset: tf.data.Dataset,
    global_batch_size: int,
    input_context: tf.distribute.InputContext | None,
    is_training: bool,
) -> tf.data.Dataset:
    """A pipeline's batches cut into those of its replicas, as `tf.distribute` expects.

    Training data have no end, and say so: strategies over several workers give up the static
    shapes of batches where a worker might come to its end before the others.

    Args:
      dataset: batches of this pipeline.
      global_batch_size: rows of a step over all replicas.
      input_context: which pipeline of how many; None means the only one, for one replica.
      is_training: whether the data set is endless.
    """
    if input_context is not None and input_context.num_replicas_in_sync > 1:
        per_replica = global_batch_size // input_context.num_replicas_in_sync
        dataset = dataset.rebatch(per_replica, drop_remainder=True).prefetch(2)
    if not is_training:
        return dataset
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _masking(params: PretrainDataConfig) -> dict[str, Any]:
    names = ("masked_lm_prob", "max_predictions_per_seq", "whole_word_mask")
    return {name: getattr(params, name) for name in names}


def keep_tokenization(params: PretrainDataConfig, model_dir: str) -> None:
    """Copies the shards' vocabulary and its casing into a run's folder.

    Its weights mean nothing without them. The casing lies in `TOKENIZER_CONFIG`, as Hugging Face's
    tokenizers have it.
    """
    manifest = tfrecords.Manifest.load(params.input_path)
    copy = os.path.join(model_dir, schema.VOCABULARY_FILE)
    files.write_bytes(copy, files.read_bytes(manifest.vocabulary_file))
    casing = json.dumps({"do_lower_case": manifest.lower_case})
    files.write_text(os.path.join(model_dir, TOKENIZER_CONFIG), casing)


def kept_casing(model_dir: str) -> bool | None:
    """Whether a run's text is lower-cased; None where its folder does not say.

    Raises:
      UserError: the file that may say it is no JSON object, or says something else.
    """
    path = os.path.join(model_dir, TOKENIZER_CONFIG)
    if not model_dir or not tf.io.gfile.exists(path):
        return None
    try:
        casing = json.loads(files.read_bytes(path)).get("do_lower_case")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no JSON object ({error}); restore it from a copy, or remove it and say "
            "the casing with --lower_case or --nolower_case"
        ) from error
    if casing is not None and not isinstance(casing, bool):
        raise UserError(f"{path}: do_lower_case is {casing!r}; expected true or false: mend it")
    return casing


def check_shards(params: PretrainDataConfig, vocab_size: int) -> tfrecords.Manifest:
    """Holds a data config against the manifest of its folder, before anything is built.

    Args:
      params: the data config.
      vocab_size: rows of the model's embedding table.

    Returns:
      The manifest.

    Raises:
      UserError: no such folder, a missing or damaged shard, another sequence length, another
        vocabulary than the model's or `vocab_file`, an empty split, masks chosen for records
        that are masked already.
    """
    if not params.input_path:
        raise UserError(
            "task.train_data.input_path is empty; give the folder that tfrecords.build wrote, "
            "for example --params_override=task.train_data.input_path=shards"
        )
    manifest = tfrecords.Manifest.load(params.input_path)
    split = "train" if params.is_training else "eval"
    tolerant = params.on_corrupt == reader.SKIP
    manifest.check_shards(split, params.seq_length, tolerant=tolerant)
    manifest.check_vocab_size(vocab_size)
    masking = decoding.MaskingChoice(**_masking(params))
    if manifest.records == schema.STORED:
        masking.check_unused(manifest, params.seq_length)
    if params.vocab_file:
        manifest.check_vocabulary(Vocabulary.load(params.vocab_file))
    if manifest.num_examples(split, params.seq_length) == 0:
        raise UserError(
            f"the {split} split of {params.input_path} is empty; "
            "build with a larger corpus or another --eval_fraction"
        )
    return manifest
