"""A run's folder: whose it is, what is cleared away in it, and what its disk has room for."""

import contextlib
import pathlib
import types

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from official_bert import (
    disk_space,
    estimates,
    finetune,
    preflight,
    pretrain,
    run_checkpoints,
    run_files,
    run_folder,
    runner,
    train,
)
from tfrecords.errors import UserError

SIZE = 1000


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "a\\b"])
def test_a_name_that_is_a_pattern_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError, match="which has a meaning in patterns of files"):
        run_folder.check(str(tmp_path / name), is_early=lambda _: False)


@pytest.mark.parametrize("path", ["", "a_file", "a_file/run", "a_file/more/run"])
@pytest.mark.parametrize("command", [train, pretrain, finetune])
def test_a_path_that_is_no_folders_is_refused_in_a_line(
    command: types.ModuleType,
    path: str,
    tmp_path: pathlib.Path,
    tiny_arguments,
    monkeypatch,
    capsys,
) -> None:
    """As an unset variable makes it empty; nothing is written in the folder one is in."""
    recipe, data = tiny_arguments
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)
    recipes = {
        train: [f"--config_file={recipe}", f"--params_override={data}"],
        pretrain: [f"--phase1={recipe}", f"--phase2={recipe}"],
        finetune: ["--task=squad", "--train_file=a_file", "--dev_file=a_file", "--seeds=2"],
    }
    assert command.main([*recipes[command], f"--model_dir={path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --model_dir is ") and error.count("\n") == 1, error
    assert (f"{tmp_path / 'a_file'} is no folder" in error) == bool(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a_file"]


def test_checkpoints_of_another_program_are_no_run(tmp_path: pathlib.Path) -> None:
    variable = tf.Variable(1.0)
    tf.train.Checkpoint(variable=variable).save(str(tmp_path / "cp.ckpt"))
    assert (tmp_path / "checkpoint").exists()
    with pytest.raises(UserError, match=r"holds something else \(checkpoint, cp.ckpt-1.data"):
        run_folder.check(str(tmp_path), is_early=lambda _: False)


def manager(folder: str, step: int) -> run_checkpoints.RunCheckpoints:
    """The checkpoints of a run that has come to a step, restored."""
    variable = tf.Variable(0, dtype=tf.int64)
    made = run_checkpoints.RunCheckpoints(
        tf.train.Checkpoint(step=variable),
        folder,
        global_step=variable,
        interval=1,
        initialize=lambda: None,
        max_to_keep=3,
    )
    made.restore_or_initialize()
    made.tidy()
    variable.assign(step)
    return made


def numbers(folder: pathlib.Path) -> set[int]:
    return {int(path.stem.rpartition("-")[2]) for path in folder.glob("ckpt-*.index")}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_checkpoints_that_are_off_the_list_go(tmp_path: pathlib.Path, slashes: str) -> None:
    """One saved in the moment before a kill, and one that was damaged and passed over."""
    folder = f"{tmp_path}{slashes}"
    for step in (1, 2):
        manager(folder, step).save()
    listed = (tmp_path / "checkpoint").read_bytes()
    manager(folder, 3).save()
    (tmp_path / "checkpoint").write_bytes(listed)
    data = next(tmp_path.glob("ckpt-2.data-*"))
    data.write_bytes(data.read_bytes()[:-1])
    assert numbers(tmp_path) == {1, 2, 3}
    again = manager(folder, 2)
    assert again.latest_checkpoint.endswith("ckpt-1")
    assert {path.name.partition(".")[0] for path in tmp_path.glob("ckpt-*")} == {"ckpt-1"}
    again.save()
    assert numbers(tmp_path) == {1, 2}


def test_two_processes_of_one_worker_do_not_share_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = str(tmp_path / "run")
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        mine = pathlib.Path(run_checkpoints._own_folder(run, 1, first))
        (mine / "half a save").touch()
        other = run_checkpoints._own_folder(run, 1, second)
        assert other != str(mine) and (mine / "half a save").exists()
        assert run_checkpoints._own_folder(run, 2, second) not in (other, str(mine))
    # Both are gone without a word; what they left is not added to.
    with contextlib.ExitStack() as third:
        assert run_checkpoints._own_folder(run, 1, third) == str(mine)
        assert not list(mine.iterdir())


@given(free=st.integers(0, 9 * SIZE), kept=st.integers(0, 5), most=st.integers(1, 5))
def test_a_disk_is_refused_below_the_next_checkpoint_and_warned_of_below_all(free, kept, most):
    refused = disk_space.problem("run", free, SIZE, kept)
    warned = disk_space.warning("run", free, SIZE, kept, max_to_keep=most)
    # Two must fit in all, since the older goes after the newer is whole; and one must be written.
    assert bool(refused) == (free < SIZE or free + kept * SIZE < 2 * SIZE)
    assert bool(warned) == (not refused and free + kept * SIZE < (most + 1) * SIZE)


def test_a_disk_that_does_not_tell_is_let_be() -> None:
    assert disk_space.free_bytes("gs://bucket/run") is None
    assert disk_space.problem("gs://bucket/run", None, SIZE, 0) is None
    assert disk_space.problem("run", 0, None, 0) is None
    assert disk_space.warning("run", None, SIZE, 0, max_to_keep=5) is None


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path) -> None:
    assert disk_space.free_bytes(str(tmp_path / "a" / "b")) == disk_space.free_bytes(str(tmp_path))


def test_a_full_disk_ends_a_run_before_it_begins(tiny, tmp_path, monkeypatch) -> None:
    params = tiny()
    size = disk_space.checkpoint_bytes(params)
    assert size is not None
    free = {"bytes": 2 * size - 1}
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: free["bytes"])
    with pytest.raises(UserError, match="expected room for 2 more") as caught:
        preflight.check(params, "train_and_eval", str(tmp_path))
    assert estimates.in_words(size) in str(caught.value) and str(tmp_path) in str(caught.value)
    preflight.check(params, "eval", str(tmp_path))
    # The one that lies there counts.
    (tmp_path / "ckpt-2.index").touch()
    preflight.check(params, "train_and_eval", str(tmp_path))
    (warning,) = preflight.warnings(params, "train_and_eval", str(tmp_path))
    assert "room for 1 more checkpoints" in warning and "needs room for 5" in warning


def test_what_a_run_clears_away_before_it_saves_counts_as_free(tiny, tmp_path, monkeypatch) -> None:
    """A kill in the middle of a save leaves the disk as full as a run may make it."""
    params = tiny(trainer__max_to_keep=2)
    size = disk_space.checkpoint_bytes(params)
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: size // 2)
    for step in (2, 4):
        (tmp_path / f"ckpt-{step}.index").touch()
        (tmp_path / f"ckpt-{step}.data-00000-of-00001").write_bytes(bytes(size))
    with pytest.raises(UserError, match="expected room for 1 more"):
        preflight.check(params, "train_and_eval", str(tmp_path))
    half = tmp_path / "ckpt-6_temp"
    half.mkdir()
    (half / "part-00000-of-00001.data-00000-of-00001").write_bytes(bytes(size // 2 + 1))
    preflight.check(params, "train_and_eval", str(tmp_path))
    assert disk_space.numbers(params, str(tmp_path)) == (2 * (size // 2) + 1, size, 2)
    # Killed between the save and the sweep: the oldest of three is going to go.
    half.rename(tmp_path.parent / "elsewhere")
    (tmp_path / "ckpt-6.index").touch()
    (tmp_path / "ckpt-6.data-00000-of-00001").write_bytes(bytes(size))
    assert disk_space.numbers(params, str(tmp_path)) == (size // 2 + size, size, 2)
    # Killed within the sweep, which deletes the index first.
    (tmp_path / "ckpt-2.index").unlink()
    assert disk_space.numbers(params, str(tmp_path)) == (size // 2 + size, size, 2)


def test_a_finished_run_needs_no_room(tiny, tmp_path, monkeypatch) -> None:
    params = tiny()
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 0)
    with pytest.raises(UserError, match="expected room for"):
        preflight.check(params, "train_and_eval", str(tmp_path))
    (tmp_path / f"ckpt-{params.trainer.train_steps}.index").touch()
    preflight.check(params, "train_and_eval", str(tmp_path))


def test_changes_are_written_whole_or_not_at_all(tiny, tmp_path: pathlib.Path) -> None:
    """A line that a full disk cut short is replaced, not added to."""
    path = tmp_path / "changes.jsonl"
    first, second = ({"step": step, "field": "f", "was": 0, "now": step} for step in (5, 10))
    folder = run_files.RunFiles(tiny(), str(tmp_path), writes=True)
    folder._record([first])
    path.write_text(path.read_text() + '{"step": 10, "fi')
    folder._record([first, second])
    assert run_files.metrics_log.read(path) == [first, second]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ckpt-5_temp: No space left on device", "no space left on the disk: .*; make room"),
        (
            "OOM when allocating tensor",
            "little memory for the step: OOM .* .task.micro_batch_size",
        ),
    ],
)
def test_what_a_machine_lacks_is_told_in_a_line(reason: str, words: str) -> None:
    with pytest.raises(UserError, match=words), runner._user_errors():
        raise tf.errors.ResourceExhaustedError(None, None, reason)


def test_another_error_is_left_as_it_is() -> None:
    with pytest.raises(tf.errors.InternalError), runner._user_errors():
        raise tf.errors.InternalError(None, None, "a defect")


def test_a_checkpoint_that_does_not_fit_is_told_in_a_line(tmp_path: pathlib.Path) -> None:
    manager(str(tmp_path), 1).save()
    wider = tf.Variable([0, 0], dtype=tf.int64)
    other = run_checkpoints.RunCheckpoints(
        tf.train.Checkpoint(step=wider),
        str(tmp_path),
        max_to_keep=3,
        global_step=tf.Variable(0, dtype=tf.int64),
        interval=1,
        initialize=lambda: None,
    )
    with pytest.raises(UserError, match="cannot restore .*ckpt-1: .* one folder for all workers"):
        other.restore_or_initialize()
