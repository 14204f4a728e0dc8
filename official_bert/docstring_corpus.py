"""The demonstration's default corpus: docstrings as text files, a sentence a line.

It is real, edited English of one kind (technical), of which a small model can learn something in
minutes. It is no benchmark: other versions of the packages give another text.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

from official_bert import docstring_sources, docstring_text
from tfrecords import command, files
from tfrecords.errors import UserError

_MIN_SENTENCES = 2
_MIN_WORDS = 15
# Sentences of fewer words ("Returns:", "Input data.") say nothing about where a text came from.
_TELLING_WORDS = 4
_MIN_NEW = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What `write_corpus` read and wrote.

    Attributes:
        paths: the text files, one a package.
        versions: package to its distribution's version.
        docstrings: how many were read.
        short: of those, how many were left out as too short for a pair of sentences.
        copies: of those, how many were left out as copies of, or nearly, an earlier one.
        documents: how many were written.
        sentences: lines written.
        num_bytes: size of the files.
    """

    paths: tuple[str, ...]
    versions: dict[str, str]
    docstrings: int
    short: int
    copies: int
    documents: int
    sentences: int
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.sentences:,} sentences, "
            f"{self.num_bytes / 1e6:.1f} MB from {self.docstrings:,} docstrings of "
            f"{len(self.paths)} packages ({self.short:,} too short, {self.copies:,} copies)"
        )


def write_corpus(
    output_dir: str | os.PathLike[str],
    packages: Sequence[str] = docstring_sources.DEFAULT_PACKAGES,
) -> CorpusSummary:
    """Writes `<package>.txt` for every installed package: a docstring a document.

    A line is a sentence, a heading or an entry such as `axis : int, optional`; an empty line
    ends a document, and there is none inside one. Equal installations give equal bytes.

    A document needs two sentences and 15 words. It is left out as a copy when three quarters of
    its sentences of 4 words or more stood in documents before it: that finds exact duplicates,
    the near ones of packages copied from each other (tf_keras and TensorFlow carry Keras's) and
    generated boilerplate.

    Args:
        output_dir: a folder, made where it is missing.
        packages: import names; those that are not installed are passed over.

    Raises:
        UserError: no package is installed, or none has a docstring of that length.

    Example:
        >>> print(write_corpus("corpus", ["numpy", "scipy"]))
        4,021 documents, 54,321 sentences, 4.6 MB from ...
    """
    present = docstring_sources.installed(packages)
    counts = _Counts()
    earlier = _Earlier()
    sources = {package: docstring_sources.sources(package) for package in present}
    paths = []
    total = sum(map(len, sources.values()))
    with command.progress(total=total, desc="docstrings", unit="file") as bar:
        for package in present:
            documents = []
            for source in sources[package]:
                documents += _documents(source, earlier, counts)
                bar.update()
            if documents:
                paths.append(os.path.join(os.fspath(output_dir), f"{package}.txt"))
                counts.num_bytes += _write(paths[-1], documents)
    if not paths:
        raise UserError(
            f"no docstring of {_MIN_WORDS} words in {', '.join(present)}; "
            "expected packages with documented code: name others"
        )
    return CorpusSummary(
        paths=tuple(paths),
        versions=docstring_sources.versions(present),
        **dataclasses.asdict(counts),
    )


@dataclasses.dataclass
class _Counts:
    docstrings: int = 0
    short: int = 0
    copies: int = 0
    documents: int = 0
    sentences: int = 0
    num_bytes: int = 0


class _Earlier:
    """The sentences of the documents so far."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()

    def holds(self, document: Sequence[str]) -> bool:
        """Whether the document is a copy; if it is not, its sentences are remembered."""
        keys = [
            _key(sentence) for sentence in document if sentence.count(" ") >= _TELLING_WORDS - 1
        ]
        new = sum(key not in self._keys for key in keys)
        if new < _MIN_NEW * len(keys) or not keys:
            return True
        self._keys.update(keys)
        return False


def _key(sentence: str) -> bytes:
    letters = "".join(filter(str.isalnum, sentence.lower()))
    return hashlib.blake2b(letters.encode(), digest_size=8).digest()


def _documents(
    source: docstring_sources.Source, earlier: _Earlier, counts: _Counts
) -> list[list[str]]:
    kept = []
    for docstring in docstring_sources.read(source):
        counts.docstrings += 1
        document = to_sentences(docstring.text)
        words = sum(len(sentence.split()) for sentence in document)
        if len(document) < _MIN_SENTENCES or words < _MIN_WORDS:
            counts.short += 1
        elif earlier.holds(document):
            counts.copies += 1
        else:
            counts.documents += 1
            counts.sentences += len(document)
            kept.append(document)
    return kept


def to_sentences(docstring: str) -> list[str]:
    r"""The lines of one document, in order; none is empty.

    Example:
        >>> to_sentences("Adds numbers. Fast.\n\nArgs:\n    x: An\n        int.")
        ['Adds numbers.', 'Fast.', 'Args:', 'x: An int.']
    """
    return [
        sentence
        for line in docstring_text.logical_lines(docstring)
        for sentence in docstring_text.sentences(line.text)
    ]


def _write(path: str, documents: Sequence[Sequence[str]]) -> int:
    content = "\n\n".join("\n".join(document) for document in documents) + "\n"
    encoded = content.encode("utf-8", errors="replace")
    files.write_bytes(path, encoded)
    return len(encoded)
