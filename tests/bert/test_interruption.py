"""Runs that are stopped, damaged or short of disk go on, and end as if undisturbed."""

import io
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

from official_bert import (
    checkpoints,
    interruption,
    metrics_log,
    output_lines,
    run_files,
    runner,
    train,
)
from tests.bert import kill_harness, signalled
from tests.bert.resumed_runs import (
    SCHEDULE,
    STEPS,
    arguments,
    assert_same_run,
    keep_oldest,
    tensors,
)
from tests.bert.signalled import BLOCKING, EVALUATING, STARTING
from tfrecords import command, files
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


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, interruption.EXIT_RESTART), (signal.SIGINT, command.INTERRUPTED)],
)
def test_a_signal_saves_at_a_step_boundary_and_the_run_goes_on(
    tmp_path, whole, tiny_arguments, monkeypatch, capsys, number: signal.Signals, code: int
) -> None:
    """The signal comes between two loops, so the next ends after its first step."""
    add_steps, ask = run_files.RunFiles.add_steps, interruption.StopRequest.set
    asked = threading.Event()

    def set_and_tell(self):
        ask(self)
        asked.set()

    def then_signal(self, rows, seconds, summary):
        add_steps(self, rows, seconds, summary)
        if rows[-1]["step"] == 4:
            os.kill(os.getpid(), number)
            assert asked.wait(60)

    monkeypatch.setattr(interruption.StopRequest, "set", set_and_tell)
    monkeypatch.setattr(run_files.RunFiles, "add_steps", then_signal)
    flags_of_run = arguments(tmp_path, tiny_arguments)
    # Where the tests run in the background, Ctrl-C is ignored.
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert train.main(flags_of_run) == code
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    stopped = metrics_log.read(tmp_path / metrics_log.METRICS)[-1]["step"]
    assert stopped == 5  # the first of a loop of two
    assert checkpoints.latest(str(tmp_path)).endswith(f"ckpt-{stopped}")
    error = capsys.readouterr().err
    assert f"stopped at step {stopped} as asked, all of it saved; start again with" in error
    assert ("press it again to end at once" in error) == (number == signal.SIGINT)
    monkeypatch.undo()
    assert train.main(flags_of_run) == 0
    assert_same_run(tmp_path, whole)


TERM, HANG_UP, CTRL_C = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


@pytest.mark.parametrize(
    ("state", "grace", "numbers", "code", "words"),
    [
        (BLOCKING, 0.1, [TERM], 42, "within 0.1 s of SIGTERM"),
        (BLOCKING, 0.1, [HANG_UP], 42, "within 0.1 s of SIGHUP"),
        (STARTING, LONG_S, [TERM], 42, "SIGTERM before the run began"),
        (STARTING, LONG_S, [CTRL_C], 130, "Ctrl-C before the run began"),
        (EVALUATING, LONG_S, [CTRL_C], 130, "Ctrl-C, and no step whose end to save at"),
        # Who pressed it is there to press it again, however short the grace is.
        (BLOCKING, 0.0, [CTRL_C, CTRL_C], 130, "Ctrl-C again"),
        (BLOCKING, LONG_S, [TERM, CTRL_C], 130, "Ctrl-C again"),
        (BLOCKING, LONG_S, [TERM, TERM, CTRL_C], 130, "Ctrl-C again"),
        # The machine ends after all, and the run was not to be started again.
        (BLOCKING, 0.1, [CTRL_C, TERM], 130, "within 0.1 s of SIGTERM"),
    ],
)
def test_without_a_boundary_the_process_ends_in_time(
    tmp_path, state: str, grace: float, numbers: list[int], code: int, words: str
) -> None:
    log = tmp_path / "log"
    assert signalled.ended(signalled.waits, log, state, grace, numbers, []) == code
    assert words in log.read_text().splitlines()[-1]


def test_signals_that_are_ignored_from_the_start_stay_so(tmp_path) -> None:
    """As below nohup, or behind a `&` in a script. SIGTERM is how a script asks for a save."""
    log, ignored = tmp_path / "log", [HANG_UP, CTRL_C, TERM]
    numbers = [HANG_UP, CTRL_C, CTRL_C, TERM]
    assert signalled.ended(signalled.waits, log, BLOCKING, 0.0, numbers, ignored) == 42
    said = log.read_text()
    assert "within 0 s of SIGTERM" in said and "SIGHUP" not in said and "Ctrl-C" not in said


def test_a_lost_terminal_stops_a_run_in_order() -> None:
    """Whatever is written to it afterwards fails."""
    master, slave = os.openpty()
    context = kill_harness.context()
    hang_up = context.Event()
    arguments = (os.ttyname(slave), hang_up)
    process = context.Process(target=signalled.loses_its_terminal, args=arguments, daemon=True)
    process.start()
    try:
        assert hang_up.wait(LONG_S)
        os.close(slave)
        os.close(master)
        process.join(LONG_S)
    finally:
        process.kill()
    assert process.exitcode == interruption.EXIT_RESTART


def test_output_that_nobody_reads_ends_no_run(monkeypatch) -> None:
    """Ctrl-C ends a `tee` too. Python would end with 120 if something were left to be written."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        output = output_lines.Unbroken(stream)
        for _ in range(2):
            assert output.write("a line\n" * 10_000) == 70_000
            output.flush()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        interruption._say("stopped")
    with open("/dev/full", "wb", buffering=0) as raw, pytest.raises(OSError, match="No space left"):
        output_lines.Unbroken(io.TextIOWrapper(raw, write_through=True)).write("a line")


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


def test_behind_the_last_step_a_stop_waits_for_none(tmp_path, with_dropout, monkeypatch) -> None:
    """In the last evaluation, and in what a command does when the run is over."""
    stop, waits = interruption.StopRequest(), {}
    monkeypatch.setattr(
        run_files.RunFiles,
        "add_evaluation",
        lambda self, step, values: waits.update({step: stop.has_steps}),
    )
    runner.run(with_dropout(), str(tmp_path), stop=stop)
    assert waits == {4: True, 8: True, STEPS: False}
    assert not stop.has_steps


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
    line = [sys.executable, "-c", FULL_DISK, *arguments(tmp_path, tiny_arguments)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=LONG_S)
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
