"""Paragraphs to sentences."""

import os
import pathlib
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import sentences

# Characters that a segmenter decides by, and white space of every width in UTF-8.
PIECES = [
    "a", "B", "Mr.", "U.S.", "e.g.", "3.5", ".", "!", "?", "\u2026", '"', "'", "(", ")", "[", "]",
    "\u201c", "\u201d", "\u3002", " ", "  ", "\n", "\t", "\f", "\r", "\x1c", "\x85", "\xa0",
    "\u2028", "\u3000", "\x00", "\ufffd", "\u200b", "\u0301", "\U0001f600",
]  # fmt: skip


def test_literal() -> None:
    assert sentences.split(
        "Mr. Smith paid $3.50.  Did he? \u201cHe did.\u201d Yes (see p. 4)!"
    ) == [
        "Mr. Smith paid $3.50.",
        "Did he?",
        "\u201cHe did.\u201d",
        "Yes (see p. 4)!",
    ]
    # Quotations are split, but not from who speaks.
    assert sentences.split("'I won't. It's late!' he said. \"Is it?\" \"Yes. Go.\"") == [
        "'I won't.",
        "It's late!' he said.",
        '"Is it?"',
        '"Yes.',
        'Go."',
    ]
    assert sentences.split("No.\u2028Yes\xa0. One\fline\n") == ["No.", "Yes .", "One line"]
    assert sentences.split(" \n\u3000") == []


@settings(max_examples=500)
@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
        st.text(max_size=60),
    )
)
def test_no_character_but_white_space_is_lost(paragraph: str) -> None:
    found = sentences.split(paragraph)
    assert "".join("".join(found).split()) == "".join(paragraph.split())
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in found)


def test_the_same_in_another_process(tmp_path: pathlib.Path) -> None:
    text = "Mr. Smith went. \u201cWhy?\u201d he (i.e. I) asked... No one knew! Caf\u00e9. Yes."
    program = (
        "import sys; from tfrecords import sentences; print(ascii(sentences.split(sys.argv[1])))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, text],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip().endswith(ascii(sentences.split(text)))


def test_gold_boundaries(shared_data: pathlib.Path) -> None:
    """Two-sentence splits of Wikipedia sentences, as one paragraph each."""
    right = found = expected = 0
    for line in (shared_data / "wiki-split" / "test.tsv").read_text(encoding="utf-8").splitlines():
        gold = [part.strip() for part in line.split("\t")[1].split("<::::>")]
        split = sentences.split(" ".join(gold))
        right += len(ends(split) & ends(gold))
        found += len(split) - 1
        expected += len(gold) - 1
    assert right / found > 0.985
    assert right / expected > 0.985


def ends(parts: list[str]) -> set[int]:
    """Where all parts but the last end, in characters that are no white space."""
    sizes = [len("".join(part.split())) for part in parts]
    return {sum(sizes[:count]) for count in range(1, len(sizes))}
