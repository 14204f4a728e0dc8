"""Which bucket, which split, which shard, which worker: pure functions of seeds and counts."""

import hashlib

import numpy as np

from tfrecords import hashing
from tfrecords.errors import UserError

# What a hash is for: its last word.
_BUCKET, _SPLIT = range(2)


def document_keys(path_key: str, ordinals: np.ndarray) -> np.ndarray:
    """uint64 [documents]: the hash of each document's file and its number in it."""
    digest = hashlib.sha256(path_key.encode("utf-8")).digest()
    return hashing.mix(int.from_bytes(digest[:8], "little"), ordinals)


def num_buckets(num_bytes: int, bucket_bytes: int) -> int:
    """Buckets for a corpus of `num_bytes`: a function of its size and nothing else."""
    return max(1, -(-num_bytes // bucket_bytes))


def buckets(seed: int, keys: np.ndarray, count: int) -> np.ndarray:
    """int64 [documents]: the bucket of each document, in [0, count)."""
    return hashing.below(hashing.mix(seed, keys, _BUCKET), count)


def is_eval(seed: int, keys: np.ndarray, eval_fraction: float) -> np.ndarray:
    """Whether each document is held out: bool [documents]."""
    return hashing.uniform(hashing.mix(seed, keys, _SPLIT)) < eval_fraction


def partitions(example_ids: np.ndarray, count: int) -> np.ndarray:
    """int64 [examples]: equal slices of the range of ids, ascending with the id."""
    return hashing.below(example_ids, count)


def check_workers(num_shards: int, num_workers: int, worker_index: int) -> None:
    """Checks that shards can be dealt out evenly.

    Raises:
        UserError: `num_shards` is no multiple of `num_workers`, or there is no such worker.
    """
    if num_workers < 1 or not 0 <= worker_index < num_workers:
        raise UserError(
            f"worker_index is {worker_index} of num_workers {num_workers}; expected "
            "0 <= worker_index < num_workers"
        )
    if num_shards % num_workers:
        workable = [count for count in range(1, num_shards + 1) if num_shards % count == 0]
        below = max(count for count in workable if count < num_workers) if num_workers > 1 else 1
        above = [count for count in workable if count > num_workers][:1]
        nearest = " or ".join(map(str, [below, *above]))
        raise UserError(
            f"{num_shards} shards cannot be dealt out to {num_workers} workers; use {nearest} "
            f"workers, or build with {_multiples(num_shards, num_workers)} shards"
        )


def check_batch(global_batch_size: int, num_workers: int) -> int:
    """The batch of one worker.

    Raises:
        UserError: `global_batch_size` is no positive multiple of `num_workers`.
    """
    if global_batch_size < 1 or global_batch_size % num_workers:
        raise UserError(
            f"global_batch_size {global_batch_size} is no positive multiple of {num_workers} "
            f"workers; use {_multiples(global_batch_size, num_workers)}"
        )
    return global_batch_size // num_workers


def _multiples(value: int, divisor: int) -> str:
    below = max(value, 0) // divisor * divisor
    return " or ".join(str(count) for count in (below, below + divisor) if count > 0)


def worker_shards(num_shards: int, num_workers: int, worker_index: int) -> list[int]:
    """Section 3.4: worker i of W owns shards i, i + W, i + 2W, ... for the whole run."""
    return list(range(worker_index, num_shards, num_workers))
