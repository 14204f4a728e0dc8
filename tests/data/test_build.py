"""The build command: what it writes, that it writes the same bytes however it is run."""

import hashlib
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.data.conftest import NUM_SHARDS, SEQ_LENGTHS, build_arguments, write_corpus
from tfrecords import Manifest, UserError, build, stages, vocabulary
from tfrecords.vocabulary import Vocabulary


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def examples(folder: pathlib.Path, split: str, length: int) -> list[list[dict[str, np.ndarray]]]:
    """The examples of each shard, parsed by TensorFlow's own message classes."""
    shards = []
    for path in sorted(folder.glob(f"{split}-seq{length}-*")):
        rows = []
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            rows.append(
                {
                    name: np.array(value.float_list.value or value.int64_list.value)
                    for name, value in feature.items()
                }
            )
        shards.append(rows)
    return shards


def test_what_lies_on_disk(shards: pathlib.Path, vocab_file: pathlib.Path) -> None:
    names = {
        f"{split}-seq{length}-{number:05d}-of-{NUM_SHARDS:05d}.tfrecord"
        for split in ("train", "eval")
        for length in SEQ_LENGTHS
        for number in range(NUM_SHARDS)
    }
    assert {path.name for path in shards.iterdir()} == names | {"manifest.json", "vocab.txt"}
    assert (shards / "vocab.txt").read_bytes() == vocab_file.read_bytes()
    manifest = Manifest.load(shards)
    assert manifest.seq_lengths == SEQ_LENGTHS
    assert manifest.records == "stored"
    assert manifest.lower_case
    assert manifest.vocab_size == 256
    assert manifest.vocabulary_sha256 == hashlib.sha256(vocab_file.read_bytes()).hexdigest()
    assert manifest.identity["num_buckets"] > 1
    assert manifest.documents["train"] + manifest.documents["eval"] == 120
    assert manifest.num_shards("train") == manifest.num_shards("eval") == NUM_SHARDS
    for length, split in itertools.product(SEQ_LENGTHS, ("train", "eval")):
        counts = [len(rows) for rows in examples(shards, split, length)]
        assert max(counts) - min(counts) <= 1
        assert counts == [shard.examples for shard in manifest.shards(split, length)]
        for shard in manifest.shards(split, length):
            content = (shards / shard.file).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (
                shard.bytes,
                shard.sha256,
            )
    text = (shards / "manifest.json").read_text()
    assert str(shards.parent) not in text
    assert "num_processes" not in text


def test_examples(shards: pathlib.Path, vocab_file: pathlib.Path) -> None:
    tokens = Vocabulary.load(vocab_file).tokens
    documents = {split: set() for split in ("train", "eval")}
    random_next = {True: 0, False: 0}
    for length, split in itertools.product(SEQ_LENGTHS, documents):
        for row in itertools.chain.from_iterable(examples(shards, split, length)):
            ids = row["input_word_ids"].copy()
            count = int(row["masked_lm_weights"].sum())
            ids[row["masked_lm_positions"][:count]] = row["masked_lm_ids"][:count]
            size = int(row["input_mask"].sum())
            separators = np.flatnonzero(ids == tokens.index("[SEP]"))
            assert ids[0] == tokens.index("[CLS]")
            assert len(separators) == 2
            assert separators[1] == size - 1
            assert not ids[size:].any()
            expected = (np.arange(length) > separators[0]) & (np.arange(length) < size)
            np.testing.assert_array_equal(row["input_type_ids"], expected)
            segments = (ids[1 : separators[0]], ids[separators[0] + 1 : size - 1])
            named = [
                {word for word in text.split() if word.startswith("doc")}
                for text in (
                    " ".join(tokens[token] for token in segment).replace(" ##", "")
                    for segment in segments
                )
            ]
            # Truncation may cut a name short, so only names that occur elsewhere count.
            if len(named[0]) == len(named[1]) == 1:
                is_random = bool(row["next_sentence_labels"][0])
                random_next[is_random] += 1
                if not is_random:
                    documents[split].update(named[0])
                elif all(len(next(iter(names))) > 4 for names in named):
                    assert named[0] != named[1]
    assert min(random_next.values()) > 50
    assert documents["eval"]
    assert documents["eval"].isdisjoint(documents["train"])


def test_shards_are_shuffled_globally(shards: pathlib.Path) -> None:
    # Were shards runs of the corpus, a shard would see few of the 120 documents' names.
    ids = [
        {tuple(row["input_word_ids"][:6]) for row in rows}
        for rows in examples(shards, "train", SEQ_LENGTHS[0])
    ]
    manifest = Manifest.load(shards)
    random = manifest.sequences[SEQ_LENGTHS[0]].splits["train"].random_next
    labels = [
        [int(row["next_sentence_labels"][0]) for row in rows]
        for rows in examples(shards, "train", SEQ_LENGTHS[0])
    ]
    assert sum(map(sum, labels)) == random
    assert all(len(found) > 50 for found in ids)


@pytest.mark.parametrize("num_processes", [2])
def test_bytes_do_not_depend_on_processes(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    num_processes: int,
) -> None:
    arguments = [
        *build_arguments(corpus_dir, vocab_file, tmp_path / "again"),
        f"--num_processes={num_processes}",
    ]
    assert build.main(arguments) == 0
    assert contents(tmp_path / "again") == contents(shards)


def test_bytes_do_not_depend_on_how_the_work_is_cut(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tfrecords.pipeline._TASK_BYTES", 3000)
    monkeypatch.setattr("tfrecords.pipeline._PARTITION_BYTES", 10_000)
    monkeypatch.setattr("tfrecords.stages._BLOCK_ROWS", 30)
    assert build.main(build_arguments(corpus_dir, vocab_file, tmp_path / "again")) == 0
    assert contents(tmp_path / "again") == contents(shards)


KILLED = """
import os, signal, sys
import tensorflow as tf
from tfrecords import build
rename, name, left = tf.io.gfile.rename, sys.argv[1], [int(sys.argv[2])]
def rename_or_die(source, target, overwrite):
    left[0] -= name in target
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, overwrite)
tf.io.gfile.rename = rename_or_die
sys.exit(build.main(sys.argv[3:]))
"""


def test_a_killed_build_resumes(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "again"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    # A file appears with a rename; the process dies just before one.
    for name, count in (("/pairs/", 3), ("train-seq64-00001", 1)):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, name, str(count), *arguments], capture_output=True
        )
        assert killed.returncode == -9, killed.stderr.decode()
        assert (folder / stages.WORK).is_dir()
        assert not (folder / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")}
    assert len(finished) == 2 * NUM_SHARDS + 1
    # One of the finished shards is damaged meanwhile; the others are kept.
    damaged = min(finished)
    damaged.write_bytes(b"not this")
    assert build.main(arguments) == 0
    assert contents(folder) == contents(shards)
    kept = [path for path, time in finished.items() if path.stat().st_mtime_ns == time]
    assert set(kept) == set(finished) - {damaged}


def test_workers_end_with_a_killed_parent(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, shards: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = build_arguments(corpus_dir, vocab_file, tmp_path / "shards")
    # Reading their common output comes to its end once the last of them is gone.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "documents.json", "1", *arguments, "--num_processes=2"],
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert build.main([*arguments, "--num_processes=2"]) == 0
    assert contents(tmp_path / "shards") == contents(shards)


class Stopped(BaseException):
    """Stands for a process's end, at more moments than there is time to start processes for."""


def test_a_build_stopped_again_and_again(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "again"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    rename = tf.io.gfile.rename
    left = 0

    def rename_or_stop(source: str, target: str, overwrite: bool) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", rename_or_stop)
    stops = 0
    while True:
        left = 4 + stops % 5
        try:
            assert build.main(arguments) == 0
        except Stopped:
            stops += 1
            continue
        break
    assert stops > 5
    assert contents(folder) == contents(shards)


def test_a_finished_build_is_left_alone_and_a_damaged_one_mended(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "shards"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    assert build.main(arguments) == 0
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    victim = next(folder.glob("train-*"))
    victim.unlink()
    assert build.main(arguments) == 0
    assert contents(folder) == before
    (folder / "vocab.txt").write_text("[PAD]\n")
    assert build.main(arguments) == 0
    assert contents(folder) == before


def test_a_removal_of_intermediate_files_that_was_killed(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "again"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    rmtree = tf.io.gfile.rmtree

    def rmtree_or_stop(path: str) -> None:
        if path.endswith(stages.WORK):
            for part in ("shuffled", "plan.json"):
                victim = pathlib.Path(path) / part
                if victim.is_dir():
                    shutil.rmtree(victim)
                victim.unlink(missing_ok=True)
            raise Stopped
        rmtree(path)

    # The text is too short for so many shards, which is noticed when much is on disk.
    monkeypatch.setattr(tf.io.gfile, "rmtree", rmtree_or_stop)
    with pytest.raises(Stopped):
        build.main([*arguments, "--num_shards=90000", "--seed=8"])
    # Nothing of that build may find its way into another one.
    monkeypatch.undo()
    assert build.main(arguments) == 0
    assert contents(folder) == contents(shards)

    victim = next(folder.glob("train-*"))
    victim.unlink()
    monkeypatch.setattr(tf.io.gfile, "rmtree", rmtree_or_stop)
    with pytest.raises(Stopped):
        build.main(arguments)
    monkeypatch.undo()
    assert build.main(arguments) == 0
    assert contents(folder) == contents(shards)
    assert not (folder / stages.WORK).exists()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        victim.unlink()
        patch.setattr(tf.io.gfile, "rmtree", rmtree_or_stop)
        build.main(arguments)
    victim.unlink()
    assert build.main(arguments) == 0
    assert contents(folder) == contents(shards)


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


def test_what_is_written_below_the_text_is_not_read(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "in")
    folder = tmp_path / "in" / "shards"
    flags = [*build_arguments(corpus_dir, vocab_file, folder), f"--input={tmp_path / 'in'}"]
    assert build.main(flags) == 0
    before = contents(folder)
    assert build.main(flags) == 0
    assert contents(folder) == before


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


def test_the_vocabulary_beside_the_text_is_no_text(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(corpus_dir, folder)
    shutil.copy(vocab_file, folder / "vocab.txt")
    flags = build_arguments(corpus_dir, folder / "vocab.txt", folder / "shards")
    assert build.main([*flags, f"--input={folder}"]) == 0
    identity = Manifest.load(folder / "shards").identity
    assert identity["input"]["files"] == 2
    before = (folder / "vocab.txt").read_bytes()
    arguments = [f"--input={folder / '*.txt'},{folder / 'a'}", "--vocab_size=250"]
    assert vocabulary.main([*arguments, f"--output={folder / 'vocab.txt'}"]) == 0
    assert (folder / "vocab.txt").read_bytes() == before


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


def test_an_empty_corpus_is_refused(
    vocab_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    arguments = [f"--input={tmp_path}/empty.txt", f"--vocab_file={vocab_file}"]
    assert build.main([*arguments, f"--output_dir={tmp_path}/shards"]) == 2
    assert "holds no text (1 files, all blank)" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_manifest_checks(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = Manifest.load(shards)
    manifest.check_vocabulary(Vocabulary.load(shards / "vocab.txt"))
    manifest.check_vocab_size(256)
    with pytest.raises(UserError, match="vocab_size is 30522, but .* a vocabulary of 256"):
        manifest.check_vocab_size(30_522)
    other = tmp_path / "other.txt"
    other.write_text((shards / "vocab.txt").read_text() + "more\n")
    with pytest.raises(UserError, match="is not the vocabulary of"):
        manifest.check_vocabulary(Vocabulary.load(other))
    with pytest.raises(UserError, match="no manifest.json in"):
        Manifest.load(tmp_path)
    stored = json.loads((shards / "manifest.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format version 99; this is version 2"),
        ({"sequences": 3}, "is damaged"),
        ({"vocab_size": None, "surplus": 1}, "is damaged"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**stored, **change}))
        with pytest.raises(UserError, match=message):
            Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Manifest.load(tmp_path)


def test_a_document_a_file(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = [
        *build_arguments(corpus_dir, vocab_file, tmp_path / "shards"),
        "--document_boundary=file",
        "--eval_fraction=0",
        "--max_predictions_per_seq=3,7",
    ]
    assert build.main(arguments) == 0
    manifest = Manifest.load(tmp_path / "shards")
    assert manifest.documents == {"train": 2, "eval": 0}
    # Two documents in several buckets: either they met in one or each is alone.
    alone = manifest.one_document_buckets["train"]
    random_next = manifest.sequences[64].splits["train"].random_next
    assert (alone, random_next > 0) in ((0, True), (2, False))
    assert manifest.max_predictions_per_seq(64) == 7
    with pytest.raises(UserError, match="no split 'eval'; it has train"):
        manifest.num_shards("eval")
