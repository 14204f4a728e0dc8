"""Supervision against small workers that die, hang, ask for a restart, and outlive nobody."""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from official_bert import interruption, launch, supervision
from official_bert.output_lines import Lines
from official_bert.supervision import Ending, Failure, Job, Pulse
from tfrecords import command

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONG = 60.0  # seconds until a broken test gives up; nothing that passes waits for it

# A worker writes down that it started, then does what its part says for this start.
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time
folder, parts = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
start = len(list(folder.glob(f"{index}-*.start")))
note = {"pid": os.getpid(), "environ": dict(os.environ)}
(folder / f"{index}-{start}.start").write_text(json.dumps(note))

def beat():
    path = pathlib.Path(os.environ["TF_LANS_HEARTBEAT"])
    path.touch()

def train():  # until the supervisor has seen as much, however seldom it looks
    while not (folder / "seen").exists():
        beat()
        time.sleep(0.01)

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

def block():  # as in a sum over all workers, one of which is gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()

def on_term(*_):
    (folder / f"{index}-{start}.saved").touch()
    sys.exit(42)

def save_on_term():
    signal.signal(signal.SIGTERM, on_term)
    (folder / f"{index}-{start}.ready").touch()
    print("ready")
    while True:
        signal.pause()

beat()
exec(parts[index][min(start, len(parts[index]) - 1)])
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
READY = "print('ready'); "


class Spoken(list):
    """What went to the screen, line by line."""

    def __call__(self, speaker: str, lines: Sequence[bytes]) -> None:
        self += [f"[{speaker}] {line.decode()}" for line in lines]


def job(folder: pathlib.Path, parts: Sequence[Sequence[str]], **changes: object) -> Job:
    """Workers whose i-th acts out `parts[i]`, one entry a start, the last one for all others."""
    options: dict = {
        "command": [sys.executable, "-u", "-c", WORKER, str(folder), json.dumps(parts)],
        "environments": lambda: launch.cluster_environments(launch.free_ports(len(parts))),
        "log_dir": str(folder / "logs"),
        "max_restarts": 3,
        "grace_seconds": LONG,
        "hang_seconds": 0.0,
        "poll_seconds": 0.02,
        "settle_seconds": LONG,
    }
    return Job(**(options | changes))


def notes(folder: pathlib.Path, worker: int) -> list[dict]:
    """What each start of a worker wrote down."""
    paths = sorted(folder.glob(f"{worker}-*.start"))
    return [json.loads(path.read_text()) for path in paths]


def tf_configs(folder: pathlib.Path, worker: int) -> list[dict]:
    return [json.loads(note["environ"]["TF_CONFIG"]) for note in notes(folder, worker)]


def are_gone(*pids: int) -> bool:
    """Whether processes end, which those that were just killed do in their own time."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError), process_descriptor(pid) as descriptor:
            if not select.select([descriptor], [], [], LONG)[0]:
                return False
    return True


@contextlib.contextmanager
def process_descriptor(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run(job: Job) -> tuple[Ending, Spoken]:
    spoken = Spoken()
    return supervision.supervise(job, spoken), spoken


def test_a_job_whose_workers_end_well_is_done(tmp_path) -> None:
    ending, spoken = run(job(tmp_path, [["print('a', index)"]] * 3))
    assert ending == Ending(code=0)
    assert sorted(spoken) == [f"[worker {i}] a {i}" for i in range(3)]
    for index in range(3):
        (config,) = tf_configs(tmp_path, index)
        assert config["task"] == {"type": "worker", "index": index}
        assert config["cluster"] == tf_configs(tmp_path, 0)[0]["cluster"]
        assert len(set(config["cluster"]["worker"])) == 3
        head, line = (tmp_path / f"logs/worker-{index}.log").read_text().splitlines()
        assert head.startswith(f"--- start 1 of worker {index}, ") and line == f"a {index}"


def test_the_death_of_one_starts_all_again_and_peers_are_not_asked_to_save(tmp_path) -> None:
    killed = f"wait_for(folder/'1-0.ready'); {KILLED}"
    parts = [[killed, "print('again')"], ["save_on_term()", ""]]
    ending, spoken = run(job(tmp_path, parts))
    assert ending == Ending(code=0)
    assert [len(notes(tmp_path, index)) for index in range(2)] == [2, 2]
    assert not list(tmp_path.glob("*.saved"))
    assert (
        "[launch] worker 0 was ended by signal 9 (SIGKILL); all workers start again (1 of 3 "
        in (" ".join(spoken))
    )
    first, second = tf_configs(tmp_path, 0)
    assert first["cluster"] != second["cluster"]
    log = (tmp_path / "logs/worker-0.log").read_text().splitlines()
    assert [line[:11] for line in log] == ["--- start 1", "--- start 2", "again"]


def test_restarts_are_counted_and_the_last_failure_is_named(tmp_path) -> None:
    ending, _ = run(job(tmp_path, [["block()"], [KILLED]], max_restarts=2))
    log = tmp_path / "logs/worker-1.log"
    assert ending == Ending(
        code=1,
        error=f"worker 1 was ended by signal 9 (SIGKILL), after 2 restarts; its log is {log}",
    )
    assert len(notes(tmp_path, 1)) == 3


def test_an_exit_code_is_named_too(tmp_path) -> None:
    ending, _ = run(job(tmp_path, [["sys.exit(7)"]], max_restarts=0))
    assert ending.code == 1 and ending.error.startswith("worker 0 ended with exit code 7, after 0 ")


def test_a_users_mistake_is_told_once_and_not_tried_again(tmp_path) -> None:
    mistake = "print('error: no shards; build some', file=sys.stderr); sys.exit(2)"
    ending, _ = run(job(tmp_path, [["block()"], [mistake]]))
    assert ending == Ending(code=2, error="no shards; build some")
    assert len(notes(tmp_path, 1)) == 1


def test_a_mistake_without_a_line_points_to_the_log(tmp_path) -> None:
    ending, _ = run(job(tmp_path, [["sys.exit(2)"]]))
    assert ending.code == 2 and ending.error.endswith(str(tmp_path / "logs/worker-0.log"))


def test_a_mistake_explains_its_victim_that_ended_first(tmp_path) -> None:
    late = (
        "wait_for(folder/'0-0.pid'); pid = (folder/'0-0.pid').read_text()\n"
        "while os.path.exists(f'/proc/{pid}'): time.sleep(0.01)\n"
        "print('error: x'); sys.exit(2)"
    )
    early = "(folder/'p').write_text(str(os.getpid())); (folder/'p').rename(folder/'0-0.pid')"
    ending, _ = run(job(tmp_path, [[f"{early}; sys.exit(1)"], [late]]))
    assert ending == Ending(code=2, error="x")


def test_a_wish_to_start_again_lets_the_others_save_and_costs_no_restart(
    tmp_path, monkeypatch
) -> None:
    look = Pulse.look

    def look_and_tell(self: Pulse, *args: object, **kwargs: object) -> None:
        look(self, *args, **kwargs)
        # One is of the start, one of the save of what was restored, the third of a step.
        if self.beats >= 3:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(Pulse, "look", look_and_tell)
    asks = "wait_for(folder/'0-0.ready'); train(); sys.exit(42)"
    parts = [["save_on_term()", ""], [asks, ""]]
    ending, spoken = run(job(tmp_path, parts, max_restarts=0))
    assert ending == Ending(code=0)
    assert (tmp_path / "0-0.saved").exists()
    assert "(0 of 0 restarts used)" in " ".join(spoken)


def test_a_wish_to_start_again_without_training_is_counted(tmp_path) -> None:
    def environments() -> list[dict[str, str]]:
        assert len(notes(tmp_path, 0)) < 9, "it would go on for ever"
        return launch.cluster_environments(launch.free_ports(1))

    wanted = job(tmp_path, [["sys.exit(42)"]], max_restarts=2, environments=environments)
    ending, _ = run(wanted)
    assert ending.code == 1 and "before it had trained, after 2 restarts" in ending.error
    assert len(notes(tmp_path, 0)) == 3


def test_a_worker_that_was_interrupted_is_not_started_again(tmp_path) -> None:
    """The others save, and end with what they end with after SIGTERM."""
    parts = [["wait_for(folder/'1-0.ready'); sys.exit(130)"], ["save_on_term()"]]
    ending, spoken = run(job(tmp_path, parts))
    assert ending == Ending(code=130)
    assert (tmp_path / "1-0.saved").exists()
    assert [len(notes(tmp_path, index)) for index in range(2)] == [1, 1]


def test_an_interruption_explains_a_peer_that_ended_first(tmp_path) -> None:
    """All stop at one step; the first to have said so may be one that got no signal itself."""
    first = "wait_for(folder/'1-0.ready'); sys.exit(42)"
    later = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); "
        "(folder/'1-0.ready').touch(); signal.pause()"
    )
    assert run(job(tmp_path, [[first], [later]]))[0] == Ending(code=130)


def test_a_worker_without_a_heartbeat_hangs(tmp_path) -> None:
    quick = {"hang_seconds": 0.3, "grace_seconds": 0.0, "margin_seconds": 0.3}
    # On a busy machine the second start may look hung too, before it has come to its end.
    ending, spoken = run(job(tmp_path, [["block()", ""]], max_restarts=100, **quick))
    assert ending == Ending(code=0)
    assert "[launch] worker 0 hung (its heartbeat rested for 0.3 s); all" in spoken[0]


def test_what_workers_started_ends_with_them(tmp_path) -> None:
    child = (
        "child = subprocess.Popen(['sleep', '600']); (folder/'child').write_text(str(child.pid))"
    )
    ending, _ = run(job(tmp_path, [[f"{child}; {KILLED}"], ["block()"]], max_restarts=0))
    assert ending.code == 1
    pids = [note["pid"] for index in range(2) for note in notes(tmp_path, index)]
    assert are_gone(*pids, int((tmp_path / "child").read_text()))


def test_output_that_a_descendant_holds_open_does_not_silence_the_next_start(tmp_path) -> None:
    holds = (
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        "(folder/'child').write_text(str(child.pid)); sys.exit(1)"
    )
    wanted = job(tmp_path, [[holds, "print('second')"]], margin_seconds=0.2)
    try:
        ending, spoken = run(wanted)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert ending.code == 0
    assert "[worker 0] second" in spoken


def test_a_log_that_cannot_be_written_leaves_nothing_running(tmp_path) -> None:
    (tmp_path / "logs/worker-1.log").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(job(tmp_path, [["block()"], ["block()"]]))
    assert are_gone(*(note["pid"] for note in notes(tmp_path, 0)))


def test_a_full_disk_under_the_logs_ends_the_job(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/worker-0.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run(job(tmp_path, [["block()"]]))


def test_a_disk_that_fills_up_later_ends_the_job(tmp_path) -> None:
    def full(speaker: str, lines: Sequence[bytes]) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        supervision.supervise(job(tmp_path, [["save_on_term()"]]), full)
    assert are_gone(notes(tmp_path, 0)[0]["pid"])


# The same in a process of its own, to be sent signals.
LAUNCHER = """
import json, sys
from official_bert import launch, supervision
command, log_dir, workers, grace_seconds = json.loads(sys.argv[1])
job = supervision.Job(
    command=command, log_dir=log_dir, grace_seconds=grace_seconds, hang_seconds=0.0,
    environments=lambda: launch.cluster_environments(launch.free_ports(workers)),
)
sys.exit(supervision.supervise(job, launch.Screen(sys.stdout.buffer).show).code)
"""


@contextlib.contextmanager
def launched(
    folder: pathlib.Path, parts: Sequence[Sequence[str]], grace_seconds: float = LONG
) -> Iterator[subprocess.Popen]:
    """A launcher all of whose workers said that they are ready."""
    wanted = job(folder, parts)
    arguments = json.dumps([wanted.command, wanted.log_dir, len(parts), grace_seconds])
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, arguments], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = {process.stdout.readline() for _ in parts}
            assert ready == {f"[worker {index}] ready\n" for index in range(len(parts))}
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130), (signal.SIGHUP, 42)]
)
def test_a_signal_is_forwarded(tmp_path, number: signal.Signals, code: int) -> None:
    with launched(tmp_path, [["save_on_term()"]] * 2) as process:
        process.send_signal(number)
        assert process.wait(LONG) == code
    assert len(list(tmp_path.glob("*.saved"))) == 2


def test_a_second_signal_ends_workers_that_do_not_listen(tmp_path) -> None:
    parts = [[f"{READY}block()"], ["save_on_term()"]]
    with launched(tmp_path, parts) as process:
        process.send_signal(signal.SIGINT)
        assert are_gone(notes(tmp_path, 1)[0]["pid"])
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
    assert are_gone(notes(tmp_path, 0)[0]["pid"])


def test_nothing_outlives_a_killed_launcher(tmp_path) -> None:
    child = (
        "child = subprocess.Popen(['sleep', '600']); (folder/'child').write_text(str(child.pid))"
    )
    parts = [[f"{child}; {READY}block()"], [f"{READY}block()"]]
    with launched(tmp_path, parts) as process:
        process.kill()
        pids = [notes(tmp_path, index)[0]["pid"] for index in range(2)]
        assert are_gone(*pids, int((tmp_path / "child").read_text()))


def test_a_reader_of_the_screen_may_leave(tmp_path) -> None:
    part = f"{READY}wait_for(folder/'closed'); print('more')"
    with launched(tmp_path, [[part]]) as process:
        assert process.stdout is not None
        process.stdout.close()
        (tmp_path / "closed").touch()
        assert process.wait(LONG) == 0
    assert (tmp_path / "logs/worker-0.log").read_text().endswith("ready\nmore\n")


def test_what_is_agreed_with_the_workers() -> None:
    assert supervision.HEARTBEAT == interruption.HEARTBEAT
    assert supervision.RESTART == interruption.EXIT_RESTART
    assert supervision.INTERRUPTED == command.INTERRUPTED


@given(
    text=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n"])).map(b"".join),
    cuts=st.lists(st.integers(0, 40)),
)
def test_lines_do_not_depend_on_how_they_arrive(text: bytes, cuts: list[int]) -> None:
    lines, found = Lines(), []
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in zip(edges, edges[1:], strict=False):
        found += lines.feed(text[start:end], now=1e9)
    assert found + lines.end() == text.splitlines()


@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1))
def test_the_last_state_of_every_bar_is_kept(bars: list[list[int]]) -> None:
    lines, found = Lines(), []
    for bar in bars:
        for state in bar:
            found += lines.feed(b"\r%d%%" % state, now=0.0)
        found += lines.feed(b"\n", now=0.0)
    assert found == [b"%d%%" % bar[-1] for bar in bars]


def test_a_bar_shows_a_state_every_quarter_of_a_minute() -> None:
    lines = Lines()
    shown = [lines.feed(b"\r%d" % now, now=float(now)) for now in range(100, 132)]
    assert [line for found in shown for line in found] == [b"100", b"115", b"130"]


def test_a_line_without_an_end_is_cut() -> None:
    lines = Lines()
    found = [line for _ in range(100) for line in lines.feed(b"x" * 1000, now=0.0)]
    assert found and b"".join([*found, *lines.end()]) == b"x" * 100_000


def test_a_pulse_rests_only_while_it_is_looked_at() -> None:
    pulse = Pulse(now=0.0)
    pulse.look(None, now=1.0, longest=5.0)
    assert (pulse.beats, pulse.rest_seconds) == (0, 1.0)
    pulse.look(10, now=2.0, longest=5.0)
    assert (pulse.beats, pulse.rest_seconds, pulse.has_trained) == (1, 0.0, False)
    pulse.look(10, now=1000.0, longest=5.0)
    assert pulse.rest_seconds == 5.0
    pulse.look(11, now=1001.0, longest=5.0)
    pulse.look(12, now=1002.0, longest=5.0)
    assert pulse.rest_seconds == 0.0 and pulse.has_trained


@given(st.permutations([2, 130, 42, -9, 1]))
def test_what_explains_the_others_is_to_blame(codes: list[int]) -> None:
    order = [2, 130, 42, -9, 1]
    for allowed in (order[first:] for first in range(len(order))):
        failures = [Failure(worker=i, code=c) for i, c in enumerate(codes) if c in allowed]
        assert supervision.to_blame(failures).code == allowed[0]
