"""Masking: BERT's counts and rates, whole words, nothing special ever chosen or drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import masking

VOCAB = 1000
MASK_ID = 4
CONTINUES = np.arange(VOCAB) >= 600


def rows(
    num_rows: int, length: int, seed: int, continuing: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows: [CLS] text [SEP] text [SEP] padding."""
    draw = np.random.default_rng(seed)
    words = draw.integers(10, 600, (num_rows, length))
    pieces = draw.integers(600, VOCAB, (num_rows, length))
    ids = np.where(draw.random((num_rows, length)) < continuing, pieces, words).astype(np.int32)
    sizes = draw.integers(5, length + 1, num_rows)
    ids[:, 0] = 2
    ids[np.arange(num_rows), sizes // 2] = 3
    ids[np.arange(num_rows), sizes - 1] = 3
    ids[np.arange(length) >= sizes[:, None]] = 0
    return ids, ids >= 10, draw.integers(0, 2**63, num_rows).astype(np.uint64)


def make(whole_word: bool = True, most: int = 20, prob: float = 0.15) -> masking.Masking:
    return masking.Masking(
        masked_lm_prob=prob,
        max_predictions_per_seq=most,
        whole_word=whole_word,
        mask_id=MASK_ID,
        replacements=np.arange(50, VOCAB, dtype=np.int32),
        continues_word=CONTINUES,
    )


def words_of(ids: np.ndarray, maskable: np.ndarray) -> list[list[int]]:
    """The positions of each word of one row, as google-research/bert groups them."""
    words: list[list[int]] = []
    for position in np.flatnonzero(maskable).tolist():
        if CONTINUES[ids[position]] and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


@settings(max_examples=40)
@given(st.integers(0, 999), st.sampled_from([16, 128, 200]), st.booleans(), st.floats(0.05, 0.9))
def test_choice(seed: int, length: int, whole_word: bool, continuing: float) -> None:
    ids, maskable, example_ids = rows(20, length, seed, continuing)
    config = make(whole_word)
    result = masking.mask(config, ids, maskable, (ids > 0).sum(1), example_ids)
    for row in range(20):
        count = int(result.counts[row])
        positions = result.positions[row, :count]
        assert (np.diff(positions) > 0).all()
        assert maskable[row, positions].all()
        np.testing.assert_array_equal(result.ids[row, :count], ids[row, positions])
        assert not result.positions[row, count:].any()
        assert not result.ids[row, count:].any()
        untouched = np.setdiff1d(np.arange(length), positions)
        np.testing.assert_array_equal(result.input_word_ids[row, untouched], ids[row, untouched])

        num_tokens = int(maskable[row].sum()) + 3
        budget = min(20, max(1, round(num_tokens * 0.15)))
        assert count <= budget
        words = (
            words_of(ids[row], maskable[row])
            if whole_word
            else [[position] for position in np.flatnonzero(maskable[row]).tolist()]
        )
        chosen = set(positions.tolist())
        assert all(chosen.issuperset(word) or chosen.isdisjoint(word) for word in words)
        # Greedy to the end: what is left out would not have fitted.
        rest = [len(word) for word in words if chosen.isdisjoint(word)]
        assert not rest or min(rest) > budget - count


def test_rates() -> None:
    ids, maskable, example_ids = rows(4000, 128, seed=1)
    result = masking.mask(make(), ids, maskable, (ids > 0).sum(1), example_ids)
    chosen = np.arange(20) < result.counts[:, None]
    total = int(chosen.sum())
    assert total > 20_000
    shown = np.take_along_axis(result.input_word_ids, result.positions, 1)[chosen]
    labels = result.ids[chosen]
    # Five standard deviations of each share.
    for share, expected in (
        (np.mean(shown == MASK_ID), 0.8),
        # A random token is the right one with probability about 1/950.
        (np.mean(shown == labels), 0.1 + 0.1 / 950),
        (np.mean((shown != labels) & (shown != MASK_ID)), 0.1 - 0.1 / 950),
    ):
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / total)
    replaced = shown[(shown != labels) & (shown != MASK_ID)]
    assert replaced.min() >= 50
    assert replaced.mean() == pytest.approx((50 + 999) / 2, abs=5 * 274 / np.sqrt(len(replaced)))
    masked_share = result.counts.sum() / (maskable.sum() + 3 * len(ids))
    assert masked_share == pytest.approx(0.15, abs=0.006)


def test_positions_are_uniform() -> None:
    ids, maskable, example_ids = rows(6000, 40, seed=2, continuing=0.0)
    maskable[:] = False
    maskable[:, 1:39] = True
    ids[:, 1:39] = 77
    result = masking.mask(make(), ids, maskable, (ids > 0).sum(1), example_ids)
    counts = np.bincount(result.positions[:, :6].ravel(), minlength=40)[1:39]
    expected = 6000 * 6 / 38
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_a_row_depends_on_its_id_alone() -> None:
    ids, maskable, example_ids = rows(64, 128, seed=3)
    whole = masking.mask(make(), ids, maskable, (ids > 0).sum(1), example_ids)
    order = np.random.default_rng(0).permutation(64)[:17]
    part = masking.mask(
        make(), ids[order], maskable[order], (ids > 0).sum(1)[order], example_ids[order]
    )
    np.testing.assert_array_equal(part.input_word_ids, whole.input_word_ids[order])
    np.testing.assert_array_equal(part.positions, whole.positions[order])
    other = masking.mask(make(), ids, maskable, (ids > 0).sum(1), example_ids + np.uint64(1))
    assert (other.positions != whole.positions).any(1).mean() > 0.9


def test_a_full_row_is_never_clipped() -> None:
    for length, most in ((128, 20), (512, 80)):
        assert masking.num_to_predict(make(most=most), np.array([length]))[0] == round(
            length * 0.15
        )
