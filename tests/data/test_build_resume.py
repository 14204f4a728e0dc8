"""A build that is killed, stopped or damaged, and the same command again: the same bytes."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import tensorflow as tf

from tests.data.conftest import NUM_SHARDS, build_arguments
from tests.data.test_build import contents
from tfrecords import build, pipeline, stages

LONG = 600.0  # seconds until a broken test gives up; nothing that passes waits for it
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
        timeout=LONG,
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


def die_at_a_shard(stage: str, task: Any) -> Any:
    """What a worker does that the kernel ends for want of memory while it writes a shard."""
    if stage == "shards" and task.shard == 1:
        os._exit(9)
    return pipeline._call(stage, task)


def test_the_death_of_a_worker_is_told_and_the_same_command_goes_on(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "again"
    arguments = [*build_arguments(corpus_dir, vocab_file, folder), "--num_processes=2"]
    with monkeypatch.context() as patch:
        # Workers are told what to call by its name, and so import it from here.
        patch.setattr(pipeline, "_call", die_at_a_shard)
        assert build.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: a process of --num_processes 2 died, perhaps for want of memory; run the same "
        "command again, with fewer, to go on"
    ]
    assert not (folder / "manifest.json").exists()
    done = {path: path.read_bytes() for path in (folder / stages.WORK).glob("*.json")}
    assert {path.name for path in done} >= {"documents.json", "pairs.json", "shuffled.json"}
    assert build.main([*arguments, "--num_processes=1"]) == 0
    assert contents(folder) == contents(shards)
