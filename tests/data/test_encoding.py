"""The hand-made bytes are those messages that TensorFlow's own classes would hold."""

import numpy as np
import pytest
import tensorflow as tf

from tfrecords import encoding, schema
from tfrecords.instances import Pairs
from tfrecords.masking import Masking
from tfrecords.vocabulary import Vocabulary


@pytest.mark.parametrize(("vocab_size", "seq_length"), [(100, 32), (9000, 128), (40_000, 300)])
def test_equal_to_tf_train_example(vocab_size: int, seq_length: int) -> None:
    draw = np.random.default_rng(0)
    words = [f"w{index}" for index in range(vocab_size - 5)]
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
    vocabulary = Vocabulary(tokens=tokens, content=b"")
    room = seq_length - 3
    first = draw.integers(1, room - 1, 50)
    second = np.array([draw.integers(1, room - size + 1) for size in first])
    pairs = Pairs(
        ids=draw.integers(5, vocab_size, (first + second).sum()).astype(np.uint16),
        first_lengths=first.astype(np.int32),
        second_lengths=second.astype(np.int32),
        random_next=draw.integers(0, 2, 50).astype(np.uint8),
        example_ids=draw.integers(0, 2**63, 50).astype(np.uint64),
    )
    most = schema.default_max_predictions(seq_length, 0.15)
    config = Masking(
        masked_lm_prob=0.15,
        max_predictions_per_seq=most,
        whole_word=True,
        mask_id=4,
        replacements=vocabulary.replacements,
        continues_word=vocabulary.continues_word,
    )
    records = encoding.serialize(
        pairs, seq_length=seq_length, vocabulary=vocabulary, masking=config
    )
    starts = np.concatenate([[0], np.cumsum(first + second)])
    for row, record in enumerate(records):
        feature = tf.train.Example.FromString(record).features.feature
        assert set(feature) == {item.name for item in schema.features(seq_length, most)}
        ids = list(feature["input_word_ids"].int64_list.value)
        positions = list(feature["masked_lm_positions"].int64_list.value)
        labels = list(feature["masked_lm_ids"].int64_list.value)
        weights = list(feature["masked_lm_weights"].float_list.value)
        count = round(sum(weights))
        assert weights == [1.0] * count + [0.0] * (most - count)
        for position, label in zip(positions[:count], labels[:count], strict=True):
            ids[position] = label
        text = pairs.ids[starts[row] : starts[row + 1]].tolist()
        a, b = text[: first[row]], text[first[row] :]
        expected = [2, *a, 3, *b, 3]
        padding = [0] * (seq_length - len(expected))
        assert ids == expected + padding
        types = list(feature["input_type_ids"].int64_list.value)
        assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1) + padding
        mask = list(feature["input_mask"].int64_list.value)
        assert mask == [1] * len(expected) + padding
        labels = list(feature["next_sentence_labels"].int64_list.value)
        assert labels == [pairs.random_next[row]]
        # A message that only a lenient parser takes would not survive the round trip.
        rebuilt = tf.train.Example.FromString(record).SerializeToString(deterministic=True)
        assert len(rebuilt) == len(record)
