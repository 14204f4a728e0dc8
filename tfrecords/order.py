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

    @property
    def _shards(self) -> tf.Tensor:
        return tf.constant(np.array(self.shards, np.int64))

    @property
    def _counts(self) -> tf.Tensor:
        return tf.constant(np.array(self.counts, np.int64))

    @property
    def _begins(self) -> tf.Tensor:
        return tf.cumsum(self._counts, exclusive=True)

    def pieces(self, start_step: int) -> tf.data.Dataset:
        """The examples from the batch of step `start_step` on, without end.

        Returns:
            A dataset of (epoch int64, shards int64 [k], records int64 [n]): the next n examples
            are of that epoch, at the indices `records` of the k shards laid end to end.
        """
        epoch, skip = divmod(start_step * self.batch_size, self.epoch_size)
        may_collide = len(self.shards) == 1 or min(self.counts) < self.batch_size
        pieces = (self._with_moves if may_collide else self._one_by_one)(epoch, skip)
        return pieces.map(lambda number, *examples: (number + self.first_epoch, *examples))

    # Below, epochs are counted from `first_epoch`; what is drawn goes by their own numbers. A shard
    # is its index in `shards`, an example its place in all shards laid end to end.

    def _one_by_one(self, epoch: int, skip: int) -> tf.data.Dataset:
        """A piece a shard: a batch between two epochs sees one shard of each, never the same."""

        def visits(number: tf.Tensor) -> tf.data.Dataset:
            indices = tf.data.Dataset.from_tensor_slices(self._shard_order(number))
            return indices.map(lambda index: (number, index))

        def piece(visit: tf.Tensor, position: tuple[tf.Tensor, tf.Tensor]) -> tuple:
            number, index = position
            begin = tf.where(visit == 0, first_begin, 0)
            shard = tf.gather(self._shards, index)
            return number, shard[tf.newaxis], self._record_order(number, index)[begin:]

        ends = np.cumsum(np.array(self.counts)[self._shard_order(tf.constant(epoch)).numpy()])
        whole = int(np.searchsorted(ends, skip, side="right"))
        first_begin = skip - int(ends[whole - 1]) if whole else skip
        numbers = tf.data.Dataset.range(epoch, _FOREVER)
        return numbers.flat_map(visits).skip(whole).enumerate().map(piece)

    def _with_moves(self, epoch: int, skip: int) -> tf.data.Dataset:
        """A piece a shard too, the last of an epoch with what was moved there, of several shards.

        What an epoch ends with depends on what was moved there, and so back to epoch 0. But an
        epoch takes nothing from the one before but what the batch between them holds: of those
        before the first that is read, only the shards of their first and last batch are drawn.
        """

        # Nothing in it for AutoGraph, whose conversion takes as long as the tracing.
        @tf.autograph.experimental.do_not_convert
        def next_epoch(held: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tuple]:
            visits = self._shard_order(number)
            moved = self._moved(number, visits, held)
            return self._held_after(number, visits, moved), (number, visits, moved)

        @tf.autograph.experimental.do_not_convert
        def pieces(visit: tf.Tensor, epoch: tuple[tf.Tensor, ...]) -> tf.data.Dataset:
            number, visits, moved = epoch
            begin = tf.where(visit == 0, tf.constant(skip, tf.int64), 0)
            return self._pieces(number, visits, moved, begin)

        epochs = tf.data.Dataset.range(_FOREVER).scan(tf.zeros((0,), tf.int64), next_epoch)
        return epochs.skip(epoch).enumerate().flat_map(pieces)

    def _moved(self, epoch: tf.Tensor, visits: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
        """What an epoch moves to its end, because the one before gave it to the batch between them.

        Args:
            epoch: int64, the epoch.
            visits: int64 [shards], its shards.
            held: int64, ascending, what that batch holds already.

        Returns:
            int64, in the epoch's order: all of `held`, or nothing where no example would be in that
            batch twice.
        """
        if len(self.shards) > 1:
            room = self.batch_size - epoch * self.epoch_size % self.batch_size
            first = self._in_order(epoch, visits, self._of_first(visits, room))[:room]
            collides = tf.reduce_any(_is_in(first, held))
            held = held[: tf.where(collides, tf.size(held), 0)]
        return self._in_order(epoch, visits, held)

    def _held_after(self, epoch: tf.Tensor, visits: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
        """What the batch between an epoch and the next holds of the one: int64, ascending."""
        size = (epoch + 1) * self.epoch_size % self.batch_size
        # What was moved away from these shards is here again, so they have enough.
        last = self._in_order(epoch, visits, self._of_first(visits[::-1], size))
        last = tf.concat([last[~_is_in(last, tf.sort(moved))], moved], 0)
        return tf.sort(last[tf.size(last, tf.int64) - size :])

    def _pieces(
        self, epoch: tf.Tensor, visits: tf.Tensor, moved: tf.Tensor, skip: tf.Tensor
    ) -> tf.data.Dataset:
        """The pieces of an epoch but for its first `skip` examples."""
        is_last = tf.range(len(self.shards)) == len(self.shards) - 1
        away = tf.sort(moved)
        lost = tf.math.unsorted_segment_sum(
            tf.ones_like(moved), self._owners(moved), len(self.shards)
        )
        sizes = tf.gather(self._counts - lost, visits)
        sizes += tf.where(is_last, tf.size(moved, tf.int64), 0)
        skips = tf.clip_by_value(skip - tf.cumsum(sizes, exclusive=True), 0, sizes)

        @tf.autograph.experimental.do_not_convert
        def piece(index: tf.Tensor, is_last: tf.Tensor, skip: tf.Tensor) -> tuple:
            drawn = tf.gather(self._begins, index) + self._record_order(epoch, index)
            # No piece of its own, so that a worker's only shard is read once an epoch.
            at_end = moved[: tf.where(is_last, tf.size(moved), 0)]
            examples = tf.concat([drawn[~_is_in(drawn, away)], at_end], 0)
            return epoch, *self._located(examples[skip:])

        is_read = skips < sizes
        visited = (visits[is_read], is_last[is_read], skips[is_read])
        return tf.data.Dataset.from_tensor_slices(visited).map(piece)

    def _of_first(self, visits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """All examples of the first shards of `visits` that have `size` or more: ascending."""
        ends = tf.cumsum(tf.gather(self._counts, visits))
        indices = tf.sort(visits[: tf.searchsorted(ends, size[tf.newaxis])[0] + 1])
        counts = tf.gather(self._counts, indices)
        gaps = tf.gather(self._begins, indices) - tf.cumsum(counts, exclusive=True)
        return tf.range(tf.reduce_sum(counts)) + tf.repeat(gaps, counts)

    def _in_order(self, epoch: tf.Tensor, visits: tf.Tensor, examples: tf.Tensor) -> tf.Tensor:
        """Ascending examples in the order that an epoch has before any is moved."""
        owners = self._owners(examples)
        records = examples - tf.gather(self._begins, owners)
        bits = self._record_bits(epoch, tf.gather(self._shards, owners), records)
        order = hashing.order_of(bits)
        ranks = tf.gather(tf.argsort(visits), owners)
        order = tf.gather(order, tf.argsort(tf.gather(ranks, order), stable=True))
        return tf.gather(examples, order)

    def _located(self, examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Examples as a piece has them: the numbers of their shards, the indices in these."""
        owners = self._owners(examples)
        indices, slots = tf.unique(owners)
        begins = tf.cumsum(tf.gather(self._counts, indices), exclusive=True)
        records = examples - tf.gather(self._begins, owners)
        return tf.gather(self._shards, indices), tf.gather(begins, slots) + records

    def _owners(self, examples: tf.Tensor) -> tf.Tensor:
        return tf.searchsorted(self._begins, examples, side="right", out_type=tf.int64) - 1

    def _record_order(self, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """The records of a shard in the epoch's order: int64 [examples of the shard]."""
        records = tf.range(tf.gather(self._counts, index))
        return hashing.order_of(self._record_bits(epoch, tf.gather(self._shards, index), records))

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


def _is_in(examples: tf.Tensor, ascending: tf.Tensor) -> tf.Tensor:
    """Which of some examples are among others: bool, for each of the first."""
    begins = tf.searchsorted(ascending, examples, side="left")
    return begins < tf.searchsorted(ascending, examples, side="right")
