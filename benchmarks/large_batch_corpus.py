r"""Text to the rows of `benchmarks.large_batch`: a vocabulary, its ids, cut to equal lengths.

    python -m benchmarks.large_batch_corpus --output=rows.npz \
        --corpus='../shared/data/novels/*.txt,../shared/data/wikitext-2/*.sentences.txt'

The only part of the study that needs TensorFlow: elsewhere, give the file to `--data`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from benchmarks import whole_files
from official_bert import docstring_corpus, docstring_sources
from tfrecords import command, corpus, vocabulary
from tfrecords.errors import UserError
from tfrecords.tokenization import Tokenizer

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "The file to write.", required=True, flag_values=FLAGS)
flags.DEFINE_string(
    "corpus", "", "Text: files, folders and globs, separated by commas; empty: docstrings.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "packages", list(docstring_sources.DEFAULT_PACKAGES), "Whose docstrings.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "vocab_size", 8192, "Entries of the vocabulary.", lower_bound=64, flag_values=FLAGS
)
flags.DEFINE_integer("seq_length", 64, "Tokens of a row.", lower_bound=8, flag_values=FLAGS)
flags.DEFINE_integer(
    "held_out", 4096, "Rows held out, at most a tenth of all.", lower_bound=2, flag_values=FLAGS
)

# Rows are held out in runs of neighbours, which have most to say about each other.
_NEIGHBOURS = 64
_LINES = 100_000


def _batches(files: Sequence[corpus.TextFile]) -> Iterator[list[str]]:
    for file in files:
        lines: list[str] = []
        for line, _ in corpus.lines(file):
            lines.append(line)
            if len(lines) == _LINES:
                yield lines
                lines = []
        yield lines


def to_rows(
    files: Sequence[corpus.TextFile], words: vocabulary.Vocabulary, seq_length: int
) -> np.ndarray:
    """uint16 [rows, length]: [CLS], the text's tokens in order, [SEP]; what is left is dropped."""
    tokenizer = Tokenizer(words, lower_case=True)
    ids = np.concatenate([tokenizer.encode(lines)[0] for lines in _batches(files) if lines])
    inner = seq_length - 2
    count = len(ids) // inner
    rows = np.empty((count, seq_length), np.uint16)
    rows[:, 0], rows[:, -1] = words.ids[vocabulary.CLS], words.ids[vocabulary.SEP]
    rows[:, 1:-1] = ids[: count * inner].reshape(count, inner)
    return rows


def split(rows: np.ndarray, held_out: int) -> dict[str, np.ndarray]:
    """Rows to `train`, `validation` and `test`, the last two of equal size.

    Raises:
        UserError: there are too few.
    """
    half = min(held_out, len(rows) // 10) // 2
    if half < 1:
        raise UserError(f"the text has {len(rows)} rows; expected at least 20: give more")
    neighbours = max(1, min(_NEIGHBOURS, half // 4))
    groups = np.random.default_rng(0).permutation(-(-len(rows) // neighbours))
    places = (groups[:, None] * neighbours + np.arange(neighbours)).reshape(-1)
    places = places[places < len(rows)]
    return {
        "validation": rows[places[:half]],
        "test": rows[places[half : 2 * half]],
        "train": rows[np.sort(places[2 * half :])],
    }


def body(flag_values: flags.FlagValues) -> None:
    """Writes the rows."""
    if not 64 <= flag_values.vocab_size <= 2**16:
        raise UserError(f"--vocab_size={flag_values.vocab_size}; expected at most {2**16}")
    with tempfile.TemporaryDirectory() as folder:
        patterns = flag_values.corpus
        if not patterns:
            patterns = folder
            source = str(docstring_corpus.write_corpus(folder, flag_values.packages))
        files = corpus.find(patterns)
        words = vocabulary.train(files, flag_values.vocab_size, lower_case=True)
        rows = to_rows(files, words, flag_values.seq_length)
    if flag_values.corpus:
        folders = sorted({os.path.basename(os.path.dirname(file.path)) for file in files})
        source = f"{len(files)} text files of {', '.join(folders)}"
    parts = split(rows, flag_values.held_out)
    os.makedirs(os.path.dirname(os.path.abspath(flag_values.output)), exist_ok=True)
    with whole_files.whole(flag_values.output) as partial, partial.open("wb") as file:
        np.savez(file, vocab_size=len(words), source=source, **parts)  # type: ignore[arg-type]
    counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    print(f"{flag_values.output}: {source}; rows: {counts}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
