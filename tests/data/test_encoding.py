"""The hand-made bytes are those messages that TensorFlow's own classes would hold."""

import functools
from unittest import mock

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfrecords import encoding, masking, schema
from tfrecords.instances import Pairs
from tfrecords.masking import Masking
from tfrecords.vocabulary import Vocabulary

# Of one, two and three septets a token, and their edges.
VOCAB_SIZES = (6, 1 << 7, (1 << 7) + 1, 1 << 14, (1 << 14) + 1, 40_000)


@functools.cache
def vocabulary(size: int) -> Vocabulary:
    words = [f"w{index}" for index in range(size - 5)]
    return Vocabulary(tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words), content=b"")


@st.composite
def pairs(draw: st.DrawFn, vocab_size: int, seq_length: int) -> Pairs:
    """Segment pairs and packed rows, which have no B, one with the other."""
    lengths = []
    for _ in range(draw(st.integers(0, 5))):
        second = draw(st.integers(0, seq_length - 4))
        room = seq_length - second - (3 if second else 2)
        lengths.append((draw(st.integers(1, room)), second))
    seed = draw(st.integers(0, 2**32 - 1))
    numbers = np.random.default_rng(seed)
    first, second = np.array(lengths, np.int32).reshape(-1, 2).T
    return Pairs(
        ids=numbers.integers(5, vocab_size, (first + second).sum()).astype(np.uint16),
        first_lengths=first,
        second_lengths=second,
        random_next=numbers.integers(0, 2, len(lengths)).astype(np.uint8),
        example_ids=numbers.integers(0, 2**64, len(lengths), np.uint64),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pairs, int, Vocabulary, Masking]:
    vocab_size = draw(st.sampled_from(VOCAB_SIZES))
    seq_length = draw(st.integers(5, 40) | st.integers(120, 140) | st.integers(290, 300))
    known = vocabulary(vocab_size)
    how = Masking.of(
        known,
        masked_lm_prob=draw(st.sampled_from([0.01, 0.15, 1.0])),
        max_predictions_per_seq=draw(st.integers(1, seq_length)),
        whole_word=draw(st.booleans()),
    )
    return draw(pairs(vocab_size, seq_length)), seq_length, known, how


def expected_record(
    first: list[int], second: list[int], label: int, identity: int, seq_length: int, how: Masking
) -> bytes:
    """The message of one row, by TensorFlow's classes, its features in the order of the schema."""
    words = [2, *first, 3, *second, 3] if second else [2, *first, 3]
    padding = [0] * (seq_length - len(words))
    masked = masking.mask(
        how,
        np.array([words + padding], np.int32),
        np.array([[word > 4 for word in words + padding]]),
        np.array([len(words)]),
        np.array([identity], np.uint64),
    )
    count = int(masked.counts[0])
    values = {
        schema.INPUT_WORD_IDS: masked.input_word_ids[0],
        schema.INPUT_MASK: [1] * len(words) + padding,
        schema.INPUT_TYPE_IDS: [0] * (len(first) + 2) + [1] * (len(words) - len(first) - 2),
        schema.MASKED_LM_POSITIONS: masked.positions[0],
        schema.MASKED_LM_IDS: masked.ids[0],
        schema.MASKED_LM_WEIGHTS: [1.0] * count + [0.0] * (how.max_predictions_per_seq - count),
        schema.NEXT_SENTENCE_LABELS: [label],
    }
    values[schema.INPUT_TYPE_IDS] += padding
    body = b""
    for name, numbers in values.items():
        if name == schema.MASKED_LM_WEIGHTS:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=numbers))
        else:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=numbers))
        # A map's entries may come in any order, and messages of one after the other are one.
        body += tf.train.Features(feature={name: feature}).SerializeToString()
    # An Example is its features in field 1, as a list of one string of bytes is.
    return tf.train.BytesList(value=[body]).SerializeToString()


@given(case=cases(), group=st.integers(1, 3))
def test_equal_to_tf_train_example(
    case: tuple[Pairs, int, Vocabulary, Masking], group: int
) -> None:
    """Byte by byte, whatever rows are worked on together."""
    rows, seq_length, known, how = case
    with mock.patch.object(encoding, "_GROUP", group):
        records = encoding.serialize(rows, seq_length=seq_length, vocabulary=known, masking=how)
    parts = np.split(rows.ids, np.cumsum(np.stack([rows.first_lengths, rows.second_lengths], 1)))
    names = {feature.name for feature in schema.features(seq_length, how.max_predictions_per_seq)}
    assert len(records) == len(rows)
    for row, record in enumerate(records):
        first, second = (part.tolist() for part in parts[2 * row : 2 * row + 2])
        label, identity = int(rows.random_next[row]), int(rows.example_ids[row])
        assert record == expected_record(first, second, label, identity, seq_length, how)
        message = tf.train.Example.FromString(record)
        assert set(message.features.feature) == names
        # Nothing in it that only a lenient parser takes.
        assert sorted(message.SerializeToString(deterministic=True)) == sorted(record)
