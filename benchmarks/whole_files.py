"""Files that appear whole or not at all. Unlike `tfrecords.files` it needs no TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from tfrecords.errors import UserError


def check(output: str | os.PathLike[str], option: str = "--output") -> None:
    """Refuses a path that nothing can be written to, before the time it takes to measure.

    Args:
        output: what will be given to the functions below.
        option: the flag that named it.

    Raises:
        UserError: it is a folder, or its folder does not take files.
    """
    path = pathlib.Path(output)
    problem = ""
    if path.is_dir():
        problem = "it is a folder; expected a file's name in one"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}; make it first, or name another"
    else:
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            problem = f"{path.parent} takes no files: {error.strerror}; name another folder"
    if problem:
        raise UserError(f"{option}: cannot write {path}: {problem}")


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`, of the same suffix, that becomes `path` on success.

    Example:
        >>> with whole("figures.txt") as partial:
        ...     _ = partial.write_text("1")
        >>> pathlib.Path("figures.txt").read_text()
        '1'
    """
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text in UTF-8."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], figures: Any) -> None:
    """Writes figures, one to a line."""
    write_text(path, json.dumps(figures, indent=1) + "\n")


def write_chart(path: str | os.PathLike[str], figure: Any, dpi: int = 120) -> None:
    """Writes a matplotlib figure."""
    with whole(path) as partial:
        figure.savefig(partial, dpi=dpi)


def check_report(output: str | None, option: str = "--output") -> None:
    """As `check`, of what `write_report` will write."""
    if output is not None:
        check(f"{output}.json", option)
        check(f"{output}.png", option)


def write_report(
    output: str | None, figures: dict[str, Any], chart: Callable[[dict[str, Any]], Any]
) -> None:
    """Writes OUTPUT.json and what `chart` draws of it, OUTPUT.png; nothing where output is None."""
    if output is not None:
        write_json(f"{output}.json", figures)
        write_chart(f"{output}.png", chart(figures))
