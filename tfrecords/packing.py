"""Documents to rows packed with full sentences, for pretraining without next-sentence prediction.

The format is FULL-SENTENCES of RoBERTa (arXiv 1907.11692, section 4.2): documents are laid end to
end with a [SEP] between two of them, and a row takes whole sentences as long as they fit, crossing
from one document into the next. The order of the documents is a random one, another for each
duplicate and length.
"""

import bisect

import numpy as np

from tfrecords import hashing, schema
from tfrecords.instances import Documents, Spans, ranges, starts_of

# What a random choice is for: the last word of its hash.
_ORDER, _SHORT, _SHORT_TARGET, _EXAMPLE = range(4)


def packed_rows(
    documents: Documents,
    *,
    seq_length: int,
    seed: int,
    duplicate: int,
    short_seq_prob: float,
    separator: int,
) -> tuple[np.ndarray, Spans]:
    """Packs documents into rows of at most L - 2 tokens.

    A sentence that no longer fits begins the next row; one longer than a row is cut where the row
    ends. A row neither begins nor ends with a separator.

    Args:
        documents: the documents; those of a bucket follow each other in random order.
        seq_length: tokens of a row, L, [CLS] and the last [SEP] included.
        seed: of the build.
        duplicate: which pass over the documents this is; each packs them in another order.
        short_seq_prob: the share of rows whose length is drawn from 2 to L - 2 instead.
        separator: the id of [SEP].

    Returns:
        The ids of all documents with separators, and the rows as spans of them: each an A alone.
    """
    room = seq_length - schema.SPECIAL_TOKENS_IN_PACKED
    seeds = hashing.mix(seed, documents.keys, duplicate, seq_length)
    order = np.argsort(hashing.mix(seeds, _ORDER), kind="stable")
    ordered, seeds = documents.select(order), seeds[order]
    ids, lengths, is_separator = _with_separators(ordered, separator)
    bounds = starts_of(lengths)
    owners = np.repeat(np.arange(len(ordered)), ordered.sentence_counts + 1)
    places = bounds[:-1] - bounds[:-1][starts_of(ordered.sentence_counts + 1)[:-1]][owners]
    sentence_seeds = hashing.mix(seeds[owners], places)
    short = hashing.uniform(hashing.mix(sentence_seeds, _SHORT)) < short_seq_prob
    drawn = 2 + hashing.below(hashing.mix(sentence_seeds, _SHORT_TARGET), room - 1)
    begins, ends = _fill(bounds, is_separator, np.where(short, drawn, room))

    owner = owners[np.searchsorted(bounds, begins, side="right") - 1]
    first_tokens = bounds[starts_of(ordered.sentence_counts + 1)[:-1]]
    nothing = np.zeros_like(begins)
    return ids, Spans(
        first_begins=begins,
        first_lengths=ends - begins,
        second_begins=nothing,
        second_lengths=nothing,
        random_next=nothing.astype(bool),
        example_ids=hashing.mix(seeds[owner], begins - first_tokens[owner], _EXAMPLE),
    )


def _with_separators(
    documents: Documents, separator: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sentence of one [SEP] after each document.

    Returns:
        The ids; the lengths of all sentences; which of them are separators.
    """
    counts = documents.sentence_counts + 1
    is_separator = np.zeros(int(counts.sum()), bool)
    is_separator[starts_of(counts)[1:] - 1] = True
    lengths = np.ones(len(is_separator), np.int64)
    lengths[~is_separator] = documents.sentence_lengths
    ids = np.full(int(lengths.sum()), separator, documents.ids.dtype)
    bounds = starts_of(lengths)[:-1]
    ids[ranges(bounds[~is_separator], lengths[~is_separator])] = documents.ids
    return ids, lengths, is_separator


def _fill(
    bounds: np.ndarray, is_separator: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each row begins and ends.

    Args:
        bounds: int64 [sentences + 1], where sentences begin, and where the last ends.
        is_separator: bool [sentences].
        targets: int64 [sentences], the tokens of a row that begins in a sentence.
    """
    starts, separators, wanted = bounds.tolist(), is_separator.tolist(), targets.tolist()
    begins: list[int] = []
    ends: list[int] = []
    at = sentence = 0
    while sentence < len(separators):
        if separators[sentence]:
            sentence += 1
            at = starts[sentence]
            continue
        limit = at + wanted[sentence]
        following = bisect.bisect_right(starts, limit, sentence + 1) - 1
        begins.append(at)
        if following == sentence:
            at = limit
            ends.append(at)
            continue
        ends.append(starts[following - 1 if separators[following - 1] else following])
        sentence, at = following, starts[following]
    return np.array(begins, np.int64), np.array(ends, np.int64)
