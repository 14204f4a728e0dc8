"""What a process says: cut into lines as it arrives, and said to nobody where nobody reads it."""

import errno
import os
from typing import IO, Any

# The reader of a pipe has gone, or a terminal.
_GONE = (errno.EPIPE, errno.EIO)
_REDRAW_SECONDS = 15.0
_LONGEST_LINE = 1 << 16


class Lines:
    r"""Whole lines out of a stream of bytes, progress bars thinned.

    A bar redraws its line after a carriage return; of those states one is kept every 15 seconds,
    and the last one.

    Example:
      >>> lines = Lines()
      >>> lines.feed(b"1 of 3\r2 of 3\r3 of 3\ndo", now=0.0), lines.feed(b"ne\n", now=0.1)
      ([b'3 of 3'], [b'done'])
    """

    def __init__(self) -> None:
        self._rest = b""
        self._shown = 0.0

    def feed(self, chunk: bytes, now: float) -> list[bytes]:
        """The lines that `chunk` completes; `now` in seconds of a monotonic clock."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        lines = [_last_state(line) for line in whole]
        *states, self._rest = self._rest.split(b"\r")
        if states and not self._rest:
            # What follows this carriage return decides whether it redraws or is part of CR LF.
            self._rest = states.pop() + b"\r"
        states = [state for state in states if state]
        if states and now - self._shown >= _REDRAW_SECONDS:
            lines.append(states[-1])
            self._shown = now
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        return lines

    def end(self) -> list[bytes]:
        """What the stream ended with, where that was no whole line."""
        rest, self._rest = _last_state(self._rest), b""
        return [rest] if rest else []


def _last_state(line: bytes) -> bytes:
    return next((state for state in reversed(line.split(b"\r")) if state), b"")


def let_go(stream: IO[Any], error: OSError) -> None:
    """Has an output that nobody reads any more go nowhere.

    What could not be written stays in its buffer, and Python, which tries it again at its end,
    would end with a code of its own.

    Args:
      stream: the output.
      error: what writing to it raised; raised again where it is of another kind.
    """
    if error.errno not in _GONE:
        raise error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Unbroken:
    """A text output whose reader may go while it is written to: that ends no run."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the output's own."""
        try:
            return self._stream.write(text)
        except OSError as error:
            let_go(self._stream, error)
            return len(text)

    def flush(self) -> None:
        """As the output's own."""
        try:
            self._stream.flush()
        except OSError as error:
            let_go(self._stream, error)
