"""The text of the data benchmarks: the same bytes for every contender.

A sentence a line and a blank line after each document, the one format that all of them read.
Documents are runs of sentences of one file, in shuffled order, so that any slice is of one kind
with the whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import random
import re
from collections.abc import Iterator, Sequence

from absl import flags

from official_bert import docstring_corpus
from tfrecords import corpus, files, vocabulary

NOVELS = pathlib.Path("data", "novels")
VOCABULARY = pathlib.Path("data", "vocab", "bert-base-uncased-vocab.txt")
TRAINED_VOCAB_SIZE = 8192

# About the length of an article of an encyclopedia.
_DOCUMENT_BYTES = 4096
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\u2019\u201d])\s+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A corpus, prepared.

    Attributes:
        source: what it was made of, for the report.
        documents: each a UTF-8 line a sentence, the blank line after it included.
        vocab_file: the vocabulary for it.
    """

    source: str
    documents: tuple[bytes, ...]
    vocab_file: str

    @property
    def num_bytes(self) -> int:
        """The size of all documents."""
        return sum(map(len, self.documents))

    def parts(self, num_parts: int, part_bytes: float) -> list[bytes]:
        """The first `num_parts` slices of whole documents, each of `part_bytes` or a little more.

        Where the text has not that much, it is taken from the front again.
        """
        documents = itertools.cycle(self.documents)
        parts = []
        for _ in range(num_parts):
            part: list[bytes] = []
            size = 0
            while size < part_bytes:
                part.append(next(documents))
                size += len(part[-1])
            parts.append(b"".join(part))
        return parts


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that say which text: `input` and `vocab_file`."""
    flags.DEFINE_string(
        "input",
        None,
        "Text: files, folders, globs; by default ../shared's novels, or docstrings.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "vocab_file", None, "The vocabulary; trained if there is none.", flag_values=flag_values
    )


def prepare(input_patterns: str | None, vocab_file: str | None, work_dir: pathlib.Path) -> Text:
    """Makes the text and finds its vocabulary.

    Args:
        input_patterns: files, folders and globs, separated by commas; None means the novels in
            ../shared where they are, else the docstrings of installed packages.
        vocab_file: the vocabulary; None means the one beside the novels, or one trained on the
            text.
        work_dir: a folder for what has to be made first.
    """
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    source = input_patterns or ""
    if input_patterns is None and (shared / NOVELS).is_dir():
        input_patterns, source = str(shared / NOVELS), f"../shared/{NOVELS}"
        if vocab_file is None and (shared / VOCABULARY).is_file():
            vocab_file = str(shared / VOCABULARY)
    elif input_patterns is None:
        input_patterns = str(work_dir / "docstrings")
        source = f"docstrings: {docstring_corpus.write_corpus(input_patterns)}"
    text_files = corpus.find(input_patterns)
    documents = [
        document for file in text_files for document in packed(sentences(_content(file.path)))
    ]
    random.Random(0).shuffle(documents)
    if vocab_file is None:
        vocab_file = str(work_dir / "vocab.txt")
        trained = vocabulary.train(text_files, TRAINED_VOCAB_SIZE, lower_case=True)
        files.write_bytes(vocab_file, trained.content)
    return Text(source=source, documents=tuple(documents), vocab_file=vocab_file)


def _content(path: str) -> str:
    return files.read_bytes(path).decode("utf-8-sig", errors="replace")


def sentences(content: str) -> list[str]:
    """A file's sentences, by its full stops: no linguist's, but the same for everybody.

    Example:
        >>> sentences('It rained. "Does it?" she asked.')
        ['It rained.', '"Does it?"', 'she asked.']
    """
    return [each for each in _SENTENCE_END.split(" ".join(content.split())) if each]


def packed(lines: Sequence[str], document_bytes: int = _DOCUMENT_BYTES) -> Iterator[bytes]:
    """Lines to documents of `document_bytes` or a little more; the last one may be shorter."""
    document: list[bytes] = []
    for line in lines:
        document.append(line.encode("utf-8") + b"\n")
        if sum(map(len, document)) >= document_bytes:
            yield b"".join(document) + b"\n"
            document = []
    if document:
        yield b"".join(document) + b"\n"
