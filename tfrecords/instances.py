"""Documents to segment pairs for next-sentence prediction.

The procedure is that of google-research/bert's create_pretraining_data.py
(`create_instances_from_document`): sentences of a document are gathered until they reach a target
length, cut at a random sentence into A and B, B replaced by text of another document half of the
time, and the pair truncated to L - 3 tokens. Here every random choice is a hash of (seed, document
key, duplicate, length, sentence), so that no choice depends on what was processed before, and
truncation, which drops the longer segment's tokens from a random end one by one, is done in closed
form.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from tfrecords import hashing, schema, spill

# What a random choice is for: the last word of its hash.
_SHORT, _SHORT_TARGET, _CUT, _COIN, _PARTNER, _PARTNER_SENTENCE, _EXAMPLE, _FRONT = range(8)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers start, start + 1, ... of each range, end to end.

    Example:
        >>> ranges(np.array([5, 0]), np.array([2, 3]))
        array([5, 6, 0, 1, 2])
    """
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def starts_of(lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """Where each of consecutive ranges starts, and where the last ends: int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The sums, modulo 2^64, of values between consecutive bounds; none of these is empty."""
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return running[bounds[1:]] - running[bounds[:-1]]


class _Arrays:
    """What `Documents` and `Pairs` share: fields are arrays, stored one after the other."""

    def pack(self) -> bytes:
        """All fields as bytes."""
        return spill.pack([getattr(self, field.name) for field in _fields(self)])

    @classmethod
    def unpack(cls, parts: Sequence[bytes]) -> Self:
        """Several packed objects, end to end, as one."""
        return cls._join([spill.unpack(part) for part in parts])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Several objects, end to end, as one."""
        return cls._join([[getattr(part, field.name) for field in _fields(cls)] for part in parts])

    @classmethod
    def _join(cls, rows: Sequence[Sequence[np.ndarray]]) -> Self:
        names = [field.name for field in _fields(cls)]
        columns = map(np.concatenate, zip(*rows, strict=True))
        return cls(**dict(zip(names, columns, strict=True)))


def _fields(arrays: _Arrays | type[_Arrays]) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(arrays)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents(_Arrays):
    """Tokenised documents, end to end.

    Attributes:
        ids: token ids (uint16 or int32) of all sentences.
        sentence_lengths: int32 [sentences], tokens in each; none is 0.
        sentence_counts: int32 [documents], sentences in each; none is 0.
        keys: uint64 [documents], the hash of each document's path and ordinal.
    """

    ids: np.ndarray
    sentence_lengths: np.ndarray
    sentence_counts: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def content_hashes(self) -> np.ndarray:
        """uint64 [documents]: the same for documents with the same sentences of the same tokens."""
        tokens = starts_of(self.sentence_lengths)
        places = np.arange(tokens[-1]) - np.repeat(tokens[:-1], self.sentence_lengths)
        sentences = _sums(hashing.mix(self.ids, places), tokens)
        bounds = starts_of(self.sentence_counts)
        places = np.arange(bounds[-1]) - np.repeat(bounds[:-1], self.sentence_counts)
        return _sums(hashing.mix(sentences, places), bounds)

    def first_of_equals(self) -> np.ndarray:
        """The indices of the documents that none before them equals in sentences and tokens."""
        bounds = starts_of(self.sentence_counts)
        tokens = starts_of(self.sentence_lengths)[bounds]
        seen: set[tuple[bytes, bytes]] = set()
        chosen = []
        for index in range(len(self)):
            content = (
                self.sentence_lengths[bounds[index] : bounds[index + 1]].tobytes(),
                self.ids[tokens[index] : tokens[index + 1]].tobytes(),
            )
            if content not in seen:
                seen.add(content)
                chosen.append(index)
        return np.array(chosen, np.int64)

    def select(self, chosen: np.ndarray) -> "Documents":
        """The documents at the indices `chosen`, in that order."""
        sentence_starts = starts_of(self.sentence_counts)[:-1]
        sentences = ranges(sentence_starts[chosen], self.sentence_counts[chosen])
        token_starts = starts_of(self.sentence_lengths)[:-1]
        return Documents(
            ids=self.ids[ranges(token_starts[sentences], self.sentence_lengths[sentences])],
            sentence_lengths=self.sentence_lengths[sentences],
            sentence_counts=self.sentence_counts[chosen],
            keys=self.keys[chosen],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(_Arrays):
    """Rows, not yet masked: segment pairs, or packed text, which is an A without a B.

    Attributes:
        ids: token ids: for each pair those of A, then those of B, without special tokens but for
            a [SEP] between the documents of packed text.
        first_lengths, second_lengths: int32 [pairs], tokens of A, at least 1, and of B, which is 0
            for packed text alone.
        random_next: uint8 [pairs], 1 where B comes from another document.
        example_ids: uint64 [pairs], a hash that no two examples of a build share.
    """

    ids: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray
    random_next: np.ndarray
    example_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def num_tokens(self) -> np.ndarray:
        """int64 [pairs]: the tokens of each row, special ones included."""
        special = np.where(
            self.second_lengths > 0,
            schema.SPECIAL_TOKENS_IN_PAIR,
            schema.SPECIAL_TOKENS_IN_PACKED,
        )
        return self.first_lengths.astype(np.int64) + self.second_lengths + special

    def select(self, chosen: np.ndarray) -> "Pairs":
        """The pairs at the indices `chosen`, in that order."""
        lengths = self.first_lengths + self.second_lengths
        return Pairs(
            ids=self.ids[ranges(starts_of(lengths)[:-1][chosen], lengths[chosen])],
            first_lengths=self.first_lengths[chosen],
            second_lengths=self.second_lengths[chosen],
            random_next=self.random_next[chosen],
            example_ids=self.example_ids[chosen],
        )

    def blocks(self, rows: int) -> Iterator["Pairs"]:
        """Consecutive blocks of at most `rows` pairs."""
        tokens = starts_of(self.first_lengths + self.second_lengths)
        for begin in range(0, len(self), rows):
            end = min(begin + rows, len(self))
            yield Pairs(
                ids=self.ids[tokens[begin] : tokens[end]],
                first_lengths=self.first_lengths[begin:end],
                second_lengths=self.second_lengths[begin:end],
                random_next=self.random_next[begin:end],
                example_ids=self.example_ids[begin:end],
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spans:
    """Segment pairs as spans of `Documents.ids`; arrays [pairs] as in `Pairs`.

    Attributes:
        first_begins, second_begins: int64, where A and B start in the ids.
        first_lengths, second_lengths: int64, their tokens.
        random_next: bool, whether B comes from another document.
        example_ids: uint64.
    """

    first_begins: np.ndarray
    first_lengths: np.ndarray
    second_begins: np.ndarray
    second_lengths: np.ndarray
    random_next: np.ndarray
    example_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)

    def gather(self, ids: np.ndarray, chosen: np.ndarray) -> Pairs:
        """Copies the tokens of the pairs at the indices `chosen`."""
        begins = np.stack([self.first_begins[chosen], self.second_begins[chosen]], 1).ravel()
        lengths = np.stack([self.first_lengths[chosen], self.second_lengths[chosen]], 1).ravel()
        return Pairs(
            ids=ids[ranges(begins, lengths)],
            first_lengths=lengths[0::2].astype(np.int32),
            second_lengths=lengths[1::2].astype(np.int32),
            random_next=self.random_next[chosen].astype(np.uint8),
            example_ids=self.example_ids[chosen],
        )


def segment_pairs(
    documents: Documents, *, seq_length: int, seed: int, duplicate: int, short_seq_prob: float
) -> Spans:
    """Cuts every document into segment pairs.

    A chunk that is one sentence always gets a random B, as in the original. With one document
    there is no other to draw from: then every pair is a true one, and a last lone sentence is
    left out.

    Args:
        documents: the documents; partners of random pairs come from among them.
        seq_length: tokens of a row, three special ones included.
        seed: of the build.
        duplicate: which pass over the documents this is; each cuts and pairs anew.
        short_seq_prob: the share of documents whose target length is drawn from 2 to L - 3.
    """
    room = seq_length - schema.SPECIAL_TOKENS_IN_PAIR
    seeds = hashing.mix(seed, documents.keys, duplicate, seq_length)
    short = hashing.uniform(hashing.mix(seeds, _SHORT)) < short_seq_prob
    drawn = 2 + hashing.below(hashing.mix(seeds, _SHORT_TARGET), room - 1)
    targets = np.where(short, drawn, room)

    owners, begins, cuts, ends, random_next = _chunk(documents, seeds, targets)
    sentence_bounds = starts_of(documents.sentence_counts)
    tokens = starts_of(documents.sentence_lengths)
    local = hashing.mix(seeds[owners], begins - sentence_bounds[owners])

    partners = hashing.below(hashing.mix(local, _PARTNER), max(len(documents) - 1, 1))
    partners += partners >= owners
    partners = np.where(random_next, partners, owners)
    counts = documents.sentence_counts[partners]
    partner_begins = sentence_bounds[partners] + hashing.below(
        hashing.mix(local, _PARTNER_SENTENCE), counts
    )
    second = np.where(random_next, partner_begins, cuts)
    wanted = np.maximum(targets[owners] - (tokens[cuts] - tokens[begins]), 1)
    partner_ends = np.minimum(
        np.searchsorted(tokens, tokens[partner_begins] + wanted), sentence_bounds[partners + 1]
    )
    second_ends = np.where(random_next, partner_ends, ends)

    first_begins, first_lengths = tokens[begins], tokens[cuts] - tokens[begins]
    second_begins, second_lengths = tokens[second], tokens[second_ends] - tokens[second]
    first_kept, second_kept = truncated_lengths(first_lengths, second_lengths, room)
    return Spans(
        first_begins=first_begins + _coins(local, 0, first_lengths - first_kept),
        first_lengths=first_kept,
        second_begins=second_begins + _coins(local, 1, second_lengths - second_kept),
        second_lengths=second_kept,
        random_next=random_next,
        example_ids=hashing.mix(local, _EXAMPLE),
    )


def _chunk(
    documents: Documents, seeds: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Walks through every document and cuts it into chunks.

    Returns:
        For each chunk its document; the sentence it begins with, the one B begins with, the one
        after its last; and whether B is to be replaced, which leaves B's sentences to the next
        chunk.
    """
    counts = documents.sentence_counts
    bounds = starts_of(counts)
    local = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
    sentence_seeds = hashing.mix(np.repeat(seeds, counts), local)
    cut_at = hashing.uniform(hashing.mix(sentence_seeds, _CUT)).tolist()
    replace = (hashing.uniform(hashing.mix(sentence_seeds, _COIN)) < 0.5).tolist()
    tokens = starts_of(documents.sentence_lengths).tolist()
    alone = len(documents) == 1
    rows: list[tuple[int, int, int, int, bool]] = []
    for owner, (first, last, target) in enumerate(
        zip(bounds[:-1].tolist(), bounds[1:].tolist(), targets.tolist(), strict=True)
    ):
        begin = first
        while begin < last:
            end = bisect.bisect_left(tokens, tokens[begin] + target, begin + 1, last)
            if alone:
                end = max(end, begin + 2)
                if end > last:
                    break
            size = end - begin
            cut = begin + 1 + (int(cut_at[begin] * (size - 1)) if size > 1 else 0)
            random_next = not alone and (size == 1 or replace[begin])
            rows.append((owner, begin, cut, end, random_next))
            begin = cut if random_next else end
    table = np.array(rows, np.int64).reshape(-1, 5).T
    return table[0], table[1], table[2], table[3], table[4].astype(bool)


def truncated_lengths(
    first: np.ndarray, second: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of A and B stay when the longer (B of equals) loses one until both fit.

    Example:
        >>> truncated_lengths(np.array([3, 90, 90]), np.array([9, 80, 10]), 11)
        (array([3, 6, 6]), array([8, 5, 5]))
    """
    kept = np.minimum(first, np.maximum(room - second, -(-room // 2)))
    fits = first + second <= room
    return np.where(fits, first, kept), np.where(fits, second, room - kept)


def _coins(seeds: np.ndarray, segment: int, tosses: np.ndarray) -> np.ndarray:
    """The number of heads in `tosses` fair tosses: how many tokens to drop from the front."""
    heads = np.zeros(len(tosses), np.int64)
    for word in range(-(-int(tosses.max(initial=0)) // 64)):
        rows = np.nonzero(tosses > 64 * word)[0]
        bits = hashing.mix(seeds[rows], _FRONT, segment, word)
        used = np.minimum(tosses[rows] - 64 * word, 64).astype(np.uint64)
        heads[rows] += np.bitwise_count(bits >> (np.uint64(64) - used))
    return heads
