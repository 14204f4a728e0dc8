"""Checkpoints that a process cannot restore: one line that says where and what to do."""

import pathlib

import pytest
import tensorflow as tf

from official_bert import cluster
from official_bert.run_checkpoints import RunCheckpoints
from tfrecords.errors import UserError


def manager(folder: pathlib.Path, **parts: tf.Variable) -> RunCheckpoints:
    step = tf.Variable(1, dtype=tf.int64)
    return RunCheckpoints(
        tf.train.Checkpoint(step=step, **parts), str(folder), max_to_keep=1, global_step=step,
        interval=1, initialize=lambda: None,
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
