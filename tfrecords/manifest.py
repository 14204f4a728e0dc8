"""`manifest.json`: what a folder of shards holds, and the checks a reader makes before step 1."""

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfrecords import damage, files, schema
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

FORMAT_VERSION = 2
HEAD_BYTES = 4096
_REQUESTS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file.

    Attributes:
        file: its name.
        examples: the records in it.
        bytes: its size.
        sha256: of its content.
        head_sha256: of its first `HEAD_BYTES` bytes: what tells it from another build's shard of
            the same name and size without reading it all.
    """

    file: str
    examples: int
    bytes: int
    sha256: str
    head_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """The shards of one split at one length.

    Attributes:
        shards: in the order of their numbers.
        random_next: examples whose second segment comes from another document.
    """

    shards: tuple[Shard, ...]
    random_next: int

    @property
    def examples(self) -> int:
        """The examples of all shards."""
        return sum(shard.examples for shard in self.shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences:
    """The shards of one sequence length.

    Attributes:
        max_predictions_per_seq: M, the masked positions of a row.
        splits: "train" and "eval".
    """

    max_predictions_per_seq: int
    splits: Mapping[str, SplitCounts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `tfrecords.build` wrote, or `tfrecords.adopt` found.

    Attributes:
        directory: where it lies (not stored in the file).
        format_version: of the file.
        records: "stored", examples masked when written, or "dynamic", masked when read.
        feature_names: of stored examples: "v2" or "v1", see `schema.V1_NAMES`.
        compression: of the shards: "" or "GZIP".
        next_sentence: whether rows are segment pairs with a label; otherwise they are packed with
            full sentences.
        masked_lm_prob: the share of tokens to guess; for dynamic records what the reader does
            unless it is told otherwise, as for the next.
        whole_word_mask: whether the pieces of a word are masked together.
        vocabulary_sha256: of the vocabulary file, a copy of which is `vocab.txt` beside it.
        vocab_size: entries of the vocabulary.
        lower_case: whether text was lower-cased.
        identity: every option, the inputs and the bucket count: what determines the shards.
        documents: the documents of each split.
        duplicate_documents: documents left out since another has the same tokens.
        one_document_buckets: the buckets of each split with one document alone, which has no other
            to draw a random next segment from.
        sequences: by sequence length.

    Example:
        >>> Manifest.load("shards").num_examples("train", 128)
        18304
    """

    directory: str
    format_version: int
    records: str
    feature_names: str
    compression: str
    next_sentence: bool
    masked_lm_prob: float
    whole_word_mask: bool
    vocabulary_sha256: str
    vocab_size: int
    lower_case: bool
    identity: Mapping[str, Any]
    documents: Mapping[str, int]
    duplicate_documents: int
    one_document_buckets: Mapping[str, int]
    sequences: Mapping[int, Sequences]

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "Manifest":
        """Reads `directory/manifest.json`.

        Raises:
            UserError: there is none, or it is damaged or of another format version.
        """
        folder = os.fspath(directory)
        path = os.path.join(folder, schema.MANIFEST_FILE)
        if not tf.io.gfile.exists(path):
            raise UserError(
                f"no {schema.MANIFEST_FILE} in {folder}; expected a folder that "
                "python -m tfrecords.build finished"
            )
        try:
            stored = json.loads(files.read_bytes(path))
            version = stored["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {version}; this is version {FORMAT_VERSION}; "
                    "build the shards again, in another folder"
                )
            sequences = {
                int(length): Sequences(
                    max_predictions_per_seq=entry["max_predictions_per_seq"],
                    splits={name: _split(split) for name, split in entry["splits"].items()},
                )
                for length, entry in stored.pop("sequences").items()
            }
            return cls(directory=folder, sequences=sequences, **stored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy, or "
                "build the shards again, in another folder"
            ) from error

    def save(self) -> None:
        """Writes the file, atomically."""
        stored = dataclasses.asdict(self)
        del stored["directory"]
        path = os.path.join(self.directory, schema.MANIFEST_FILE)
        files.write_text(path, json.dumps(stored, indent=1, sort_keys=True) + "\n")

    @property
    def seq_lengths(self) -> tuple[int, ...]:
        """The sequence lengths there are, ascending."""
        return tuple(sorted(self.sequences))

    @property
    def remedy(self) -> str:
        """What helps against damaged or missing shards."""
        is_adopted = "adopted" in self.identity
        return "write and adopt the shards again" if is_adopted else "build the shards again"

    @property
    def vocabulary_file(self) -> str:
        """The path of the vocabulary's copy."""
        return os.path.join(self.directory, schema.VOCABULARY_FILE)

    def max_predictions_per_seq(self, seq_length: int) -> int:
        """M, the masked positions of a row of `seq_length` tokens."""
        return self._sequences(seq_length).max_predictions_per_seq

    def shards(self, split: str, seq_length: int) -> tuple[Shard, ...]:
        """The shards of a split, in the order of their numbers.

        Raises:
            UserError: there is no such split or length.
        """
        splits = self._sequences(seq_length).splits
        if split not in splits:
            raise UserError(
                f"{self.directory} has no split {split!r}; it has {', '.join(sorted(splits))}"
            )
        return splits[split].shards

    def num_shards(self, split: str) -> int:
        """The number of files of a split, the same at every length."""
        return len(self.shards(split, self.seq_lengths[0]))

    def num_examples(self, split: str, seq_length: int) -> int:
        """The number of examples of a split at a length."""
        return sum(shard.examples for shard in self.shards(split, seq_length))

    def path(self, shard: Shard) -> str:
        """Where a shard lies; one that was adopted lies outside the folder."""
        if "://" in shard.file:
            return shard.file
        if shard.file.startswith(os.pardir):
            # TensorFlow drops "link/.." by its letters, without following the link.
            return os.path.normpath(os.path.join(os.path.realpath(self.directory), shard.file))
        return os.path.join(self.directory, shard.file)

    def check_shards(
        self,
        split: str,
        seq_length: int,
        numbers: Iterable[int] | None = None,
        tolerant: bool = False,
    ) -> None:
        """Checks that shards of a split are there, each with its size and its first bytes.

        Args:
            split: the split.
            seq_length: the length.
            numbers: of the shards to check, from 0; None means all.
            tolerant: whether to let a shard pass whose records are damaged, or cut off.

        Raises:
            UserError: one is missing or damaged, or another file is in its place.
        """
        shards = self.shards(split, seq_length)
        chosen = shards if numbers is None else [shards[number] for number in numbers]
        # Side by side, since each costs a round trip where the folder is remote.
        with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
            for problem in pool.map(lambda shard: self._problem(shard, tolerant), chosen):
                if problem is not None:
                    raise UserError(problem)

    def _problem(self, shard: Shard, tolerant: bool) -> str | None:
        path = self.path(shard)
        if not tf.io.gfile.exists(path):
            return f"{path} is missing, though the manifest lists it; {self.remedy}"
        size = tf.io.gfile.stat(path).length
        if size == shard.bytes and files.sha256(path, HEAD_BYTES) == shard.head_sha256:
            return None
        content, broken = damage.inflated(files.read_bytes(path), self.compression)
        records, damages = damage.salvage(content, shard.examples)
        beyond = len(content) - damage.extent(records)
        within = " of the decompressed content" if self.compression else ""
        if damages and tolerant:
            return None
        if damages:
            first = damages[0]
            reason = (
                f"it is damaged: record {first.record} at byte offset {first.offset}{within}, "
                f"{first.reason}"
            )
        elif broken is not None:
            reason = broken
        elif beyond:
            reason = f"it goes on for {beyond} bytes{within} after its {shard.examples} records"
        else:
            anew = ", or compressed anew" if self.compression else ""
            reason = f"it holds sound records, but not these bytes: another build's{anew}"
        return (
            f"{path} has {size} bytes, the manifest says {shard.bytes}, or begins with others; "
            f"{reason}; {self.remedy}"
        )

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Checks that `vocabulary` is the one the shards were written with.

        Raises:
            UserError: it is another.
        """
        if vocabulary.sha256 != self.vocabulary_sha256:
            raise UserError(
                f"{vocabulary.path} (sha256 {vocabulary.sha256[:12]}, {len(vocabulary)} entries) "
                f"is not the vocabulary of {self.directory} (sha256 {self.vocabulary_sha256[:12]}, "
                f"{self.vocab_size} entries); use {self.vocabulary_file}"
            )

    def check_vocab_size(self, vocab_size: int) -> None:
        """Checks a model's vocabulary size.

        Raises:
            UserError: it is not that of the shards.
        """
        if vocab_size != self.vocab_size:
            raise UserError(
                f"vocab_size is {vocab_size}, but {self.directory} was written with a vocabulary "
                f"of {self.vocab_size}; set vocab_size to {self.vocab_size} or build again"
            )

    def _sequences(self, seq_length: int) -> Sequences:
        if seq_length not in self.sequences:
            raise UserError(
                f"{self.directory} has no sequence length {seq_length}; it has "
                f"{', '.join(map(str, self.seq_lengths))}"
            )
        return self.sequences[seq_length]


def _split(stored: Mapping[str, Any]) -> SplitCounts:
    return SplitCounts(
        shards=tuple(Shard(**shard) for shard in stored["shards"]),
        random_next=stored["random_next"],
    )
