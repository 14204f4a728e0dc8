"""The exported preprocessing gives training's ids, on all of Unicode and on real text."""

import pathlib
import random
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from hypothesis import example, given, settings
from hypothesis import strategies as st

from official_bert.export import characters, preprocessing
from tests.data.test_tokenization import CHARACTERS, NASTY, tiny_vocabulary
from tfrecords import corpus, tokenization
from tfrecords.vocabulary import Vocabulary

CASINGS = pytest.mark.parametrize("lower_case", [True, False], ids=["uncased", "cased"])
VOCABULARY = tiny_vocabulary()
SPECIAL = {0, 2, 3, 4}
# Two spacing marks with combining classes 226 and 216: canonical order swaps them.
DISORDERED = "\U0001d16d\U0001d165"


class Pair:
    """Both tokenizers of a casing; the graph's is traced once for all batches."""

    def __init__(self, vocabulary: Vocabulary, lower_case: bool) -> None:
        self.lower_case = lower_case
        self.graph = preprocessing.GraphTokenizer(vocabulary, lower_case)
        text = tf.TensorSpec([None], tf.string)
        self._tokenize = tf.function(self.graph, input_signature=[text])
        self._normalize = tf.function(self.graph.normalize, input_signature=[text])
        self._training = tokenization.Tokenizer(vocabulary, lower_case)

    def ids(self, lines: list[str]) -> list[list[int]]:
        return self._tokenize(tf.constant(lines, tf.string, [len(lines)])).to_list()

    def words(self, lines: list[str]) -> list[list[str]]:
        return [line.decode().split() for line in self._normalize(tf.constant(lines)).numpy()]

    def training_ids(self, lines: list[str]) -> list[list[int]]:
        ids, lengths = self._training.encode(lines)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]

    def training_words(self, lines: list[str]) -> list[list[str]]:
        return [tokenization.words(line, self.lower_case) for line in lines]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(VOCABULARY, request.param)


def test_nasty_lines(pair: Pair) -> None:
    assert pair.ids(NASTY) == pair.training_ids(NASTY)
    assert pair.words(NASTY) == pair.training_words(NASTY)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=60), min_size=1, max_size=5))
@example(["\u03a3", "a\u03a3", "b"])
def test_any_text(pair: Pair, lines: list[str]) -> None:
    assert pair.ids(lines) == pair.training_ids(lines)
    assert pair.words(lines) == pair.training_words(lines)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text("\u03a3\u03a3\u03c3\u03c2Aa1'.:\u0301\u00ad\u4e2d\u0130 \u02b0"), min_size=1)
)
def test_sigmas(pair: Pair, lines: list[str]) -> None:
    assert pair.words(lines) == pair.training_words(lines)


def test_every_character(pair: Pair) -> None:
    """Alone, inside a word, and on both sides of a sigma; a sample of the empty planes."""
    draw = random.Random(0)
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x2FA00, 0x2FB00), 0xE0001, 0x10FFFF]
    codes += draw.sample(range(0x20000, 0x110000), 2000)
    lines = []
    for start in range(0, len(codes), 64):
        some = map(chr, codes[start : start + 64])
        lines.append(" ".join(f"x{c}y A{c}\u03a3 \u03a3{c}a\u03a3{c}" for c in some))
    for line, words, expected in zip(
        lines, pair.words(lines), pair.training_words(lines), strict=True
    ):
        assert words == expected, line


def test_the_one_exception_is_the_order_of_spacing_marks() -> None:
    pair, lines = Pair(VOCABULARY, True), [f"a{DISORDERED}"]
    ((word,),), ((expected,),) = pair.words(lines), pair.training_words(lines)
    assert word != expected and sorted(word) == sorted(expected)
    # No piece for either mark: an unknown word both ways.
    assert pair.ids(lines) == pair.training_ids(lines) == [[1]]


def test_length_limit_counts_characters(pair: Pair) -> None:
    lines = [char * count for char in "a\u00df\u4e00\U0001f600" for count in (399, 400, 401)]
    assert pair.ids(lines) == pair.training_ids(lines)
    assert len(pair.ids(["a" * 400])[0]) == 400 and pair.ids(["a" * 401]) == [[1]]


def test_no_text_is_a_special_token(pair: Pair) -> None:
    ids = pair.ids(["[SEP][MASK] [CLS]", "[PAD]", "[unused1]"])
    assert not SPECIAL.intersection(*map(set, ids)) and all(ids)


def test_bytes_that_are_no_text(pair: Pair) -> None:
    raw = b"ab \xff\xfe c\xc3 the"
    assert pair.graph(tf.constant([raw])).to_list() == pair.training_ids(
        [raw.decode(errors="replace")]
    )


def test_empty_batches(pair: Pair) -> None:
    assert pair.ids([]) == [] and pair.ids(["", " "]) == [[], []]


@CASINGS
def test_tables_are_small(lower_case: bool) -> None:
    table = characters.expansions(lower_case)
    assert table.rows.shape[1] == 3
    assert table.kinds.values.nbytes < 200_000 and table.kinds.pages.shape == (0x1100,)


@CASINGS
def test_real_text(shared_data: pathlib.Path, lower_case: bool) -> None:
    pair = Pair(Vocabulary.load(shared_data / "vocab" / "bert-base-uncased-vocab.txt"), lower_case)
    draw = random.Random(0)
    lines = []
    for pattern in ("novels/*.txt", "wikitext-2/*", "wiki-split/*", "sst-2/*.tsv"):
        files = corpus.find(f"{shared_data}/{pattern}")
        found = [line for file in files[:: len(files) // 8 + 1] for line, _ in corpus.lines(file)]
        lines += draw.sample(found, 2000)
        lines += [line for line in found if not line.isascii()][:500]
    assert pair.ids(lines) == pair.training_ids(lines)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("preprocess"))
    tokenizer = preprocessing.GraphTokenizer(VOCABULARY, True)
    module = preprocessing.hub_module(tokenizer, VOCABULARY, seq_length=16)
    tf.saved_model.save(module, path, {"serving_default": module.__call__})
    return path


@pytest.fixture(scope="module")
def loaded(saved: str) -> Any:
    return hub.load(saved)


def packed(segments: list[list[int]], seq_length: int) -> dict[str, list[int]]:
    """[CLS] first [SEP] second [SEP], the longer cut first, padded with 0."""
    segments = [list(segment) for segment in segments]
    while sum(map(len, segments)) > seq_length - len(segments) - 1:
        max(reversed(segments), key=len).pop()
    ids, types = [VOCABULARY.ids["[CLS]"]], [0]
    for number, segment in enumerate(segments):
        ids += [*segment, VOCABULARY.ids["[SEP]"]]
        types += [number] * (len(segment) + 1)
    rest = [0] * (seq_length - len(ids))
    return {
        "input_word_ids": ids + rest,
        "input_mask": [1] * len(ids) + rest,
        "input_type_ids": types + rest,
    }


LINES = ["the abc.", "", "STRASSE \u00e9t\u00e9 [MASK] " * 3]


def test_rows_of_a_loaded_preprocessor(loaded: Any) -> None:
    pair = Pair(VOCABULARY, True)
    ids = pair.training_ids(LINES)
    assert loaded.tokenize(tf.constant(LINES)).to_list() == ids
    expected = [packed([line], 16) for line in ids]
    served = loaded.signatures["serving_default"](text=tf.constant(LINES))
    for rows in (loaded(tf.constant(LINES)), served):
        for name in expected[0]:
            assert rows[name].numpy().tolist() == [row[name] for row in expected]
            assert rows[name].dtype == tf.int32
    special = loaded.tokenize.get_special_tokens_dict()
    assert int(special["mask_id"]) == VOCABULARY.ids["[MASK]"]
    assert int(special["vocab_size"]) == len(VOCABULARY)


@pytest.mark.parametrize("seq_length", [9, 16, 40])
def test_pairs_of_segments(loaded: Any, seq_length: int) -> None:
    first = loaded.tokenize(tf.constant(LINES))
    second = loaded.tokenize(tf.constant(LINES[::-1]))
    rows = loaded.bert_pack_inputs([first, second], seq_length=seq_length)
    for index, segments in enumerate(zip(first.to_list(), second.to_list(), strict=True)):
        for name, values in packed(list(segments), seq_length).items():
            assert rows[name][index].numpy().tolist() == values


def test_inside_a_keras_model(loaded: Any) -> None:
    text = tf_keras.layers.Input((), dtype=tf.string)
    tokens = hub.KerasLayer(loaded.tokenize)(text)
    pack = hub.KerasLayer(loaded.bert_pack_inputs, arguments={"seq_length": 12})
    model = tf_keras.Model(text, {"rows": hub.KerasLayer(loaded)(text), "packed": pack([tokens])})
    outputs = model(tf.constant(LINES))
    assert outputs["rows"]["input_word_ids"].shape == (3, 16)
    assert outputs["packed"]["input_word_ids"].shape == (3, 12)
