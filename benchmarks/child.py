"""A contender in a process of its own that measures whenever it is told to.

It says a line of JSON on its standard output when it is ready, and one for each line that it is
sent. What else it says goes to a log, whose last line tells why it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from benchmarks import data_process
from benchmarks.data_process import FailedError


class Child:
    """The process, as `started` gives it.

    Attributes:
        ready: what it said first.
        pid: its number.
    """

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process, self._log = process, log
        self.pid = process.pid
        self.ready = self._answer()

    def ask(self, question: object) -> dict[str, Any]:
        """Sends a line; the answer to it.

        Raises:
            FailedError: it ended instead; the message is the last line that it wrote.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: the missing answer tells
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            words = [each.strip() for each in self._log if each.strip()]
            raise FailedError(words[-1] if words else f"ended with exit code {code}")
        return json.loads(line)


@contextlib.contextmanager
def started(command: Sequence[str], cores: int | None = None) -> Iterator[Child]:
    """Starts a command and waits until it is ready; ends it with the block.

    Args:
        command: a program and its arguments, run from the root of the checkout.
        cores: how many it may use; None means all.

    Raises:
        FailedError: it ended before it was ready.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryFile("w+") as log:
        process = data_process.start(
            command, allowed, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield Child(process, log)
        finally:
            process.kill()
            process.communicate()
