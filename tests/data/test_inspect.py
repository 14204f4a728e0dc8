"""`tfrecords.inspect` on rows written by hand, and on real shards."""

import pathlib

import numpy as np
import pytest

from tfrecords import inspect, schema
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import Vocabulary

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "run", "##s", "dog", ".")
VOCABULARY = Vocabulary(tokens=TOKENS, content=b"")


def rows() -> dict[str, np.ndarray]:
    def ids(text: str, size: int) -> list[int]:
        found = [VOCABULARY.ids[token] for token in text.split()]
        return found + [0] * (size - len(found))

    return {
        schema.INPUT_WORD_IDS: np.array(
            [
                ids("[CLS] a [MASK] run ##s [SEP] dog dog . [SEP]", 12),
                ids("[CLS] a [SEP] fox [SEP]", 12),
            ]
        ),
        schema.INPUT_MASK: np.array([[1] * 10 + [0] * 2, [1] * 5 + [0] * 7]),
        schema.INPUT_TYPE_IDS: np.array([[0] * 6 + [1] * 4 + [0] * 2, [0] * 3 + [1] * 2 + [0] * 7]),
        schema.MASKED_LM_POSITIONS: np.array([[2, 6, 7], [3, 0, 0]]),
        schema.MASKED_LM_IDS: np.array([ids("fox a dog", 3), ids("fox", 3)]),
        schema.MASKED_LM_WEIGHTS: np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
        schema.NEXT_SENTENCE_LABELS: np.array([[1], [0]]),
    }


def test_a_row_as_text() -> None:
    assert inspect.as_text(rows(), 0, VOCABULARY) == (
        "first: [CLS] a [[MASK]|fox] runs [SEP]\nof another document: [dog|a] [dog|dog] . [SEP]"
    )
    assert inspect.as_text(rows(), 1, VOCABULARY) == (
        "first: [CLS] a [SEP]\nwhat follows: [fox|fox] [SEP]"
    )


def test_rates_counted_by_hand() -> None:
    found = inspect.rates(rows(), VOCABULARY)
    assert found == inspect.Rates(
        rows=2,
        masked=4 / (7 + 2),
        shown_as_mask=1 / 4,
        shown_as_original=2 / 4,
        shown_as_another=1 / 4,
        random_next=0.5,
        fill=15 / 24,
        under_half_full=0.5,
    )


def test_the_command_on_real_shards(shards: pathlib.Path, capfd: pytest.CaptureFixture) -> None:
    assert inspect.main([f"--input_dir={shards}", "--seq_length=64", "--num_examples=2"]) == 0
    out = capfd.readouterr().out
    assert out.count("first: [CLS]") == 2
    count = Manifest.load(shards).num_examples("train", 64)
    assert f"{count:,} rows of 64 tokens, split train:" in out
    printed = {
        line[:20].strip(): float(line.split()[-2]) for line in out.splitlines() if line[-1:] == "%"
    }
    # BERT's rates, within five standard deviations of a few thousand draws.
    assert printed["masked"] == pytest.approx(15, abs=2)
    assert printed["shown as mask"] == pytest.approx(80, abs=4)
    assert printed["shown as original"] == pytest.approx(10, abs=3)
    assert printed["random next"] == pytest.approx(50, abs=12)


def test_what_is_not_there_is_named(shards: pathlib.Path, capfd: pytest.CaptureFixture) -> None:
    assert inspect.main([f"--input_dir={shards}", "--seq_length=48"]) == 2
    assert "has no sequence length 48; it has 32, 64" in capfd.readouterr().err
