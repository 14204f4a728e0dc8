"""Made-up pretraining examples: what a step costs does not depend on what they say."""

from __future__ import annotations

import numpy as np

from benchmarks.train_step_contenders import Workload
from tfrecords import schema

# As in the vocabulary of BERT-base uncased, whose words begin at 1000.
_CLS, _SEP, _MASK, _FIRST_WORD = 101, 102, 103, 1000
LEAST_VOCAB_SIZE = 2 * _FIRST_WORD
_FULL_SHARE, _MASKED_SHARE = 0.85, 0.15


def rows(workload: Workload, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Examples as `tfrecords.read` and Model Garden's loader give them.

    Most rows are full, the others padded; two segments; 15 % of the tokens masked, at most
    `max_predictions`. Words are drawn log-uniformly, near enough to Zipf's law, so that rows of
    the embedding table repeat within a batch as they do in text.

    Args:
        workload: the sizes.
        count: how many.
        seed: draws all of it.

    Returns:
        By feature name, int32 or float32, the first axis of length `count`.
    """
    draw = np.random.default_rng(seed)
    length, predictions = workload.seq_length, workload.max_predictions
    shorter = draw.integers(length // 4, length, count, endpoint=True)
    lengths = np.where(draw.random(count) < _FULL_SHARE, length, shorter)[:, None]
    places = np.arange(length)
    is_token = places < lengths
    is_second = is_token & (places >= draw.integers(2, lengths - 1))
    span = np.log(workload.vocab_size - _FIRST_WORD)
    words = _FIRST_WORD + np.exp(span * draw.random((count, length))).astype(np.int64) - 1
    words = np.where(is_token, words, 0)
    words[:, 0] = _CLS
    np.put_along_axis(words, lengths - 1, _SEP, axis=1)

    is_word = is_token & (places > 0) & (places < lengths - 1)
    shuffled = np.argsort(np.where(is_word, draw.random((count, length)), 1.0), axis=1)
    guesses = np.clip((_MASKED_SHARE * lengths).astype(np.int64), 1, predictions)
    is_guess = np.arange(predictions) < guesses
    positions = np.sort(np.where(is_guess, shuffled[:, :predictions], length), axis=1)
    positions[~is_guess] = 0
    answers = np.where(is_guess, np.take_along_axis(words, positions, axis=1), 0)
    row, slot = np.nonzero(is_guess)
    words[row, positions[row, slot]] = _MASK
    return {
        schema.INPUT_WORD_IDS: words.astype(np.int32),
        schema.INPUT_MASK: is_token.astype(np.int32),
        schema.INPUT_TYPE_IDS: is_second.astype(np.int32),
        schema.MASKED_LM_POSITIONS: positions.astype(np.int32),
        schema.MASKED_LM_IDS: answers.astype(np.int32),
        schema.MASKED_LM_WEIGHTS: is_guess.astype(np.float32),
        schema.NEXT_SENTENCE_LABELS: draw.integers(0, 2, (count, 1)).astype(np.int32),
    }
