"""The build on Apache Beam: the bytes of the local build, whatever the order things arrive in."""

import gzip
import json
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.beam.conftest import DIRECT, arguments, contents
from tfrecords import (
    Manifest,
    beam_pipeline,
    build,
    build_beam,
    corpus,
    pipeline,
    verify,
    writer,
)
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

GroupByKey = beam.GroupByKey


class ShuffledGroups(beam.PTransform):
    """GroupByKey whose values come in random order, as they do on many machines."""

    def expand(self, pairs: beam.PCollection) -> beam.PCollection:
        return pairs | GroupByKey() | beam.MapTuple(shuffled)


def shuffled(key: Any, values: Iterable[Any]) -> tuple[Any, list[Any]]:
    found = list(values)
    random.Random(f"{key}").shuffle(found)
    return key, found


@pytest.fixture(autouse=True)
def _much_to_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, partitions and blocks even for so little text, in any order."""
    monkeypatch.setattr("tfrecords.pipeline._TASK_BYTES", 3000)
    monkeypatch.setattr("tfrecords.pipeline._PARTITION_BYTES", 10_000)
    monkeypatch.setattr("tfrecords.stages._BLOCK_ROWS", 30)
    monkeypatch.setattr(beam, "GroupByKey", ShuffledGroups)


def corpora(folder: pathlib.Path, corpus_dir: pathlib.Path) -> dict[str, pathlib.Path]:
    """The corpus, and it again in other formats."""
    texts = {
        name: (corpus_dir / name).read_text(encoding="utf-8-sig")
        for name in ("a/one.txt", "two.txt")
    }
    twice, lines = folder / "twice", folder / "lines"
    for target in (twice, lines):
        (target / "a").mkdir(parents=True)
    for name, text in texts.items():
        (twice / name).write_text(f"{text}\n\n{text}")
        documents = [part.strip() for part in re.split(r"\n\n", text)]
        stored = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        with gzip.open(lines / f"{name}.gz", "wt") as stream:
            stream.write(stored)
    return {"plain": corpus_dir, "twice": twice, "lines": lines}


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("plain", []),
        # More shards than held-out examples: some are empty.
        ("plain", ["--num_shards=61", "--nowhole_word_mask", "--seq_lengths=64"]),
        ("plain", ["--records=dynamic", "--gzip", "--eval_fraction=0"]),
        ("plain", ["--records=dynamic", "--nonext_sentence", "--short_seq_prob=0.2"]),
        ("plain", ["--no_next_sentence", "--gzip", "--nolower_case"]),
        ("twice", ["--deduplicate"]),
        ("twice", ["--document_boundary=file", "--eval_fraction=0"]),
        ("lines", ["--text_field=text", "--split_sentences", "--dupe_factor=1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_the_bytes_are_those_of_the_local_build(
    kind: str,
    flags: list[str],
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    text = corpora(tmp_path, corpus_dir)[kind]
    source = f"--input={text}"
    for name, command in (("local", build), ("beam", build_beam)):
        options = [*arguments(text, vocab_file, tmp_path / name), source, *flags]
        rest = ["--num_processes=1"] if command is build else DIRECT
        assert command.main([*options, *rest]) == 0
    expected = contents(tmp_path / "local")
    assert len(expected) > 4
    assert contents(tmp_path / "beam") == expected
    manifest = Manifest.load(tmp_path / "beam")
    assert (manifest.duplicate_documents > 0) == ("--deduplicate" in flags)
    if "--num_shards=61" in flags:
        assert not all(shard.examples for shard in manifest.shards("eval", 64))


def test_verify_accepts_the_folder(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert build_beam.main([*arguments(corpus_dir, vocab_file, tmp_path / "beam"), *DIRECT]) == 0
    assert verify.main([f"--input_dir={tmp_path / 'beam'}"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        "--direct_running_mode=multi_processing --direct_num_workers=2",
        # The interface of Flink and Spark, with Beam's own job server in their place.
        "--runner=PortableRunner --job_endpoint=embed --environment_type=LOOPBACK",
    ],
)
def test_other_ways_to_run(
    options: str,
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    local: dict[str, bytes],
    tmp_path: pathlib.Path,
) -> None:
    command = [sys.executable, "-m", "tfrecords.build_beam"]
    flags = [*arguments(corpus_dir, vocab_file, tmp_path / "beam"), *DIRECT, *options.split()]
    finished = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path / "beam") == local


def test_a_finished_folder_is_left_alone_and_a_damaged_one_mended(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    local: dict[str, bytes],
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, content in local.items():
        (folder / name).write_bytes(content)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    options = [*arguments(corpus_dir, vocab_file, folder), *DIRECT]
    assert build_beam.main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    victim = min(folder.glob("train-*"))
    victim.unlink()
    assert build_beam.main(options) == 0
    assert contents(folder) == local
    kept = {path for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert kept >= set(folder.glob("*.tfrecord")) - {victim}


def test_a_failed_pipeline_is_gone_on_with(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    local: dict[str, bytes],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"
    options = arguments(corpus_dir, vocab_file, folder)
    write_shard = writer.write_shard

    def full_disk(path: str, *rest: Any) -> Any:
        if "train-seq64-00002" in path:
            raise OSError("no space left")
        return write_shard(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", full_disk)
        assert build_beam.main([*options, *DIRECT]) == 2
    assert "error: no space left" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    assert build.main([*options, "--num_processes=1", "--seed=8"]) == 2
    assert "an unfinished build with seed 7 there and 8 here" in capsys.readouterr().err
    # Either command may go on where the other stopped.
    assert build.main([*options, "--num_processes=1"]) == 0
    assert contents(folder) == local


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_shards=90000", *DIRECT], "fewer than --num_shards 90000; give more text or fewer"),
        (["--eval_fraction=0.00001", *DIRECT], "holds out nothing of 120 documents"),
        (["--input=nowhere.txt", *DIRECT], "'nowhere.txt' matches no file"),
        (["--num_processes=2", *DIRECT], "Unknown command line flag 'num_processes'"),
        (["--", "--runer=DirectRunner"], "Beam has no option --runer"),
        (["--", "--runner=Nonesuch"], "Beam refuses its options: Unexpected pipeline runner"),
        (["--", "--direct_num_workers=x"], "argument --direct_num_workers: invalid int value: 'x'"),
        (["--pipeline_options=--runner='x"], "cannot be read: No closing quotation"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    folder = tmp_path / "shards"
    assert build_beam.main([*arguments(corpus_dir, vocab_file, folder), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not folder.exists()


def test_text_that_a_worker_cannot_read_is_one_line(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreadable(_: corpus.Reader, chunk: corpus.Chunk) -> list[list[str]]:
        raise UserError(f"cannot read {chunk.file.key}")

    monkeypatch.setattr(corpus.Reader, "documents", unreadable)
    folder = tmp_path / "shards"
    assert build_beam.main([*arguments(corpus_dir, vocab_file, folder), *DIRECT]) == 2
    assert capsys.readouterr().err == "error: cannot read a/one.txt\n"
    # What an earlier run finished there is not given up for a file that may be mended.
    assert (folder / ".build" / "plan.json").exists()


def test_workers_that_do_not_see_the_folder(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shards"
    options = [*arguments(corpus_dir, vocab_file, folder), *DIRECT]
    with monkeypatch.context() as patch:
        patch.setattr(beam_pipeline, "_CHUNKS", "elsewhere")
        patch.setattr(beam_pipeline.spill, "write", lambda *_: None)
        assert build_beam.main(options) == 2
    assert "elsewhere" in (error := capsys.readouterr().err)
    assert "give an --output_dir that all workers see" in error
    monkeypatch.setattr(beam_pipeline, "construct", lambda *_: None)
    assert build_beam.main(options) == 2
    assert "the workers left no " in capsys.readouterr().err


def test_another_build_is_refused(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    local: dict[str, bytes],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in local.items():
        (tmp_path / name).write_bytes(content)
    options = [*arguments(corpus_dir, vocab_file, tmp_path), "--seed=8", *DIRECT]
    assert build_beam.main(options) == 2
    assert "holds a build with seed 7 there and 8 here" in capsys.readouterr().err
    assert contents(tmp_path) == local


@given(st.lists(st.binary(max_size=40), max_size=12), st.randoms())
def test_values_in_order_on_disk(parts: list[bytes], draw: random.Random) -> None:
    numbered = list(enumerate(parts))
    draw.shuffle(numbered)
    with beam_pipeline._in_order_on_disk([(-1, b""), *numbered]) as stored:
        assert list(stored) == [part for part in parts if part]


def test_what_is_sent_to_workers_does_not_grow_with_the_corpus(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    build_beam.FLAGS(["command", *arguments(corpus_dir, vocab_file, tmp_path)])
    plan, _ = pipeline.make_plan(
        f"{corpus_dir}", Vocabulary.load(vocab_file), f"{tmp_path}",
        build.options_from(build_beam.FLAGS),
    )  # fmt: skip
    assert len(plan.chunks) > 10
    root = beam_pipeline.root_of([])
    beam_pipeline.construct(root, plan)
    assert str(corpus_dir).encode() not in root.to_runner_api().SerializeToString()
