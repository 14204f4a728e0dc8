"""What a build may be asked for besides pairs of every document: packing, GZIP, no duplicates."""

import itertools
import json
import pathlib
import subprocess
import sys

import filelock
import numpy as np
import pytest

import tfrecords
from tests.data.conftest import build_arguments, write_corpus
from tests.data.test_build import contents
from tfrecords import UserError, build, pipeline, reader, schema

LENGTH = 32


def built(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, folder: pathlib.Path, *flags: str
) -> tfrecords.Manifest:
    assert build.main([*build_arguments(corpus_dir, vocab_file, folder), *flags]) == 0
    return tfrecords.Manifest.load(folder)


def rows(folder: pathlib.Path, length: int = LENGTH) -> dict[str, np.ndarray]:
    dataset = tfrecords.read(folder, seq_length=length, global_batch_size=16, training=False)
    batches = list(dataset.as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("records", schema.RECORDS)
def test_packed_rows(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path, records: str
) -> None:
    flags = ["--no_next_sentence", f"--records={records}", "--dupe_factor=2"]
    manifest = built(corpus_dir, vocab_file, tmp_path / "shards", *flags)
    assert not manifest.next_sentence
    assert manifest.identity["options"]["short_seq_prob"] == 0
    assert not any(manifest.one_document_buckets.values())
    found = rows(tmp_path / "shards")
    words, mask = found["input_word_ids"], found["input_mask"]
    real = mask.any(1)
    lengths = mask.sum(1)[real]
    assert (words[real, 0] == 2).all()
    assert (words[real, lengths - 1] == 3).all()
    assert not found["input_type_ids"].any()
    assert not found["next_sentence_labels"].any()
    assert lengths.mean() > 0.7 * LENGTH
    # Separators between documents are there, and none is ever to guess.
    positions = found["masked_lm_positions"][found["masked_lm_weights"] > 0]
    assert (positions > 0).all()
    assert not np.isin(found["masked_lm_ids"][found["masked_lm_weights"] > 0], [0, 2, 3]).any()
    assert ((words[real] == 3).sum(1) > 1).any()


def test_gzip_shards_hold_the_same_examples(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, shards: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    manifest = built(corpus_dir, vocab_file, tmp_path / "shards", "--gzip")
    assert manifest.compression == "GZIP"
    assert all(shard.file.endswith(".tfrecord.gz") for shard in manifest.shards("train", LENGTH))
    assert manifest.shards("train", LENGTH)[0].bytes < (
        tfrecords.Manifest.load(shards).shards("train", LENGTH)[0].bytes / 2
    )
    plain, packed = rows(shards), rows(tmp_path / "shards")
    for name in plain:
        np.testing.assert_array_equal(packed[name], plain[name])


def test_damage_in_a_gzip_shard_is_named(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    manifest = built(corpus_dir, vocab_file, tmp_path / "shards", "--gzip")
    shard = manifest.shards("train", LENGTH)[1]
    path = pathlib.Path(manifest.path(shard))
    content = bytearray(path.read_bytes())
    # Beyond the bytes that are checked before the first step.
    content[len(content) * 3 // 4] ^= 0xFF
    path.write_bytes(content)
    dataset = tfrecords.read(
        tmp_path / "shards", seq_length=LENGTH, global_batch_size=16, training=False
    )
    with pytest.raises(Exception, match=path.name) as raised:
        list(dataset)
    assert "at byte offset" in str(reader.user_error(raised.value))


def test_duplicates_are_left_out(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The corpus with copies gives what the corpus without them gives, but for the order."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    write_corpus(once, 60)
    write_corpus(twice, 60)
    copies = (twice / "a" / "one.txt").read_text().strip().split("\n\n")
    with (twice / "two.txt").open("a", newline="") as stream:
        # A copy with other white space and case has the same tokens; one with a word more has not.
        stream.write("\n\n" + copies[3].upper().replace(" ", "   ") + "\n\n" + copies[4])
        stream.write("\n\n" + copies[5] + " doc5\n")
    plain = built(twice, vocab_file, tmp_path / "plain")
    assert (sum(plain.documents.values()), plain.duplicate_documents) == (63, 0)
    clean = built(twice, vocab_file, tmp_path / "clean", "--deduplicate")
    assert (sum(clean.documents.values()), clean.duplicate_documents) == (61, 2)
    again = built(twice, vocab_file, tmp_path / "again", "--deduplicate", "--num_processes=2")
    assert contents(tmp_path / "clean") == contents(tmp_path / "again")
    assert again == clean.__class__.load(tmp_path / "again")


def test_a_vocabulary_of_another_casing_is_pointed_out(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a line, and the build goes on: who gave it may have meant it."""
    cased = tmp_path / "cased.txt"
    cased.write_text(vocab_file.read_text().replace("[unused0]", "Fox"))
    warnings = {}
    for vocabulary, flag in itertools.product((vocab_file, cased), ("lower_case", "nolower_case")):
        caplog.clear()
        output = tmp_path / f"{vocabulary.stem}-{flag}"
        built(corpus_dir, vocabulary, output, f"--{flag}", "--seq_lengths=32", "--dupe_factor=1")
        warnings[vocabulary.stem, flag] = [
            record.getMessage() for record in caplog.records if record.levelname == "WARNING"
        ]
    assert not warnings["vocab", "lower_case"] and not warnings["cased", "nolower_case"]
    (line,) = warnings["vocab", "nolower_case"]
    assert f"{vocab_file} has no word piece with a capital" in line
    (line,) = warnings["cased", "lower_case"]
    assert f"{cased} has word pieces with capitals, such as 'Fox'" in line and "\n" not in line


def test_defaults_follow_the_kind_of_records(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path
) -> None:
    chosen = {}
    for records in schema.RECORDS:
        build.FLAGS.unparse_flags()
        build.FLAGS(
            ["build", "--input=x", "--vocab_file=x", "--output_dir=x", f"--records={records}"]
        )
        options = build.options_from(build.FLAGS)
        chosen[records] = (options.dupe_factor, options.short_seq_prob, options.next_sentence)
    assert chosen == {"stored": (5, 0.1, True), "dynamic": (1, 0.1, True)}


def test_a_second_build_in_the_same_folder_waits_for_nothing_and_harms_nothing(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    holder = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder / pipeline.LOCK_FILE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        arguments = build_arguments(corpus_dir, vocab_file, folder)
        assert build.main(arguments) == 2
        assert "another process is at work" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [pipeline.LOCK_FILE]
        # A killed process holds nothing.
        process.kill()
        process.wait()
    assert build.main(arguments) == 0
    assert not (folder / pipeline.LOCK_FILE).exists()


def test_intermediate_files_of_another_version_are_refused(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"

    def stop(*_: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Run, "_check_counts", stop)
        assert build.main(build_arguments(corpus_dir, vocab_file, folder)) == 2
    plan = folder / ".build" / "plan.json"
    stored = json.loads(plan.read_text())
    plan.write_text(json.dumps({**stored, "intermediate format": 1}))
    capsys.readouterr()
    assert build.main(build_arguments(corpus_dir, vocab_file, folder)) == 2
    assert "intermediate format 1 there" in capsys.readouterr().err


def test_filelock_is_what_files_uses(tmp_path: pathlib.Path) -> None:
    """The lock of `tfrecords.files` and the one that the test above holds are of a kind."""
    from tfrecords import files

    with files.lock(str(tmp_path / "lock")):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / "lock").acquire(blocking=False)
        with pytest.raises(TimeoutError), files.lock(str(tmp_path / "lock")):
            pass
    assert not (tmp_path / "lock").exists()
