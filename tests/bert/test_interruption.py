"""Runs that are stopped, whose checkpoints are damaged, whose disk is full, whose loss is lost."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from official_bert import checkpoints, guard, interruption, metrics_log, run_files, runner, train
from tfrecords import files
from tfrecords.errors import UserError

SCHEDULE = "trainer__optimizer_config__learning_rate__warmup_constant_decay__"
STEPS = 12
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


def tensors(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Of the last checkpoint; how often a run was saved is its own affair."""
    reader = tf.train.load_checkpoint(str(model_dir))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name)
        for name in names
        if "save_counter" not in name and "OBJECT_GRAPH" not in name
    }


def assert_same_run(model_dir: pathlib.Path, whole: pathlib.Path) -> None:
    """Every logged number, every weight and every moment, bit for bit."""
    for name in (metrics_log.METRICS, metrics_log.EVALUATIONS):
        assert (model_dir / name).read_text() == (whole / name).read_text()
    found, expected = tensors(model_dir), tensors(whole)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def keep_oldest(model_dir: pathlib.Path, count: int) -> list[int]:
    """Leaves the first checkpoints of a run, as a kill would have; their steps."""
    found = checkpoints.listed(str(model_dir))
    checkpoints.write_list(str(model_dir), found[:count])
    for prefix in found[count:]:
        for path in model_dir.glob(f"{pathlib.Path(prefix).name}.*"):
            path.unlink()
    return [int(prefix.rpartition("-")[2]) for prefix in found[:count]]


def arguments(model_dir: pathlib.Path, tiny_arguments, *overrides: str) -> list[str]:
    config_file, data = tiny_arguments
    bert = "task.model.encoder.bert"
    text = [data, f"{bert}.dropout_rate=0.1,{bert}.attention_dropout_rate=0.1"]
    text += [f"trainer.train_steps={STEPS},trainer.max_to_keep=3", *overrides]
    return [
        f"--config_file={config_file}",
        f"--model_dir={model_dir}",
        f"--params_override={','.join(text)}",
    ]


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


def test_a_run_that_diverges_ends(tmp_path, tiny) -> None:
    """At a rate of 1e30 the weights leave float32 after one update; the gradients are NaN."""
    rate = {f"{SCHEDULE}peak_learning_rate": 1e30}
    params = tiny(trainer__train_steps=40, trainer__max_skipped_steps=5, **rate)
    with pytest.raises(UserError, match="not finite, 5 in a row") as caught:
        runner.run(params, str(tmp_path), "train")
    rows = metrics_log.read(tmp_path / metrics_log.METRICS)
    last = rows[-1]["step"]
    assert last < 12 and rows[-1]["skipped_steps"] >= 5
    assert "largest gradient norms by block" in str(caught.value)
    assert "ckpt-" in str(caught.value)
    assert checkpoints.latest(str(tmp_path))
    # Started again it ends at once: the count is in the log.
    with pytest.raises(UserError, match="in a row"):
        runner.run(params, str(tmp_path), "train")


def test_the_guard_counts_over_restarts() -> None:
    def rows(*skipped: int) -> list[dict]:
        return [{"step": n, "skipped_steps": count} for n, count in enumerate(skipped, start=1)]

    counting = guard.SkippedStepsGuard(3, rows(0, 1, 2))
    assert counting.in_a_row == 2
    assert counting.see(rows(2)) is None and counting.in_a_row == 0
    assert counting.see(rows(3, 4)) is None
    assert counting.see(rows(5)) == {"step": 1, "skipped_steps": 5}
    inside = guard.SkippedStepsGuard(2)
    assert inside.see(rows(1, 2, 3, 3)) is None
    assert inside.see(rows(4, 5, 6))["step"] == 3 and inside.in_a_row == 3
    lost = guard.SkippedStepsGuard(2)
    assert lost.see([{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}])["step"] == 2
    raised = guard.SkippedStepsGuard(2, rows(1, 2, 2, 2))
    assert raised.in_a_row == 0 and raised.see(rows(3)) is None
    message = str(guard.diverged({"step": 9, "loss": None}, 3, {"a": 1.0, "b": np.nan}, "ckpt-4"))
    assert "steps 7 to 9" in message and "b nan, a 1" in message


# The one decays from step 5 on, the other from step 9 on; both have warmed up after step 2.
SHORT = {"trainer__train_steps": 6, f"{SCHEDULE}constant_steps": 2}
LONG = {"trainer__train_steps": 10, f"{SCHEDULE}constant_steps": 6}


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny) -> pathlib.Path:
    """A run that was as long from the start."""
    model_dir = tmp_path_factory.mktemp("planned")
    runner.run(tiny(**LONG), str(model_dir), "train")
    return model_dir


def stop_at(step: int, model_dir: pathlib.Path, params, monkeypatch) -> None:
    """Runs until a step, as SIGTERM would end it there: the loop after the request is one step."""
    stop = interruption.StopRequest()
    add_steps = run_files.RunFiles.add_steps

    def then_ask(self, rows, seconds, summary):
        add_steps(self, rows, seconds, summary)
        if rows[-1]["step"] == step - 1:
            stop.set()

    if step == 1:
        stop.set()
    with monkeypatch.context() as patch, pytest.raises(interruption.Stopped):
        patch.setattr(run_files.RunFiles, "add_steps", then_ask)
        runner.run(params.replace(trainer=params.trainer.replace(steps_per_loop=1)),
                   str(model_dir), "train", stop=stop)  # fmt: skip
    assert [row["step"] for row in metrics_log.read(model_dir / metrics_log.METRICS)] == list(
        range(1, step + 1)
    )


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_on_its_plateau_may_be_lengthened(
    tmp_path, tiny, planned, monkeypatch, step: int
) -> None:
    """Up to the plateau's last step; before it, too. It ends as one that was planned so."""
    run = tmp_path / "run"
    stop_at(step, run, tiny(**SHORT), monkeypatch)
    runner.run(tiny(**LONG), str(run), "train")
    assert (run / "metrics.jsonl").read_text().splitlines()[-1] == (
        planned / "metrics.jsonl"
    ).read_text().splitlines()[-1]
    found, expected = tensors(run), tensors(planned)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
    changes = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert {(row["field"].split(".")[-1], row["was"], row["now"]) for row in changes} == {
        ("constant_steps", 2, 6), ("total_steps", 6, 10), ("train_steps", 6, 10)
    }  # fmt: skip
    assert {row["step"] for row in changes} == {step}


def test_a_run_that_decays_may_not_be_lengthened(tmp_path, tiny, planned, monkeypatch) -> None:
    """Its last step has had another rate than a longer plateau would have given it."""
    run = tmp_path / "run"
    stop_at(5, run, tiny(**SHORT), monkeypatch)
    with pytest.raises(UserError, match="constant_steps was 2, now 6.*gives step 5, of 5 done"):
        runner.run(tiny(**LONG), str(run), "train")
    finished = tmp_path / "finished"
    shutil.copytree(planned, finished)
    with pytest.raises(UserError, match="constant_steps was 6, now 8.*gives step 9"):
        longer = {"trainer__train_steps": 12, f"{SCHEDULE}constant_steps": 8}
        runner.run(tiny(**longer), str(finished), "train")
    steeper = {**LONG, f"{SCHEDULE}peak_learning_rate": 0.06}
    with pytest.raises(UserError, match="peak_learning_rate was 0.05, now 0.06"):
        runner.run(tiny(**steeper), str(finished), "train")


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
