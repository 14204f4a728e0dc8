"""The contract on disk: feature names, shapes, dtypes and file names.

The features are those of Model Garden's `BertPretrainDataLoader` with its v2 names
(official/nlp/data/pretrain_dataloader.py), integers stored as int64 and read as int32.
"""

import dataclasses
import math
from typing import Literal

INPUT_WORD_IDS = "input_word_ids"
INPUT_MASK = "input_mask"
INPUT_TYPE_IDS = "input_type_ids"
MASKED_LM_POSITIONS = "masked_lm_positions"
MASKED_LM_IDS = "masked_lm_ids"
MASKED_LM_WEIGHTS = "masked_lm_weights"
NEXT_SENTENCE_LABELS = "next_sentence_labels"

MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocab.txt"
SHARD_SUFFIX = ".tfrecord"
TRAIN = "train"
EVAL = "eval"
SPLITS = (TRAIN, EVAL)

SPECIAL_TOKENS_IN_ROW = 3  # [CLS] first [SEP] second [SEP]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of an example.

    Attributes:
        name: its key in the tf.train.Example.
        size: its number of values.
        dtype: what the reader gives: "int32" or "float32".
    """

    name: str
    size: int
    dtype: Literal["int32", "float32"]


def features(seq_length: int, max_predictions_per_seq: int) -> tuple[Feature, ...]:
    """The features of a `stored` example, in the order in which they are written.

    Args:
        seq_length: tokens in a row, L.
        max_predictions_per_seq: masked positions in a row, M.
    """

    def row(name: str) -> Feature:
        return Feature(name=name, size=seq_length, dtype="int32")

    def predictions(name: str, dtype: Literal["int32", "float32"]) -> Feature:
        return Feature(name=name, size=max_predictions_per_seq, dtype=dtype)

    return (
        row(INPUT_WORD_IDS),
        row(INPUT_MASK),
        row(INPUT_TYPE_IDS),
        predictions(MASKED_LM_POSITIONS, "int32"),
        predictions(MASKED_LM_IDS, "int32"),
        predictions(MASKED_LM_WEIGHTS, "float32"),
        Feature(name=NEXT_SENTENCE_LABELS, size=1, dtype="int32"),
    )


def shard_name(split: str, seq_length: int, shard: int, num_shards: int) -> str:
    """The file name of a shard.

    Example:
        >>> shard_name("train", 128, 17, 1536)
        'train-seq128-00017-of-01536.tfrecord'
    """
    return f"{split}-seq{seq_length}-{shard:05d}-of-{num_shards:05d}{SHARD_SUFFIX}"


def default_max_predictions(seq_length: int, masked_lm_prob: float) -> int:
    """What a full row can need: ceil(masked_lm_prob L), rounded up to a multiple of 4.

    Example:
        >>> default_max_predictions(128, 0.15), default_max_predictions(512, 0.15)
        (20, 80)
    """
    return 4 * math.ceil(math.ceil(masked_lm_prob * seq_length) / 4)
