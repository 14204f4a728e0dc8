"""`tfrecords.inspect` on rows written by hand, and on real shards."""

import pathlib
import shutil

import numpy as np
import pytest

from tests.data.conftest import build_arguments
from tfrecords import build, inspect, schema
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
        length_deciles=(5, 5, 5, 5, 5, 5, 10, 10, 10, 10, 10),
    )


def packed() -> dict[str, np.ndarray]:
    """The second row is all [CLS] and [SEP] but for one token, whose mask shows a [SEP]."""
    ids = VOCABULARY.ids
    texts = ["[CLS] a [MASK] [SEP] dog [SEP]", "[CLS] [SEP] [SEP]"]
    words = [[ids[token] for token in text.split()] for text in texts]
    return {
        schema.INPUT_WORD_IDS: np.array([words[0], words[1] + [0] * 3]),
        schema.INPUT_MASK: np.array([[1] * 6, [1] * 3 + [0] * 3]),
        schema.INPUT_TYPE_IDS: np.zeros((2, 6), int),
        schema.MASKED_LM_POSITIONS: np.array([[2], [1]]),
        schema.MASKED_LM_IDS: np.array([[ids["fox"]], [ids["run"]]]),
        schema.MASKED_LM_WEIGHTS: np.ones((2, 1)),
        schema.NEXT_SENTENCE_LABELS: np.zeros((2, 1), int),
    }


def test_packed_rows_have_one_segment_and_no_pairs() -> None:
    assert inspect.as_text(packed(), 0, VOCABULARY) == "text: [CLS] a [[MASK]|fox] [SEP] dog [SEP]"
    found = inspect.rates(packed(), VOCABULARY, next_sentence=False)
    assert found.masked == 2 / (3 + 1)
    assert found.shown_as_another == 1 / 2
    assert found.random_next is None
    lines = inspect.report(found).splitlines()
    assert "  random next        not applicable" in lines
    assert lines[-1] == "  tokens in a row, from the shortest by tenths: 3 3 3 3 3 3 6 6 6 6 6"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--records=dynamic",), ("--no_next_sentence",), ("--records=dynamic", "--gzip")],
    ids=" ".join,
)
def test_the_command_on_real_shards(
    shards: pathlib.Path,
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture,
    arguments: tuple[str, ...],
) -> None:
    if arguments:
        shards = tmp_path / "shards"
        assert build.main([*build_arguments(corpus_dir, vocab_file, shards), *arguments]) == 0
        capfd.readouterr()
    is_packed = "--no_next_sentence" in arguments
    assert inspect.main([f"--input_dir={shards}", "--seq_length=64", "--num_examples=2"]) == 0
    out = capfd.readouterr().out
    assert out.count("text: [CLS]" if is_packed else "first: [CLS]") == 2
    count = Manifest.load(shards).num_examples("train", 64)
    assert f"{count:,} rows of 64 tokens, split train:" in out
    printed = {
        line[:20].strip(): float(line.split()[-2]) for line in out.splitlines() if line[-1:] == "%"
    }
    # BERT's rates, within five standard deviations of a few thousand draws.
    assert printed["masked"] == pytest.approx(15, abs=2)
    assert printed["shown as mask"] == pytest.approx(80, abs=4)
    assert printed["shown as original"] == pytest.approx(10, abs=3)
    if is_packed:
        assert "random next        not applicable" in out
    else:
        assert printed["random next"] == pytest.approx(50, abs=12)
    # No row of zeros, which fill the last batch up, is counted.
    (deciles,) = [line for line in out.splitlines() if "by tenths" in line]
    lengths = [int(number) for number in deciles.split(":")[1].split()]
    assert lengths == sorted(lengths)
    assert lengths[0] > 3
    assert lengths[-1] == 64


def test_few_rows(shards: pathlib.Path, capfd: pytest.CaptureFixture) -> None:
    assert inspect.main([f"--input_dir={shards}", "--num_rows=7", "--num_examples=0"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("7 rows of 32 tokens, split train:\n  masked")


def test_damage_is_one_line(
    shards: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    folder = pathlib.Path(shutil.copytree(shards, tmp_path / "copy"))
    path = folder / Manifest.load(folder).shards("train", 32)[0].file
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(bytes(content))
    assert inspect.main([f"--input_dir={folder}"]) == 2
    error = capsys.readouterr().err
    assert f"{folder} cannot be read ({path}: record " in error
    assert "python -m tfrecords.verify says where" in error
    assert error.count("\n") == 1


def test_what_is_not_there_is_named(shards: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert inspect.main([f"--input_dir={shards}", "--seq_length=48"]) == 2
    assert "has no sequence length 48; it has 32, 64" in capsys.readouterr().err
