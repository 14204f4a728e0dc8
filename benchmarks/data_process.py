"""Commands as processes: how long they take, and the memory that they and their children hold."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

MEMORY_METHOD = (
    "the largest sum, over a command's processes, of resident memory, sampled 20 times a second; "
    "pages that processes share count once for each"
)
_PERIOD = 0.05
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = os.sysconf("SC_PAGE_SIZE")


class FailedError(RuntimeError):
    """A command ended with an error; the message is the last line it wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What commands took.

    Attributes:
        seconds: by the clock.
        peak_bytes: see `MEMORY_METHOD`.
    """

    seconds: float
    peak_bytes: int

    def __add__(self, other: Ran) -> Ran:
        """One after the other."""
        return Ran(
            seconds=self.seconds + other.seconds,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )


def run(commands: Sequence[Sequence[str]], cores: int | None = None) -> Ran:
    """Runs commands beside each other, from the root of the checkout, to the end of the last.

    Args:
        commands: each a program and its arguments.
        cores: how many cores they may use in sum; None means all.

    Raises:
        FailedError: one of them failed.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        running = [start(command, allowed, log) for command in commands]
        with _PeakMemory([each.pid for each in running]) as memory:
            codes = [each.wait() for each in running]
        seconds = time.perf_counter() - begin
        if any(codes):
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
            raise FailedError(lines[-1] if lines else f"ended with exit code {max(codes)}")
    return Ran(seconds=seconds, peak_bytes=memory.peak_bytes)


def start(
    command: Sequence[str], allowed: Sequence[int], log: IO[str], **pipes: int
) -> subprocess.Popen[str]:
    """Starts a command on the cores `allowed`; what it says goes to `log`."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, **pipes}
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_ROOT), *([given] if given else [])])
    return subprocess.Popen(
        # Not `preexec_fn`, which is unsafe beside threads.
        ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command],
        cwd=_ROOT,
        # The caller's own path too: `--model` of the large-batch study names the user's module.
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path},
        stderr=log,
        text=True,
        **streams,
    )


class _PeakMemory:
    """Samples the memory of process trees while its block runs."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.peak_bytes = 0
        self._roots = roots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(tree_bytes, self._roots)))
            if self._over.wait(_PERIOD):
                return


def tree_bytes(pid: int) -> int:
    """The resident memory of a process and those below it, now; 0 if it has ended."""
    folder = pathlib.Path("/proc", str(pid))
    try:
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE
        children = [
            int(child)
            for task in (folder / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return resident + sum(map(tree_bytes, children))
