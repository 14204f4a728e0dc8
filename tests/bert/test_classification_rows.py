"""Rows of sentence classification: pairs cut and packed, lengths chosen, groups of one length."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from official_bert import classification_input, packed_rows
from official_bert.classification_input import Cut, Labelled
from tests.bert.tiny_squad import VOCABULARY
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import Vocabulary


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 40))
def test_the_longer_text_loses_first(first: int, second: int, room: int) -> None:
    a, b = first, second
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    found = packed_rows.truncated(np.array([first]), np.array([second]), room)
    assert [int(part[0]) for part in found] == [a, b]


def test_rows_are_packed_as_bert_has_them() -> None:
    vocabulary = Vocabulary(tokens=tuple(VOCABULARY), content=b"")
    first, second = ["the Box", "", "red " * 9], ["a lamp ?", "door", "blue " * 9]
    rows = packed_rows.pack(vocabulary, True, first, second, 12)
    words = [" ".join(vocabulary.tokens[piece] for piece in row) for row in rows.word_ids]
    assert words == [
        "[CLS] the box [SEP] [UNK] lamp ? [SEP] [PAD] [PAD] [PAD] [PAD]",
        "[CLS] [SEP] door [SEP]" + " [PAD]" * 8,
        "[CLS] red red red red red [SEP] blue blue blue blue [SEP]",
    ]
    assert rows.first_lengths.tolist() == [4, 2, 7] and rows.lengths.tolist() == [8, 4, 12]
    alone = packed_rows.pack(vocabulary, True, first, None, 12)
    assert alone.lengths.tolist() == [4, 2, 11]
    np.testing.assert_array_equal(alone.first_lengths, alone.lengths)


def test_texts_of_one_vocabulary_share_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def noted(vocabulary: Vocabulary, lower_case: bool) -> Tokenizer:
        built.append(lower_case)
        return Tokenizer(vocabulary, lower_case)

    monkeypatch.setattr(packed_rows, "Tokenizer", noted)
    vocabulary = Vocabulary(tokens=(*VOCABULARY, "unheard"), content=b"")
    for lower_case in (True, True, False, False):
        packed_rows.pack(vocabulary, lower_case, ["the box"], None, 12)
    assert built == [True, False]


@settings(max_examples=50)
@given(st.lists(st.integers(2, 64), min_size=1, max_size=40), st.integers(1, 5))
def test_lengths_hold_every_row_and_no_others_cost_less(row_lengths: list[int], count: int) -> None:
    lengths = np.array(row_lengths)
    found = packed_rows.group_lengths(
        lengths, batch_size=1, groups=1, seq_length=60 + 4, count=count
    )
    assert list(found) == sorted(set(found)) and len(found) <= count
    assert found[-1] >= lengths.max() and found[-1] < lengths.max() + 8

    def cost(choice: Sequence[int]) -> int:
        return sum(min(length for length in choice if length >= row) for row in row_lengths)

    # Fewer lengths never cost less; a multiple of 8 that is left out does not help.
    for other in range(8, found[-1], 8):
        for replaced in range(len(found) - 1):
            choice = [*found[:replaced], other, *found[replaced + 1 :]]
            assert cost(choice) >= cost(found)


def rows_of(lengths: Sequence[int]) -> packed_rows.Rows:
    """Rows whose first word piece is their number plus 5."""
    count = len(lengths)
    word_ids = np.zeros((count, 32), np.int32)
    word_ids[:, 0] = np.arange(count) + 5
    array = np.array(lengths, np.int32)
    return packed_rows.Rows(word_ids=word_ids, first_lengths=array, lengths=array)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_batches_are_the_same_rows_however_they_are_cut(replicas: int) -> None:
    generator = np.random.default_rng(3)
    rows = rows_of(generator.integers(3, 33, 50))
    data = Labelled(rows=rows, labels=np.arange(50, dtype=np.int32))
    cut = Cut(batch_size=16, replicas=replicas, groups=2, lengths=(8, 16, 24, 32))
    whole = dataclasses.replace(cut, replicas=1, groups=1, lengths=(32,))
    group = 16 // (2 * replicas)
    steps = 7  # more than two epochs
    expected = list(classification_input.batches(data, whole, seed=5).take(steps))
    for start in (0, 4):
        parts = [
            classification_input.batches(
                data, cut, seed=5, start_step=start, num_pipelines=replicas, pipeline=pipeline
            )
            for pipeline in range(replicas)
        ]
        for step, batches in enumerate(zip(*(part.take(steps - start) for part in parts))):  # noqa: B905
            labels = np.concatenate([batch["label_ids"] for batch in batches])
            want = expected[start + step]["label_ids"].numpy()
            assert sorted(labels.tolist()) == sorted(want.tolist())
            numbers = np.stack([batch["length_number"] for batch in batches])
            # A group has one length on all replicas, the first that holds its longest row.
            for index in range(0, 16 // replicas, group):
                part = slice(index, index + group)
                members = np.concatenate([batch["label_ids"][part] for batch in batches])
                longest = rows.lengths[members].max()
                assert set(numbers[:, part].ravel()) == {int(np.searchsorted([8, 16, 24], longest))}
            for batch in batches:
                filled = rows.lengths[batch["label_ids"].numpy()]
                np.testing.assert_array_equal(batch["input_mask"].numpy().sum(1), filled)
                first = batch["input_word_ids"].numpy()[:, 0]
                np.testing.assert_array_equal(first, batch["label_ids"].numpy() + 5)


@pytest.mark.parametrize("pipelines", [1, 2])
def test_an_evaluation_has_every_row_once(pipelines: int) -> None:
    rows = rows_of(np.random.default_rng(4).integers(3, 33, 21))
    cut = Cut(batch_size=8, replicas=pipelines, groups=1, lengths=(16, 32))
    found: list[int] = []
    for pipeline in range(pipelines):
        data = classification_input.evaluation_batches(
            rows, cut, num_pipelines=pipelines, pipeline=pipeline
        )
        for batch in data:
            assert batch["row"].shape == (8 // pipelines,)
            found += batch["row"].numpy().tolist()
    assert sorted(found) == [*range(21), 21, 21, 21]
