"""What the build command refuses, in one line, and leaves as it was."""

import pathlib
import re
import shutil

import pytest

from tests.data.conftest import build_arguments, write_corpus
from tests.data.test_build import contents
from tfrecords import build


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--seed=8", "holds a build with seed 7 there and 8 here"),
        ("--num_shards=2", "num_shards 4 there and 2 here"),
        ("--nolower_case", "lower_case True there and False here"),
        ("--seq_lengths=32", r"seq_lengths \[32, 64\] there and \[32\] here"),
    ],
)
def test_another_build_is_refused(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    capsys: pytest.CaptureFixture,
    change: str,
    message: str,
) -> None:
    before = contents(shards)
    assert build.main([*build_arguments(corpus_dir, vocab_file, shards), change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert contents(shards) == before


def test_other_text_is_refused(
    vocab_file: pathlib.Path, shards: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_corpus(tmp_path / "other", 30, seed=2)
    before = contents(shards)
    assert build.main(build_arguments(tmp_path / "other", vocab_file, shards)) == 2
    assert contents(shards) == before


@pytest.mark.parametrize("name", ["x.tfrecord", "x.tfrecord.gz"])
def test_foreign_shards_are_refused(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    name: str,
) -> None:
    (tmp_path / name).write_text("someone's")
    assert build.main(build_arguments(corpus_dir, vocab_file, tmp_path)) == 2
    assert f"1 TFRecord files without a manifest.json, such as {name}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_in_the_folder_that_is_written_to(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    shutil.copytree(corpus_dir, tmp_path, dirs_exist_ok=True)
    flags = [*build_arguments(corpus_dir, vocab_file, tmp_path), f"--input={tmp_path}"]
    assert build.main(flags) == 2
    assert "and what is written a folder of its own" in capsys.readouterr().err


def test_a_file_system_that_is_not_there_is_one_line(
    vocab_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    flags = build_arguments(tmp_path, vocab_file, tmp_path / "shards")
    assert build.main([*flags, "--input=nosuch://bucket/text"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nosuch" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--input=/nowhere/*.txt"], "--input '/nowhere/*.txt' matches no file; give"),
        (["--vocab_file=/nowhere/vocab.txt"], "no vocabulary at /nowhere/vocab.txt; train one"),
        (["--seq_lengths=128,x"], "--seq_lengths has 'x'; expected integers, 16 to 4096"),
        (["--seq_lengths=8"], "--seq_lengths has '8'; expected integers, 16 to 4096"),
        (["--seq_lengths=70000"], "--seq_lengths has '70000'; expected integers, 16 to 4096"),
        (["--max_predictions_per_seq=9,65"], "has '65'; expected integers, 1 to 64"),
        (["--seq_lengths=32,32"], "give each length once"),
        (["--max_predictions_per_seq=5"], "has 1 numbers for 2 --seq_lengths"),
        (["--dupe_factor=0"], "dupe_factor"),
        (["--num_shards=many"], "num_shards"),
        (["--records=parquet"], "records"),
        (
            ["--masked_lm_prob=1.5"],
            "--masked_lm_prob is 1.5; expected a number above 0 and up to 1",
        ),
        (["--masked_lm_prob=0"], "--masked_lm_prob is 0.0; expected a number above 0"),
        (["--masked_lm_prob=nan"], "--masked_lm_prob is nan; expected a number above 0"),
        (["--eval_fraction=nan"], "--eval_fraction is nan; expected a number from 0 to below 1"),
        (["--eval_fraction=1"], "--eval_fraction is 1.0; expected a number from 0 to below 1"),
        (["--short_seq_prob=-1"], "--short_seq_prob is -1.0; expected a number from 0 to 1"),
        ([f"--seed={1 << 63}"], "seed"),
        (["--nonsense=1"], "nonsense"),
        (["stray"], "unexpected argument 'stray'"),
        (["--num_shards=90000"], "fewer than --num_shards 90000; give more text or fewer shards"),
        (["--eval_fraction=0.00001"], "holds out nothing of 120 documents; give a larger one"),
    ],
)
def test_bad_input_is_one_line(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    changes: list[str],
    message: str,
) -> None:
    folder = tmp_path / "shards"
    assert build.main([*build_arguments(corpus_dir, vocab_file, folder), *changes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()


def test_refusals_change_nothing_on_disk(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "empty").mkdir()
    too_many = "--num_shards=90000"
    assert build.main([*build_arguments(corpus_dir, vocab_file, tmp_path / "empty"), too_many]) == 2
    (tmp_path / "file").write_text("kept")
    below = build_arguments(corpus_dir, vocab_file, tmp_path / "file" / "shards")
    capsys.readouterr()
    assert build.main(below) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot make the folder {tmp_path}/file/shards")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        # A sentence alone has no other to make a pair with.
        ("a b a b.", ["--seed=1"], "holds out 1 of 20 documents, without an example of length 16"),
        ("a b a b.", ["--seed=1", "--num_shards=5000"], "fewer than --num_shards 5000; give more"),
        # Nothing but a character that tokenization takes away.
        ("\u200b", [], "gives 0 training examples of length 16, fewer than --num_shards 1; give"),
    ],
)
def test_the_first_thing_that_is_lacking_is_told_as_it_is(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    text: str,
    changes: list[str],
    message: str,
) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n.\n")
    (tmp_path / "text.txt").write_text(f"{text}\n\n" * 20, encoding="utf-8")
    files = {"input": "text.txt", "vocab_file": "vocab.txt", "output_dir": "shards"}
    arguments = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    plan = ["--seq_lengths=16,32", "--num_shards=1", "--eval_fraction=0.05", "--num_processes=1"]
    assert build.main([*arguments, *plan, *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_an_empty_corpus_is_refused(
    vocab_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    arguments = [f"--input={tmp_path}/empty.txt", f"--vocab_file={vocab_file}"]
    assert build.main([*arguments, f"--output_dir={tmp_path}/shards"]) == 2
    assert "holds no text (1 files, all blank)" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_a_file_is_no_output_folder(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "shards"
    folder.write_text("kept")
    assert build.main(build_arguments(corpus_dir, vocab_file, folder)) == 2
    assert capsys.readouterr().err == f"error: --output_dir {folder} is a file; give a folder\n"
    assert folder.read_text() == "kept"


def test_another_vocabulary_in_the_folder_is_not_written_over(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    """The same one is no obstacle."""
    folder = tmp_path / "shards"
    folder.mkdir()
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    (folder / "vocab.txt").write_bytes(vocab_file.read_bytes() + b"more\n")
    assert build.main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}/vocab.txt is another vocabulary than {vocab_file}; give another "
        "--output_dir\n"
    )
    assert (folder / "vocab.txt").read_bytes() == vocab_file.read_bytes() + b"more\n"
    assert [path.name for path in folder.iterdir()] == ["vocab.txt"]
    shutil.copy(vocab_file, folder / "vocab.txt")
    assert build.main(arguments) == 0
