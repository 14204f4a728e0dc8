"""Vocabularies: trained the same in every process, refused when they are none."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tfrecords import UserError, vocabulary
from tfrecords.tokenization import Tokenizer

SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def test_layout(vocab_file: pathlib.Path) -> None:
    loaded = vocabulary.Vocabulary.load(vocab_file)
    assert len(loaded) == 256  # 250 rounded up to a multiple of 64
    assert loaded.tokens[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert loaded.tokens[-6:] == tuple(f"[unused{index}]" for index in range(6))
    assert loaded.sha256 == hashlib.sha256(vocab_file.read_bytes()).hexdigest()
    replacements = {loaded.tokens[index] for index in loaded.replacements}
    assert replacements.isdisjoint(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"])
    assert len(replacements) == 256 - 5 - 6


def test_bytes_are_the_same_in_another_process(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # Hash seeds differ between processes; so do the hash tables of the trainer.
    for attempt in range(2):
        output = tmp_path / f"{attempt}.txt"
        subprocess.run(
            [
                sys.executable, "-m", "tfrecords.vocabulary", "--vocab_size=250",
                f"--input={corpus_dir}/a/*.txt,{corpus_dir}/two.txt", f"--output={output}",
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": str(attempt + 1)},
        )  # fmt: skip
        assert output.read_bytes() == vocab_file.read_bytes()


def test_case(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Ärger Zebra Zebra Zebra\n" * 50)
    for flag, expected, absent in (("lower_case", "zebra", "Z"), ("nolower_case", "Zebra", "[X]")):
        output = tmp_path / f"{flag}.txt"
        arguments = [f"--input={text}", "--vocab_size=64", f"--output={output}", f"--{flag}"]
        assert vocabulary.main(arguments) == 0
        tokens = output.read_text().split("\n")
        assert expected in tokens
        assert absent not in tokens


def of_pieces(*pieces: str) -> vocabulary.Vocabulary:
    return vocabulary.Vocabulary(tokens=(*SPECIAL.split(), *pieces), content=b"")


@pytest.mark.parametrize(
    ("pieces", "cased", "uncased"),
    [
        (("fox", "##es"), "no word piece with a capital", None),
        (("fox", "Fox"), None, "word pieces with capitals, such as 'Fox'"),
        (("fox", "##É"), None, "such as '##É'"),
        # Google's Chinese vocabulary has <S> and <T>, others unused tokens of their own.
        (("fox", "<S>", "<T>", "[unused1]", "[BOS]"), "no word piece with a capital", None),
        # Lower-casing takes away accents too, so scripts without capitals may do without it.
        (("\u304c", "7", "##,"), None, None),
    ],
)
def test_casing_is_compared_with_the_word_pieces(
    pieces: tuple[str, ...], cased: str | None, uncased: str | None
) -> None:
    for lower_case, expected in ((False, cased), (True, uncased)):
        found = vocabulary.casing_warning(of_pieces(*pieces), lower_case)
        assert (found is None) == (expected is None), found
        assert found is None or expected in found and "--nolower_case" in found


def test_formats_of_text(tmp_path: pathlib.Path) -> None:
    lines = ["zebra alone", "gnu and zebra"] * 30
    for name, content, flag in (
        ("plain", "\n\n".join(lines), "--document_boundary=file"),
        (
            "tags",
            "".join(f"<doc id=q>\n{line}\n</doc>\n" for line in lines),
            "--document_boundary=doc_tag",
        ),
        (
            "json",
            "".join(json.dumps({"q": "x", "body": line}) + "\n" for line in lines),
            "--text_field=body",
        ),
    ):
        (tmp_path / name).write_text(content)
        arguments = [f"--input={tmp_path / name}", f"--output={tmp_path / name}.vocab", flag]
        assert vocabulary.main([*arguments, "--vocab_size=64"]) == 0
        assert (tmp_path / f"{name}.vocab").read_text() == (tmp_path / "plain.vocab").read_text()
        tokens = (tmp_path / f"{name}.vocab").read_text().split("\n")
        assert "zebra" in tokens and "q" not in tokens
    assert vocabulary.main([*arguments, "--document_boundary=file"]) == 2


def test_the_most_frequent_thousand_characters_are_kept(tmp_path: pathlib.Path) -> None:
    """Of 1,200, of which each that is left out is rarer than each that is kept."""
    characters = [chr(0x4E00 + number) for number in range(1200)]
    rare, frequent = set(characters[::6]), sorted(set(characters) - set(characters[::6]))
    assert len(frequent) == 1000
    text = tmp_path / "text.txt"
    text.write_text("\n".join(characters + frequent))
    arguments = [f"--input={text}", "--vocab_size=2048", f"--output={tmp_path / 'vocab.txt'}"]
    assert vocabulary.main(arguments) == 0
    loaded = vocabulary.Vocabulary.load(tmp_path / "vocab.txt")
    assert set(characters) & set(loaded.tokens) == set(frequent)
    ids, lengths = Tokenizer(loaded, lower_case=True).encode(characters)
    assert lengths.tolist() == [1] * 1200
    unknown = {character for character, token in zip(characters, ids, strict=True) if token == 1}
    assert unknown == rare


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"\[MASK\] missing"),
        ("a\nb\n", r"\[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] missing"),
        (SPECIAL + "a\nb\na\n", "'a' is on lines 6 and 8"),
        (SPECIAL + "a\n\nb\n", "line 7 is empty; each line is an id.*as it was published"),
        (SPECIAL + "a\n \t\r\nb\n", "line 7 is empty"),
        (SPECIAL + "[unused0]\n", "no word pieces beside the special tokens"),
        ("a\n" + SPECIAL, r"\[PAD\] is on line 2; it must be on line 1"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: pathlib.Path, content: str, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        vocabulary.Vocabulary.load(path)


def test_blanks_that_are_word_pieces_are_kept(tmp_path: pathlib.Path) -> None:
    """Published vocabularies hold U+2028; ASCII's blanks and line endings are nobody's."""
    path = tmp_path / "vocab.txt"
    content = SPECIAL + "a\n\u2028\n\u3000\n##\u0085\nb \t\n"
    for ending in ("\n", "\r\n"):
        path.write_bytes(content.replace("\n", ending).encode("utf-8"))
        loaded = vocabulary.Vocabulary.load(path)
        assert loaded.tokens[5:] == ("a", "\u2028", "\u3000", "##\u0085", "b")


def test_missing_or_binary_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no vocabulary at .*train one"):
        vocabulary.Vocabulary.load(tmp_path / "absent.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no UTF-8"):
        vocabulary.Vocabulary.load(tmp_path / "binary")


def test_an_output_that_cannot_be_written(
    corpus_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for output in (tmp_path / "file" / "vocab.txt", tmp_path / "folder"):
        arguments = [f"--input={corpus_dir}/two.txt", f"--output={output}", "--vocab_size=250"]
        assert vocabulary.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot ")
        assert str(output.parent) in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [("", "64", "hold no text"), ("abcdefghijklmnopqrstuvwxyz0123456789", "64", "no room for")],
)
def test_command_errors(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, text: str, size: str, message: str
) -> None:
    (tmp_path / "text.txt").write_text(text)
    output = tmp_path / "vocab.txt"
    arguments = [f"--input={tmp_path}/text.txt", f"--vocab_size={size}", f"--output={output}"]
    assert vocabulary.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
