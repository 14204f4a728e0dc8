"""Processes that get signals, forked from a server that has imported TensorFlow."""

import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from official_bert import interruption, runner
from tests.bert import kill_harness

BLOCKING, EVALUATING, STARTING = "blocking", "evaluating", "starting"


def ended(target: Callable[..., None], *args: Any) -> int:
    """The exit code of a process; minus the signal's number where one ended it."""
    process = kill_harness.context().Process(target=target, args=args, daemon=True)
    process.start()
    process.join(kill_harness.LONG)
    process.kill()
    return process.exitcode


def waits(
    log: pathlib.Path, state: str, grace: float, numbers: Sequence[int], ignored: Sequence[int]
) -> None:
    """Sends itself signals, and then does nothing for ever.

    Args:
        log: gets what it says.
        state: what it is at; `BLOCKING` in a step that takes hours, or waiting for its peers.
        grace: seconds to end in.
        numbers: the signals.
        ignored: those that the process ignores from its start.
    """
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    request = interruption.StopRequest()
    if state != STARTING:
        request.has_steps = state == BLOCKING
        request.watch()
    with interruption.stops_on_signals(request, grace):
        for number in numbers:
            os.kill(os.getpid(), number)
        threading.Event().wait()


def loses_its_terminal(name: str, hang_up: Any) -> None:
    """A run on a terminal that goes away; it shows its progress and stops all the same.

    Args:
        name: the terminal.
        hang_up: set when the terminal is to go.
    """
    os.setsid()
    # The first terminal that the leader of a session opens is that of the session.
    terminal = os.open(name, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(terminal, stream)
    os.close(terminal)
    sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def body(parsed: flags.FlagValues, request: interruption.StopRequest) -> None:
        request.watch()
        hang_up.set()
        assert request._asked.wait(kill_harness.LONG)
        with runner._progress(sys.stdout, "train", total=2, initial=0) as bar:
            bar.update(2)
        raise interruption.Stopped("saved")

    flag_values = flags.FlagValues()
    interruption.define_flags(flag_values)
    code = interruption.exit_code(body, flag_values, [])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.exit(code)
