"""A job of several local processes: started together, watched, ended together, started again.

All that is known here of training is the meaning of four exit codes and that a worker touches its
heartbeat file after everything it does. The workers of a start are one process group, which ends
with the process that started it, however that one ends.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from official_bert.output_lines import Lines

HEARTBEAT = "TF_LANS_HEARTBEAT"

# Who says what: a speaker and lines without their ends.
Show = Callable[[str, Sequence[bytes]], None]

DONE = 0
FAILED = 1
USER_ERROR = 2
RESTART = 42
INTERRUPTED = 130

# The guard leads the group, reads a pipe that only the supervisor can write to, and so learns of
# the supervisor's end even where that was SIGKILL.
_GUARD = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
sys.stdin.buffer.read()
os.killpg(0, signal.SIGKILL)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to run and how to look after it.

    Attributes:
      command: the program and arguments of every worker.
      environments: called at every start; what each worker's environment has beside this
        process's own, one mapping a worker.
      log_dir: local folder of `worker-<i>.log`.
      max_restarts: how often all workers are started again after a failure.
      grace_seconds: what workers have to save and end after SIGTERM.
      hang_seconds: a worker whose heartbeat rests for so long hangs; 0 means that none does.
      margin_seconds: what they have beyond `grace_seconds`, since they count it themselves, and
        what their last output has to arrive.
      settle_seconds: what the others have to end by themselves when one ended with an error. It
        may be the victim of another one that is still printing its own error.
      poll_seconds: how often heartbeats are looked at.
    """

    command: Sequence[str]
    environments: Callable[[], Sequence[Mapping[str, str]]]
    log_dir: str
    max_restarts: int = 3
    grace_seconds: float = 30.0
    hang_seconds: float = 1800.0
    margin_seconds: float = 10.0
    settle_seconds: float = 5.0
    poll_seconds: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended.

    Attributes:
      code: 0; 2 for a user's mistake; 42 after SIGTERM, 130 after Ctrl-C; otherwise 1.
      error: one line where the code is 1 or 2.
    """

    code: int
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a start ended before the job was done.

    Attributes:
      worker: the index of the worker to blame.
      code: its exit code, -N for signal N, None where it hangs.
    """

    worker: int
    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return f"worker {self.worker} hung"
        if self.code >= 0:
            return f"worker {self.worker} ended with exit code {self.code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-self.code).name
            return f"worker {self.worker} was ended by signal {-self.code} ({name})"
        return f"worker {self.worker} was ended by signal {-self.code}"


def to_blame(failures: Iterable[Failure]) -> Failure:
    """What explains the others: a mistake, a Ctrl-C, a wish to restart, a signal, a code.

    A worker whose peer is gone ends with an ordinary error code, so that one explains least.

    Example:
      >>> to_blame([Failure(worker=0, code=1), Failure(worker=1, code=-9)]).worker
      1
    """

    def rank(failure: Failure) -> tuple[int, int]:
        ranks = {USER_ERROR: 0, INTERRUPTED: 1, RESTART: 2}
        code = failure.code
        return (3 if code is None or code < 0 else ranks.get(code, 4)), failure.worker

    return min(failures, key=rank)


class Pulse:
    """What looking at a heartbeat file now and then tells.

    Attributes:
      beats: how many different touches were seen; one at the worker's start, then one for each
        loop of steps, evaluation and save that a look caught.
      rest_seconds: for how long it has rested.
    """

    def __init__(self, now: float) -> None:
        self.beats = 0
        self.rest_seconds = 0.0
        self._modified: int | None = None
        self._looked = now

    def look(self, modified: int | None, now: float, longest: float) -> None:
        """Takes one look into account.

        Args:
          modified: the file's time of modification, None where there is no file yet.
          now: seconds of a monotonic clock.
          longest: the most seconds that one look counts for. While this process was stopped, so
            were workers that waited for it to read their output.
        """
        if modified != self._modified:
            self._modified = modified
            self.beats += 1
            self.rest_seconds = 0.0
        else:
            self.rest_seconds += min(now - self._looked, longest)
        self._looked = now

    @property
    def has_trained(self) -> bool:
        """Whether more was done than to start and to save what was restored."""
        return self.beats > 2


class _Stop:
    """Signals to this process: the first asks the workers to save and end, the second to end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        self.code = DONE
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup means what it says.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: int) -> None:
        if self.asked.is_set():
            self.insisted.set()
        else:
            self.code = INTERRUPTED if number == signal.SIGINT else RESTART
            self.asked.set()


@contextlib.contextmanager
def _process_group() -> Iterator[int]:
    """Yields a process group's id; all that is in it is killed at the end, or with this process."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0
    ) as guard:
        try:
            yield guard.pid
        finally:
            os.killpg(guard.pid, signal.SIGKILL)


class _Worker:
    """One process, its heartbeat and its output."""

    def __init__(self, index: int, heartbeat: str, log_dir: str, show: Show) -> None:
        self.index = index
        self.pulse = Pulse(time.monotonic())
        self.drained = asyncio.get_running_loop().create_future()
        self.error_line = ""
        self._heartbeat, self._show, self._lines = heartbeat, show, Lines()
        # Unbuffered, so that `tail -f` shows what was said.
        self._log = open(log_path(log_dir, index), "ab", buffering=0)  # noqa: SIM115
        self._output, self._input = os.pipe()
        asyncio.get_running_loop().add_reader(self._output, self._read)

    async def start(self, job: Job, environment: Mapping[str, str], group: int, head: str) -> None:
        """Starts the process as a member of `group`, after the line `head` in its log."""
        self._log.write(f"{head}\n".encode(errors="surrogateescape"))
        try:
            self.process = await asyncio.create_subprocess_exec(
                *job.command,
                env={**os.environ, **environment, HEARTBEAT: self._heartbeat},
                stdin=subprocess.DEVNULL,
                stdout=self._input,
                stderr=self._input,
                process_group=group,
            )
        finally:
            os.close(self._input)
        self.exited = asyncio.create_task(self.process.wait())

    def look(self, longest: float) -> None:
        """Looks at the heartbeat."""
        try:
            modified = os.stat(self._heartbeat).st_mtime_ns
        except FileNotFoundError:
            modified = None
        self.pulse.look(modified, time.monotonic(), longest)

    def terminate(self) -> None:
        """Asks the process to end, where it has not; processes of its own are its own affair."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def close(self) -> None:
        """Lets go of output that its writer keeps open beyond its end."""
        if not self.drained.done():
            self._end_output()
        os.close(self._output)
        self._log.close()

    def _read(self) -> None:
        try:
            chunk = os.read(self._output, 1 << 16)
            if chunk:
                self._say(self._lines.feed(chunk, time.monotonic()))
            else:
                self._end_output()
        except OSError as error:
            asyncio.get_running_loop().remove_reader(self._output)
            self.drained.set_exception(error)

    def _end_output(self) -> None:
        asyncio.get_running_loop().remove_reader(self._output)
        self._say(self._lines.end())
        self.drained.set_result(None)

    def _say(self, lines: list[bytes]) -> None:
        for line in lines:
            if line.startswith(b"error: "):
                self.error_line = line.decode(errors="replace").removeprefix("error: ")
        self._log.write(b"".join(line + b"\n" for line in lines))
        self._show(f"worker {self.index}", lines)


class _Start:
    """All workers once, from their start to the end of the last one."""

    def __init__(self, job: Job, show: Show, stop: _Stop, number: int) -> None:
        self._job, self._show, self._stop, self._number = job, show, stop, number
        self.workers: list[_Worker] = []

    async def run(self) -> Failure | None:
        """Runs them; None where all ended with 0 or the job was asked to stop."""
        with contextlib.ExitStack() as stack:
            with (
                tempfile.TemporaryDirectory(prefix="tf-lans-launch-") as folder,
                _process_group() as group,
            ):
                for index, environment in enumerate(self._job.environments()):
                    heartbeat = os.path.join(folder, f"worker-{index}")
                    worker = _Worker(index, heartbeat, self._job.log_dir, self._show)
                    stack.callback(worker.close)
                    await worker.start(self._job, environment, group, self._head(index))
                    self.workers.append(worker)
                failure = await self._watch()
                if failure is not None or self._stop.asked.is_set():
                    failure = await self._end(failure)
                self._look()
            await self._drain()
        return failure

    @property
    def all_done(self) -> bool:
        return all(worker.process.returncode == DONE for worker in self.workers)

    @property
    def has_trained(self) -> bool:
        return any(worker.pulse.has_trained for worker in self.workers)

    def _head(self, index: int) -> str:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        command = shlex.join(self._job.command).replace("\n", " ")
        return f"--- start {self._number} of worker {index}, {now}: {command}"

    def _look(self) -> None:
        for worker in self.workers:
            worker.look(longest=5 * self._job.poll_seconds)

    def _failures(self) -> list[Failure]:
        codes = {worker.index: worker.process.returncode for worker in self.workers}
        return [Failure(worker=index, code=code) for index, code in codes.items() if code]

    async def _watch(self) -> Failure | None:
        """Waits until all ended with 0, one did not, one hangs, or the job was asked to stop."""
        while not self._stop.asked.is_set() and not self.all_done:
            running = [worker for worker in self.workers if not worker.exited.done()]
            await _any(
                [worker.exited for worker in running], self._stop.asked, self._job.poll_seconds
            )
            self._look()
            for worker in self.workers:
                if worker.drained.done():
                    worker.drained.result()
            if failures := self._failures():
                return to_blame(failures)
            hung = [
                worker
                for worker in running
                if 0 < self._job.hang_seconds <= worker.pulse.rest_seconds
            ]
            if hung:
                longest = max(hung, key=lambda worker: worker.pulse.rest_seconds)
                return Failure(worker=longest.index, code=None)
        return None

    async def _end(self, failure: Failure | None) -> Failure | None:
        """Ends what can be ended in order; what is left is killed with the group.

        The peers of a worker that died block in a sum over all workers. They come to no step
        boundary at which SIGTERM could have them save, so it is not sent to them. A worker that
        asks for a restart, or was interrupted, stopped at a boundary, as its peers do, and the
        chief may still be writing the checkpoint.
        """
        grace = self._job.grace_seconds + self._job.margin_seconds
        if failure is None or failure.code in (INTERRUPTED, RESTART, None):
            for worker in self.workers:
                worker.terminate()
            await self._all_exited(grace)
            return to_blame(self._failures()) if failure and failure.code else failure
        if failure.code > 0 and failure.code != USER_ERROR:
            await self._all_exited(self._job.settle_seconds)
            return to_blame(self._failures())
        return failure

    async def _all_exited(self, seconds: float) -> None:
        exits = asyncio.gather(*(worker.exited for worker in self.workers))
        await _any([exits], self._stop.insisted, seconds)

    async def _drain(self) -> None:
        """Waits for the last words; what a worker started may keep its output open for longer."""
        exits = [worker.exited for worker in self.workers]
        ends = [worker.drained for worker in self.workers]
        # Cancels nothing: `close` has to see which outputs are still open.
        await asyncio.wait([*exits, *ends], timeout=self._job.margin_seconds)
        for each in filter(asyncio.Future.done, ends):
            each.result()


async def _any(futures: Sequence[asyncio.Future], event: asyncio.Event, seconds: float) -> None:
    """Waits for one of `futures` or `event`, for `seconds` at most; cancels none of `futures`."""
    happened = asyncio.create_task(event.wait())
    try:
        await asyncio.wait(
            [*futures, happened], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        happened.cancel()


def log_path(log_dir: str, index: int) -> str:
    """Where worker `index` leaves what it says."""
    return os.path.join(log_dir, f"worker-{index}.log")


def supervise(job: Job, show: Show) -> Ending:
    """Runs a job to its end, in the main thread, whose signals it takes.

    Exit code 0 of all workers ends it, 2 or 130 of one does. Any other code, a signal or a hang
    starts all of them again, `job.max_restarts` times. 42 does so without being counted, if the
    workers trained before: a machine that takes them back at once would otherwise go on for ever.

    Args:
      job: what to run.
      show: called with a speaker and the lines that it said, without their line ends.

    Raises:
      OSError: a log cannot be written, or the command cannot be started; nothing is left running.
    """
    pathlib.Path(job.log_dir).mkdir(parents=True, exist_ok=True)
    return asyncio.run(_supervise(job, show))


async def _supervise(job: Job, show: Show) -> Ending:
    stop = _Stop()
    restarts = 0
    for number in itertools.count(1):
        start = _Start(job, show, stop, number)
        failure = await start.run()
        if failure is None or start.all_done or stop.asked.is_set():
            return Ending(code=DONE if start.all_done else stop.code)
        log = log_path(job.log_dir, failure.worker)
        if failure.code == INTERRUPTED:
            return Ending(code=INTERRUPTED)
        if failure.code == USER_ERROR:
            line = start.workers[failure.worker].error_line
            return Ending(code=USER_ERROR, error=line or f"{failure}; its log is {log}")
        told = _told(failure, start.has_trained, job.hang_seconds)
        if failure.code != RESTART or not start.has_trained:
            if restarts == job.max_restarts:
                told += f", after {restarts} restarts; its log is {log}"
                return Ending(code=FAILED, error=told)
            restarts += 1
        line = f"{told}; all workers start again ({restarts} of {job.max_restarts} restarts used)"
        show("launch", [line.encode()])
    raise AssertionError("itertools.count ends never")


def _told(failure: Failure, has_trained: bool, hang_seconds: float) -> str:
    if failure.code is None:
        return f"{failure} (its heartbeat rested for {hang_seconds:g} s)"
    if failure.code == RESTART:
        return f"{failure} (start me again)" + ("" if has_trained else " before it had trained")
    return str(failure)
