"""The order in which a worker reads its examples, as a dataset of operations.

No Python runs in it: threads of tf.data that wait for the interpreter can hang its exit.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfrecords import hashing
from tfrecords.errors import UserError

_FOREVER = np.iinfo(np.int64).max
# What a hash is for: its last word but one.
_SHARD_ORDER, _RECORD_ORDER = range(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The endless order of one worker.

    An epoch is the worker's shards in an order permuted by (seed, epoch, worker), each shard in its
    own permutation by (seed, epoch, shard). Batches are consecutive runs of `batch_size` examples
    of the epochs laid end to end. No batch holds an example twice: an epoch's first shard is never
    the previous epoch's last; and where that is not enough (one shard, or shards smaller than a
    batch) what the batch between two epochs already holds goes to the end of the new one.

    Attributes:
        shards: the numbers of the worker's shards, those with no example left out.
        counts: the examples in each.
        worker_index: the worker.
        batch_size: its batch.
        seed: of the order.
        first_epoch: the number of the epoch that step 0 begins.

    Raises:
        UserError: the worker has fewer examples than a batch.
    """

    shards: Sequence[int]
    counts: Sequence[int]
    worker_index: int
    batch_size: int
    seed: int
    first_epoch: int = 0

    def __post_init__(self) -> None:
        if self.epoch_size < self.batch_size:
            raise UserError(
                f"worker {self.worker_index} has {self.epoch_size} examples in "
                f"{len(self.shards)} shards, fewer than its batch of {self.batch_size}; use a "
                "smaller global batch, fewer workers or more text"
            )

    @property
    def epoch_size(self) -> int:
        """The examples of an epoch."""
        return sum(self.counts)

    def pieces(self, start_step: int) -> tf.data.Dataset:
        """The examples from the batch of step `start_step` on, without end.

        Returns:
            A dataset of (epoch int64, shards int64 [k], records int64 [n]): the next n examples
            are of that epoch, at the indices `records` of the k shards laid end to end.
        """
        epoch, skip = divmod(start_step * self.batch_size, self.epoch_size)
        by_index = len(self.shards) == 1 or min(self.counts) < self.batch_size
        pieces = (self._by_index if by_index else self._one_by_one)(epoch, skip)
        return pieces.map(lambda number, *examples: (number + self.first_epoch, *examples))

    # Below, epochs are counted from `first_epoch`; what is drawn goes by their own numbers.

    def _one_by_one(self, epoch: int, skip: int) -> tf.data.Dataset:
        """A piece a shard: a batch between two epochs sees one shard of each, never the same."""
        shards, counts = tf.constant(self.shards, tf.int64), tf.constant(self.counts, tf.int64)

        def visits(number: tf.Tensor) -> tf.data.Dataset:
            indices = tf.data.Dataset.from_tensor_slices(self._shard_order(number))
            return indices.map(lambda index: (number, index))

        def piece(visit: tf.Tensor, position: tuple[tf.Tensor, tf.Tensor]) -> tuple:
            number, index = position
            bits = self._record_bits(number, shards[index], tf.range(counts[index]))
            begin = tf.where(visit == 0, first_begin, 0)
            return number, shards[index][tf.newaxis], hashing.order_of(bits)[begin:]

        ends = np.cumsum(np.array(self.counts)[self._shard_order(tf.constant(epoch)).numpy()])
        whole = int(np.searchsorted(ends, skip, side="right"))
        first_begin = skip - int(ends[whole - 1]) if whole else skip
        numbers = tf.data.Dataset.range(epoch, _FOREVER)
        return numbers.flat_map(visits).skip(whole).enumerate().map(piece)

    def _by_index(self, epoch: int, skip: int) -> tf.data.Dataset:
        """A piece a shard too; what was moved to an epoch's end is one piece, of several shards.

        What an epoch ends with depends on what was moved there, and so back to epoch 0; only the
        indices are computed again on a restart, nothing is read. They take some 80 bytes an
        example of the worker while an epoch is drawn.
        """
        shards, counts = tf.constant(self.shards, tf.int64), tf.constant(self.counts, tf.int64)
        owners = tf.repeat(tf.range(len(self.shards), dtype=tf.int64), counts)
        numbers = tf.gather(shards, owners)
        records = tf.constant(np.concatenate([np.arange(count) for count in self.counts]), tf.int64)

        def next_epoch(held: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tuple]:
            order = hashing.order_of(self._record_bits(number, numbers, records))
            ranks = tf.argsort(self._shard_order(number))
            order = tf.gather(
                order, tf.argsort(tf.gather(tf.gather(ranks, owners), order), stable=True)
            )
            is_held = tf.scatter_nd(held[:, tf.newaxis], tf.ones_like(held), (self.epoch_size,)) > 0
            moves = tf.gather(is_held, order)
            spanning = number * self.epoch_size % self.batch_size
            if len(self.shards) > 1:
                moves &= tf.reduce_any(moves[: self.batch_size - spanning])
            order = tf.concat([order[~moves], order[moves]], 0)
            tail = (number + 1) * self.epoch_size % self.batch_size
            kept = self.epoch_size - tf.math.count_nonzero(moves)
            return order[self.epoch_size - tail :], (number, order, kept)

        def cut(visit: tf.Tensor, epoch: tuple[tf.Tensor, ...]) -> tf.data.Dataset:
            done = tf.where(visit == 0, tf.constant(skip, tf.int64), 0)
            number, order, kept = epoch[0], epoch[1][done:], epoch[2] - done
            owner = tf.gather(owners, order)
            is_next = (owner[1:] != owner[:-1]) & (tf.range(1, tf.size(order, tf.int64)) <= kept)
            bounds = tf.concat([[0], tf.where(is_next)[:, 0] + 1, [tf.size(order, tf.int64)]], 0)
            ranges = tf.data.Dataset.from_tensor_slices((bounds[:-1], bounds[1:]))
            return ranges.map(lambda begin, end: (number, *piece(order[begin:end])))

        def piece(order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            owner = tf.gather(owners, order)
            indices, slots = tf.unique(owner)
            begins = tf.cumsum(tf.gather(counts, indices), exclusive=True)
            return tf.gather(shards, indices), tf.gather(records, order) + tf.gather(begins, slots)

        epochs = tf.data.Dataset.range(_FOREVER).scan(tf.zeros((0,), tf.int64), next_epoch)
        return epochs.skip(epoch).enumerate().flat_map(cut)

    def _record_bits(self, epoch: tf.Tensor, shard: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
        epoch += self.first_epoch
        return hashing.mix_tensors(self.seed, epoch, shard, _RECORD_ORDER, records)

    def _shard_order(self, epoch: tf.Tensor) -> tf.Tensor:
        """The epoch's shards, as indices into `shards`: int64 [shards]."""
        if len(self.shards) <= 2:
            # Of two shards the one that did not come last must come first: their order stays.
            return self._drawn_order(tf.zeros((), tf.int64))
        order = self._drawn_order(epoch)
        # Swapping the first two moves no epoch's last, so looking back one epoch is enough.
        repeats = (epoch > 0) & (order[0] == self._drawn_order(epoch - 1)[-1])
        swapped = tf.concat([order[1:2], order[:1], order[2:]], 0)
        return tf.where(repeats, swapped, order)

    def _drawn_order(self, epoch: tf.Tensor) -> tf.Tensor:
        epoch += self.first_epoch
        indices = tf.range(len(self.shards), dtype=tf.int64)
        bits = hashing.mix_tensors(self.seed, epoch, self.worker_index, _SHARD_ORDER, indices)
        return hashing.order_of(bits)
