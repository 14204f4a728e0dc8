"""The files of a corpus: found, cut between documents, and read.

A name that ends in ``.gz`` is decompressed. A byte order mark is dropped, CRLF is as good as LF,
and what cannot be text is replaced (`text_defects`). What a document is says a `TextFormat`.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import operator
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO

import tensorflow as tf

from tfrecords import document_formats
from tfrecords.document_formats import Block, TextFormat
from tfrecords.errors import UserError
from tfrecords.text_defects import Defects, Replaced

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSED = ".gz"
# How files begin that would be read as text with every other byte replaced.
_FOREIGN = (
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "bzip2", "bunzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "xz", "unxz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "Zstandard", "unzstd"),
    (re.compile(rb"\x1f\x8b\x08"), "gzip", "gunzip"),
    (re.compile(rb"PK\x03\x04"), "zip", "unzip"),
    (re.compile(rb"\x04\x22\x4d\x18"), "LZ4", "unlz4"),
    (re.compile(rb"\x1f\x9d"), "compress", "uncompress"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7-Zip", "7z x"),
)
_TABLE = "write its rows as JSON lines, and give --text_field"
# What else such files are, and how to make text of them.
_BINARY = (
    (re.compile(rb"PAR1\x15"), "a Parquet file", _TABLE),
    (re.compile(rb"ARROW1\0\0|\xff{4}"), "an Arrow file", _TABLE),
    (re.compile(rb"%PDF-[12]\."), "a PDF file", "extract its text, with pdftotext for instance"),
)
_BLOCK_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file of the corpus.

    Attributes:
        path: where it lies.
        key: its path relative to the folder that all files of the corpus share.
    """

    path: str
    key: str

    @property
    def is_compressed(self) -> bool:
        """Whether it can only be read from its beginning on."""
        return self.path.endswith(_COMPRESSED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of whole documents within one file.

    Attributes:
        file: the file.
        begin, end: the byte offsets of the run in the decompressed file.
        line: the number of its first line, from 1.
        first_ordinal: the number of documents in the file before it.
    """

    file: TextFile
    begin: int
    end: int
    line: int
    first_ordinal: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a file finds.

    Attributes:
        file: the file.
        num_bytes: its decompressed size.
        sha256: of its decompressed content.
        num_documents: the number of documents with at least one line.
        chunks: the file cut between documents.
        replaced: what in it is replaced when it is read.
    """

    file: TextFile
    num_bytes: int
    sha256: str
    num_documents: int
    chunks: tuple[Chunk, ...]
    replaced: Replaced


def find(patterns: str, leave_out: Sequence[str] = ()) -> list[TextFile]:
    """Resolves a comma-separated list of files, folders and globs, in the order of their paths.

    A folder, also one that a glob matches, stands for all files in it and below. Names that begin
    with a dot are left out, unless the pattern has the dot. A local file that is found by several
    paths, by links for instance, is one file.

    Args:
        patterns: files, folders and globs; `*` and `?` match no slash.
        leave_out: files and folders that are not meant: what is written, or is no text, may lie
            below what is read.

    Raises:
        UserError: a pattern matches no file that is meant, or has `**`, a name is no UTF-8, or
            files lie on several file systems.

    Example:
        >>> [file.key for file in find("corpus/a/*.txt,corpus/b.txt")]
        ['a/1.txt', 'a/2.txt', 'b.txt']
    """
    left_out = [_real(each) for each in leave_out]
    places: dict[str, str] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = {path: _real(path) for path in _matches(pattern)}
        found = {path: at for path, at in matches.items() if not _holders(at, left_out)}
        if matches and not found:
            holders = sorted({each for at in matches.values() for each in _holders(at, left_out)})
            raise UserError(
                f"--input {pattern!r} matches only {' and '.join(holders)}, which is written to or "
                "the vocabulary; give text, and what is written a folder of its own"
            )
        if not found:
            raise UserError(
                f"--input {pattern!r} matches no file; give existing files, folders or quoted "
                "globs, separated by commas"
            )
        places.update(found)
    paths = _once_each(places)
    if not paths:
        raise UserError("--input is empty; give files, folders or quoted globs, with commas")
    systems = {path.partition("://")[0] if "://" in path else "" for path in paths}
    if len(systems) > 1:
        raise UserError(
            f"--input has files of {len(systems)} file systems, {min(paths)} and {max(paths)}; "
            "expected one: copy the text to one place"
        )
    folders = [os.path.dirname(path.partition("://")[2] or path) for path in paths]
    root = os.path.commonpath(folders)
    return [
        TextFile(path=path, key=os.path.relpath(path.partition("://")[2] or path, root))
        for path in sorted(paths)
    ]


def _real(path: str) -> str:
    """The place itself, whatever links lead there."""
    return path.rstrip("/") if "://" in path else os.path.realpath(path)


def _holders(place: str, others: Iterable[str]) -> list[str]:
    """Those of other files and folders that a file is, or lies in."""
    return [other for other in others if f"{place}/".startswith(f"{other}/")]


def _once_each(places: Mapping[str, str]) -> set[str]:
    """Of the paths to each place, its own, or else the first of its links."""
    chosen: dict[str, str] = {}
    for path, place in sorted(places.items()):
        chosen[place] = place if path == place else chosen.get(place, path)
    return set(chosen.values())


def _matches(pattern: str) -> list[str]:
    absolute = pattern if "://" in pattern else os.path.abspath(pattern)
    try:
        if tf.io.gfile.exists(absolute):
            return _files_of(absolute, set())
        if "**" in pattern:
            raise UserError(
                f"--input {pattern!r} has **, which is no more than * here; give the folder, which "
                "stands for all files below it"
            )
        matches = [path for path in tf.io.gfile.glob(absolute) if _is_shown(path, absolute)]
        entered: set[str] = set()
        return [file for path in sorted(matches) for file in _files_of(path, entered)]
    except tf.errors.OpError:
        return []
    except UnicodeDecodeError as error:
        raise UserError(
            f"--input {pattern!r} matches a name that is no UTF-8, {error.object!r}; rename it"
        ) from error


def _is_shown(path: str, pattern: str) -> bool:
    """Whether no name of a path begins with a dot that the glob it matches does not have."""
    parts = zip(path.split("/"), pattern.split("/"), strict=False)
    return not any(name.startswith(".") and not glob.startswith(".") for name, glob in parts)


def _files_of(path: str, entered: set[str]) -> list[str]:
    """A file itself, or those below a folder; none of a folder that was `entered` before."""
    if not tf.io.gfile.isdir(path):
        return [path]
    if _real(path) in entered:
        return []
    entered.add(_real(path))
    inside: list[str] = []
    for name in sorted(tf.io.gfile.listdir(path)):
        name = name.rstrip("/")  # as gs:// lists folders
        if not name.startswith("."):
            inside.extend(_files_of(os.path.join(path, name), entered))
    return inside


def scan(
    file: TextFile,
    text_format: TextFormat,
    chunk_bytes: int,
    *,
    strict: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Scan:
    """Reads `file` once to count, fingerprint, check and cut it.

    Args:
        file: the file.
        text_format: what its documents are.
        chunk_bytes: the size from which on the next document starts a new chunk.
        strict: whether to refuse what would be replaced.
        advance: told the number of bytes read, block by block.

    Raises:
        UserError: the file cannot be read, is none of this format, or is refused.
    """
    digest = hashlib.sha256()
    defects = Defects(file.path, strict)
    scanner = document_formats.scanner_of(file.path, text_format, defects)
    cuts = _Cuts(file, chunk_bytes)
    position = 0
    for block, raw in _blocks(file):
        digest.update(raw)
        defects.in_bytes(*block)
        for end in scanner.feed(block):
            cuts.offer(block, end, scanner.documents)
        position += len(raw)
        advance(len(raw))
    scanner.finish()
    cuts.cut(position, 0, scanner.documents)
    return Scan(
        file=file,
        num_bytes=position,
        sha256=digest.hexdigest(),
        num_documents=scanner.documents,
        chunks=tuple(cuts.chunks),
        replaced=defects.replaced,
    )


class _Cuts:
    """Cuts a file into chunks of at least `chunk_bytes`, with a document in each."""

    def __init__(self, file: TextFile, chunk_bytes: int) -> None:
        self.chunks: list[Chunk] = []
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._begin = self._first_ordinal = 0
        self._line = 1

    def offer(self, block: Block, end: int, documents: int) -> None:
        """Cuts after `end` of a block if the chunk is then large enough."""
        if block.offset + end - self._begin >= self._chunk_bytes:
            self.cut(block.offset + end, block.line_at(end), documents)

    def cut(self, position: int, line: int, documents: int) -> None:
        """Cuts at a byte of the file, which begins `line`; `documents` lie before it."""
        if documents > self._first_ordinal:
            self.chunks.append(
                Chunk(
                    file=self._file,
                    begin=self._begin,
                    end=position,
                    line=self._line,
                    first_ordinal=self._first_ordinal,
                )
            )
        self._begin, self._line, self._first_ordinal = position, line, documents


def replaced_in(scans: Iterable[Scan]) -> Replaced:
    """What is replaced in all files together."""
    return functools.reduce(operator.add, (scan.replaced for scan in scans), Replaced())


class Reader(contextlib.AbstractContextManager["Reader"]):
    """Reads chunks; fastest in the order of the corpus.

    The last file stays open, so that chunks of a compressed one, read in their order, cost one
    decompression and not one each.

    Example:
        >>> with Reader(TextFormat()) as reader:
        ...     texts = [reader.documents(chunk) for chunk in chunks]
    """

    def __init__(self, text_format: TextFormat) -> None:
        self._format = text_format
        self._path: str | None = None
        self._open = contextlib.ExitStack()

    def documents(self, chunk: Chunk) -> list[list[str]]:
        """The documents of a chunk: sentences without surrounding white space, none empty."""
        path = chunk.file.path
        with _naming(path):
            if path != self._path:
                self._open.close()
                self._stream = self._open.enter_context(_open(path))
                self._path = path
            self._stream.seek(chunk.begin)
            content = self._stream.read(chunk.end - chunk.begin)
        if len(content) < chunk.end - chunk.begin:
            raise UserError(
                f"{path} is shorter than it was when it was scanned; leave the text as it is while "
                "it is read, and run the same command again"
            )
        if chunk.begin == 0:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        block = Block(content=content, line=chunk.line, offset=chunk.begin)
        return document_formats.documents_of(block, self._format, path)

    def __exit__(self, *_: object) -> None:
        self._open.close()


def lines(file: TextFile, text_format: TextFormat | None = None) -> Iterator[tuple[str, int]]:
    """The lines of a file's documents, each with the number of bytes read since the one before.

    Paragraphs stay whole.

    Raises:
        UserError: the file cannot be read or is none of this format.
    """
    text_format = TextFormat() if text_format is None else text_format
    scanner = document_formats.scanner_of(file.path, text_format)
    for block, raw in _blocks(file):
        for _ in scanner.feed(block):
            pass
        num_bytes = len(raw)
        for line in document_formats.lines_of(block, text_format, file.path):
            yield line, num_bytes
            num_bytes = 0
    scanner.finish()


def stored_bytes(file: TextFile) -> int:
    """The size of the file as it lies on disk: an estimate of its text where it is compressed."""
    return tf.io.gfile.stat(file.path).length


def _blocks(file: TextFile) -> Iterator[tuple[Block, bytes]]:
    """The file in runs of whole lines, each also with the mark that its block is without."""
    line, offset = 1, 0
    with _naming(file.path), _open(file.path) as stream:
        while raw := stream.read(_BLOCK_BYTES):
            if not offset:
                _check_is_text(file.path, raw)
            raw += stream.readline()
            content = raw if offset else raw.removeprefix(_BYTE_ORDER_MARK)
            begin = offset + len(raw) - len(content)
            yield Block(content=content, line=line, offset=begin), raw
            line += raw.count(b"\n")
            offset += len(raw)


def _check_is_text(path: str, beginning: bytes) -> None:
    if beginning[257:262] == b"ustar":
        raise UserError(
            f"{path} is an archive of tar; expected text, or text compressed with gzip: unpack it "
            "and give the folder"
        )
    for magic, name, tool in _FOREIGN:
        if magic.match(beginning):
            raise UserError(
                f"{path} is compressed with {name}; expected text, or text compressed with gzip "
                f"once in a file whose name ends in {_COMPRESSED}: decompress it with {tool}, or "
                "leave it out of --input"
            )
    for magic, kind, remedy in _BINARY:
        if magic.match(beginning):
            raise UserError(f"{path} is {kind}; expected text: {remedy}")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, tf.errors.OpError) as error:
        raise UserError(
            f"cannot read {path} ({error}); mend it or leave it out of --input"
        ) from error


def _open(path: str) -> IO[bytes]:
    # TensorFlow's file object reads lines ten times as slowly as Python's own.
    remote = tf.io.gfile.GFile(path, "rb") if "://" in path else None
    if path.endswith(_COMPRESSED):
        return gzip.open(remote or path, "rb")  # type: ignore[return-value]
    return remote or open(path, "rb")
