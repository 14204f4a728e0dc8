"""Runs the stages of a build in any number of processes, from nothing or from where it stopped."""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfrecords import command, corpus, files, schema, sentences, sharding, stages, totals, writer
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import Vocabulary

LOCK_FILE = ".build.lock"
# Raised when the intermediate files change: those of another version are no part of a build.
_WORK_FORMAT = 3
_TASK_BYTES = 8 << 20
# A small corpus is cut finer, so that the processes end together.
_LEAST_TASK_BYTES = 1 << 20
_LEAST_TASKS = 64
_PARTITION_BYTES = 32 << 20

Results = Iterator[tuple[Any, dict[str, Any]]]
# Runs the stages of a plan; returns the totals of stage 2, nested, and what stage 4 returned for
# each of its tasks, in their order.
Execute = Callable[[stages.Plan], tuple[Mapping[str, Any], Mapping[stages.ShardTask, Any]]]


def build(
    *,
    input_patterns: str,
    vocabulary: Vocabulary,
    output_dir: str,
    options: stages.Options,
    num_processes: int,
    strict: bool = False,
) -> Manifest:
    """Writes the shards of a corpus, or finishes what an earlier call began.

    Args:
        input_patterns: files and globs, separated by commas.
        vocabulary: the word pieces.
        output_dir: the folder to write; made where it is missing.
        options: what shapes the shards.
        num_processes: how many processes to work in; 1 means this one.
        strict: whether to refuse NUL characters and invalid UTF-8, which are otherwise replaced.

    Raises:
        UserError: the corpus is missing, malformed, empty or too short, or the folder holds another
            build; nothing on disk has changed then.
    """
    if num_processes > 1:
        _prepare_workers()
    plan, identity = make_plan(input_patterns, vocabulary, output_dir, options, strict)
    return carry_out(plan, identity, lambda plan: _Run(plan, num_processes).run())


def carry_out(plan: stages.Plan, identity: dict[str, Any], execute: Execute) -> Manifest:
    """Does what is left to do of a plan.

    Args:
        plan: as `make_plan` gives it.
        identity: as `make_plan` gives it.
        execute: runs the stages; `UnfitTextError` takes back what it left.

    Raises:
        UserError: the text is too short, or the folder holds another build; nothing on disk has
            changed then.
    """
    output_dir = plan.output_dir
    is_new = not tf.io.gfile.exists(output_dir)
    _check_folder(plan, identity)
    files.make_folder(output_dir)
    try:
        with files.lock(os.path.join(output_dir, LOCK_FILE)):
            return _build(plan, identity, execute)
    except UnfitTextError:
        if is_new and not tf.io.gfile.listdir(output_dir):
            tf.io.gfile.rmtree(output_dir)
        raise


def _build(plan: stages.Plan, identity: dict[str, Any], execute: Execute) -> Manifest:
    finished = _check_folder(plan, identity)
    if finished is not None and _is_intact(finished):
        _discard_work(plan)
        return finished
    _open_work(plan, identity)
    if finished is not None:
        _remember_shards(plan, finished)
    try:
        counts, shards = execute(plan)
    except UnfitTextError:
        _discard_work(plan)
        raise
    manifest = totals.manifest_of(plan, identity, counts, shards)
    files.write_bytes(manifest.vocabulary_file, plan.vocabulary.content)
    manifest.save()
    _discard_work(plan)
    files.remove_partial(plan.output_dir)
    return manifest


class UnfitTextError(UserError):
    """What the options ask for cannot be had from this text, which only the stages can tell."""


def make_plan(
    input_patterns: str,
    vocabulary: Vocabulary,
    output_dir: str,
    options: stages.Options,
    strict: bool = False,
) -> tuple[stages.Plan, dict[str, Any]]:
    """Reads the corpus once to cut it into tasks.

    Returns:
        The plan, and the identity: a dict that determines the bytes of the shards.
    """
    scans = _scan(input_patterns, (output_dir, vocabulary.path), options.text_format, strict)
    num_bytes = sum(scan.num_bytes for scan in scans)
    digest = hashlib.sha256()
    for scan in scans:
        digest.update(f"{scan.file.key}\0{scan.sha256}\0".encode())
    num_buckets = sharding.num_buckets(num_bytes, options.bucket_bytes)
    identity = {
        "options": dataclasses.asdict(options),
        "input": {"files": len(scans), "bytes": num_bytes, "sha256": digest.hexdigest()},
        "vocabulary_sha256": vocabulary.sha256,
        "num_buckets": num_buckets,
    }
    if options.text_format.split_sentences:
        identity["sentence_segmenter"] = sentences.SEGMENTER
    plan = stages.Plan(
        output_dir=output_dir,
        options=options,
        vocabulary=vocabulary,
        chunks=stages.group_chunks(
            (chunk for scan in scans for chunk in scan.chunks), _task_bytes(num_bytes)
        ),
        num_buckets=num_buckets,
        num_partitions=-(-num_bytes * options.dupe_factor // _PARTITION_BYTES),
    )
    return plan, json.loads(json.dumps(identity))


def _task_bytes(num_bytes: int) -> int:
    return min(_TASK_BYTES, max(_LEAST_TASK_BYTES, num_bytes // _LEAST_TASKS))


def _scan(
    input_patterns: str, leave_out: Sequence[str], text_format: corpus.TextFormat, strict: bool
) -> list[corpus.Scan]:
    text_files = corpus.find(input_patterns, leave_out)
    total = sum(corpus.stored_bytes(file) for file in text_files)
    # Not by the size on disk: the same text may be compressed anew between a kill and the next
    # start, and tasks that are done are known by their number.
    chunk_bytes = min(_LEAST_TASK_BYTES, _TASK_BYTES)
    with command.progress(total=total, desc="scanning text", unit="B", unit_scale=True) as bar:
        scans = [
            corpus.scan(file, text_format, chunk_bytes, strict=strict, advance=bar.update)
            for file in text_files
        ]
    if not sum(scan.num_documents for scan in scans):
        raise UserError(
            f"--input {input_patterns!r} holds no text ({len(text_files)} files, all blank); give "
            "files with text"
        )
    if replaced := corpus.replaced_in(scans):
        print(replaced)
    return scans


def _check_folder(plan: stages.Plan, identity: Mapping[str, Any]) -> Manifest | None:
    """The finished manifest, if the folder has one of this very build.

    Raises:
        UserError: the folder holds anything of another build.
    """
    folder = plan.output_dir
    if not tf.io.gfile.isdir(folder):
        if tf.io.gfile.exists(folder):
            raise UserError(f"--output_dir {folder} is a file; give a folder")
        return None
    if tf.io.gfile.exists(os.path.join(folder, schema.MANIFEST_FILE)):
        manifest = Manifest.load(folder)
        _check_same(folder, "a build", manifest.identity, identity)
        return manifest
    path = _state_path(plan, "plan")
    if tf.io.gfile.exists(path):
        stored = json.loads(files.read_bytes(path))
        _check_same(folder, "an unfinished build", stored, _work_identity(identity))
        return None
    foreign = [name for name in tf.io.gfile.listdir(folder) if name.endswith(schema.SHARD_SUFFIXES)]
    if foreign:
        raise UserError(
            f"{folder} holds {len(foreign)} TFRecord files without a {schema.MANIFEST_FILE}, such "
            f"as {min(foreign)}; give another --output_dir"
        )
    copy = os.path.join(folder, schema.VOCABULARY_FILE)
    if tf.io.gfile.exists(copy) and files.read_bytes(copy) != plan.vocabulary.content:
        raise UserError(
            f"{copy} is another vocabulary than {plan.vocabulary.path}; give another --output_dir"
        )
    return None


def _work_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"intermediate format": _WORK_FORMAT, **identity}


def _check_same(folder: str, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    old, new = _flatten(there), _flatten(here)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if names:
        differences = ", ".join(
            f"{name} {old.get(name)} there and {new.get(name)} here" for name in names[:3]
        )
        raise UserError(
            f"{folder} holds {what} with {differences}; give the same flags and text, or another "
            "--output_dir"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, "" if name == "options" else f"{prefix}{name} "))
        else:
            flat[prefix + name] = value
    return flat


def _is_intact(manifest: Manifest) -> bool:
    shards = [
        shard
        for sequences in manifest.sequences.values()
        for split in sequences.splits.values()
        for shard in split.shards
    ]
    checks = [
        writer.is_intact(manifest.directory, shard)
        for shard in command.progress(shards, desc="verifying shards", unit="shard")
    ]
    copy = manifest.vocabulary_file
    is_same = tf.io.gfile.exists(copy) and files.sha256(copy) == manifest.vocabulary_sha256
    return all(checks) and is_same


def _remember_shards(plan: stages.Plan, manifest: Manifest) -> None:
    """Lets the last stage keep those shards of a damaged folder that are whole."""
    for sequences in manifest.sequences.values():
        for split in sequences.splits.values():
            for shard in split.shards:
                stages.record_shard(plan, shard)


def _state_path(plan: stages.Plan, name: str) -> str:
    return os.path.join(plan.output_dir, stages.WORK, f"{name}.json")


def _open_work(plan: stages.Plan, identity: Mapping[str, Any]) -> None:
    """Makes the folder of intermediate files, or keeps that of the same build."""
    if not tf.io.gfile.exists(_state_path(plan, "plan")):
        _discard_work(plan)
    for stage in _DESCRIPTIONS:
        files.make_folder(plan.folder(stage))
    files.write_text(_state_path(plan, "plan"), json.dumps(_work_identity(identity)))


def _discard_work(plan: stages.Plan) -> None:
    """Removes the intermediate files.

    The plan goes first: whatever a removal that is killed leaves is then without one, and is no
    part of any build.
    """
    work = os.path.dirname(_state_path(plan, "plan"))
    if tf.io.gfile.exists(_state_path(plan, "plan")):
        tf.io.gfile.remove(_state_path(plan, "plan"))
    if tf.io.gfile.isdir(work):
        tf.io.gfile.rmtree(work)


_tasks: stages.Tasks | None = None


def _prepare_workers() -> None:
    """Lets a server begin to import what workers need: once, and while the text is scanned.

    TensorFlow takes seconds to import. The server does nothing else, so it is safe to fork.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([stages.__name__])
    multiprocessing.forkserver.ensure_running()


def _start_worker(plan: stages.Plan) -> None:
    global _tasks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tf.config.set_visible_devices([], "GPU")
    _tasks = stages.Tasks(plan)


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(stage: str, task: Any) -> Any:
    return getattr(_tasks, stage)(task)


class _Run:
    """The stages one after the other, each remembered once it is complete."""

    def __init__(self, plan: stages.Plan, num_processes: int) -> None:
        self._plan = plan
        self._num_processes = num_processes
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def run(self) -> tuple[dict[str, Any], dict[stages.ShardTask, dict[str, Any]]]:
        plan = self._plan
        with self._workers():
            self._stage("documents", stages.documents_tasks(plan), _nothing)
            pairs = self._stage("pairs", stages.pairs_tasks(plan), self._sum_pairs)
            self._check_counts(pairs)
            self._forget("documents")
            shuffle = stages.shuffle_tasks(plan, pairs["examples"])
            self._stage("shuffled", shuffle, _nothing)
            self._forget("pairs")
            tasks = stages.shard_tasks(plan)
            shards = dict(self._each("shards", tasks))
        return pairs, {task: shards[task] for task in tasks}

    @contextlib.contextmanager
    def _workers(self) -> Iterator[None]:
        if self._num_processes == 1:
            yield
            return
        with concurrent.futures.ProcessPoolExecutor(
            self._num_processes,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_start_worker,
            initargs=(self._plan,),
        ) as self._pool:
            try:
                yield
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    f"a process of --num_processes {self._num_processes} died, perhaps for want of "
                    "memory; run the same command again, with fewer, to go on"
                ) from error
            except BaseException:
                self._pool.shutdown(cancel_futures=True)
                raise

    def _stage(
        self, name: str, tasks: Sequence[Any], reduce: Callable[[Results], dict[str, Any]]
    ) -> dict[str, Any]:
        path = _state_path(self._plan, name)
        if not tf.io.gfile.exists(path):
            files.write_text(path, json.dumps(reduce(self._each(name, tasks))))
        return json.loads(files.read_bytes(path))

    def _each(self, stage: str, tasks: Sequence[Any]) -> Results:
        """The tasks with their results, in the order in which they end; none is kept here."""
        description = _DESCRIPTIONS[stage]
        if self._pool is None:
            call = getattr(stages.Tasks(self._plan), stage)
            for task in command.progress(tasks, desc=description, unit="task"):
                yield task, call(task)
            return
        waiting = {self._pool.submit(_call, stage, task): task for task in tasks}
        with command.progress(total=len(waiting), desc=description, unit="task") as bar:
            for future in concurrent.futures.as_completed(list(waiting)):
                yield waiting.pop(future), future.result()
                bar.update()

    def _forget(self, stage: str) -> None:
        folder = self._plan.folder(stage)
        if tf.io.gfile.isdir(folder):
            tf.io.gfile.rmtree(folder)

    def _sum_pairs(self, results: Results) -> dict[str, Any]:
        sums: collections.Counter[totals.Key] = collections.Counter()
        for task, result in results:
            for key, count in totals.terms(self._plan.options, task, result):
                sums[key] += count
        return totals.nested(self._plan, sums)

    def _check_counts(self, pairs: Mapping[str, Any]) -> None:
        if problem := totals.problem_in(self._plan.options, pairs):
            raise UnfitTextError(problem)


def _nothing(results: Results) -> dict[str, Any]:
    collections.deque(results, maxlen=0)
    return {}


_DESCRIPTIONS = {
    "documents": "tokenising",
    "pairs": "making rows",
    "shuffled": "shuffling",
    "shards": "writing shards",
}
