"""The stages of a build as an Apache Beam pipeline, which writes the bytes of a local build.

    chunks - documents -> by bucket - pairs -> by partition - shuffled -> by shard - shards
                                        |                         |
                                        +------- totals ----------+

What stages hand on, Beam shuffles; it arrives in any order and is put back into that of the local
build. Where a partition's ranks begin is a side input, made of what stage 2 counted. Beam's own
results do not come back to the process that starts a pipeline, so shards and totals are left in the
folder of intermediate files, which every worker must see.
"""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from tfrecords import corpus, files, spill, stages, totals
from tfrecords.corpus import Chunk, TextFile
from tfrecords.errors import UserError
from tfrecords.pipeline import UnfitTextError

_CHUNKS, _TOTALS = "chunks", "beam-totals.json"
_PROBLEM, _IS_UNFIT = "problem", "is_unfit"
_LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner")
_TERMS, _PROBLEMS = "terms", "problems"

# Where a row belongs: split, length and partition, or split, length and shard.
_Place = tuple[str, int, int]


def root_of(texts: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline with the options that strings of command-line arguments say.

    Raises:
        UserError: an option is malformed or cannot be used, or the runner has none of that name.
    """
    try:
        arguments = [argument for text in texts for argument in shlex.split(text)]
    except ValueError as error:
        raise UserError(f"--pipeline_options {texts} cannot be read: {error}") from error
    options = PipelineOptions(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            known = options.get_all_options()
            named = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:
        reason = complaint.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UserError(f"Beam refuses its options: {reason}") from error
    unknown = sorted(set(named) - set(known))
    # Other runners may have options of their own.
    if unknown and known["runner"] in _LOCAL_RUNNERS:
        raise UserError(
            f"Beam has no option --{unknown[0]}; expected one of "
            "apache_beam.options.pipeline_options"
        )
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError) as error:
        raise UserError(f"Beam refuses its options: {error}") from error


def execute(
    plan: stages.Plan, root: beam.Pipeline
) -> tuple[dict[str, Any], dict[stages.ShardTask, dict[str, Any]]]:
    """Runs the stages of a plan, as `pipeline.carry_out` asks for.

    Raises:
        UserError: the text is too short or has changed, or workers do not see the folder.
    """
    where = _path(plan, _TOTALS)
    if tf.io.gfile.exists(where):
        tf.io.gfile.remove(where)
    groups = (json.dumps([dataclasses.asdict(chunk) for chunk in group]) for group in plan.chunks)
    spill.write(_path(plan, _CHUNKS), (group.encode() for group in groups), {})
    with root:
        construct(root, plan)
    if not tf.io.gfile.exists(where):
        raise _missing(where)
    counts = json.loads(files.read_bytes(where))
    if problem := counts[_PROBLEM]:
        raise (UnfitTextError if counts[_IS_UNFIT] else UserError)(problem)
    return counts, {task: _written(plan, task) for task in stages.shard_tasks(plan)}


def construct(root: beam.Pipeline, plan: stages.Plan) -> None:
    """Adds the stages to a pipeline; `_CHUNKS` lies in the folder of intermediate files."""
    # All that grows with the corpus stays out of what is sent to every worker.
    bound = dataclasses.replace(plan, chunks=())
    documents = (
        root
        | "tasks" >> beam.Create(stages.documents_tasks(plan))
        | "documents" >> beam.ParDo(_Documents(bound)).with_outputs(_PROBLEMS, main="main")
    )
    pairs = (
        documents.main
        | "by bucket" >> beam.GroupByKey()
        | "pairs" >> beam.ParDo(_Pairs(bound)).with_outputs(_TERMS, main="main")
    )
    counts = (
        pairs[_TERMS]
        | "add up" >> beam.CombinePerKey(sum)
        | "all terms" >> beam.combiners.ToList()
        | "totals" >> beam.ParDo(_Totals(bound), beam.pvalue.AsList(documents[_PROBLEMS]))
    )
    ranked = (
        pairs.main
        | "by partition" >> beam.GroupByKey()
        | "shuffled"
        >> beam.ParDo(
            _Shuffled(bound), beam.pvalue.AsSingleton(counts | beam.Map(_first_ranks, bound))
        )
    )
    # A shard is written even if no row is dealt to it.
    (
        (ranked, counts | "every shard" >> beam.FlatMap(_places_of_shards, bound))
        | beam.Flatten()
        | "by shard" >> beam.GroupByKey()
        | "shards" >> beam.ParDo(_Shards(bound))
    )


class _Stage(beam.DoFn):
    """A stage, with the tasks of a plan, of which a process makes one."""

    def __init__(self, plan: stages.Plan) -> None:
        self._plan = plan
        self._shared = Shared()

    def setup(self) -> None:
        self._tasks = self._shared.acquire(lambda: stages.Tasks(self._plan))


class _Documents(_Stage):
    """Stage 1: the numbers of chunk groups to (bucket, (group, packed documents))."""

    def process(self, indices: tuple[int, ...]) -> Iterator[Any]:
        try:
            with corpus.Reader(self._plan.options.text_format) as reader:
                for index in indices:
                    groups = self._tasks.bucketed(_chunks(self._plan, index), reader)
                    for bucket, documents in enumerate(groups):
                        if len(documents):
                            yield bucket, (index, documents.pack())
        # As a value, since each runner has its own way with exceptions.
        except UserError as error:
            yield beam.pvalue.TaggedOutput(_PROBLEMS, str(error))


class _Pairs(_Stage):
    """Stage 2: a bucket to (partition, ((duplicate, bucket), packed rows)), and terms."""

    def process(self, element: tuple[int, Iterable[tuple[int, bytes]]]) -> Iterator[Any]:
        bucket, values = element
        options, num_partitions = self._plan.options, self._plan.num_partitions
        whole, left_out = self._tasks.gathered(_in_order(values))
        for seq_length in options.seq_lengths:
            for duplicate in range(options.dupe_factor):
                task = stages.PairsTask(seq_length=seq_length, duplicate=duplicate, bucket=bucket)
                groups, result = self._tasks.paired(task, whole, left_out)
                for term in totals.terms(options, task, result):
                    yield beam.pvalue.TaggedOutput(_TERMS, term)
                for number, group in enumerate(groups):
                    split = options.splits[number // num_partitions]
                    partition = number % num_partitions
                    if result[split]["examples"][partition]:
                        yield (split, seq_length, partition), ((duplicate, bucket), group)


class _Totals(_Stage):
    """All terms to the totals, nested, which are also left for the process that started this."""

    def process(
        self, terms: list[tuple[totals.Key, int]], problems: list[str]
    ) -> Iterator[dict[str, Any]]:
        counts = totals.nested(self._plan, dict(terms))
        problem = min(problems, default=None) or totals.problem_in(self._plan.options, counts)
        counts |= {_PROBLEM: problem, _IS_UNFIT: not problems}
        files.write_text(_path(self._plan, _TOTALS), json.dumps(counts))
        yield counts


class _Shuffled(_Stage):
    """Stage 3: a partition to (shard, (partition, packed rows)), or to nothing."""

    def process(
        self,
        element: tuple[_Place, Iterable[tuple[tuple[int, int], bytes]]],
        first_ranks: dict[_Place, int],
    ) -> Iterator[tuple[_Place, tuple[int, bytes]]]:
        place, values = element
        if place not in first_ranks:
            return
        split, seq_length, partition = place
        for shard, pairs in enumerate(self._tasks.dealt(first_ranks[place], _in_order(values))):
            if len(pairs):
                yield (split, seq_length, shard), (partition, pairs.pack())


class _Shards(_Stage):
    """Stage 4: writes a shard."""

    def process(self, element: tuple[_Place, Iterable[tuple[int, bytes]]]) -> None:
        (split, seq_length, shard), values = element
        task = stages.ShardTask(split=split, seq_length=seq_length, shard=shard)
        with _in_order_on_disk(values) as stored:
            self._tasks.shard(task, stored)


def _first_ranks(counts: dict[str, Any], plan: stages.Plan) -> dict[_Place, int]:
    """The rank of the first row of each partition; none where there is a problem."""
    if counts[_PROBLEM]:
        return {}
    return {
        (task.split, task.seq_length, task.partition): task.first_rank
        for task in stages.shuffle_tasks(plan, counts["examples"])
    }


def _places_of_shards(
    counts: dict[str, Any], plan: stages.Plan
) -> Iterator[tuple[_Place, tuple[int, bytes]]]:
    if not counts[_PROBLEM]:
        for task in stages.shard_tasks(plan):
            yield (task.split, task.seq_length, task.shard), (-1, b"")


def _in_order(values: Iterable[tuple[Any, bytes]]) -> list[bytes]:
    return [content for _, content in sorted(values)]


@contextlib.contextmanager
def _in_order_on_disk(values: Iterable[tuple[int, bytes]]) -> Iterator[Iterator[bytes]]:
    """Values in the order of their numbers, however much memory they would take.

    Runners hand out the values of a key one by one, and a shard may be larger than memory.
    """
    with tempfile.TemporaryFile() as stream:
        places = []
        for number, content in values:
            if content:
                places.append((number, stream.tell(), len(content)))
                stream.write(content)

        def read(begin: int, size: int) -> bytes:
            stream.seek(begin)
            return stream.read(size)

        yield (read(begin, size) for _, begin, size in sorted(places))


def _path(plan: stages.Plan, name: str) -> str:
    return os.path.join(plan.output_dir, stages.WORK, name)


def _chunks(plan: stages.Plan, index: int) -> list[Chunk]:
    path = _path(plan, _CHUNKS)
    try:
        stored = json.loads(spill.read(path, index))
    except tf.errors.OpError as error:
        raise UserError(
            f"a worker cannot read {path} ({error.message}); give an --output_dir that all workers "
            "see, such as one on gs://"
        ) from error
    return [Chunk(**{**chunk, "file": TextFile(**chunk["file"])}) for chunk in stored]


def _written(plan: stages.Plan, task: stages.ShardTask) -> dict[str, Any]:
    shard = stages.recorded_shard(plan, task.file(plan.options))
    if shard is None:
        raise _missing(os.path.join(plan.output_dir, task.file(plan.options)))
    return dataclasses.asdict(shard)


def _missing(path: str) -> UserError:
    return UserError(
        f"the workers left no {path}; give an --output_dir that all of them see, such as one on "
        "gs://, and let the pipeline end by itself"
    )
