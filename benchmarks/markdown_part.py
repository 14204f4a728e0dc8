"""The part of a Markdown document that a benchmark writes."""

from __future__ import annotations

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
