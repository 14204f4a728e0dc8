"""The contract on disk: feature names, shapes, dtypes, record layouts and file names.

A `stored` record is a tf.train.Example, masked when it was written. Its features are those of Model
Garden's `BertPretrainDataLoader` with its v2 names (official/nlp/data/pretrain_dataloader.py),
integers stored as int64 and read as int32; shards that other scripts wrote may have the v1 names.

A `dynamic` record is a row that is masked when it is read: little-endian words of `dynamic_dtype`,
first the `DYNAMIC_HEADER` (the example id's four 16-bit digits, least significant first; the
tokens of the first segment; the next-sentence label), then the tokens, special ones included and
padding left out.
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
GZIP = "GZIP"
GZIP_SUFFIX = ".gz"
SHARD_SUFFIXES = (SHARD_SUFFIX, SHARD_SUFFIX + GZIP_SUFFIX)
STORED, DYNAMIC = "stored", "dynamic"
RECORDS = (STORED, DYNAMIC)
TRAIN = "train"
EVAL = "eval"
SPLITS = (TRAIN, EVAL)

SPECIAL_TOKENS_IN_PAIR = 3  # [CLS] first [SEP] second [SEP]
SPECIAL_TOKENS_IN_PACKED = 2  # [CLS] text [SEP]

DYNAMIC_HEADER = ("id_0", "id_1", "id_2", "id_3", "first_length", "next_sentence_label")

V1, V2 = "v1", "v2"
V1_NAMES = {INPUT_WORD_IDS: "input_ids", INPUT_TYPE_IDS: "segment_ids"}


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


def dynamic_dtype(vocab_size: int) -> Literal["uint16", "int32"]:
    """The type of the words of a `dynamic` record: the smallest that holds every token id."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def shard_name(
    split: str, seq_length: int, shard: int, num_shards: int, compression: str = ""
) -> str:
    """The file name of a shard.

    Args:
        split: "train" or "eval".
        seq_length: tokens in a row.
        shard: its number, from 0.
        num_shards: of the split and length.
        compression: "" or "GZIP", as TensorFlow names it.

    Example:
        >>> shard_name("train", 128, 17, 1536)
        'train-seq128-00017-of-01536.tfrecord'
    """
    suffix = SHARD_SUFFIX + (GZIP_SUFFIX if compression == GZIP else "")
    return f"{split}-seq{seq_length}-{shard:05d}-of-{num_shards:05d}{suffix}"


def default_max_predictions(seq_length: int, masked_lm_prob: float) -> int:
    """What a full row can need: ceil(masked_lm_prob L), rounded up to a multiple of 4.

    Example:
        >>> default_max_predictions(128, 0.15), default_max_predictions(512, 0.15)
        (20, 80)
    """
    return 4 * math.ceil(math.ceil(masked_lm_prob * seq_length) / 4)
