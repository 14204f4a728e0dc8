"""Stopping on a signal: at the next step boundary, or in time when none comes.

Cloud machines, Slurm and Kubernetes announce their end with SIGTERM, a lost terminal does with
SIGHUP, and a user presses Ctrl-C. The main thread may sit in a TensorFlow function for minutes
then, and Python runs signal handlers in that thread alone; so the signal's byte goes through a pipe
to a thread of its own, which sets a variable that the loop of steps reads.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import tensorflow as tf
from absl import flags

from official_bert import output_lines
from tfrecords import command

EXIT_FAILED = 1
EXIT_RESTART = 42
GRACE_SECONDS = 30.0
HEARTBEAT = "TF_LANS_HEARTBEAT"

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGINT: "Ctrl-C"}


class Stopped(Exception):  # noqa: N818 - not an error: the run goes on when started again
    """The run ended at a step boundary because it was asked to; all of it is saved."""


class StorageError(Exception):
    """Files could not be read or written in the middle of a run."""


class StopRequest:
    """Whether the run should end at its next step boundary.

    Any thread may ask. The loop of steps reads a variable, which the run creates when it may:
    TensorFlow wants nothing computed before a strategy over several workers is built.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._flag: tf.Variable | None = None
        # Set at a boundary: what is saved from there on may take its time.
        self.reached = threading.Event()
        # An evaluation has no steps, nor has what follows the last step: nothing to save there.
        self.has_steps = True
        # What the process ends with once it has stopped.
        self.code = EXIT_RESTART

    def watch(self) -> tf.Variable:
        """A bool variable on the CPU that is set when somebody has asked.

        First called outside of a strategy's scope, which would make copies of it.
        """
        with self._lock:
            if self._flag is None:
                _take_back_sigterm()
                with tf.init_scope(), tf.device("CPU:0"):
                    self._flag = tf.Variable(
                        self._asked.is_set(), trainable=False, name="stop_requested"
                    )
            return self._flag

    @property
    def is_watched(self) -> bool:
        """Whether there is a run that will notice."""
        with self._lock:
            return self._flag is not None

    def set(self) -> None:
        """Asks for the stop."""
        with self._lock:
            self._asked.set()
            if self._flag is not None:
                self._flag.assign(True)


def _take_back_sigterm() -> None:
    """TensorFlow's cluster of workers hides Python's handler behind one that saves nothing."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def stops_on_signals(request: StopRequest, grace_seconds: float) -> Iterator[None]:
    """While this is entered, SIGTERM, SIGHUP and Ctrl-C set `request`.

    Where there are no steps whose end could be waited for, or none ends within `grace_seconds` of
    SIGTERM or SIGHUP, the process ends with what the last checkpoint holds: a half-written one is
    known as such. So it does at a Ctrl-C that is not the first signal. The code is `EXIT_RESTART`,
    and after Ctrl-C `command.INTERRUPTED`, which nobody takes for a wish to be started again. Only
    the main thread may enter; elsewhere nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, request, grace_seconds), daemon=True)
    # A handler of Python's own, even if it does nothing, is what makes the byte arrive.
    handlers = {number: signal.signal(number, lambda *_: None) for number in _heeded()}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        request.reached.set()
        os.close(writing)
        watcher.join()
        os.close(reading)


def _heeded() -> list[signal.Signals]:
    """The signals that stop a run. nohup, and a shell's `&` in a script, mean what they say."""
    return [
        number
        for number in _NAMES
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    ]


def _watch(reading: int, request: StopRequest, grace_seconds: float) -> None:
    is_asked = False
    while signals := os.read(reading, 64):
        for number in signals:
            if number in _NAMES:
                _answer(signal.Signals(number), request, grace_seconds, is_asked)
                is_asked = True


def _answer(
    number: signal.Signals, request: StopRequest, grace_seconds: float, is_asked: bool
) -> None:
    """Asks for the stop that a signal is for, or ends the process."""
    name = _NAMES[number]
    if number == signal.SIGINT:
        request.code = command.INTERRUPTED
    if not request.is_watched:
        _end(f"{name} before the run began", request.code)
    if not request.has_steps:
        _end(f"{name}, and no step whose end to save at", request.code)
    if number == signal.SIGINT and is_asked:
        _end(f"{name} again", request.code)
    request.set()
    if number == signal.SIGINT:
        _say("Ctrl-C: saving at the end of the step; press it again to end at once, without")
    else:
        waiting = (request, name, grace_seconds)
        threading.Thread(target=_end_in_time, args=waiting, daemon=True).start()


def _end_in_time(request: StopRequest, name: str, grace_seconds: float) -> None:
    if not request.reached.wait(grace_seconds):
        _end(f"no step ended within {grace_seconds:g} s of {name}", request.code)


def _end(reason: str, code: int) -> NoReturn:
    _say(f"{reason}: stopping at the last checkpoint; start again with the same command")
    os._exit(code)


def _say(line: str) -> None:
    """Tells it where anybody is left to read it: Ctrl-C ends a `tee` too, and terminals hang up."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        output_lines.let_go(sys.stderr, error)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines `--grace_seconds`."""
    flags.DEFINE_float(
        "grace_seconds", GRACE_SECONDS, "After SIGTERM or SIGHUP, how long to wait for the end of "
        "a step; after Ctrl-C until there is a second one.", lower_bound=0.0,
        flag_values=flag_values,
    )  # fmt: skip


def exit_code(
    body: Callable[[flags.FlagValues, StopRequest], None],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None,
) -> int:
    """Runs a training command; `EXIT_RESTART` where the run was stopped to be started again.

    After Ctrl-C it is `command.INTERRUPTED`, and starting it again goes on too. Otherwise as
    `tfrecords.command.run`, but for files that cannot be read or written once the run has begun:
    then they could be before, and starting again may help, so the code is 1.

    Args:
      body: the command; it gives the request to its runs.
      flag_values: the command's flags.
      argv: its arguments.
    """
    request = StopRequest()

    @functools.wraps(body)
    def stoppable(parsed: flags.FlagValues) -> None:
        try:
            with stops_on_signals(request, parsed.grace_seconds):
                body(parsed, request)
        except (OSError, tf.errors.NotFoundError) as error:
            if not request.is_watched:
                raise
            raise StorageError(" ".join(str(error).split())) from error

    try:
        return command.run(stoppable, flag_values, argv)
    except Stopped as stopped:
        _say(str(stopped))
        return request.code
    except StorageError as error:
        _say(f"error: {error}; start again with the same command")
        return EXIT_FAILED


def beat() -> None:
    """Touches the file that `TF_LANS_HEARTBEAT` names: this worker is alive and gets on."""
    path = os.environ.get(HEARTBEAT)
    if path:
        with open(path, "ab"):
            os.utime(path)
