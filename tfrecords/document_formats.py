"""What a document is in each format of text: where one ends and which lines it has.

A scanner is fed a file block by block, each block some whole lines, and says after which offsets
no document goes on. `documents_of` reads the documents between two such offsets. White space is
what Unicode and `str.strip` say it is; only a line feed ends a line.
"""

import abc
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from tfrecords import sentences, text_defects
from tfrecords.errors import UserError

BLANK_LINE = "blank_line"
FILE = "file"
DOC_TAG = "doc_tag"
BOUNDARIES = (BLANK_LINE, FILE, DOC_TAG)

_LONGEST_QUOTE = 40

# White space other than the line feed, in UTF-8.
_SPACE = (
    rb"(?:[\t\x0b\x0c\r\x1c-\x1f ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]"
    rb"|\xe2\x81\x9f|\xe3\x80\x80)*+"
)
_BLANK_LINES = re.compile(rb"\n(?:" + _SPACE + rb"\n)++")
_TAG = r"<(?:doc(?: [^\n]*)?|(/)doc)>"
_TAG_LINE = re.compile(rb"\n" + _SPACE + _TAG.encode() + _SPACE + rb"(?=\n)")
_TAG_TEXT = re.compile(_TAG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How text says what its documents and sentences are.

    Attributes:
        document_boundary: what ends a document: a blank line, the end of its file, or the line
            `</doc>` to an opening `<doc ...>`, as WikiExtractor writes them.
        text_field: "" for plain text. For JSON lines, each an object that is a document, the
            object's field that holds the text.
        split_sentences: whether a line is a paragraph, to be split; else it is a sentence.

    Raises:
        UserError: JSON lines have another boundary than their own.

    Example:
        >>> TextFormat(text_field="text", split_sentences=True).document_boundary
        'blank_line'
    """

    document_boundary: str = BLANK_LINE
    text_field: str = ""
    split_sentences: bool = False

    def __post_init__(self) -> None:
        if self.text_field and self.document_boundary != BLANK_LINE:
            raise UserError(
                f"--text_field {self.text_field} and --document_boundary {self.document_boundary} "
                "exclude each other: each JSON line is a document; leave out one of them"
            )


class Block(NamedTuple):
    """A run of whole lines of a file.

    Attributes:
        content: the lines, without the byte order mark of the file.
        line: the number of the first one, from 1.
        offset: the byte of the decompressed file that `content` begins at.
    """

    content: bytes
    line: int
    offset: int

    def line_at(self, position: int) -> int:
        """The number of the line that a position in `content` lies on."""
        return self.line + self.content.count(b"\n", 0, position)


class Scanner(abc.ABC):
    """Finds the documents of a file.

    Attributes:
        documents: how many with at least one line have begun.
    """

    def __init__(self, path: str) -> None:
        self.documents = 0
        self._path = path
        self._opened: int | None = None  # the line of a tag without its end

    @abc.abstractmethod
    def feed(self, block: Block) -> Iterator[int]:
        """Takes the next block; yields the positions in its content at which to cut.

        At each of them `documents` is the number of those before it.

        Raises:
            UserError: the block is none of this format.
        """

    def finish(self) -> None:
        """Takes the end of the file.

        Raises:
            UserError: a document has begun with a tag and not ended.
        """
        if self._opened is not None:
            raise UserError(
                f"{self._path} line {self._opened}: <doc> without </doc> by the end of the file; "
                "is the file cut off?"
            )


class _BlankLines(Scanner):
    _inside = False

    def feed(self, block: Block) -> Iterator[int]:
        padded = _padded(block)
        end = 0
        for match in _BLANK_LINES.finditer(padded):
            if match.start() > end:
                self._begin()
            self._inside = False
            end = match.end()
            yield min(end - 1, len(block.content))
        if end < len(padded):
            self._begin()

    def _begin(self) -> None:
        self.documents += not self._inside
        self._inside = True


class _WholeFile(Scanner):
    def feed(self, block: Block) -> Iterator[int]:
        if not self.documents and _has_text(block.content):
            self.documents = 1
        yield from ()


class _DocTags(Scanner):
    _has_text = False

    def feed(self, block: Block) -> Iterator[int]:
        begin, line = 0, block.line
        for match in _TAG_LINE.finditer(_padded(block)):
            position = match.start()  # of the tag's line in the content, which lacks one line feed
            self._take(block, begin, position)
            line += block.content.count(b"\n", begin, position)
            begin = min(match.end(), len(block.content))
            if match.group(1):
                self._close(line)
                yield begin
            else:
                self._open(line)
            line += 1
        self._take(block, begin, len(block.content))

    def _take(self, block: Block, begin: int, end: int) -> None:
        text = block.content[begin:end]
        if self._has_text or not _has_text(text):
            return
        if self._opened is None:
            first = len(text) - len(text.lstrip())
            raise UserError(
                f"{self._path} line {block.line_at(begin + first)}: text outside <doc ...> and "
                f"</doc>, {_quote(text_defects.decode(text))}; --document_boundary=doc_tag "
                "expects each document between them, on lines of their own"
            )
        self._has_text = True
        self.documents += 1

    def _open(self, line: int) -> None:
        if self._opened is not None:
            raise UserError(
                f"{self._path} line {line}: <doc> inside the <doc> of line {self._opened}; "
                "expected </doc> first"
            )
        self._opened, self._has_text = line, False

    def _close(self, line: int) -> None:
        if self._opened is None:
            raise UserError(f"{self._path} line {line}: </doc> without <doc ...> before it")
        self._opened, self._has_text = None, False


class _JsonLines(Scanner):
    def __init__(self, path: str, text_field: str, defects: text_defects.Defects) -> None:
        super().__init__(path)
        self._text_field = text_field
        self._defects = defects

    def feed(self, block: Block) -> Iterator[int]:
        position = 0
        for number, line in enumerate(block.content.split(b"\n"), block.line):
            text = _field(text_defects.decode(line), self._text_field, self._path, number)
            self._defects.in_text(text, number, block.offset + position)
            self.documents += bool(text.strip())
            position = min(position + len(line) + 1, len(block.content))
            yield position


def scanner_of(
    path: str, text_format: TextFormat, defects: text_defects.Defects | None = None
) -> Scanner:
    """The scanner of a format.

    Args:
        path: the file, for messages.
        text_format: the format.
        defects: told of what escapes in JSON hide from a look at the bytes.
    """
    if text_format.text_field:
        defects = defects or text_defects.Defects(path, strict=False)
        return _JsonLines(path, text_format.text_field, defects)
    scanners: dict[str, type[Scanner]] = {
        BLANK_LINE: _BlankLines, FILE: _WholeFile, DOC_TAG: _DocTags
    }  # fmt: skip
    return scanners[text_format.document_boundary](path)


def documents_of(block: Block, text_format: TextFormat, path: str) -> list[list[str]]:
    """The documents of a run of whole ones, each its sentences, stripped and none of them empty."""
    documents = _documents(block, text_format, path)
    if text_format.split_sentences:
        return [
            [sentence for line in document for sentence in sentences.split(line)]
            for document in documents
            if document
        ]
    return [document for document in documents if document]


def lines_of(block: Block, text_format: TextFormat, path: str) -> list[str]:
    """The lines of the documents of a block, also of those that it holds a part of."""
    return [line for document in _documents(block, text_format, path) for line in document]


def _documents(block: Block, text_format: TextFormat, path: str) -> list[list[str]]:
    lines = text_defects.decode(block.content).split("\n")
    if text_format.text_field:
        texts = (
            _field(line, text_format.text_field, path, number)
            for number, line in enumerate(lines, block.line)
        )
        return [_stripped(text_defects.mend(text).split("\n")) for text in texts]
    if text_format.document_boundary == FILE:
        return [_stripped(lines)]
    by_tag = text_format.document_boundary == DOC_TAG
    documents: list[list[str]] = [[]]
    for line in lines:
        text = line.strip()
        if (_TAG_TEXT.fullmatch(text) is not None) if by_tag else not text:
            documents.append([])
        elif text:
            documents[-1].append(text)
    return documents


def _stripped(lines: list[str]) -> list[str]:
    return [text for line in lines if (text := line.strip())]


def _field(line: str, name: str, path: str, number: int) -> str:
    """The text of a JSON line; none for a blank one."""
    if not line.strip():
        return ""
    way_out = f"--text_field={name} expects a JSON object a line, with the text in that field"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise UserError(
            f"{path} line {number} is no JSON ({reason}): {_quote(line)}; {way_out}"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} line {number} is no JSON object: {_quote(line)}; {way_out}")
    if name not in record:
        fields = ", ".join(map(_quote, list(record)[:8])) or "no field"
        raise UserError(f"{path} line {number} has {fields}, but no {name!r}; {way_out}")
    if not isinstance(record[name], str):
        raise UserError(
            f"{path} line {number} has {_quote(json.dumps(record[name]))} in {name!r}, which is "
            f"no string; {way_out}"
        )
    return record[name]


def _padded(block: Block) -> bytes:
    """The content between line feeds, so that patterns find its first and last line."""
    return b"\n" + block.content + (b"" if block.content.endswith(b"\n") else b"\n")


def _has_text(content: bytes) -> bool:
    stripped = content.strip()
    if stripped and 0x21 <= stripped[0] < 0x80:
        return True
    return bool(stripped.decode("utf-8", errors="replace").strip())


def _quote(text: str) -> str:
    stripped = text.strip()
    shown = stripped[:_LONGEST_QUOTE]
    return repr(shown + "..." if len(stripped) > _LONGEST_QUOTE else shown)
