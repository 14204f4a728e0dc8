"""Stopping on SIGTERM: at the next step boundary, or in time when none comes.

Cloud machines, Slurm and Kubernetes announce their end with SIGTERM. The main thread may sit in
a TensorFlow function for minutes then, and Python runs signal handlers in that thread alone; so
the signal's byte goes through a pipe to a thread of its own, which sets a variable that the loop
of steps reads.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl import flags

from tfrecords import command

EXIT_RESTART = 42
HEARTBEAT = "TF_LANS_HEARTBEAT"


class Stopped(Exception):  # noqa: N818 - not an error: the run goes on when started again
    """The run ended at a step boundary because it was asked to; all of it is saved."""


class StopRequest:
    """Whether the run should end at its next step boundary.

    Attributes:
      flag: a bool variable on the CPU, read between steps.
    """

    def __init__(self) -> None:
        with tf.device("CPU:0"):
            self.flag = tf.Variable(False, trainable=False, name="stop_requested")

    def set(self) -> None:
        """Asks for the stop; any thread may."""
        self.flag.assign(True)


@contextlib.contextmanager
def stops_on_sigterm(request: StopRequest, grace_seconds: float) -> Iterator[None]:
    """While this is entered, SIGTERM sets `request`; `grace_seconds` later the process ends.

    It ends with `EXIT_RESTART` then, with what the last checkpoint holds: a half-written one is
    known as such. Only the main thread may enter; elsewhere nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(reading, request, grace_seconds, over), daemon=True
    )
    # A handler of Python's own, even if it does nothing, is what makes the byte arrive.
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        over.set()
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, request: StopRequest, grace_seconds: float, over: threading.Event) -> None:
    while signals := os.read(reading, 64):
        if signal.SIGTERM not in signals:
            continue
        request.set()
        if not over.wait(grace_seconds):
            print(
                f"no step ended within {grace_seconds:g} s of SIGTERM: stopping at the last "
                "checkpoint; start again with the same command",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_RESTART)
        return


def exit_code(
    body: Callable[[flags.FlagValues], None],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None,
) -> int:
    """Runs a training command; `EXIT_RESTART` where the run was stopped to be started again.

    Otherwise as `tfrecords.command.run`.
    """
    try:
        return command.run(body, flag_values, argv)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_RESTART


def beat() -> None:
    """Touches the file that `TF_LANS_HEARTBEAT` names: this worker is alive and gets on."""
    path = os.environ.get(HEARTBEAT)
    if path:
        with open(path, "ab"):
            os.utime(path)
