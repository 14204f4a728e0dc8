"""Labelled texts from tab- or comma-separated files: read, checked, and held as plain lists."""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence

from tfrecords import files
from tfrecords.errors import UserError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The data lines of a file.

    Attributes:
        path: where it came from.
        names: the columns' names; empty where the file has no header.
        rows: the fields of each data line that is not blank.
        lines: the number of each row's line in the file, from 1.
        left_out: data lines with too few fields, where those are tolerated.
    """

    path: str
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    left_out: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts, or pairs of them, and what they are labelled with.

    Attributes:
        path: the file they came from.
        first: N texts.
        second: their partners; None for single texts.
        labels: N labels, as they stand in the file.
        lines: the number of each one's line in the file, from 1.
        left_out: data lines with too few fields, which are not among them.
    """

    path: str
    first: list[str]
    second: list[str] | None
    labels: list[str]
    lines: list[int]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.first)


def read_plain(
    path: str,
    *,
    has_header: bool = True,
    columns: int = 0,
    tolerant: bool = False,
    exact: bool = False,
) -> Table:
    """A tab-separated file in which quotation marks mean nothing, as GLUE's are.

    Args:
        path: the file.
        has_header: whether its first line names the columns.
        columns: fields that a line has at least, where there is no header to say so.
        tolerant: whether a line with fewer fields is left out and counted.
        exact: whether a line with more fields is refused; GLUE has such lines.

    Raises:
        UserError: it is missing, empty, no UTF-8, or a line has too few fields, or too many.
    """
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    names = tuple(lines[0].split("\t")) if has_header else ()
    wanted = len(names) or columns
    rows, numbers, left_out = [], [], 0
    for number, line in enumerate(lines[has_header:], 1 + has_header):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) == wanted or (len(fields) > wanted and not exact):
            rows.append(fields)
            numbers.append(number)
        elif tolerant:
            left_out += 1
        else:
            raise _miscounted(path, number, len(fields), wanted)
    return _checked(Table(path=path, names=names, rows=rows, lines=numbers, left_out=left_out))


def read_delimited(path: str) -> Table:
    """A CSV or TSV file with a header; its suffix tells which.

    A comma-separated file is read as RFC 4180 has it, quoted fields may hold commas and line
    ends; in a tab-separated one quotation marks are part of the text.

    Raises:
        UserError: another suffix, or the file is missing, empty, no UTF-8, badly quoted, or has a
            line with another number of fields than its header.
    """
    delimiter = _DELIMITERS.get(os.path.splitext(path)[1].lower())
    if delimiter is None:
        raise UserError(
            f"{path} ends in none of {', '.join(_DELIMITERS)}; expected .csv for commas or .tsv "
            "for tabs: rename it"
        )
    if delimiter == "\t":
        return read_plain(path, exact=True)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    csv.field_size_limit(1 << 30)
    rows: list[list[str]] = []
    numbers: list[int] = []
    names: tuple[str, ...] = ()
    begin = 1
    try:
        for fields in reader:
            number, begin = begin, reader.line_num + 1
            if not names:
                names = tuple(fields)
                continue
            if not fields:
                continue
            if len(fields) != len(names):
                raise _miscounted(path, number, len(fields), len(names))
            rows.append(fields)
            numbers.append(number)
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: {error}; expected fields separated by commas, those "
            'with commas or line ends in "quotation marks"'
        ) from error
    return _checked(Table(path=path, names=names, rows=rows, lines=numbers))


def texts(table: Table, *, first: str | int, second: str | int | None, label: str | int) -> Texts:
    """The texts and labels in three columns, given by name or number.

    Raises:
        UserError: there is no such column, or more than one.
    """
    places = [_place(table, column) for column in (first, label)]
    partner = None if second is None else _place(table, second)
    return Texts(
        path=table.path,
        first=[row[places[0]] for row in table.rows],
        second=None if partner is None else [row[partner] for row in table.rows],
        labels=[row[places[1]] for row in table.rows],
        lines=table.lines,
        left_out=table.left_out,
    )


def label_set(given: Texts) -> tuple[str, ...]:
    """The different labels of a training file, numbers in their order, others by spelling.

    Raises:
        UserError: a label is empty, or there is only one.
    """
    for label, line in zip(given.labels, given.lines, strict=True):
        if not label.strip():
            raise UserError(f"{given.path}: line {line} has no label; give it one, or remove it")
    found = sorted(set(given.labels), key=_order)
    if len(found) < 2:
        raise UserError(
            f"{given.path}: every line is labelled {found[0]!r}; expected at least two labels"
        )
    return tuple(found)


def label_ids(given: Texts, labels: Sequence[str]) -> list[int]:
    """The number of each text's label.

    Raises:
        UserError: a label that is not among `labels`; names it and its line.
    """
    ids: Mapping[str, int] = {label: index for index, label in enumerate(labels)}
    for label, line in zip(given.labels, given.lines, strict=True):
        if label not in ids:
            raise UserError(
                f"{given.path}: line {line} is labelled {label!r}; expected one of "
                f"{_listed(labels)}"
            )
    return [ids[label] for label in given.labels]


def numbers(given: Texts, low: float, high: float) -> list[float]:
    """The labels as numbers.

    Raises:
        UserError: one is no number, or outside of [low, high]; names it and its line.
    """
    found = []
    for label, line in zip(given.labels, given.lines, strict=True):
        try:
            value = float(label)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise UserError(
                f"{given.path}: line {line} has the score {label!r}; expected a number from "
                f"{low:g} to {high:g}"
            )
        found.append(value)
    return found


def _text(path: str) -> str:
    try:
        # GLUE's MRPC files begin with a byte order mark.
        return files.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no file at {path}; give the path of a CSV or TSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error}); convert it") from error


def _checked(table: Table) -> Table:
    if not table.rows:
        raise UserError(f"{table.path} has no data lines; expected labelled texts")
    return table


def _miscounted(path: str, line: int, found: int, wanted: int) -> UserError:
    return UserError(
        f"{path}: line {line} has {found} fields, expected {wanted}; mend the line, or remove it"
    )


def _place(table: Table, column: str | int) -> int:
    if isinstance(column, int):
        return column
    places = [place for place, name in enumerate(table.names) if name == column]
    if len(places) == 1:
        return places[0]
    problem = "several columns" if places else "no column"
    raise UserError(
        f"{table.path} has {problem} named {column!r}; its header is {_listed(table.names)}"
    )


def _order(label: str) -> tuple[float, str]:
    try:
        value = float(label)
    except ValueError:
        value = math.inf
    # "nan" is a word: as a number it would have no place in any order.
    return value if math.isfinite(value) else math.inf, label


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)} in all)"
