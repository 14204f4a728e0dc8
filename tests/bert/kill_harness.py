"""Training commands as processes that end themselves with SIGKILL at a chosen point.

A process installs its kill point by replacing one function of this tree or of TensorFlow in
itself, then runs the command as a user would. Processes are forked from a server that has
imported TensorFlow and computed nothing, so a start costs no import.
"""

import abc
import dataclasses
import faulthandler
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
import tqdm

from official_bert import launch, metrics_log, pretrain, run_files, train

COMMANDS = {"train": train.main, "pretrain": pretrain.main}
KILLED = -signal.SIGKILL
_MARK = "killed: "
LONG = 900.0  # seconds until a broken test gives up; nothing that passes waits for it


def die(where: str) -> NoReturn:
    """SIGKILL to this process, at once; its log tells where each of its threads stood."""
    # A progress bar may stand in the middle of a line.
    os.write(2, f"\n{_MARK}{where}\n".encode())
    faulthandler.dump_traceback()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive after SIGKILL")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KillPoint(abc.ABC):
    """Ends the process around one call of a function.

    Attributes:
      owner: the module or class that holds the function, as `pkgutil.resolve_name` takes it.
      name: the function's name there.
      number: which of its calls in this process, from 1.
      argument: only calls are counted with a string argument that contains this.
      worker: which of the workers.
    """

    owner: str
    name: str
    number: int = 1
    argument: str = ""
    worker: int = 0

    @abc.abstractmethod
    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        """What is done instead of the call.

        Args:
          call: does what was asked.
          args: what it was asked with.
          seconds: what the call before took; 0 for the first.
        """

    def install(self) -> None:
        """Replaces the function in this process."""
        holder = pkgutil.resolve_name(self.owner)
        original = getattr(holder, self.name)
        numbers, seconds = itertools.count(1), [0.0]

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(original, *args, **kwargs)
            if not self._counts(args) or next(numbers) != self.number:
                started = time.perf_counter()
                result = call()
                seconds[0] = time.perf_counter() - started
                return result
            self.act(call, args, seconds[0])
            die(f"after {self}")

        setattr(holder, self.name, replaced)

    def _counts(self, args: Sequence[Any]) -> bool:
        texts = [arg for arg in args if isinstance(arg, str)]
        return not self.argument or any(self.argument in text for text in texts)


class Before(KillPoint):
    """Before the call does anything."""

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        die(f"before {self}")


class After(KillPoint):
    """When the call has done its work, before its caller goes on."""

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        call()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Within(KillPoint):
    """From another thread, while the call is at work; at its end, should it be over sooner.

    Attributes:
      fraction: of the time that the call before took.
    """

    fraction: float

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        threading.Timer(self.fraction * seconds, die, [f"within {self}"]).start()
        call()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtTime(Within):
    """Some time after the command was called, wherever it is; at its end, should that be sooner.

    Attributes:
      fraction: of `seconds`.
      seconds: what the command takes.
    """

    owner: str = __name__
    name: str = "_command"
    seconds: float = 0.0

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        super().act(call, args, self.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfRow(KillPoint):
    """When rows are appended to a log, the last of them cut in half.

    Attributes:
      file: the name of the log.
    """

    owner: str = "tensorflow.python.lib.io.file_io:FileIO"
    name: str = "write"
    file: str

    def _counts(self, args: Sequence[Any]) -> bool:
        return os.path.basename(args[0].name) == self.file

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        stream, text = args
        whole, last = text[:-1].rpartition("\n")[::2]
        before = f"{whole}\n" if whole else ""
        with open(stream.name, "a", encoding="utf-8") as output:
            output.write(before + last[: len(last) // 2])


class HalfFile(KillPoint):
    """When a file is half-written under its temporary name, which it would be renamed from."""

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        source = pathlib.Path(args[0])
        os.truncate(source, source.stat().st_size // 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfMerged(KillPoint):
    """In TensorFlow's last act of a save: the data have their final name, the index is missing."""

    owner: str = "tensorflow.python.ops.gen_io_ops"
    name: str = "merge_v2_checkpoints"

    def act(self, call: Callable[[], Any], args: Sequence[Any], seconds: float) -> Any:
        parts, destination = ([_text(each) for each in tf.nest.flatten(arg)] for arg in args[:2])
        for part in parts:
            for data in pathlib.Path(part).parent.glob("*.data-*"):
                data.rename(f"{destination[0]}.{data.name.rpartition('.')[2]}")


def _text(value: Any) -> str:
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.decode() if isinstance(value, bytes) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A command and what it is run with.

    Attributes:
      command: a name in `COMMANDS`.
      arguments: its flags.
      workers: processes that run it; more than one get a `TF_CONFIG` each.
    """

    command: str
    arguments: tuple[str, ...]
    workers: int = 1


def start_server() -> None:
    """Starts the server that processes are forked from; returns when it has imported TensorFlow."""
    process = context().Process(target=_nothing)
    process.start()
    process.join()


def run(job: Job, folder: pathlib.Path, point: KillPoint | None = None) -> list[int]:
    """Starts all workers and waits for their end.

    When the worker of the kill point has ended, the others, which wait for it or die of its loss,
    are killed too, as a launcher does. None is left when this returns or raises.

    Args:
      job: what is run.
      folder: keeps a log for each worker, and their temporary files.
      point: where one of them dies; None lets all run to their end.

    Returns:
      The exit codes; minus the signal's number where one ended the process.
    """
    folder.mkdir(parents=True)
    environments: Sequence[Mapping[str, str]] = [{}]
    if job.workers > 1:
        environments = launch.cluster_environments(launch.free_ports(job.workers))
    processes = [
        context().Process(
            target=_worker, args=(job, environment, folder, index, point), daemon=True
        )
        for index, environment in enumerate(environments)
    ]
    try:
        for process in processes:
            process.start()
        _wait(processes, processes[point.worker] if point else None)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    return [process.exitcode for process in processes]


def context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _nothing() -> None:
    """What a process does that is only there to be started."""


def _wait(processes: Sequence[Any], victim: Any) -> None:
    """Until the victim has ended; without one until all have, or one of them has failed."""
    until = time.monotonic() + LONG
    running = list(processes)
    while running:
        ended = connection.wait([each.sentinel for each in running], until - time.monotonic())
        if not ended:
            raise TimeoutError(f"{len(running)} of {len(processes)} run after {LONG:g} s")
        for process in [each for each in running if each.sentinel in ended]:
            process.join()
            running.remove(process)
            if process is victim or (victim is None and process.exitcode):
                return


def log_path(folder: pathlib.Path, worker: int = 0) -> pathlib.Path:
    """Where a worker of `run` leaves what it prints."""
    return folder / f"worker-{worker}.log"


def killed_at(folder: pathlib.Path, worker: int = 0) -> list[str]:
    """Where a worker ended itself, as its log has it; empty where it did not."""
    lines = log_path(folder, worker).read_text(errors="replace").splitlines()
    return [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]


def _worker(
    job: Job,
    environment: Mapping[str, str],
    folder: pathlib.Path,
    index: int,
    point: KillPoint | None,
) -> NoReturn:
    log = os.open(log_path(folder, index), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    # A killed process leaves temporary files and semaphores; let them be the test's, and none.
    tempfile.tempdir = os.fspath(folder)
    tqdm.tqdm.set_lock(threading.RLock())
    if point is not None and point.worker == index:
        point.install()
    sys.exit(_command(job))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _command(job: Job) -> int:
    return COMMANDS[job.command](job.arguments)


def files(model_dir: pathlib.Path) -> set[str]:
    """What lies in a run's folder, but TensorBoard's files: every start opens new ones."""
    return {
        path.relative_to(model_dir).as_posix()
        for path in model_dir.rglob("*")
        if path.is_file() and not path.name.startswith("events.out.tfevents.")
    }


def differences(found: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """In what two finished runs of one phase are not the same to the bit.

    The rows of the logs are compared, every tensor of every checkpoint that was kept, and the
    names of all files; times, which `speed.jsonl` and the model card have, are not.
    """
    ours, theirs = files(found), files(expected)
    different = [f"left over: {name}" for name in sorted(ours - theirs)]
    different += [f"missing: {name}" for name in sorted(theirs - ours)]
    if theirs - ours:
        return different
    for name in (metrics_log.METRICS, metrics_log.EVALUATIONS):
        if (found / name).read_bytes() != (expected / name).read_bytes():
            different.append(name)
    if _speed_steps(found) != _speed_steps(expected):
        different.append(run_files.SPEED)
    if _checkpoints(found) != _checkpoints(expected):
        different.append(f"checkpoint: lists {_checkpoints(found)}, not {_checkpoints(expected)}")
    for name in _checkpoints(expected):
        different += _different_tensors(found / name, expected / name)
    return different


def _speed_steps(model_dir: pathlib.Path) -> list[int]:
    lines = (model_dir / run_files.SPEED).read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def _checkpoints(model_dir: pathlib.Path) -> list[str]:
    state = tf.train.get_checkpoint_state(os.fspath(model_dir))
    return [os.path.basename(path) for path in state.all_model_checkpoint_paths]


def _different_tensors(found: pathlib.Path, expected: pathlib.Path) -> list[str]:
    ours, theirs = (tf.train.load_checkpoint(os.fspath(path)) for path in (found, expected))
    names = set(ours.get_variable_to_shape_map()) | set(theirs.get_variable_to_shape_map())
    return [
        f"{expected.name}: {name}"
        for name in sorted(names)
        if not (ours.has_tensor(name) and theirs.has_tensor(name))
        or _bytes(ours.get_tensor(name)) != _bytes(theirs.get_tensor(name))
    ]


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()
