"""The four stages of a build, as tasks that any process may run.

1. documents: a chunk of text is tokenised and grouped by bucket, the hash of a document's key.
2. pairs: a bucket's documents, for one length and duplicate, become rows (segment pairs, or packed
   text) grouped by partition, a slice of the range of example ids.
3. shuffled: a partition's rows are ranked by id and grouped by shard, rank modulo shards.
4. shards: a shard's rows, already in the order of their rank, are masked, serialised and written.

A task's result is a function of the plan and the task, appears atomically, and is skipped when it
is there: so the bytes are the same for any number of processes, and a killed build resumes. What a
stage holds in memory is bounded by a chunk, a bucket, a partition or a block of rows.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrecords import corpus, encoding, files, schema, sharding, spill, writer
from tfrecords.instances import Documents, Pairs, Spans, segment_pairs, starts_of
from tfrecords.manifest import Shard
from tfrecords.masking import Masking
from tfrecords.packing import packed_rows
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import SEP, Vocabulary

WORK = ".build"
_BLOCK_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may choose; all of it shapes the bytes of the shards.

    Attributes:
        seq_lengths: the lengths to write, ascending.
        max_predictions_per_seq: masked positions in a row, for each length.
        num_shards: files of each split and length.
        dupe_factor: times the training documents are cut, paired and masked anew; held-out
            documents are used once.
        seed: of everything.
        eval_fraction: the share of documents held out.
        lower_case: whether to lower-case text and strip accents.
        short_seq_prob: the share of documents cut at a random shorter length.
        masked_lm_prob: the share of tokens to guess.
        whole_word_mask: whether the pieces of a word are masked together.
        text_format: what documents and sentences are.
        bucket_bytes: text that shares a bucket, from which partners of random pairs come.
        records: the record kind, one of `schema.RECORDS`.
        compression: of the shards: "" or `schema.GZIP`.
        next_sentence: whether rows are segment pairs; otherwise they are packed with full
            sentences.
        deduplicate: whether a document is left out when another has the same sentences of the same
            tokens.
    """

    seq_lengths: tuple[int, ...]
    max_predictions_per_seq: tuple[int, ...]
    num_shards: int
    dupe_factor: int
    seed: int
    eval_fraction: float
    lower_case: bool
    short_seq_prob: float
    masked_lm_prob: float
    whole_word_mask: bool
    text_format: corpus.TextFormat
    bucket_bytes: int
    records: str
    compression: str
    next_sentence: bool
    deduplicate: bool

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are written."""
        return schema.SPLITS if self.eval_fraction > 0 else (schema.TRAIN,)

    def max_predictions(self, seq_length: int) -> int:
        """M of a length."""
        return self.max_predictions_per_seq[self.seq_lengths.index(seq_length)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a task needs to know.

    Attributes:
        output_dir: where shards go; the intermediate files lie in `WORK` below it.
        options: the user's.
        vocabulary: the word pieces.
        chunks: the corpus, cut into groups, each a file of stage 1.
        num_buckets: of stage 2.
        num_partitions: of stage 3; shapes no byte of the result.
    """

    output_dir: str
    options: Options
    vocabulary: Vocabulary
    chunks: tuple[tuple[corpus.Chunk, ...], ...]
    num_buckets: int
    num_partitions: int

    def folder(self, stage: str) -> str:
        """Where a stage leaves its files."""
        return os.path.join(self.output_dir, WORK, stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsTask:
    """Stage 2: one bucket at one length, once."""

    seq_length: int
    duplicate: int
    bucket: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"seq{self.seq_length}-{self.duplicate:03d}-{self.bucket:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffleTask:
    """Stage 3: one partition, whose first example has rank `first_rank`."""

    split: str
    seq_length: int
    partition: int
    first_rank: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.split}-seq{self.seq_length}-{self.partition:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Stage 4: one shard."""

    split: str
    seq_length: int
    shard: int

    def file(self, options: Options) -> str:
        """The name of its file."""
        return schema.shard_name(
            self.split, self.seq_length, self.shard, options.num_shards, options.compression
        )


class Tasks:
    """The stages, bound to a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._options = plan.options

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._plan.vocabulary, self._options.lower_case)

    def documents(self, indices: Sequence[int]) -> dict[str, Any]:
        """Stage 1: tokenises groups of chunks, one after the other."""
        with corpus.Reader(self._options.text_format) as reader:
            for index in indices:
                path = os.path.join(self._plan.folder("documents"), f"{index:05d}")
                _once(path, functools.partial(self._documents, index, reader))
        return {}

    def _documents(self, index: int, reader: corpus.Reader) -> tuple[list[bytes], dict[str, Any]]:
        groups = self.bucketed(self._plan.chunks[index], reader)
        return [documents.pack() for documents in groups], {}

    def bucketed(
        self, chunks: Sequence[corpus.Chunk], reader: corpus.Reader
    ) -> Iterator[Documents]:
        """The documents of a group of chunks: those of each bucket in turn."""
        parts = [self._tokenize(chunk, reader.documents(chunk)) for chunk in chunks]
        whole = Documents.concatenate(parts)
        # Documents with the same content must meet in a bucket to be found.
        keys = whole.content_hashes() if self._options.deduplicate else whole.keys
        bucket = sharding.buckets(self._options.seed, keys, self._plan.num_buckets)
        for number in range(self._plan.num_buckets):
            yield whole.select(np.flatnonzero(bucket == number))

    def _tokenize(self, chunk: corpus.Chunk, texts: list[list[str]]) -> Documents:
        ids, lengths = self._tokenizer.encode([line for text in texts for line in text])
        dtype = schema.dynamic_dtype(len(self._plan.vocabulary))
        owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        counts = np.bincount(owner[lengths > 0], minlength=len(texts))
        ordinals = chunk.first_ordinal + np.arange(len(texts))
        keys = sharding.document_keys(chunk.file.key, ordinals)
        return Documents(
            ids=ids.astype(dtype),
            sentence_lengths=lengths[lengths > 0].astype(np.int32),
            sentence_counts=counts[counts > 0].astype(np.int32),
            keys=keys[counts > 0],
        )

    def pairs(self, task: PairsTask) -> dict[str, Any]:
        """Stage 2: makes the rows of a bucket."""
        path = os.path.join(self._plan.folder("pairs"), task.name)
        return _once(path, lambda: self._pairs(task))

    def _pairs(self, task: PairsTask) -> tuple[list[bytes], dict[str, Any]]:
        stored = [
            spill.read(os.path.join(self._plan.folder("documents"), f"{index:05d}"), task.bucket)
            for index in range(len(self._plan.chunks))
        ]
        return self.paired(task, *self.gathered(stored))

    def gathered(self, stored: Sequence[bytes]) -> tuple[Documents, int]:
        """The documents of a bucket, in the order of the corpus, and the number left out."""
        found = Documents.unpack(stored)
        whole = found.select(found.first_of_equals()) if self._options.deduplicate else found
        return whole, len(found) - len(whole)

    def paired(
        self, task: PairsTask, whole: Documents, left_out: int
    ) -> tuple[list[bytes], dict[str, Any]]:
        """The rows of a bucket, as `gathered` gives it.

        Returns:
            The packed rows of each partition, split by split, and what the task counts.
        """
        options = self._options
        held_out = sharding.is_eval(options.seed, whole.keys, options.eval_fraction)
        groups: list[bytes] = []
        counts: dict[str, Any] = {"duplicate_documents": left_out}
        for split in options.splits:
            own = held_out if split == schema.EVAL else ~held_out
            if split == schema.EVAL and task.duplicate > 0:
                own = np.zeros_like(own)
            members = whole.select(np.flatnonzero(own))
            ids, spans = self._rows(members, task)
            partition = sharding.partitions(spans.example_ids, self._plan.num_partitions)
            order = np.argsort(partition, kind="stable")
            sizes = np.bincount(partition, minlength=self._plan.num_partitions)
            bounds = starts_of(sizes)
            groups += [
                spans.gather(ids, order[begin:end]).pack()
                for begin, end in zip(bounds[:-1], bounds[1:], strict=True)
            ]
            counts[split] = {
                "documents": len(members),
                "alone": int(options.next_sentence and len(members) == 1),
                "examples": sizes.tolist(),
                "random_next": int(spans.random_next.sum()),
            }
        return groups, counts

    def _rows(self, members: Documents, task: PairsTask) -> tuple[np.ndarray, Spans]:
        options = self._options
        if options.next_sentence:
            return members.ids, segment_pairs(
                members,
                seq_length=task.seq_length,
                seed=options.seed,
                duplicate=task.duplicate,
                short_seq_prob=options.short_seq_prob,
            )
        return packed_rows(
            members,
            seq_length=task.seq_length,
            seed=options.seed,
            duplicate=task.duplicate,
            short_seq_prob=options.short_seq_prob,
            separator=self._plan.vocabulary.ids[SEP],
        )

    def shuffled(self, task: ShuffleTask) -> dict[str, Any]:
        """Stage 3: ranks a partition's rows and deals them out to shards."""
        path = os.path.join(self._plan.folder("shuffled"), task.name)
        return _once(path, lambda: self._shuffled(task))

    def _shuffled(self, task: ShuffleTask) -> tuple[list[bytes], dict[str, Any]]:
        group = self._plan.options.splits.index(task.split) * self._plan.num_partitions
        group += task.partition
        stored = [
            spill.read(os.path.join(self._plan.folder("pairs"), source.name), group)
            for source in pairs_tasks(self._plan)
            if source.seq_length == task.seq_length
        ]
        return [pairs.pack() for pairs in self.dealt(task.first_rank, stored)], {}

    def dealt(self, first_rank: int, stored: Sequence[bytes]) -> Iterator[Pairs]:
        """A partition's rows, ranked: those of each shard in turn."""
        pairs = Pairs.unpack(stored)
        by_rank = np.argsort(pairs.example_ids, kind="stable")
        shard = (first_rank + np.arange(len(pairs))) % self._options.num_shards
        for number in range(self._options.num_shards):
            yield pairs.select(by_rank[shard == number])

    def shards(self, task: ShardTask) -> dict[str, Any]:
        """Stage 4: writes a shard."""
        stem = os.path.join(self._plan.folder("shuffled"), f"{task.split}-seq{task.seq_length}")
        sources = (f"{stem}-{partition:05d}" for partition in range(self._plan.num_partitions))
        return self.shard(task, (spill.read(source, task.shard) for source in sources))

    def shard(self, task: ShardTask, stored: Iterable[bytes]) -> dict[str, Any]:
        """Writes a shard; skips one that is there with the hash it was written with.

        Args:
            task: which one.
            stored: its packed rows, partition by partition.
        """
        options = self._options
        name = task.file(options)
        path = os.path.join(self._plan.output_dir, name)
        shard = recorded_shard(self._plan, name)
        if shard is None or not writer.is_intact(self._plan.output_dir, shard):
            shard = writer.write_shard(path, self._records(task, stored), options.compression)
            record_shard(self._plan, shard)
        return dataclasses.asdict(shard)

    def _records(self, task: ShardTask, stored: Iterable[bytes]) -> Iterator[list[bytes]]:
        options, vocabulary = self._options, self._plan.vocabulary
        masking = Masking.of(
            vocabulary,
            masked_lm_prob=options.masked_lm_prob,
            max_predictions_per_seq=options.max_predictions(task.seq_length),
            whole_word=options.whole_word_mask,
        )
        for group in stored:
            for block in Pairs.unpack([group]).blocks(_BLOCK_ROWS):
                if options.records == schema.DYNAMIC:
                    yield encoding.serialize_unmasked(block, vocabulary=vocabulary)
                else:
                    yield encoding.serialize(
                        block, seq_length=task.seq_length, vocabulary=vocabulary, masking=masking
                    )


def record_shard(plan: Plan, shard: Shard) -> None:
    """Remembers a finished shard and its hash, for a build that resumes."""
    path = os.path.join(plan.folder("shards"), f"{shard.file}.json")
    files.write_text(path, json.dumps(dataclasses.asdict(shard)))


def recorded_shard(plan: Plan, name: str) -> Shard | None:
    """What is remembered of a shard."""
    path = os.path.join(plan.folder("shards"), f"{name}.json")
    if not tf.io.gfile.exists(path):
        return None
    return Shard(**json.loads(files.read_bytes(path)))


def _once(path: str, make: Callable[[], tuple[list[bytes], dict[str, Any]]]) -> dict[str, Any]:
    if not tf.io.gfile.exists(path):
        groups, summary = make()
        spill.write(path, groups, summary)
    return spill.summary(path)


def documents_tasks(plan: Plan) -> list[tuple[int, ...]]:
    """The tasks of stage 1: the numbers of the groups in each.

    Groups of one compressed file share a task, which decompresses it once.
    """
    tasks: list[tuple[int, ...]] = []
    before = None
    for index, group in enumerate(plan.chunks):
        if before is not None and before == group[0].file and before.is_compressed:
            tasks[-1] += (index,)
        else:
            tasks.append((index,))
        before = group[-1].file
    return tasks


def pairs_tasks(plan: Plan) -> list[PairsTask]:
    """The tasks of stage 2."""
    return [
        PairsTask(seq_length=seq_length, duplicate=duplicate, bucket=bucket)
        for seq_length in plan.options.seq_lengths
        for duplicate in range(plan.options.dupe_factor)
        for bucket in range(plan.num_buckets)
    ]


def shuffle_tasks(
    plan: Plan, examples: Mapping[str, Mapping[str, Sequence[int]]]
) -> list[ShuffleTask]:
    """The tasks of stage 3.

    Args:
        plan: the plan.
        examples: by length and split, the examples in each partition.
    """
    return [
        ShuffleTask(split=split, seq_length=length, partition=partition, first_rank=first)
        for length in plan.options.seq_lengths
        for split in plan.options.splits
        for partition, first in enumerate(starts_of(examples[f"{length}"][split])[:-1].tolist())
    ]


def shard_tasks(plan: Plan) -> list[ShardTask]:
    """The tasks of stage 4."""
    return [
        ShardTask(split=split, seq_length=seq_length, shard=shard)
        for seq_length in plan.options.seq_lengths
        for split in plan.options.splits
        for shard in range(plan.options.num_shards)
    ]


def group_chunks(
    chunks: Iterable[corpus.Chunk], task_bytes: int
) -> tuple[tuple[corpus.Chunk, ...], ...]:
    """Gathers consecutive chunks into groups of about `task_bytes`.

    A compressed file of several chunks shares no group with another file, so that files of that
    kind can be worked on side by side.
    """
    groups: list[list[corpus.Chunk]] = [[]]
    size, was_apart = 0, False
    for file, of_file in itertools.groupby(chunks, lambda chunk: chunk.file):
        own = list(of_file)
        apart = file.is_compressed and len(own) > 1
        if apart or was_apart:
            groups.append([])
            size = 0
        for chunk in own:
            if size >= task_bytes:
                groups.append([])
                size = 0
            groups[-1].append(chunk)
            size += chunk.end - chunk.begin
        was_apart = apart
    return tuple(tuple(group) for group in groups if group)
