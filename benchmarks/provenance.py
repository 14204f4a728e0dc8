"""When, by which code and with which versions each figure of a report was measured.

A report may be put together from figures of several days: what is known already is not measured
again. So each row keeps the heading that it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KEYS = ("date", "commit", "processor", "versions")

Row = dict[str, Any]
Heading = Mapping[str, Any]


def of(heading: Heading) -> dict[str, Any]:
    """What a row takes over of a heading; nothing of a row that has none."""
    return {key: heading[key] for key in _KEYS if key in heading}


def _content(row: Heading) -> str:
    # As JSON, which has no whole numbers as keys and in which NaN is equal to NaN; there and back
    # before it is sorted, since 9 comes before 10, but "10" before "9".
    figures = {key: value for key, value in row.items() if key not in _KEYS}
    return json.dumps(json.loads(json.dumps(figures)), sort_keys=True)


def known(row: Heading, rows: Iterable[Heading]) -> Heading | None:
    """The one of the rows that has the same figures, whenever it was measured."""
    return next((each for each in rows if _content(each) == _content(row)), None)


def stamped(
    rows: Iterable[Heading], before: Sequence[Heading], old: Heading, new: Heading
) -> list[Row]:
    """Rows, each with the heading that it was measured with.

    Args:
        rows: what there is now.
        before: what there was before.
        old: the heading of those before that have none of their own.
        new: the heading of all others.
    """
    found = []
    for row in rows:
        kept = known(row, before)
        heading = of(new) if kept is None else of(kept) or of(old)
        figures = {key: value for key, value in row.items() if key not in _KEYS}
        found.append({**figures, **heading})
    return found


def dates(headings: Iterable[Heading]) -> str:
    """The day, or the first and the last.

    Example:
        >>> dates([{"date": "2000-01-02T03:04"}, {"date": "2000-01-01T00:00"}])
        '2000-01-01 to 2000-01-02'
    """
    days = sorted(each["date"][:10] for each in headings)
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def processors(headings: Iterable[Heading]) -> str:
    """The machines, in order of their rows."""
    return " and on ".join(dict.fromkeys(each["processor"] for each in headings))


def versions(headings: Iterable[Heading]) -> str:
    """Each package with its version, or with all that took part.

    Example:
        >>> versions([{"versions": {"a": "1", "b": "2"}}, {"versions": {"a": "1", "b": "3"}}])
        'a 1, b 2 and 3'
    """
    found: dict[str, dict[str, None]] = {}
    for heading in headings:
        for name, version in heading["versions"].items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(each)}" for name, each in found.items())


def commits(headings: Iterable[Heading]) -> str:
    """The commits that were recorded, in words; "" where none was.

    Example:
        >>> commits([{"commit": "abc"}, {"commit": "def"}, {}])
        'the code of `abc`, `def` and of commits that are not recorded'
    """
    listed = [each.get("commit", "") for each in headings]
    found = ", ".join(f"`{each}`" for each in dict.fromkeys(filter(None, listed)))
    missing = " and of commits that are not recorded" if not all(listed) else ""
    return f"the code of {found}{missing}" if found else ""
