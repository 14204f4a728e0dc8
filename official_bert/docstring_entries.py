"""What a docstring's entries state, with the place in the text where each statement stands.

The docstring parsers on the index hand out normalised fields (a type without its "optional", a
default cut from its sentence) and no positions; a question's answer must be an exact span.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from official_bert.docstring_text import PARAMETERS, RAISES, RETURNS, Line, sentences

_MIN_ENTRIES = 3
_MAX_TYPE_WORDS, _MAX_MEANING_WORDS, _MIN_MEANING_WORDS = 10, 18, 3

_TYPE_END = re.compile(r"[,;]? *[(\[]? ?\b(?:optional|by default|defaults?|required)\b.*", re.I)
_VALUE = (
    r"(?P<value>'[^']*'|\"[^\"]*\"|[([{][^()\[\]{}]*[)\]}]"
    r"|-?[\w+]+(?:[.\-][\w]+)*(?:\([^()]*\))?)"
)
_HEADER_DEFAULT = re.compile(rf"\bdefault(?:s to| is|:| ?=)? ?{_VALUE}", re.I)
_TEXT_DEFAULT = re.compile(
    rf"\bdefault(?: value)?(?:s to| is|:| ?=) {_VALUE}(?=[.,;)]+(?:\s|$)|$|\s\()", re.I
)
# After "defaults to" these begin a clause, not a value.
_NO_VALUES = {"the", "a", "an", "is", "to", "it", "value", "if", "of", "or", "in", "for", "this"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement of a piece: the answer to one kind of question.

    Attributes:
        topic: `type`, `default`, `meaning`, `name`, `returned value`, `returned type` or
            `condition`.
        name: the entry's name; "" where a returned value has none.
        description: the first sentence about it, without its full stop.
        start: offset of the answer in the piece's text.
        stop: offset just after it.
    """

    topic: str
    name: str
    description: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive entries of one docstring: `owner` is its object, `facts` what it states."""

    owner: str
    text: str
    facts: tuple[Fact, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """An entry's lines, with the heading above it where it is a section's first."""

    lines: tuple[Line, ...]

    @property
    def head(self) -> Line:
        return next(line for line in self.lines if not line.is_heading)

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    @property
    def num_words(self) -> int:
        return len(self.text.split())


def pieces(
    owner: str, lines: Sequence[Line], min_words: int = 20, max_words: int = 50
) -> Iterator[Piece]:
    """Cuts a docstring's entries into pieces of at least three consecutive ones.

    Args:
        owner: the documented object's dotted name.
        lines: what `docstring_text.logical_lines` made of its docstring.
        min_words: the fewest words of a piece.
        max_words: the most; a longer entry is in none, and pieces end before it.
    """
    window: list[_Entry] = []
    for entry in _entries(lines):
        if sum(held.num_words for held in window) + entry.num_words > max_words:
            yield from _piece(owner, window, min_words)
            window = []
        if entry.num_words <= max_words:
            window.append(entry)
    yield from _piece(owner, window, min_words)


def _piece(owner: str, window: Sequence[_Entry], min_words: int) -> Iterator[Piece]:
    text = "\n".join(entry.text for entry in window)
    if len(window) < _MIN_ENTRIES or len(text.split()) < min_words:
        return
    facts: list[Fact] = []
    offset = 0
    for entry in window:
        facts += _facts(entry, offset)
        offset += len(entry.text) + 1
    yield Piece(owner=owner, text=text, facts=tuple(facts))


def _entries(lines: Sequence[Line]) -> Iterator[_Entry]:
    group: list[Line] = []
    for line in lines:
        begins = line.is_heading or bool(line.name or line.kind) or _is_bare_return(line, group)
        if begins and any(not held.is_heading for held in group):
            yield _Entry(lines=tuple(group))
            group = []
        if line.section in (PARAMETERS, RETURNS, RAISES):
            group.append(line)
    if any(not held.is_heading for held in group):
        yield _Entry(lines=tuple(group))


def _is_bare_return(line: Line, group: Sequence[Line]) -> bool:
    """Google's returned value has neither a name nor a type: its first line is the entry."""
    return line.section == RETURNS and bool(group) and group[-1].section != RETURNS


def _facts(entry: _Entry, offset: int) -> Iterator[Fact]:
    head = entry.head
    start = offset
    for line in entry.lines[: entry.lines.index(head)]:
        start += len(line.text) + 1
    meaning = _meaning(entry, start)
    description = "" if meaning is None else meaning[0]
    spans: dict[str, tuple[int, int] | None] = {}
    if head.section == PARAMETERS:
        spans["type"] = _type(head, start)
        spans["default"] = _default(entry, start)
        spans["meaning"] = None if meaning is None else meaning[1:]
        # A description that says the name gives the answer away.
        told = head.name.lower() in description.lower().split()
        spans["name"] = None if meaning is None or told else _name(head, start)
    elif head.section == RETURNS:
        spans["returned type"] = _type(head, start)
        spans["returned value"] = None if meaning is None else meaning[1:]
    elif head.name:
        spans["condition"] = None if meaning is None else meaning[1:]
    named = head.section == RETURNS or (head.name and "," not in head.name)
    for topic, span in spans.items():
        if span is not None and named:
            yield Fact(
                topic=topic,
                name=head.name,
                description=description,
                start=span[0],
                stop=span[1],
            )


def _name(head: Line, start: int) -> tuple[int, int]:
    first = start + head.text.index(head.name)
    return first, first + len(head.name)


def _type(head: Line, start: int) -> tuple[int, int] | None:
    kind = _TYPE_END.sub("", head.kind).strip(" ,;")
    if not kind or len(kind.split()) > _MAX_TYPE_WORDS or not any(map(str.isalpha, kind)):
        return None
    first = start + head.text.index(kind, len(head.name))
    return first, first + len(kind)


def _default(entry: _Entry, start: int) -> tuple[int, int] | None:
    offset = start
    for line in entry.lines[entry.lines.index(entry.head) :]:
        pattern = _HEADER_DEFAULT if line is entry.head and line.kind else _TEXT_DEFAULT
        match = pattern.search(line.text, len(entry.head.name) if line is entry.head else 0)
        if match is not None and match["value"].lower() not in _NO_VALUES:
            return offset + match.start("value"), offset + match.end("value")
        offset += len(line.text) + 1
    return None


def _meaning(entry: _Entry, start: int) -> tuple[str, int, int] | None:
    """The first sentence of the entry's description, and its span without the full stop."""
    offset, head = start, entry.head
    body = head.text[head.body :]
    if body:
        offset += head.body
    else:
        below = entry.lines[entry.lines.index(head) + 1 :]
        if not below:
            return None
        offset += len(head.text) + 1
        body = below[0].text
    sentence = sentences(body)[0].rstrip(" .:;,")
    if not _MIN_MEANING_WORDS <= len(sentence.split()) <= _MAX_MEANING_WORDS:
        return None
    if not sentence[0].isalnum():
        return None
    first = offset + body.index(sentence)
    return sentence, first, first + len(sentence)
