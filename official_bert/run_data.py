"""Which shards a run reads, and how many workers have shared their epochs from which step on.

`data.json` in the run's folder holds both. Where the number of workers changes, the epoch that was
begun ends with what nobody read of it, and another begins.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import flags, logging

import tfrecords
from official_bert import cluster, configuration
from official_bert.input import PretrainDataConfig
from tfrecords import files, schema, sharding
from tfrecords.errors import UserError

FILE = "data.json"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines `--repartition`."""
    flags.DEFINE_bool(
        "repartition", False,
        "Go on with another number of workers: the epoch that was begun ends, and one begins.",
        flag_values=flag_values,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
    """From which step on how many workers share the epochs.

    Attributes:
      step: steps done before; an epoch begins with the next.
      epoch: the number of that epoch.
      num_workers: how many input pipelines there are.
    """

    step: int = 0
    epoch: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("step", 0), ("epoch", 0), ("num_workers", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; expected a whole number from {least} on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """What `FILE` holds.

    Attributes:
      manifest_sha256: of the manifest, which has the hash of every shard.
      partitions: in the order of their steps; none in a file of before there were any.
    """

    manifest_sha256: str
    partitions: tuple[Partition, ...] = ()


def manifest_sha256(data: PretrainDataConfig) -> str:
    """The hash of the manifest of a config's shards."""
    return files.sha256(os.path.join(data.input_path, schema.MANIFEST_FILE))


def read(model_dir: str) -> RunData | None:
    """What is known of a run's data; None where nothing is.

    Raises:
      UserError: the file is not what `write` left.
    """
    path = os.path.join(model_dir, FILE)
    if not tf.io.gfile.exists(path):
        return None
    try:
        found: dict[str, Any] = json.loads(files.read_bytes(path))
        partitions = tuple(Partition(**each) for each in found.get("partitions", ()))
        return RunData(manifest_sha256=str(found["manifest_sha256"]), partitions=partitions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say which shards a run reads, and by how many workers ({error!r}); "
            "restore it from a copy, or choose another --model_dir"
        ) from error


def write(model_dir: str, known: RunData) -> None:
    """Writes down what is known of a run's data."""
    text = json.dumps(dataclasses.asdict(known)) + "\n"
    files.write_text(os.path.join(model_dir, FILE), text)


def partitions(
    data: PretrainDataConfig, model_dir: str, step: int, num_workers: int
) -> tuple[tuple[Partition, ...], int | None]:
    """The partitions of a run that `num_workers` workers go on with after `step` steps.

    Those of steps that are not made yet, or are to be made again, are forgotten.

    Args:
      data: the training data's config.
      model_dir: the run's folder.
      step: steps done.
      num_workers: of now.

    Returns:
      The partitions, the last of which is that of now; and, where it is a new one, how many
      examples of the epochs that were begun remain unread.
    """
    known = read(model_dir)
    before = known.partitions if known else ()
    if not before:
        before = (Partition(num_workers=_saved_workers(model_dir) or num_workers),)
    # One that begins here has had no step: whether it is to be is this process's affair.
    before = tuple(each for each in before if each.step < step)
    if not before:
        return (Partition(num_workers=num_workers),), None
    if before[-1].num_workers == num_workers:
        return before, None
    shards = tfrecords.Manifest.load(data.input_path).shards(schema.TRAIN, data.seq_length)
    after, unread = following(
        before[-1],
        step,
        num_workers,
        counts=[shard.examples for shard in shards],
        global_batch_size=data.global_batch_size,
    )
    return (*before, after), unread


def settle(
    data: PretrainDataConfig, model_dir: str, step: int, num_workers: int, steps_left: int
) -> tuple[Partition, ...]:
    """As `partitions`; a line says what remains unread, where there are steps to be made.

    Args:
      data: the training data's config.
      model_dir: the run's folder.
      step: steps done.
      num_workers: of now.
      steps_left: steps to be made.
    """
    known, unread = partitions(data, model_dir, step, num_workers)
    if unread is not None and steps_left > 0:
        logging.warning(
            "%s: workers: %d up to step %d, %d from now on: epoch %d begins, with %d examples of "
            "those before it unread",
            *(model_dir, known[-2].num_workers, step, num_workers, known[-1].epoch, unread),
        )
    return known


def of_the_chief(strategy: tf.distribute.Strategy, partition: Partition) -> Partition:
    """The chief's partition on every worker: the others may not see its file, or see it too early.

    Args:
      strategy: that all of them run.
      partition: the chief's; any on another.
    """
    values = dataclasses.astuple(partition)
    return Partition(
        **{
            field.name: cluster.of_the_chief(strategy, value)
            for field, value in zip(dataclasses.fields(Partition), values, strict=True)
        }
    )


def following(
    last: Partition,
    step: int,
    num_workers: int,
    *,
    counts: Sequence[int],
    global_batch_size: int,
) -> tuple[Partition, int]:
    """The partition after another, once an epoch has ended early.

    Worker i of W has the n_i examples of shards i, i + W, ..., of which it has read
    c = (step - last.step) global_batch_size / W; the epochs that were begun are max ceil(c / n_i).

    Args:
      last: the partition before.
      step: steps done, at least `last.step`.
      num_workers: of the partition after.
      counts: the examples of each shard.
      global_batch_size: examples of a step.

    Returns:
      The partition; and how many examples of the epochs that were begun remain unread.

    Example:
      >>> following(Partition(num_workers=2), 3, 1, counts=[10, 10], global_batch_size=4)
      (Partition(step=3, epoch=1, num_workers=1), 8)
    """
    consumed = (step - last.step) * global_batch_size
    share = consumed // last.num_workers
    sizes = [
        sum(counts[shard] for shard in sharding.worker_shards(len(counts), last.num_workers, index))
        for index in range(last.num_workers)
    ]
    begun = max(-(-share // size) for size in sizes)
    after = Partition(step=step, epoch=last.epoch + begun, num_workers=num_workers)
    return after, begun * sum(sizes) - consumed


def _saved_workers(model_dir: str) -> int | None:
    if not tf.io.gfile.exists(os.path.join(model_dir, configuration.PARAMS_FILE)):
        return None
    return (configuration.read_saved(model_dir).get("runtime") or {}).get("num_workers")
