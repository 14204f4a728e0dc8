"""`tfrecords.masking` as operations of TensorFlow on whole batches, for input pipelines.

The masks are those of `masking.mask`, bit for bit, for the same example ids.
"""

from typing import NamedTuple

import tensorflow as tf

from tfrecords import hashing
from tfrecords.masking import ACTION, KEEP_SHARE, MASK_SHARE, ORDER, REPLACEMENT, Masking

# Rows up to this length are masked by counting, whose cost grows with the square of the length.
_MAX_COUNTED = 256
# Words looked at beyond those that the budget can hold, before a batch takes the slow way.
_SPARE_WORDS = 4


class MaskedBatch(NamedTuple):
    """A batch of N masked rows; shapes as in `masking.Masked`."""

    input_word_ids: tf.Tensor
    positions: tf.Tensor
    ids: tf.Tensor
    weights: tf.Tensor


def mask(
    masking: Masking,
    word_ids: tf.Tensor,
    maskable: tf.Tensor,
    num_tokens: tf.Tensor,
    example_ids: tf.Tensor,
) -> MaskedBatch:
    """Masks rows, each as a function of its example id alone.

    Args:
        masking: how.
        word_ids: int32 [N, L], with special tokens and padding; N and L are static.
        maskable: bool [N, L], false at special tokens and padding, and in the first column.
        num_tokens: int32 [N], special tokens included; 0 where a row is none.
        example_ids: uint64 [N].

    Returns:
        int32 [N, L], what the model sees; int32 [N, M], positions, ascending, then zeros; int32
        [N, M], the tokens to guess, then zeros; float32 [N, M], 1 for each token to guess.
    """
    rows, length = word_ids.shape
    most = masking.max_predictions_per_seq
    budgets = _num_to_predict(masking, num_tokens)

    def draw(word_ids: tf.Tensor, maskable: tf.Tensor, *random: tf.Tensor) -> tuple[tf.Tensor, ...]:
        budgets, example_ids = random
        starts = _word_starts(masking, word_ids, maskable)
        if length <= _MAX_COUNTED:
            chosen = choose_by_counting(maskable, starts, budgets, example_ids)
        else:
            chosen = choose_by_sorting(maskable, starts, budgets, example_ids, most)
        return chosen, tf.where(chosen, _shown(masking, word_ids, example_ids), word_ids)

    # XLA, which has no fast sort on a CPU, makes a few vector loops of the other way.
    compiled = tf.function(draw, jit_compile=length <= _MAX_COUNTED, autograph=False)
    chosen, input_word_ids = compiled(word_ids, maskable, budgets, example_ids)
    places = tf.where(tf.reshape(chosen, [-1]))[:, 0]
    labels = tf.gather(tf.reshape(word_ids, [-1]), places)
    row, column = tf.cast(places // length, tf.int32), tf.cast(places % length, tf.int32)

    # Row r's masked tokens are counts[r] consecutive ones, from begins[r] on.
    counts = tf.math.count_nonzero(chosen, axis=1, dtype=tf.int32)
    begins = tf.cumsum(counts, exclusive=True)
    is_used = tf.ensure_shape(tf.sequence_mask(counts, most), (rows, most))
    slots = tf.where(is_used, begins[:, tf.newaxis] + tf.range(most), tf.size(row))

    def by_row(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.concat([values, [0]], axis=0), slots)

    return MaskedBatch(
        input_word_ids=input_word_ids,
        positions=by_row(column),
        ids=by_row(labels),
        weights=tf.cast(is_used, tf.float32),
    )


def _shown(masking: Masking, word_ids: tf.Tensor, example_ids: tf.Tensor) -> tf.Tensor:
    """int32 [N, L]: what each token would be shown as, were it chosen."""
    columns = tf.range(word_ids.shape[1], dtype=tf.int64)
    seeds = hashing.mix_tensors(example_ids[:, tf.newaxis], columns)
    action = hashing.uniform_tensor(hashing.mix_tensors(seeds, ACTION))
    number = hashing.below_tensor(
        hashing.mix_tensors(seeds, REPLACEMENT), len(masking.replacements)
    )
    drawn = tf.gather(tf.constant(masking.replacements, tf.int32), number)
    shown = tf.where(action < MASK_SHARE + KEEP_SHARE, word_ids, drawn)
    return tf.where(action < MASK_SHARE, masking.mask_id, shown)


def _num_to_predict(masking: Masking, num_tokens: tf.Tensor) -> tf.Tensor:
    """int32 [N]: `masking.num_to_predict`, and 0 for a row that is none."""
    wanted = tf.cast(tf.round(tf.cast(num_tokens, tf.float64) * masking.masked_lm_prob), tf.int32)
    budgets = tf.clip_by_value(wanted, 1, masking.max_predictions_per_seq)
    return tf.where(num_tokens > 0, budgets, 0)


def _word_starts(masking: Masking, word_ids: tf.Tensor, maskable: tf.Tensor) -> tf.Tensor:
    if not masking.whole_word:
        return maskable
    continues = tf.gather(tf.constant(masking.continues_word), word_ids)
    after_word = tf.pad(maskable[:, :-1], [[0, 0], [1, 0]])
    return maskable & ~(continues & after_word)


def _order_keys(example_ids: tf.Tensor, length: int) -> tf.Tensor:
    """int32 [N, L]: the place of a word in the order, at each place where one could start."""
    columns = tf.range(length, dtype=tf.int64)
    bits = hashing.mix_tensors(example_ids[:, tf.newaxis], ORDER, columns)
    return hashing.order_keys_tensor(bits, columns)


def choose_by_counting(
    maskable: tf.Tensor, starts: tf.Tensor, budgets: tf.Tensor, example_ids: tf.Tensor
) -> tf.Tensor:
    """Chooses whole words in random order until the budget is spent: `masking.choose`.

    Without sorting: a word belongs to the first that fit if few enough tokens come before its end.
    XLA turns the L comparisons of every token into vector code, several times the speed of a sort.

    Args:
        maskable: bool [N, L], false in the first column.
        starts: bool [N, L], the first token of each word.
        budgets: int32 [N], tokens to choose at most.
        example_ids: uint64 [N], the source of the order.

    Returns:
        bool [N, L]: a word goes in if it fits what those before it have left.
    """
    length = maskable.shape[1]
    last = tf.int32.max
    keys = tf.where(starts, _order_keys(example_ids, length), -1)
    keys = tf.where(maskable, keys, last)

    def spread(keys: tf.Tensor) -> tuple[tf.Tensor]:
        before = tf.pad(keys[:, :-1], [[0, 0], [1, 0]], constant_values=last)
        return (tf.where(keys < 0, before, keys),)

    # Every token of a word gets its key.
    (keys,) = tf.while_loop(lambda keys: tf.reduce_any(keys < 0), spread, (keys,))
    ends, sizes = tf.zeros_like(keys), tf.zeros_like(keys)
    for column in range(length):
        other = keys[:, column : column + 1]
        ends += tf.cast(other <= keys, tf.int32)
        sizes += tf.cast(other == keys, tf.int32)

    def fitting(taken: tf.Tensor, left: tf.Tensor) -> tf.Tensor:
        return tf.where(maskable & ~taken & (sizes <= left[:, tf.newaxis]), keys, last)

    def take(candidates: tf.Tensor, taken: tf.Tensor, left: tf.Tensor) -> tuple[tf.Tensor, ...]:
        first = tf.reduce_min(candidates, axis=1, keepdims=True)
        now = (candidates == first) & (candidates < last)
        left = left - tf.math.count_nonzero(now, axis=1, dtype=tf.int32)
        return fitting(taken | now, left), taken | now, left

    taken = maskable & (ends <= budgets[:, tf.newaxis])
    left = budgets - tf.math.count_nonzero(taken, axis=1, dtype=tf.int32)
    _, taken, _ = tf.while_loop(
        lambda candidates, *_: tf.reduce_any(candidates < last),
        take,
        (fitting(taken, left), taken, left),
    )
    return taken


def choose_by_sorting(
    maskable: tf.Tensor,
    starts: tf.Tensor,
    budgets: tf.Tensor,
    example_ids: tf.Tensor,
    max_predictions_per_seq: int,
) -> tf.Tensor:
    """`choose_by_counting` for rows so long that sorting takes less than comparing all tokens.

    Args:
        maskable: bool [N, L], false in the first column.
        starts: bool [N, L], the first token of each word.
        budgets: int32 [N], tokens to choose at most.
        example_ids: uint64 [N], the source of the order.
        max_predictions_per_seq: what no budget exceeds.

    Returns:
        bool [N, L], the same.
    """
    rows, length = maskable.shape
    # The order is ascending, and the largest are what is cheap to find.
    keys = tf.where(starts, tf.int32.max - _order_keys(example_ids, length), -1)
    first_places = length * tf.range(rows)[:, tf.newaxis]
    # A word ends where another begins, or what is no part of any.
    is_boundary = tf.reshape(starts | ~maskable, [-1])
    number = tf.cumsum(tf.cast(is_boundary, tf.int32))
    boundaries = tf.cast(tf.where(is_boundary)[:, 0], tf.int32)
    boundaries = tf.concat([boundaries, [rows * length]], axis=0)

    def first_words(count: int) -> tuple[tf.Tensor, tf.Tensor]:
        largest, at = tf.math.top_k(keys, count)
        places = first_places + at
        sizes = tf.gather(boundaries, tf.gather(number, places)) - places
        return places, tf.where(largest >= 0, sizes, 0)

    def tokens(places: tf.Tensor, sizes: tf.Tensor, taken: tf.Tensor) -> tf.Tensor:
        places, sizes = places[taken], sizes[taken]
        into_word = tf.range(tf.reduce_sum(sizes)) - tf.repeat(
            tf.cumsum(sizes, exclusive=True) - places, sizes
        )
        chosen = tf.scatter_nd(into_word[:, tf.newaxis], tf.ones_like(into_word), [rows * length])
        return tf.reshape(chosen > 0, [rows, length])

    def from_all() -> tf.Tensor:
        places, sizes = first_words(length)
        return tokens(places, sizes, _take_while_fitting(sizes, budgets)[0])

    few = max_predictions_per_seq + _SPARE_WORDS
    if few >= length:
        return from_all()
    places, sizes = first_words(few)
    taken, left = _take_while_fitting(sizes, budgets)
    # A row is done with its budget spent or its words all looked at.
    is_done = tf.reduce_all((left == 0) | (sizes[:, -1] == 0))
    return tf.cond(is_done, lambda: tokens(places, sizes, taken), from_all)


def _take_while_fitting(sizes: tf.Tensor, budgets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The greedy choice among words in the order of choice.

    Args:
        sizes: int32 [N, k], the tokens of each word; 0 from the last word on.
        budgets: int32 [N].

    Returns:
        bool [N, k], the words taken; int32 [N], what is left of the budgets.
    """
    columns = tf.range(sizes.shape[1])
    ends = tf.cumsum(sizes, axis=1)
    taken = (sizes > 0) & (ends <= budgets[:, tf.newaxis])
    left = budgets - tf.reduce_sum(tf.where(taken, sizes, 0), axis=1)
    at = tf.math.count_nonzero(taken, axis=1, dtype=tf.int32)

    def fitting(left: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        return (sizes > 0) & (sizes <= left[:, tf.newaxis]) & (columns >= at[:, tf.newaxis])

    def is_open(candidates: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(candidates)

    def take(candidates: tf.Tensor, taken: tf.Tensor, left: tf.Tensor, at: tf.Tensor) -> tuple:
        found = tf.reduce_any(candidates, axis=1)
        first = tf.argmax(tf.cast(candidates, tf.int32), axis=1, output_type=tf.int32)
        now = (columns == first[:, tf.newaxis]) & found[:, tf.newaxis]
        left = left - tf.reduce_sum(tf.where(now, sizes, 0), axis=1)
        at = tf.where(found, first + 1, at)
        return fitting(left, at), taken | now, left, at

    _, taken, left, _ = tf.while_loop(is_open, take, (fitting(left, at), taken, left, at))
    return taken, left
