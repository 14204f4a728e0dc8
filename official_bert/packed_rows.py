"""Texts as rows [CLS] a [SEP] b [SEP] of word pieces, and the few lengths that rows are cut to."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfrecords.errors import UserError
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import CLS, SEP, Vocabulary

SHORTEST = 5
_MULTIPLE = 8
_SIMULATED_BATCHES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """N rows of word pieces, filled up with 0, as int32 arrays.

    Attributes:
        word_ids: (N, seq_length).
        first_lengths: (N,), word pieces up to and with the first [SEP].
        lengths: (N,), word pieces up to and with the last [SEP].
    """

    word_ids: np.ndarray
    first_lengths: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.word_ids)


def pack(
    vocabulary: Vocabulary,
    lower_case: bool,
    first: Sequence[str],
    second: Sequence[str] | None,
    seq_length: int,
) -> Rows:
    """Rows of texts, or of pairs of texts, the longer one of a pair cut first.

    Args:
        vocabulary: the word pieces.
        lower_case: the casing.
        first: N texts.
        second: their partners; None for single texts.
        seq_length: word pieces of a row, at most.

    Raises:
        UserError: no room for a text between the special tokens.
    """
    if seq_length < SHORTEST:
        raise UserError(f"--seq_length is {seq_length}; expected at least {SHORTEST}")
    tokenizer = _tokenizer(vocabulary, lower_case)
    separator = vocabulary.ids[SEP]
    ids, lengths = tokenizer.encode(first)
    word_ids = np.zeros((len(first), seq_length), np.int32)
    word_ids[:, 0] = vocabulary.ids[CLS]
    rows = np.arange(len(first))
    if second is None:
        kept = np.minimum(lengths, seq_length - 2)
        others = None
    else:
        other_ids, others = tokenizer.encode(second)
        kept, other_kept = truncated(lengths, others, seq_length - 3)
    _place(word_ids, ids, lengths, kept, np.ones_like(kept))
    ends = kept + 2
    word_ids[rows, ends - 1] = separator
    first_lengths = ends
    if others is not None:
        _place(word_ids, other_ids, others, other_kept, ends)
        ends = ends + other_kept + 1
        word_ids[rows, ends - 1] = separator
    return Rows(
        word_ids=word_ids,
        first_lengths=first_lengths.astype(np.int32),
        lengths=ends.astype(np.int32),
    )


@functools.lru_cache(maxsize=2)
def _tokenizer(vocabulary: Vocabulary, lower_case: bool) -> Tokenizer:
    """Building one takes longer than to cut a batch of texts."""
    return Tokenizer(vocabulary, lower_case)


def features_of(
    word_ids: np.ndarray, first_lengths: np.ndarray, lengths: np.ndarray
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """From numbers of rows to what a BERT takes of them.

    Args:
        word_ids: (N, seq_length), int32.
        first_lengths: (N,), word pieces of the first segment.
        lengths: (N,), word pieces of both.

    Returns:
        A function of int tensors (batch,) to `input_word_ids`, `input_mask`, `input_type_ids`,
        int32 (batch, seq_length).
    """
    ids, first_ends, ends = (tf.constant(each) for each in (word_ids, first_lengths, lengths))
    seq_length = word_ids.shape[1]

    def features(chosen: tf.Tensor) -> dict[str, tf.Tensor]:
        first = tf.sequence_mask(tf.gather(first_ends, chosen), seq_length, tf.int32)
        filled = tf.sequence_mask(tf.gather(ends, chosen), seq_length, tf.int32)
        return {
            "input_word_ids": tf.gather(ids, chosen),
            "input_mask": filled,
            "input_type_ids": filled - first,
        }

    return features


def truncated(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths that are left when the longer one loses a piece until both fit.

    Of two equally long ones the second loses, as in BERT's own scripts.

    Args:
        first: (N,), lengths.
        second: (N,), lengths of the partners.
        room: what both have together.

    Example:
        >>> truncated(np.array([10, 2]), np.array([10, 9]), 7)
        (array([4, 2]), array([3, 5]))
    """
    kept = np.where(
        first + second <= room,
        first,
        np.minimum(first, np.maximum(room - second, (room + 1) // 2)),
    )
    return kept, np.minimum(second, room - kept)


def _place(
    target: np.ndarray, ids: np.ndarray, lengths: np.ndarray, kept: np.ndarray, at: np.ndarray
) -> None:
    """Copies the first `kept` of every text's ids to columns `at` and following of its row."""
    begins = np.cumsum(lengths) - lengths
    rows = np.repeat(np.arange(len(kept)), kept)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    target[rows, np.repeat(at, kept) + within] = ids[np.repeat(begins, kept) + within]


def group_lengths(
    row_lengths: np.ndarray, *, batch_size: int, groups: int, seq_length: int, count: int
) -> tuple[int, ...]:
    """At most `count` lengths that groups of rows are cut to at the least expected cost.

    A batch's rows, sorted by length, fall into equal groups; a group takes the first of these
    lengths that holds its longest row. The expectation is over shuffled batches of the rows, from
    a fixed seed.

    Args:
        row_lengths: (N,), of all rows.
        batch_size: rows of a batch.
        groups: divides it.
        seq_length: the last length's bound.
        count: how many lengths, at least 1.

    Returns:
        Ascending multiples of 8 (but for `seq_length` itself); the last holds every row.

    Example:
        >>> group_lengths(np.array([5] * 90 + [60] * 10), batch_size=1, groups=1, seq_length=64,
        ...               count=2)
        (8, 64)
    """
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(np.resize(row_lengths, max(len(row_lengths), batch_size)))
    batches = min(_SIMULATED_BATCHES, len(shuffled) // batch_size)
    drawn = np.sort(shuffled[: batches * batch_size].reshape(batches, batch_size), axis=1)
    longest = drawn.reshape(batches, groups, -1).max(axis=2).ravel()
    last = min(seq_length, -(-int(row_lengths.max()) // _MULTIPLE) * _MULTIPLE)
    candidates = np.unique([*range(_MULTIPLE, last, _MULTIPLE), last])
    # below[j]: groups that candidate j - 1 holds; a length costs itself for each it is taken by.
    below = np.concatenate([[0], np.searchsorted(np.sort(longest), candidates, side="right")])
    best: list[_Choice] = [(0.0, ()), *[(np.inf, ())] * len(candidates)]
    for _ in range(count):
        best = [best[0], *(_extended(best, below, candidates, j) for j in range(1, len(best)))]
    return best[-1][1]


_Choice = tuple[float, tuple[int, ...]]


def _extended(
    best: Sequence[_Choice], below: np.ndarray, candidates: np.ndarray, j: int
) -> _Choice:
    """The cheapest choice whose last length is candidate j - 1, from those of one length less."""
    last = int(candidates[j - 1])
    i = min(range(j), key=lambda i: best[i][0] + (below[j] - below[i]) * last)
    return float(best[i][0] + (below[j] - below[i]) * last), (*best[i][1], last)
