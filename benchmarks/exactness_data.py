"""The shards of `benchmarks.exactness`: one text, a small vocabulary, stored records."""

from __future__ import annotations

import dataclasses
import pathlib

from benchmarks import data_text
from tfrecords import build, corpus, files, vocabulary
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest

VOCAB_SIZE = 2048
SEQ_LENGTH = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text and the vocabulary that was trained on it.

    Attributes:
        source: where the text comes from, for the report.
        text_file: a sentence a line, an empty line after each document.
        vocab_file: one word piece a line.
        seq_length: tokens of a row of its shards.
    """

    source: str
    text_file: pathlib.Path
    vocab_file: pathlib.Path
    seq_length: int = SEQ_LENGTH


def prepare(
    input_patterns: str | None,
    folder: pathlib.Path,
    text_bytes: float,
    seq_length: int = SEQ_LENGTH,
) -> Corpus:
    """Takes the first documents of a text, shuffled, and trains a vocabulary on them.

    Args:
        input_patterns: files, folders and globs, separated by commas; None means the novels in
            ../shared where they are, else the docstrings of installed packages.
        folder: for the files.
        text_bytes: how much of the text; it is repeated where it is shorter.
        seq_length: tokens of a row, for the shards.

    Raises:
        UserError: there is no such text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file, text_file = folder / "vocab.txt", folder / "text.txt"
    text = data_text.prepare(input_patterns, str(vocab_file), folder)
    if not text.documents:
        raise UserError(f"--input {input_patterns!r} holds no sentence; expected text files")
    files.write_bytes(text_file, text.parts(1, text_bytes)[0])
    words = vocabulary.train(corpus.find(str(text_file)), VOCAB_SIZE, lower_case=True)
    files.write_bytes(vocab_file, words.content)
    return Corpus(
        source=text.source, text_file=text_file, vocab_file=vocab_file, seq_length=seq_length
    )


def shards(text: Corpus, folder: pathlib.Path, num_shards: int) -> Manifest:
    """The text as `tfrecords.build` writes it, each pair once, masked when written."""
    arguments = [
        f"--input={text.text_file}",
        f"--vocab_file={text.vocab_file}",
        f"--output_dir={folder}",
        f"--seq_lengths={text.seq_length}",
        f"--num_shards={num_shards}",
        *("--dupe_factor=1", "--eval_fraction=0", "--num_processes=1"),
    ]
    if build.main(arguments):
        raise UserError(f"no shards could be built in {folder}; the line above says why")
    return Manifest.load(folder)
