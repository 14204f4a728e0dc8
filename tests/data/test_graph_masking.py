"""Masks made in the input pipeline equal the NumPy ones, bit for bit."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_masking import make, rows
from tfrecords import graph_masking, hashing, masking

NUM_ROWS = 24


def both(
    config: masking.Masking, ids: np.ndarray, maskable: np.ndarray, example_ids: np.ndarray
) -> tuple[masking.Masked, graph_masking.MaskedBatch]:
    num_tokens = (ids > 0).sum(1)
    return (
        masking.mask(config, ids, maskable, num_tokens, example_ids),
        graph_masking.mask(
            config,
            tf.constant(ids),
            tf.constant(maskable),
            tf.constant(num_tokens, tf.int32),
            tf.constant(example_ids),
        ),
    )


def check(expected: masking.Masked, found: graph_masking.MaskedBatch) -> None:
    np.testing.assert_array_equal(found.input_word_ids, expected.input_word_ids)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.ids, expected.ids)
    slots = np.arange(expected.positions.shape[1])
    np.testing.assert_array_equal(found.weights, slots < expected.counts[:, None])
    assert [found.input_word_ids.dtype, found.weights.dtype] == [tf.int32, tf.float32]


@settings(max_examples=20)
@given(
    seed=st.integers(0, 999),
    length=st.sampled_from([16, 128, 300]),
    whole_word=st.booleans(),
    # From texts of short words to texts of words too long for any budget.
    continuing=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
    prob=st.sampled_from([0.15, 0.4, 1.0]),
    most=st.sampled_from([1, 20, 80]),
)
def test_as_in_numpy(
    seed: int, length: int, whole_word: bool, continuing: float, prob: float, most: int
) -> None:
    config = make(whole_word, most, prob)
    check(*both(config, *rows(NUM_ROWS, length, seed, continuing)))


@pytest.mark.parametrize("length", [255, 256, 257, hashing.MAX_PLACES])
def test_at_the_lengths_where_something_changes(length: int) -> None:
    ids, maskable, example_ids = rows(3, length, 1)
    ids[0] = np.where(ids[0] == 0, 11, ids[0])
    ids[0, 0], ids[0, -1] = 2, 3
    check(*both(make(True, 80), ids, ids >= 10, example_ids))


def test_words_beyond_the_first_are_looked_at() -> None:
    """Rows of words too long for the budget, but for a last short one in the order of choice."""
    length, size = 400, 6
    ids = np.full((NUM_ROWS, length), 700, np.int32)
    ids[:, 1 : length - 1 : size] = 10
    ids[:, 0], ids[:, -1] = 2, 3
    ids[:, -3:-1] = 700, 11
    maskable = ids >= 10
    example_ids = np.arange(NUM_ROWS, dtype=np.uint64)
    # The budget has room for one token.
    config = make(True, 1, 0.15)
    expected, found = both(config, ids, maskable, example_ids)
    check(expected, found)
    assert (expected.counts == 1).all()
    assert (expected.ids[:, 0] == 11).all()


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_row_that_is_none_has_no_masks(whole_word: bool) -> None:
    ids, maskable, example_ids = rows(4, 32, 5)
    ids[2], maskable[2] = 0, False
    found = both(make(whole_word), ids, maskable, example_ids)[1]
    assert not found.weights[2].numpy().any()
    assert not found.input_word_ids[2].numpy().any()
    assert found.weights[1].numpy().any()
