"""Checkpoints on disks that fill and machines that stop, and those that cannot be restored."""

import errno
import os
import pathlib
import stat

import pytest
import tensorflow as tf

from official_bert import cluster
from official_bert.run_checkpoints import RunCheckpoints
from tfrecords.errors import UserError


def manager(
    folder: pathlib.Path, step: tf.Variable | None = None, **parts: tf.Variable
) -> RunCheckpoints:
    step = tf.Variable(1, dtype=tf.int64) if step is None else step
    return RunCheckpoints(
        tf.train.Checkpoint(step=step, **parts), str(folder), max_to_keep=1, global_step=step,
        interval=1, initialize=lambda: None, logs=[str(folder / "metrics.jsonl")],
    )  # fmt: skip


def test_a_worker_that_sees_another_folder_than_the_chief_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chief found step 9 whole; here there is step 1, or nothing."""
    for folder in (tmp_path / "has 1", tmp_path / "empty"):
        folder.mkdir()
    manager(tmp_path / "has 1").save(checkpoint_number=1)
    monkeypatch.setattr(cluster, "of_the_chief", lambda strategy, value: 9)
    for folder in (tmp_path / "has 1", tmp_path / "empty"):
        with pytest.raises(UserError) as caught:
            manager(folder).restore_or_initialize()
        message = str(caught.value)
        assert message.startswith(f"cannot restore {folder}/ckpt-9: ") and "\n" not in message
        assert "expected --model_dir to be one folder for all workers" in message


def test_what_a_checkpoint_lacks_is_not_begun_anew(tmp_path: pathlib.Path) -> None:
    """But for a loss scale, all of a run's state comes back or the run does not go on."""
    manager(tmp_path, kept=tf.Variable(3.0)).save(checkpoint_number=1)
    kept, lost = tf.Variable(0.0), tf.Variable(0.0)
    with pytest.raises(UserError, match="cannot restore .*ckpt-1: .* the run to be of this config"):
        manager(tmp_path, kept=kept, lost=lost).restore_or_initialize()
    assert manager(tmp_path, kept=kept).restore_or_initialize().endswith("ckpt-1")
    assert kept.numpy() == 3.0


def test_a_checkpoint_and_its_rows_are_on_the_disk_before_an_earlier_one_goes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tf.Variable(1, dtype=tf.int64)
    one = manager(tmp_path, step)
    one.save(checkpoint_number=1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    seen: list[tuple[int, bool]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        seen.append((os.fstat(descriptor).st_ino, (tmp_path / "ckpt-1.index").exists()))

    monkeypatch.setattr(os, "fsync", spy)
    step.assign(2)
    one.save(checkpoint_number=2)
    names = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.iterdir())}
    assert [(names[inode], before) for inode, before in seen] == [
        ("metrics.jsonl", True),
        ("ckpt-2.data-00000-of-00001", True),
        ("ckpt-2.index", True),
        (tmp_path.name, True),
    ]
    assert not (tmp_path / "ckpt-1.index").exists()


def test_a_disk_that_cannot_keep_a_checkpoint_spares_those_before_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems say that they are full where a file is synced."""
    step = tf.Variable(1, dtype=tf.int64)
    one = manager(tmp_path, step)
    one.save(checkpoint_number=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    step.assign(2)
    with pytest.raises(UserError) as caught:
        one.save(checkpoint_number=2)
    assert str(caught.value).startswith(
        f"cannot save the checkpoint of step 2 in {tmp_path}: cannot write {tmp_path}/ckpt-2."
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_system_that_syncs_no_folders_keeps_checkpoints(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    assert manager(tmp_path).save(checkpoint_number=1) == f"{tmp_path}/ckpt-1"
