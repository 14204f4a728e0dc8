"""Ids equal those of Model Garden's FullTokenizer, on every line we can find or think of."""

import pathlib
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data import model_garden
from tfrecords import corpus, tokenization
from tfrecords.vocabulary import Vocabulary

NASTY = [
    "",
    " ",
    "[SEP] a [MASK] b [CLS] [PAD] [UNK]",
    "NUL \x00 in\x00side, form\x0cfeed, vertical\x0btab, next\x85line",
    "soft\u00adhyphen zero\u200bwidth\u200djoiner \ufeffbom replacement \ufffd",
    "\ufb01ligature \u2167 \u00bd x\u00b2 \u2122 \u212b \u2026 \uff21\uff22\uff23",
    "STRASSE stra\u00dfe \u0130stanbul \u0131 \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3 \u03c2",
    "e\u0301 \u00e9 a\u0308\u0323 \u1e9b\u0323 \ud55c\uad6d\uc5b4 \u110f\u1161",
    "\u4e2d\u6587 mixed\u4e2dwith \u3400 \U00020000 \uf900 \u9fa6",
    "tab\tand\u00a0nbsp\u3000ideographic\u2028line\u2029paragraph",
    "a" * 100 + " " + "b" * 101 + " " + "c" * 400 + " " + "d" * 401,
    "the" * 40 + "." + "the" * 133,
    "\u4e2d" * 150,
    "$100 + 5% ^_^ `tick` ~tilde| don't 'quote' \u2018\u2019\u201c\u201d\u2013\u2014",
    "\u0391\u0392\u0393 \u0414\u0416 \u05d0\u05d1 \u0e01\u0e33 \u0939\u093f\u0928\u094d",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469",
    "##piece ## # ###",
    "control \x01\x1f\x7f\x9f end",
]


def tiny_vocabulary() -> Vocabulary:
    """Letters of many scripts, whole and as pieces, and a few longer pieces."""
    letters = {char for line in NASTY for char in line.lower() + line if char.isprintable()}
    letters.update(unicodedata.normalize("NFD", "".join(letters)))
    letters = {char for char in letters if not char.isspace() and char != "\ufffd"}
    # Some are left out, so that unknown words occur.
    kept = sorted(letters)[::3] + list("abcdefghijklmnopqrstuvwxyz")
    pieces = dict.fromkeys([*kept, "the", "str", "##ing", "##the", "[unused1]", "\u4e2d"])
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    tokens += [f"##{piece}" for piece in pieces if not piece.startswith(("##", "["))]
    tokens = list(dict.fromkeys(tokens))
    return Vocabulary(tokens=tuple(tokens), content="\n".join(tokens).encode("utf-8"))


class Reference:
    """Model Garden's tokenizer over the same vocabulary."""

    def __init__(self, vocabulary: Vocabulary, path: pathlib.Path, lower_case: bool) -> None:
        path.write_bytes(vocabulary.content)
        full = model_garden.module("official.nlp.tools.tokenization").FullTokenizer
        self._tokenizer = full(str(path), do_lower_case=lower_case)

    def __call__(self, line: str) -> list[int]:
        return self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(line))


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    vocabulary = tiny_vocabulary()
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    reference = Reference(vocabulary, path, request.param)
    return tokenization.Tokenizer(vocabulary, request.param), reference


def encoded(tokenizer: tokenization.Tokenizer, lines: list[str]) -> list[list[int]]:
    ids, lengths = tokenizer.encode(lines)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_nasty_lines(pair: tuple) -> None:
    tokenizer, reference = pair
    expected = [reference(line) for line in NASTY]
    assert encoded(tokenizer, NASTY) == expected
    assert [tokenizer.encode_exactly(line) for line in NASTY] == expected


def test_every_agreed_character(pair: tuple) -> None:
    # The claim on which the fast path rests, checked character by character in four places.
    tokenizer, reference = pair
    agreed = [
        chr(code)
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000 and not tokenization._LEAVE_TO_REFERENCE.search(chr(code))
    ]
    assert len(agreed) > 20_000
    lines = [f"a{char}b {char} x{char}{char} {char}y" for char in agreed]
    assert encoded(tokenizer, lines) == [reference(line) for line in lines]


CHARACTERS = st.one_of(
    st.sampled_from(sorted({char for line in NASTY for char in line})),
    st.characters(exclude_categories=("Cs",)),
    st.sampled_from("abcthe ."),
)


@settings(max_examples=150)
@given(st.lists(st.text(CHARACTERS, max_size=60), min_size=1, max_size=5))
@example(["the" * 33 + "a", "the" * 33 + "ab"])
def test_random_text(pair: tuple, lines: list[str]) -> None:
    tokenizer, reference = pair
    assert encoded(tokenizer, lines) == [reference(line) for line in lines]


def test_special_tokens_never_come_from_text(pair: tuple) -> None:
    tokenizer, _ = pair
    ids, _ = tokenizer.encode(["[SEP][MASK]", "[CLS] [PAD]", "[unused1]"])
    assert not {0, 2, 3, 4} & set(ids.tolist())


@pytest.mark.parametrize("lower_case", [True, False])
def test_real_text(shared_data: pathlib.Path, tmp_path: pathlib.Path, lower_case: bool) -> None:
    vocabulary = Vocabulary.load(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    reference = Reference(vocabulary, tmp_path / "vocab.txt", lower_case)
    tokenizer = tokenization.Tokenizer(vocabulary, lower_case)
    draw = random.Random(0)
    lines = []
    for pattern, count in (("novels/*.txt", 4000), ("*wiki*/*", 4000), ("sst-2/*.tsv", 1000)):
        files = corpus.find(f"{shared_data}/{pattern}")
        found = [line for file in files[:: len(files) // 12 + 1] for line, _ in corpus.lines(file)]
        lines += draw.sample(found, count)
        # The reference is slow; lines beyond ASCII are where it may differ.
        beyond = [line for line in found if not line.isascii()]
        lines += beyond[: count // 4]
    assert encoded(tokenizer, lines) == [reference(line) for line in lines]
