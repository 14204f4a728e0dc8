"""Text files to documents, each a list of lines with one sentence a line.

A blank line ends a document (or, with `boundary="file"`, only the end of a file does), as in
google-research/bert's create_pretraining_data.py. Files are UTF-8, with or without a byte order
mark, with LF or CRLF; a name that ends in ``.gz`` is decompressed. Bytes that are no UTF-8 become
U+FFFD, which BERT's tokenizer drops.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import tensorflow as tf

from tfrecords.errors import UserError

BLANK_LINE = "blank_line"
FILE = "file"
BOUNDARIES = (BLANK_LINE, FILE)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file of the corpus.

    Attributes:
        path: where it lies.
        key: its path relative to the folder that all files of the corpus share.
    """

    path: str
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of whole documents within one file.

    Attributes:
        file: the file.
        begin, end: the byte offsets of the run in the decompressed file.
        first_ordinal: the number of documents in the file before it.
        boundary: what ends a document, one of `BOUNDARIES`.
    """

    file: TextFile
    begin: int
    end: int
    first_ordinal: int
    boundary: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a file finds.

    Attributes:
        file: the file.
        num_bytes: its decompressed size.
        sha256: of its decompressed content.
        num_documents: the number of documents with at least one line.
        chunks: the file cut between documents.
    """

    file: TextFile
    num_bytes: int
    sha256: str
    num_documents: int
    chunks: tuple[Chunk, ...]


def find(patterns: str) -> list[TextFile]:
    """Resolves a comma-separated list of files, folders and globs, in the order of their paths.

    A folder stands for all files in it and below, without those whose names, or whose folders'
    names, begin with a dot. A folder that a glob matches is left out.

    Raises:
        UserError: a pattern matches no file.

    Example:
        >>> [file.key for file in find("corpus/a/*.txt,corpus/b.txt")]
        ['a/1.txt', 'a/2.txt', 'b.txt']
    """
    paths: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        found = _matches(pattern)
        if not found:
            raise UserError(
                f"--input {pattern!r} matches no file; give existing files, folders or quoted "
                "globs, separated by commas"
            )
        paths.update(found)
    if not paths:
        raise UserError("--input is empty; give files, folders or quoted globs, with commas")
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if len(paths) > 1 else None
    return [
        TextFile(
            path=path,
            key=(os.path.basename(path) if root is None else path[len(root) :].lstrip("/")),
        )
        for path in sorted(paths)
    ]


def _matches(pattern: str) -> list[str]:
    remote = "://" in pattern
    absolute = pattern if remote else os.path.abspath(pattern)
    if tf.io.gfile.exists(absolute):
        return _files_of(absolute)
    try:
        return [path for path in tf.io.gfile.glob(absolute) if not tf.io.gfile.isdir(path)]
    except tf.errors.OpError:
        return []


def _files_of(path: str) -> list[str]:
    if not tf.io.gfile.isdir(path):
        return [path]
    inside: list[str] = []
    for name in sorted(tf.io.gfile.listdir(path)):
        name = name.rstrip("/")  # as gs:// lists folders
        if not name.startswith("."):
            inside.extend(_files_of(os.path.join(path, name)))
    return inside


def scan(
    file: TextFile,
    boundary: str,
    chunk_bytes: int,
    advance: Callable[[int], object] = lambda _: None,
) -> Scan:
    """Reads `file` once to count, fingerprint and cut it.

    Args:
        file: the file.
        boundary: what ends a document, one of `BOUNDARIES`.
        chunk_bytes: the size from which on the next document starts a new chunk.
        advance: told the number of bytes read, line by line.
    """
    digest = hashlib.sha256()
    chunks: list[Chunk] = []
    begin = position = first_ordinal = documents = 0
    inside = False

    def cut() -> None:
        nonlocal begin, first_ordinal
        if documents > first_ordinal:
            chunks.append(
                Chunk(
                    file=file,
                    begin=begin,
                    end=position,
                    first_ordinal=first_ordinal,
                    boundary=boundary,
                )
            )
        begin, first_ordinal = position, documents

    with _reading(file.path) as stream:
        for line in stream:
            digest.update(line)
            blank = _is_blank(line if position else line.removeprefix(_BYTE_ORDER_MARK))
            position += len(line)
            if not blank and not inside:
                documents += 1
                inside = True
            elif blank and boundary == BLANK_LINE:
                inside = False
                if position - begin >= chunk_bytes:
                    cut()
            advance(len(line))
    cut()
    return Scan(
        file=file,
        num_bytes=position,
        sha256=digest.hexdigest(),
        num_documents=documents,
        chunks=tuple(chunks),
    )


def documents(chunk: Chunk) -> list[list[str]]:
    """The documents of a chunk: lines without surrounding white space, none of them empty."""
    with _reading(chunk.file.path) as stream:
        stream.seek(chunk.begin)
        content = stream.read(chunk.end - chunk.begin)
    if chunk.begin == 0:
        content = content.removeprefix(_BYTE_ORDER_MARK)
    result: list[list[str]] = [[]]
    for line in content.decode("utf-8", errors="replace").split("\n"):
        stripped = line.strip()
        if stripped:
            result[-1].append(stripped)
        elif chunk.boundary == BLANK_LINE and result[-1]:
            result.append([])
    return [document for document in result if document]


def lines(file: TextFile) -> Iterator[tuple[str, int]]:
    """The non-blank lines of a file, each with the number of bytes it took."""
    with _reading(file.path) as stream:
        first = True
        for line in stream:
            text = (line.removeprefix(_BYTE_ORDER_MARK) if first else line).decode(
                "utf-8", errors="replace"
            )
            first = False
            yield text.strip(), len(line)


def stored_bytes(file: TextFile) -> int:
    """The size of the file as it lies on disk: an estimate of its text where it is compressed."""
    return tf.io.gfile.stat(file.path).length


def _is_blank(line: bytes) -> bool:
    stripped = line.strip()
    if not stripped:
        return True
    if 0x21 <= stripped[0] < 0x80:
        return False
    return not stripped.decode("utf-8", errors="replace").strip()


@contextlib.contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    try:
        with _open(path) as stream:
            yield stream
    except (OSError, EOFError, zlib.error, tf.errors.OpError) as error:
        raise UserError(
            f"cannot read {path} ({error}); mend it or leave it out of --input"
        ) from error


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(_open_plain(path), "rb")  # type: ignore[return-value]
    return _open_plain(path)


def _open_plain(path: str) -> IO[bytes]:
    # TensorFlow's file object reads lines ten times as slowly as Python's own.
    return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb")
