"""Files that appear whole or not at all. Unlike `tfrecords.files` it needs no TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


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
