"""Blocks of rows to records, many at a time.

The bytes of `stored` records are those of the protocol buffer's own encoding
(protobuf.dev/programming-guides/encoding) of tensorflow/core/example/example.proto; building the
message objects takes thirty times as long.
"""

import functools
from collections.abc import Iterator

import numpy as np

from tfrecords import schema
from tfrecords.instances import Pairs, starts_of
from tfrecords.masking import Masking, mask
from tfrecords.vocabulary import CLS, SEP, Vocabulary

_LENGTH_DELIMITED = 2
_FLOAT_LIST, _INT64_LIST = 2, 3
_GROUP = 512


def serialize(
    pairs: Pairs, *, seq_length: int, vocabulary: Vocabulary, masking: Masking
) -> list[bytes]:
    """Masks pairs and serialises each as a tf.train.Example of `schema.features`.

    Args:
        pairs: N pairs.
        seq_length: L.
        vocabulary: where the special tokens are.
        masking: how to mask.
    """
    lengths = pairs.num_tokens
    records = [b""] * len(pairs)
    # Rows of like length together: none is worked on beyond the longest of its group.
    by_length = np.argsort(lengths, kind="stable")
    for begin in range(0, len(pairs), _GROUP):
        rows = by_length[begin : begin + _GROUP]
        group = _serialize_group(pairs.select(rows), seq_length, vocabulary, masking)
        for row, record in zip(rows.tolist(), group, strict=True):
            records[row] = record
    return records


def _serialize_group(
    pairs: Pairs, seq_length: int, vocabulary: Vocabulary, masking: Masking
) -> Iterator[bytes]:
    width = int(pairs.num_tokens.max())
    word_ids, type_ids, text, num_tokens = layout(pairs, width, vocabulary)
    masked = mask(masking, word_ids, text, num_tokens, pairs.example_ids)
    padding = bytes(seq_length - width)

    words = _varints(masked.input_word_ids)
    positions = _varints(masked.positions)
    labels = _varints(masked.ids)
    types = type_ids.astype(np.uint8).tobytes()
    for row, (tokens, count, random_next) in enumerate(
        zip(num_tokens.tolist(), masked.counts.tolist(), pairs.random_next.tolist(), strict=True)
    ):
        body = b"".join(
            (
                _header(schema.INPUT_WORD_IDS, _INT64_LIST, len(words[row]) + len(padding)),
                words[row],
                padding,
                _mask_feature(tokens, seq_length),
                _header(schema.INPUT_TYPE_IDS, _INT64_LIST, seq_length),
                types[row * width : (row + 1) * width],
                padding,
                _header(schema.MASKED_LM_POSITIONS, _INT64_LIST, len(positions[row])),
                positions[row],
                _header(schema.MASKED_LM_IDS, _INT64_LIST, len(labels[row])),
                labels[row],
                _weights_feature(count, masking.max_predictions_per_seq),
                _header(schema.NEXT_SENTENCE_LABELS, _INT64_LIST, 1),
                b"\1" if random_next else b"\0",
            )
        )
        yield _tag(1, len(body)) + body


def layout(
    pairs: Pairs, seq_length: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Puts pairs into rows: [CLS] A [SEP] B [SEP] [PAD] ...; without B, [CLS] A [SEP] [PAD] ...

    Returns:
        int32 [N, L], token ids; bool [N, L], true for B and its [SEP]; bool [N, L], true for A and
        B themselves, without the [SEP] between documents; int64 [N], the tokens that are not
        padding.
    """
    first = pairs.first_lengths.astype(np.int64)
    num_tokens = pairs.num_tokens
    columns = np.arange(seq_length)
    in_first = (columns >= 1) & (columns < 1 + first[:, None])
    in_row = columns < num_tokens[:, None]
    type_ids = (columns >= 2 + first[:, None]) & in_row
    word_ids = np.zeros((len(pairs), seq_length), np.int32)
    word_ids[:, 0] = vocabulary.ids[CLS]
    rows = np.arange(len(pairs))
    word_ids[rows, 1 + first] = vocabulary.ids[SEP]
    word_ids[rows, num_tokens - 1] = vocabulary.ids[SEP]
    text = in_first | type_ids
    text[rows, num_tokens - 1] = False
    word_ids[text] = pairs.ids
    text &= word_ids != vocabulary.ids[SEP]
    return word_ids, type_ids, text, num_tokens


def serialize_unmasked(pairs: Pairs, *, vocabulary: Vocabulary) -> list[bytes]:
    """Serialises pairs as `dynamic` records, whose layout `tfrecords.schema` gives."""
    header = len(schema.DYNAMIC_HEADER)
    words = pairs.num_tokens + header
    begins = starts_of(words)
    content = np.empty(begins[-1], schema.dynamic_dtype(len(vocabulary)))
    place = begins[:-1]
    for digit in range(4):
        content[place + digit] = (pairs.example_ids >> np.uint64(16 * digit)) & np.uint64(0xFFFF)
    content[place + 4] = pairs.first_lengths
    content[place + 5] = pairs.random_next
    content[place + header] = vocabulary.ids[CLS]
    content[begins[1:] - 1] = vocabulary.ids[SEP]
    is_text = np.ones(len(content), bool)
    for column in range(header + 1):
        is_text[place + column] = False
    is_text[begins[1:] - 1] = False
    has_second = pairs.second_lengths > 0
    between = (place + header + 1 + pairs.first_lengths)[has_second]
    content[between] = vocabulary.ids[SEP]
    is_text[between] = False
    content[is_text] = pairs.ids
    stored = content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
    bounds = (begins * content.itemsize).tolist()
    return [stored[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def _varints(values: np.ndarray) -> list[bytes]:
    """The rows of non-negative integers below 2^21 as packed varints."""
    largest = int(values.max(initial=0))
    if largest < 1 << 7:
        return [row.tobytes() for row in values.astype(np.uint8)]
    width = 2 if largest < 1 << 14 else 3
    septets = np.empty((*values.shape, width), np.uint8)
    used = np.empty(septets.shape, bool)
    for place in range(width):
        rest = values >> (7 * place)
        septets[..., place] = (rest & 0x7F) | ((rest > 0x7F) << 7)
        used[..., place] = (rest > 0) | (place == 0)
    content = septets[used].tobytes()
    bounds = starts_of(used.sum((1, 2))).tolist()
    return [content[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def _varint(value: int) -> bytes:
    septets = []
    while value > 0x7F:
        septets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*septets, value])


@functools.lru_cache(maxsize=1 << 14)
def _tag(field: int, size: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(size)


@functools.lru_cache(maxsize=1 << 14)
def _header(name: str, kind: int, size: int) -> bytes:
    """All that precedes the packed values in one entry of the feature map."""
    key = name.encode()
    packed = _tag(1, size)
    feature = _tag(kind, len(packed) + size) + packed
    entry = _tag(1, len(key)) + key + _tag(2, len(feature) + size) + feature
    return _tag(1, len(entry) + size) + entry


@functools.lru_cache(maxsize=1 << 12)
def _mask_feature(num_tokens: int, seq_length: int) -> bytes:
    values = b"\1" * num_tokens + b"\0" * (seq_length - num_tokens)
    return _header(schema.INPUT_MASK, _INT64_LIST, seq_length) + values


@functools.lru_cache(maxsize=1 << 12)
def _weights_feature(count: int, width: int) -> bytes:
    values = (np.arange(width) < count).astype("<f4").tobytes()
    return _header(schema.MASKED_LM_WEIGHTS, _FLOAT_LIST, len(values)) + values
