"""Packed rows: full sentences in order, nothing lost, separators between documents alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_instances import make_documents
from tfrecords import instances, packing

SEPARATOR = (1 << 20) - 1


def rows(documents: instances.Documents, **changes: float) -> tuple[instances.Pairs, list[list]]:
    options = {"seq_length": 32, "seed": 3, "duplicate": 0, "short_seq_prob": 0.0, **changes}
    ids, spans = packing.packed_rows(documents, separator=SEPARATOR, **options)
    pairs = spans.gather(ids, np.arange(len(spans)))
    return pairs, [
        part.tolist() for part in np.split(pairs.ids, np.cumsum(pairs.first_lengths))[:-1]
    ]


def sentences(documents: instances.Documents) -> list[list[list[int]]]:
    """Documents as lists of sentences of ids."""
    parts = np.split(documents.ids, np.cumsum(documents.sentence_lengths))[:-1]
    bounds = np.cumsum(documents.sentence_counts)
    return [
        [part.tolist() for part in parts[end - count : end]]
        for count, end in zip(documents.sentence_counts.tolist(), bounds.tolist(), strict=True)
    ]


def greedy(ordered: list[list[list[int]]], room: int) -> list[list[int]]:
    """What section 4.2 of RoBERTa's paper describes, a sentence at a time."""
    stream = [sentence for document in ordered for sentence in (*document, None)]
    found: list[list[int]] = [[]]
    for sentence in stream:
        piece = [SEPARATOR] if sentence is None else sentence
        if len(found[-1]) + len(piece) > room and found[-1]:
            found.append([])
        if piece == [SEPARATOR] and not found[-1]:
            continue
        while len(piece) > room:
            found[-1] = piece[:room]
            found.append([])
            piece = piece[room:]
        found[-1] = found[-1] + piece
    trimmed = [row[:-1] if row[-1:] == [SEPARATOR] else row for row in found]
    return [row for row in trimmed if row]


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from([16, 33, 200]))
def test_as_described(num_documents: int, seed: int, seq_length: int) -> None:
    documents = make_documents(num_documents, seed, longest=40)
    pairs, found = rows(documents, seq_length=seq_length)
    by_first_token = {document[0][0]: document for document in sentences(documents)}
    # The order of the documents is the build's to draw; every one must be there once.
    stream = [token for row in found for token in row]
    order = [token for token in stream if token in by_first_token]
    order = list(dict.fromkeys(order))
    assert sorted(order) == sorted(by_first_token)
    assert found == greedy([by_first_token[token] for token in order], seq_length - 2)
    assert (pairs.second_lengths == 0).all()
    assert not pairs.random_next.any()
    assert len(set(pairs.example_ids.tolist())) == len(pairs)
    assert (pairs.num_tokens <= seq_length).all()


@pytest.mark.parametrize("change", [{"seed": 4}, {"duplicate": 1}])
def test_another_order(change: dict) -> None:
    documents = make_documents(12, 0)
    first, other = rows(documents)[1], rows(documents, **change)[1]
    assert first != other
    tokens = [
        sorted(token for row in each for token in row if token != SEPARATOR)
        for each in (first, other)
    ]
    assert tokens[0] == tokens[1]


def test_short_rows() -> None:
    documents = make_documents(200, 1, longest=8)
    whole = rows(documents)[0].first_lengths
    short = rows(documents, short_seq_prob=0.5)[0].first_lengths
    assert np.mean(whole < 16) < 0.02
    # Half of the rows end by 2 to 30 tokens, drawn evenly: about a quarter by 15.
    assert 0.15 < np.mean(short < 16) < 0.4


def test_no_documents() -> None:
    empty = make_documents(1, 0).select(np.zeros(0, np.int64))
    assert rows(empty)[1] == []
