"""Segment pairs: BERT's invariants, its truncation, partners from other documents."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import hashing, instances

_SENTENCE_BITS = 12


def make_documents(num_documents: int, seed: int, longest: int = 20) -> instances.Documents:
    """Documents whose every token id tells its document and sentence."""
    draw = random.Random(seed)
    counts = [draw.randint(1, 25) for _ in range(num_documents)]
    lengths = [draw.randint(1, longest) for _ in range(sum(counts))]
    owners = np.repeat(np.arange(num_documents), counts)
    locals_ = np.concatenate([np.arange(count) for count in counts])
    return instances.Documents(
        ids=np.repeat(owners << _SENTENCE_BITS | locals_, lengths).astype(np.int32),
        sentence_lengths=np.array(lengths, np.int32),
        sentence_counts=np.array(counts, np.int32),
        keys=np.array([draw.getrandbits(64) for _ in range(num_documents)], np.uint64),
    )


def cut(documents: instances.Documents, duplicate: int = 0, **changes: float) -> list[tuple]:
    """All pairs as (ids of A, ids of B, random_next)."""
    options = {"seq_length": 64, "seed": 3, "short_seq_prob": 0.1, **changes}
    spans = instances.segment_pairs(documents, duplicate=duplicate, **options)
    pairs = spans.gather(documents.ids, np.arange(len(spans)))
    assert len(set(pairs.example_ids.tolist())) == len(pairs)
    lengths = np.stack([pairs.first_lengths, pairs.second_lengths], 1).ravel()
    parts = np.split(pairs.ids, np.cumsum(lengths))[:-1]
    return list(zip(parts[0::2], parts[1::2], pairs.random_next.tolist(), strict=True))


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(0, 1000), st.sampled_from([16, 33, 64, 200]))
def test_invariants(num_documents: int, seed: int, seq_length: int) -> None:
    documents = make_documents(num_documents, seed)
    for first, second, random_next in cut(documents, seq_length=seq_length):
        assert len(first) >= 1
        assert len(second) >= 1
        assert len(first) + len(second) <= seq_length - 3
        first_owners, second_owners = first >> _SENTENCE_BITS, second >> _SENTENCE_BITS
        assert len(set(first_owners.tolist())) == len(set(second_owners.tolist())) == 1
        assert (first_owners[0] != second_owners[0]) == bool(random_next)
        assert (np.diff(first) >= 0).all()
        assert (np.diff(second) >= 0).all()
        if not random_next:
            # B begins within the sentence after A's last, unless truncation ate sentences between.
            assert second[0] > first[-1]


def uniform(*words: int) -> float:
    return float(hashing.uniform(hashing.mix(*words))[0])


def original(
    texts: list[list[list[int]]], owner: int, seeds: int, seq_length: int, short_seq_prob: float
) -> list[tuple]:
    """`create_instances_from_document` of google-research/bert, line by line, up to truncation.

    Only the source of its random numbers is ours.
    """
    max_num_tokens = seq_length - 3
    target = max_num_tokens
    if uniform(seeds, instances._SHORT) < short_seq_prob:
        target = 2 + int(uniform(seeds, instances._SHORT_TARGET) * (max_num_tokens - 1))
    document = texts[owner]
    found = []
    chunk: list[list[int]] = []
    i = 0
    while i < len(document):
        chunk.append(document[i])
        if i == len(document) - 1 or sum(map(len, chunk)) >= target:
            draw = hashing.mix(seeds, i - len(chunk) + 1)[0]
            a_end = 1
            if len(chunk) >= 2:
                a_end = 1 + int(uniform(draw, instances._CUT) * (len(chunk) - 1))
            first = [token for sentence in chunk[:a_end] for token in sentence]
            second: list[int] = []
            is_random = len(chunk) == 1 or uniform(draw, instances._COIN) < 0.5
            if is_random:
                partner = int(uniform(draw, instances._PARTNER) * (len(texts) - 1))
                other = texts[partner + (partner >= owner)]
                start = int(uniform(draw, instances._PARTNER_SENTENCE) * len(other))
                for sentence in other[start:]:
                    second.extend(sentence)
                    if len(second) >= target - len(first):
                        break
                i -= len(chunk) - a_end
            else:
                second = [token for sentence in chunk[a_end:] for token in sentence]
            found.append((first, second, is_random))
            chunk = []
        i += 1
    return found


@pytest.mark.parametrize(("seq_length", "longest"), [(16, 8), (64, 5), (64, 30), (128, 20)])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.5])
def test_pairs_are_those_of_the_original(
    seq_length: int, longest: int, short_seq_prob: float
) -> None:
    documents = make_documents(30, seed=seq_length + longest, longest=longest)
    sentences = [
        part.tolist()
        for part in np.split(documents.ids, np.cumsum(documents.sentence_lengths)[:-1])
    ]
    bounds = np.cumsum([0, *documents.sentence_counts])
    texts = [sentences[bounds[k] : bounds[k + 1]] for k in range(len(documents))]
    expected = []
    for owner, key in enumerate(documents.keys):
        seeds = hashing.mix(3, key, 1, seq_length)[0]
        expected += original(texts, owner, seeds, seq_length, short_seq_prob)
    pairs = cut(documents, 1, seq_length=seq_length, short_seq_prob=short_seq_prob)
    assert len(pairs) == len(expected) > 20
    for ours, (first, second, is_random) in zip(pairs, expected, strict=True):
        kept = [len(first), len(second)]
        while sum(kept) > seq_length - 3:
            kept[0 if kept[0] > kept[1] else 1] -= 1
        assert ([len(ours[0]), len(ours[1])], bool(ours[2])) == (kept, is_random)
        for part, whole in zip(ours, (first, second), strict=False):
            starts = range(len(whole) - len(part) + 1)
            assert any(whole[at : at + len(part)] == part.tolist() for at in starts)


def test_every_sentence_is_used() -> None:
    documents = make_documents(50, seed=1, longest=5)
    used = {int(token) for first, second, _ in cut(documents) for token in (*first, *second)}
    assert len(used) >= 0.97 * len(set(documents.ids.tolist()))


def test_next_sentence_rates() -> None:
    """B is random with probability 1/2, or certainly where a chunk is one sentence.

    No sentence here fills a row, so that such a chunk is a document's last sentence. Where there
    are more, A leaves the last one to B: that A begins with it tells the two cases apart. The
    share of n fair coins has a standard deviation of 0.5 / sqrt(n).
    """
    documents = make_documents(60, seed=2, longest=9)
    counts = documents.sentence_counts
    pairs = [pair for d in range(100) for pair in cut(documents, d, short_seq_prob=0.0)]
    coins, certain = [], []
    for first, _, random_next in pairs:
        owner, sentence = first[0] >> _SENTENCE_BITS, first[0] & ((1 << _SENTENCE_BITS) - 1)
        (certain if sentence == counts[owner] - 1 else coins).append(random_next)
    assert len(certain) > 100 and all(certain)
    assert len(coins) > 10_000
    assert abs(np.mean(coins) - 0.5) < 5 * 0.5 / np.sqrt(len(coins))


def test_partners_are_uniform_over_other_documents() -> None:
    documents = make_documents(5, seed=4)
    counts = np.zeros(5)
    for duplicate in range(300):
        for first, second, random_next in cut(documents, duplicate):
            if random_next and first[0] >> _SENTENCE_BITS == 2:
                counts[second[0] >> _SENTENCE_BITS] += 1
    assert counts[2] == 0
    expected = counts.sum() / 4
    # Five standard deviations of a binomial count.
    assert (np.abs(np.delete(counts, 2) - expected) < 5 * np.sqrt(expected)).all()


def test_one_document_gives_true_pairs_only() -> None:
    pairs = cut(make_documents(1, seed=5))
    assert pairs
    assert not any(random_next for _, _, random_next in pairs)
    lone = instances.Documents(
        ids=np.arange(4, dtype=np.int32),
        sentence_lengths=np.array([4], np.int32),
        sentence_counts=np.array([1], np.int32),
        keys=np.array([1], np.uint64),
    )
    assert cut(lone) == []


def test_no_documents() -> None:
    empty = make_documents(3, seed=6).select(np.zeros(0, np.int64))
    assert cut(empty) == []


def test_short_sequences() -> None:
    # One very long document a case: its first pair is full unless the document drew "short".
    def full(short_seq_prob: float) -> float:
        shares = []
        for seed in range(60):
            pairs = cut(make_documents(4, seed), short_seq_prob=short_seq_prob, seq_length=32)
            lengths = [len(first) + len(second) for first, second, _ in pairs]
            shares.append(np.mean(np.array(lengths) >= 20))
        return float(np.mean(shares))

    assert full(0.0) > full(0.5) + 0.1 > full(1.0) + 0.1


def test_duplicates_and_lengths_differ() -> None:
    documents = make_documents(30, seed=8)
    texts = [
        {(first.tobytes(), second.tobytes()) for first, second, _ in cut(documents, duplicate)}
        for duplicate in (0, 1)
    ]
    assert len(texts[0] & texts[1]) < 0.2 * len(texts[0])
    ids = [
        instances.segment_pairs(
            documents, seq_length=length, seed=3, duplicate=0, short_seq_prob=0.1
        ).example_ids.tolist()
        for length in (64, 128)
    ]
    assert not set(ids[0]) & set(ids[1])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 200))
def test_truncation_is_that_of_the_loop(first: int, second: int, room: int) -> None:
    kept = [first, second]
    while sum(kept) > room:
        kept[0 if kept[0] > kept[1] else 1] -= 1
    result = instances.truncated_lengths(np.array([first]), np.array([second]), room)
    assert [int(part[0]) for part in result] == kept


def test_truncation_takes_from_both_ends() -> None:
    # A sentence of 200 distinct tokens cut to fit: the front loses a binomial share of the excess.
    documents = instances.Documents(
        ids=np.arange(400, dtype=np.int32),
        sentence_lengths=np.array([200, 200], np.int32),
        sentence_counts=np.array([1, 1], np.int32),
        keys=np.array([1, 2], np.uint64),
    )
    dropped = []
    for duplicate in range(200):
        for first, second, _ in cut(documents, duplicate, short_seq_prob=0.0):
            assert len(first) == 31
            assert len(second) == 30
            dropped += [first[0] % 200, second[0] % 200]
    mean = np.mean(dropped)
    # 169 or 170 fair tosses: mean 84.75, standard deviation 6.5 / sqrt(800).
    assert abs(mean - 84.75) < 5 * 6.5 / np.sqrt(len(dropped))
    assert np.std(dropped) == pytest.approx(6.5, rel=0.2)
