"""What every command shares: flags, one-line errors, progress on standard output.

A command module owns its flags, so that two commands can live in one process::

    FLAGS = flags.FlagValues()
    flags.DEFINE_string("output", None, "The file to write.", required=True, flag_values=FLAGS)

    def body(flag_values: flags.FlagValues) -> None: ...

    def main(argv: Sequence[str] | None = None) -> int:
        return command.run(body, FLAGS, argv)

    if __name__ == "__main__":
        sys.exit(main())
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from tfrecords.errors import UserError

SUCCESS = 0
USER_ERROR = 2
INTERRUPTED = 130


def run(
    body: Callable[..., None],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None = None,
    *,
    positional: bool = False,
) -> int:
    """Parses `argv` into `flag_values` and runs `body(flag_values)`.

    Args:
        body: the command; its module's docstring heads the ``--help`` text.
        flag_values: the command's own flags. Values of an earlier call in the same process are
            forgotten first.
        argv: the arguments after the program's name; None means those of this process.
        positional: whether arguments that are no flags, before or after those, are allowed;
            `body` then takes their list as its second argument.

    Returns:
        The exit code: 0; 2 for bad flags, a `UserError` or a file that cannot be read or written
        (one ``error: ...`` line on standard error, no traceback), also where TensorFlow's file
        systems say so; 130 after Ctrl-C. Any other exception is a defect and passes through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(inspect.getdoc(inspect.getmodule(body)) or "")
        print(flag_values.get_help(include_special_flags=False))
        return SUCCESS
    try:
        rest = _parse(flag_values, arguments, positional)
        body(flag_values, *([rest] if positional else []))
    except (UserError, OSError) as error:
        return _report(error)
    except Exception as error:
        if not _is_of_file_system(error):
            raise
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return SUCCESS


def _parse(flag_values: flags.FlagValues, arguments: list[str], positional: bool) -> list[str]:
    flag_values.unparse_flags()
    flag_values.set_gnu_getopt(positional)
    try:
        rest = flag_values(["command", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; every option is a --flag; see --help")
    return rest


def _is_of_file_system(error: Exception) -> bool:
    """Whether TensorFlow's file systems raised it: no such scheme, no credentials, no such file."""
    if "tensorflow" not in sys.modules:  # which takes seconds to import
        return False
    errors = sys.modules["tensorflow"].errors
    return isinstance(
        error,
        (
            errors.UnimplementedError,
            errors.PermissionDeniedError,
            errors.UnauthenticatedError,
            errors.NotFoundError,
        ),
    )


def _report(error: Exception) -> int:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    return USER_ERROR


class _Lines(tqdm):
    """A progress bar for logs: a line each time, nothing redrawn."""

    monitor_interval = 0
    _separator = ""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes the bar as a line of its own; tqdm itself ends the last one."""
        self.fp.write(self._separator + (msg or str(self)))
        self.fp.flush()
        self._separator = "\n"


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    unit_scale: bool = False,
    initial: float = 0,
    disable: bool = False,
) -> tqdm:
    """A progress bar with rate and remaining time on standard output.

    On a terminal it is redrawn in place; elsewhere (a log, a pipe) it is a line every 15 s.

    Args:
        iterable: what to walk through; None to call `.update(n)` by hand.
        total: the number of units at the end.
        desc: what is being done.
        unit: the name of a unit.
        unit_scale: whether to print 12.3M for 12,300,000.
        initial: units done before, by an earlier process.
        disable: whether to print nothing.

    Returns:
        A tqdm bar: iterable, a context manager, with `update` and `set_postfix`.

    Example:
        >>> with progress(total=3, desc="shards", unit="shard") as bar:
        ...     bar.update(3)
    """
    options: dict[str, Any] = {
        "total": total,
        "desc": desc,
        "unit": unit,
        "unit_scale": unit_scale,
        "initial": initial,
        "file": sys.stdout,
        "disable": disable,
    }
    if sys.stdout.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    return _Lines(iterable, mininterval=15, miniters=1, ncols=140, ascii=True, **options)
