"""Which tokens a model must guess, and what it sees in their place.

A row of n tokens (special ones counted) has min(M, max(1, round(p n))) of them chosen, p =
`masked_lm_prob`; of the chosen, 80 % are shown as [MASK], 10 % as they are, 10 % as a random token
(google-research/bert, create_pretraining_data.py, `create_masked_lm_predictions`). Words are taken
in random order, whole or not at all, and one that no longer fits is passed over for a shorter one.
"""

import dataclasses

import numpy as np

from tfrecords import hashing
from tfrecords.vocabulary import MASK, Vocabulary

MASK_SHARE = 0.8
KEEP_SHARE = 0.1

# What a random choice is for: the word of its hash after the example id, or the last.
ORDER, ACTION, REPLACEMENT = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """How to mask.

    Attributes:
        masked_lm_prob: p, the share of tokens to guess.
        max_predictions_per_seq: M, the most a row may have.
        whole_word: whether the pieces of a word are chosen together.
        mask_id: the id of [MASK].
        replacements: int32, the ids a random token is drawn from.
        continues_word: bool [vocabulary], whether an id continues the word before it.
    """

    masked_lm_prob: float
    max_predictions_per_seq: int
    whole_word: bool
    mask_id: int
    replacements: np.ndarray
    continues_word: np.ndarray

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        *,
        masked_lm_prob: float,
        max_predictions_per_seq: int,
        whole_word: bool,
    ) -> "Masking":
        """How to mask tokens of `vocabulary`."""
        return cls(
            masked_lm_prob=masked_lm_prob,
            max_predictions_per_seq=max_predictions_per_seq,
            whole_word=whole_word,
            mask_id=vocabulary.ids[MASK],
            replacements=vocabulary.replacements,
            continues_word=vocabulary.continues_word,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked:
    """A block of N masked rows.

    Attributes:
        input_word_ids: int32 [N, L], what the model sees.
        positions: int32 [N, M], ascending, then zeros.
        ids: int32 [N, M], the tokens to guess, then zeros.
        counts: int64 [N], how many there are to guess.
    """

    input_word_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray
    counts: np.ndarray


def num_to_predict(masking: Masking, num_tokens: np.ndarray) -> np.ndarray:
    """min(M, max(1, round(p n))) for rows of n tokens; halves round to even."""
    wanted = np.rint(num_tokens * masking.masked_lm_prob).astype(np.int64)
    return np.minimum(masking.max_predictions_per_seq, np.maximum(1, wanted))


def mask(
    masking: Masking,
    word_ids: np.ndarray,
    maskable: np.ndarray,
    num_tokens: np.ndarray,
    example_ids: np.ndarray,
) -> Masked:
    """Masks rows, each as a function of its example id alone.

    Args:
        masking: how.
        word_ids: int32 [N, L], with special tokens and padding.
        maskable: bool [N, L], false at special tokens and padding.
        num_tokens: int64 [N], n, special tokens included.
        example_ids: uint64 [N].
    """
    chosen = choose(
        maskable,
        _word_starts(masking, word_ids, maskable),
        num_to_predict(masking, num_tokens),
        example_ids,
    )
    rows, columns = np.nonzero(chosen)
    counts = chosen.sum(1)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    labels = word_ids[rows, columns]

    seeds = hashing.mix(example_ids[rows], columns)
    action = hashing.uniform(hashing.mix(seeds, ACTION))
    drawn = masking.replacements[
        hashing.below(hashing.mix(seeds, REPLACEMENT), len(masking.replacements))
    ]
    shown = np.where(action < MASK_SHARE + KEEP_SHARE, labels, drawn)
    shown = np.where(action < MASK_SHARE, masking.mask_id, shown)

    masked = word_ids.copy()
    masked[rows, columns] = shown
    shape = (len(word_ids), masking.max_predictions_per_seq)
    positions, ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    positions[rows, slots] = columns
    ids[rows, slots] = labels
    return Masked(input_word_ids=masked, positions=positions, ids=ids, counts=counts)


def _word_starts(masking: Masking, word_ids: np.ndarray, maskable: np.ndarray) -> np.ndarray:
    if not masking.whole_word:
        return maskable
    after_word = np.zeros_like(maskable)
    after_word[:, 1:] = maskable[:, :-1]
    return maskable & ~(masking.continues_word[word_ids] & after_word)


def choose(
    maskable: np.ndarray, starts: np.ndarray, budgets: np.ndarray, example_ids: np.ndarray
) -> np.ndarray:
    """Chooses whole words in random order until the budget is spent.

    Args:
        maskable: bool [N, L].
        starts: bool [N, L], the first token of each word.
        budgets: int64 [N], tokens to choose at most.
        example_ids: uint64 [N], the source of the order.

    Returns:
        bool [N, L]: a word goes in if it fits what those before it have left.
    """
    length = maskable.shape[1]
    columns = np.arange(length)
    num_tokens = maskable.sum(1)
    # A token's sort key is its word's random bits, then its position, so that sorting a row puts
    # the words in random order and leaves the tokens of a word together.
    heads = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    bits = hashing.mix(example_ids[:, None], ORDER, columns[None, :])
    keys = hashing.order_keys(np.take_along_axis(bits, heads, 1), columns)
    keys[~maskable] = np.iinfo(np.int32).max
    keys.sort(axis=1)
    order = hashing.places_of(keys)

    words = np.take_along_axis(starts, np.minimum(order, length - 1), 1)
    words &= columns < num_tokens[:, None]
    rows, ranks = np.nonzero(_take_while_fitting(words, num_tokens, budgets))
    chosen = np.zeros_like(maskable)
    chosen[rows, order[rows, ranks]] = True
    return chosen


def _take_while_fitting(
    word_starts: np.ndarray, num_tokens: np.ndarray, budgets: np.ndarray
) -> np.ndarray:
    """The greedy choice among tokens already grouped into words, in the order of choice.

    Args:
        word_starts: bool [N, L], in that order.
        num_tokens: int64 [N].
        budgets: int64 [N].

    Returns:
        bool [N, L], the tokens taken, in that order.
    """
    columns = np.arange(word_starts.shape[1])
    # The first words go in as long as they end within the budget, which is to say up to the last
    # word boundary there.
    near = columns[: int(budgets.max(initial=0)) + 1]
    boundaries = np.where(word_starts[:, : len(near)] & (near <= budgets[:, None]), near, 0)
    prefixes = np.where(num_tokens <= budgets, num_tokens, boundaries.max(1, initial=0))
    taken = columns < prefixes[:, None]

    rows = np.flatnonzero((prefixes < budgets) & (prefixes < num_tokens))
    at, left = prefixes[rows], (budgets - prefixes)[rows]
    sizes = _word_sizes(word_starts[rows], num_tokens[rows])
    while len(rows):
        fitting = (columns >= at[:, None]) & (sizes > 0) & (sizes <= left[:, None])
        first = fitting.argmax(1)
        found = fitting[np.arange(len(rows)), first]
        rows, left, sizes, first = rows[found], left[found], sizes[found], first[found]
        size = sizes[np.arange(len(rows)), first]
        at, left = first + size, left - size
        taken[rows] |= (columns >= first[:, None]) & (columns < at[:, None])
        open_ = left > 0
        rows, left, sizes, at = rows[open_], left[open_], sizes[open_], at[open_]
    return taken


def _word_sizes(word_starts: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """The tokens of the word that starts at each place, 0 where none does."""
    columns = np.arange(word_starts.shape[1])
    bounds = np.where(word_starts, columns, num_tokens[:, None])
    following = np.minimum.accumulate(bounds[:, ::-1], axis=1)[:, ::-1]
    ends = np.concatenate([following[:, 1:], num_tokens[:, None]], axis=1)
    return np.where(word_starts, ends - columns, 0)
