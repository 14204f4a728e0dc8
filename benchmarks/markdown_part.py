"""The part of a Markdown document that a benchmark writes."""

from __future__ import annotations

import pathlib

from benchmarks import whole_files
from tfrecords.errors import UserError


def marks(module: str) -> tuple[str, str]:
    """The lines between which a module's part stands."""
    return f"<!-- written by {module}: begin -->", f"<!-- written by {module}: end -->"


def replaced(document: str, module: str, text: str) -> str:
    """A document with a module's part replaced.

    Raises:
        UserError: the document has no such part.
    """
    begin_mark, end_mark = marks(module)
    before, begin, rest = document.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise UserError(
            f"the document has no part between {begin_mark!r} and {end_mark!r}; add both lines"
        )
    return f"{before}{begin_mark}\n\n{text}\n{end_mark}{after}"


def check(path: str, module: str) -> None:
    """Refuses a document that cannot take the part, before the time it takes to make that.

    Raises:
        UserError: it cannot be read, or has no such part.
    """
    try:
        replaced(pathlib.Path(path).read_text(encoding="utf-8"), module, "")
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"--document {path} cannot take the table: {error}") from error


def write(path: str | pathlib.Path, module: str, text: str) -> None:
    """Replaces a module's part of the document at `path`."""
    document = pathlib.Path(path).read_text(encoding="utf-8")
    whole_files.write_text(path, replaced(document, module, text))
