"""Runs that are stopped, damaged or short of disk go on, and end as if undisturbed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from absl import flags

from official_bert import checkpoints, interruption, metrics_log, run_files, runner, train
from tests.bert.resumed_runs import (
    SCHEDULE,
    STEPS,
    arguments,
    assert_same_run,
    keep_oldest,
    tensors,
)
from tfrecords import files
from tfrecords.errors import UserError

LONG_S = 300.0  # until a broken test gives up; nothing that passes waits for it


@pytest.fixture(scope="module")
def with_dropout(tiny):
    encoder = "task__model__encoder__bert__"

    def make(**overrides):
        rates = {f"{encoder}dropout_rate": 0.1, f"{encoder}attention_dropout_rate": 0.1}
        steps = {"trainer__train_steps": STEPS, "trainer__max_to_keep": 3}
        return tiny(**(rates | steps | overrides))

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, with_dropout) -> pathlib.Path:
    """A run that nothing disturbed."""
    model_dir = tmp_path_factory.mktemp("whole")
    runner.run(with_dropout(), str(model_dir))
    return model_dir


def test_sigterm_saves_at_a_step_boundary_and_asks_to_be_started_again(
    tmp_path, whole, tiny_arguments, monkeypatch, capsys
) -> None:
    """The signal comes between two loops, so the next ends after its first step."""
    add_steps, ask = run_files.RunFiles.add_steps, interruption.StopRequest.set
    asked = threading.Event()

    def set_and_tell(self):
        ask(self)
        asked.set()

    def then_sigterm(self, rows, seconds, summary):
        add_steps(self, rows, seconds, summary)
        if rows[-1]["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.wait(60)

    monkeypatch.setattr(interruption.StopRequest, "set", set_and_tell)
    monkeypatch.setattr(run_files.RunFiles, "add_steps", then_sigterm)
    command = arguments(tmp_path, tiny_arguments)
    assert train.main(command) == interruption.EXIT_RESTART
    stopped = metrics_log.read(tmp_path / metrics_log.METRICS)[-1]["step"]
    assert stopped == 5  # the first of a loop of two
    assert checkpoints.latest(str(tmp_path)).endswith(f"ckpt-{stopped}")
    error = capsys.readouterr().err
    assert f"stopped at step {stopped}" in error
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    assert train.main(command) == 0
    assert_same_run(tmp_path, whole)


WAITS = """
import os, signal, sys, threading
from official_bert import interruption
stop = interruption.StopRequest()
if sys.argv[2] == "running":
    stop.watch()
with interruption.stops_on_sigterm(stop, float(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("state", "grace", "words"),
    [("running", "0.1", "within 0.1 s of SIGTERM"), ("starting", "600", "before the run began")],
)
def test_without_a_boundary_the_process_ends_in_time(state: str, grace: str, words: str) -> None:
    """The main thread waits for ever, as in a step that takes hours, or for peers."""
    ended = subprocess.run(
        [sys.executable, "-c", WAITS, grace, state], capture_output=True, text=True, timeout=LONG_S
    )
    assert ended.returncode == interruption.EXIT_RESTART
    assert words in ended.stderr


def cut_short(prefix: str) -> None:
    path = pathlib.Path(f"{prefix}.data-00000-of-00001")
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(prefix: str) -> None:
    path = pathlib.Path(f"{prefix}.data-00000-of-00001")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_the_index(prefix: str) -> None:
    pathlib.Path(f"{prefix}.index").unlink()


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_the_index])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path, with_dropout, whole, damage, caplog
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = checkpoints.latest(str(run))
    damage(newest)
    before = checkpoints.newest_whole(str(run))
    assert before.endswith("ckpt-10") and "ckpt-12 is damaged" in caplog.text
    runner.run(with_dropout(), str(run))
    assert_same_run(run, whole)
    assert checkpoints.latest(str(run)) == newest


@pytest.mark.parametrize("content", [b"", b"\0" * 60, b"\xff\xfe", None])
def test_the_list_of_checkpoints_may_be_lost(
    tmp_path, with_dropout, whole, content, caplog
) -> None:
    """They are found by their names; nothing is begun again."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if content is None:
        (run / "checkpoint").unlink()
    else:
        (run / "checkpoint").write_bytes(content)
    assert checkpoints.latest(str(run)).endswith("ckpt-12")
    assert "missing or damaged" in caplog.text
    runner.run(with_dropout(trainer__max_to_keep=2), str(run))
    assert_same_run(run, whole)
    assert {path.stem for path in run.glob("ckpt-*.index")} == {"ckpt-10", "ckpt-12"}


def test_what_was_passed_over_is_not_kept_instead_of_what_is_whole(
    tmp_path, with_dropout, whole
) -> None:
    """One checkpoint may stay, and the newest is damaged: the run is not left without any."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flip_a_bit(checkpoints.latest(str(run)))
    stop = interruption.StopRequest()
    stop.set()
    with pytest.raises(interruption.Stopped):
        runner.run(with_dropout(trainer__max_to_keep=1), str(run), stop=stop)
    assert checkpoints.latest(str(run)).endswith("ckpt-11")


def test_other_shards_are_another_run(tmp_path, with_dropout, whole, shards) -> None:
    """Moved ones are not; rebuilt ones at the same place are."""
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    params = with_dropout(task__train_data__input_path=moved)
    runner.run(params, str(run))
    changes = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert [row["field"] for row in changes] == ["task.train_data.input_path"]
    manifest = moved / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match="are not those it was begun with"):
        runner.run(params, str(run))
    with pytest.raises(UserError, match="task.seed was 0, now 5"):
        runner.run(with_dropout(task__seed=5), str(run))


def test_no_whole_checkpoint_is_an_error(tmp_path, with_dropout, whole) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in run.glob("ckpt-*.index"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        runner.run(with_dropout(), str(run))


# In a process of its own: no file of any thread may grow there any more, nor the log of a test.
FULL_DISK = """
import resource, sys
from official_bert import run_files, train
add_steps = run_files.RunFiles.add_steps
def then_full(self, rows, *args):
    add_steps(self, rows, *args)
    if rows[-1]["step"] == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
run_files.RunFiles.add_steps = then_full
sys.exit(train.main())
"""


def test_a_full_disk_ends_the_run_and_spares_what_was_saved(
    tmp_path, with_dropout, whole, tiny_arguments
) -> None:
    """No file may grow beyond 50 kB, half of a checkpoint, from step 6 on."""
    command = [sys.executable, "-c", FULL_DISK, *arguments(tmp_path, tiny_arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S)
    assert ended.returncode == 2, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: cannot save the checkpoint of step 6 in")
    assert "make room" in error
    saved = checkpoints.latest(str(tmp_path))
    assert saved.endswith("ckpt-4")
    numbers = {path.name.split(".")[0] for path in tmp_path.glob("ckpt-*")}
    assert all(int(name.split("-")[1].split("_")[0]) <= 4 for name in numbers), numbers
    runner.run(with_dropout(), str(tmp_path))
    assert_same_run(tmp_path, whole)


def test_params_yaml_is_enough_to_rerun(tmp_path, whole) -> None:
    again = tmp_path / "again"
    assert train.main([f"--config_file={whole / 'params.yaml'}", f"--model_dir={again}"]) == 0
    assert_same_run(again, whole)
    assert (again / "params.yaml").read_text() == (whole / "params.yaml").read_text()


def test_two_processes_do_not_train_in_one_folder(
    tmp_path, with_dropout, whole, monkeypatch
) -> None:
    monkeypatch.setattr(run_files, "PATIENCE_SECONDS", 0.1)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with (
        files.lock(str(run / ".lock")),
        # No mistake of the user's, after which nobody would start it again.
        pytest.raises(TimeoutError, match=r"another process is at work in .* after 0\.1 seconds"),
    ):
        runner.run(with_dropout(), str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("is_listed_late", [False, True])
def test_what_an_ending_process_still_saves_is_gone_on_from(
    tmp_path, with_dropout, whole, monkeypatch, is_listed_late: bool
) -> None:
    """It saves its last steps after its replacement restored, and before that has the lock."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    keep_oldest(run, 1)
    if is_listed_late:
        # A save writes its files before the list that names them.
        for path in whole.glob("ckpt-*"):
            shutil.copy(path, run)
    locked = run_files.RunFiles.locked

    def locked_after_the_other(this: run_files.RunFiles):
        shutil.copytree(whole, run, dirs_exist_ok=True)
        return locked(this)

    monkeypatch.setattr(run_files.RunFiles, "locked", locked_after_the_other)
    trained = []
    monkeypatch.setattr(run_files.RunFiles, "add_steps", lambda *args: trained.append(args))
    assert runner.run(with_dropout(), str(run)).global_step == STEPS
    assert not trained
    assert_same_run(run, whole)


@pytest.mark.parametrize(("has_begun", "code"), [(False, 2), (True, interruption.EXIT_FAILED)])
def test_files_that_fail_in_the_middle_are_worth_another_start(
    has_begun: bool, code: int, capsys
) -> None:
    flag_values = flags.FlagValues()
    interruption.define_flags(flag_values)

    def body(parsed, stop) -> None:
        assert parsed.grace_seconds == interruption.GRACE_SECONDS
        if has_begun:
            stop.watch()
        raise OSError("the network disk is away")

    assert interruption.exit_code(body, flag_values, []) == code
    assert "error: the network disk is away" in capsys.readouterr().err


def test_model_gardens_adamw_goes_on_too(tmp_path, tiny) -> None:
    """Its slots are restored, and the run ends with the same bits."""
    optimizer = {"trainer__optimizer_config__optimizer__type": "adamw"}
    params = tiny(**optimizer, **{f"{SCHEDULE}peak_learning_rate": 0.002})
    runner.run(params, str(tmp_path / "whole"), "train")
    stop = interruption.StopRequest()
    stop.set()
    with pytest.raises(interruption.Stopped):
        runner.run(params, str(tmp_path / "run"), "train", stop=stop)
    runner.run(params, str(tmp_path / "run"), "train")
    found, expected = tensors(tmp_path / "run"), tensors(tmp_path / "whole")
    assert any("/m/" in name for name in expected)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
