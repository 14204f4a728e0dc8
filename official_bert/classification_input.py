"""Labelled rows as batches, cut into groups of rows that share a length.

A batch's rows are sorted by length and cut into groups, each as long as its longest row needs:
masked positions change nothing, so neither does this, rounding aside, but short rows cost what
they are worth. The lengths are a few static ones, so that XLA compiles each once.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from official_bert import packed_rows, squad_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows and what they are labelled with.

    Attributes:
        rows: N rows.
        labels: (N,), int32 class numbers, or float32 numbers to regress to.
        name: what distinguishes a dev set from others of its task; empty for the only one.
    """

    rows: packed_rows.Rows
    labels: np.ndarray
    name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How a batch is dealt to replicas and cut into groups of one length.

    Attributes:
        batch_size: rows of a global batch.
        replicas: of all workers; divides it.
        groups: of each replica's share; divides that.
        lengths: ascending; the last holds every row.
    """

    batch_size: int
    replicas: int
    groups: int
    lengths: tuple[int, ...]

    def deal(self, rows: tf.Tensor, row_lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The rows of a batch replica by replica, group by group, and each one's length.

        Args:
            rows: (batch_size,), which rows.
            row_lengths: (batch_size,), their lengths.

        Returns:
            Two tensors (batch_size,): the rows in another order, and the number in `lengths` of
            what each row's group is cut to, the same for a group on every replica.
        """
        order = tf.argsort(row_lengths, stable=True)
        share = self.batch_size // (self.groups * self.replicas)
        shape = [self.groups, share, self.replicas]
        sorted_rows = tf.reshape(tf.gather(rows, order), shape)
        longest = tf.reduce_max(tf.reshape(tf.gather(row_lengths, order), shape), axis=[1, 2])
        numbers = tf.searchsorted(tf.constant(self.lengths, longest.dtype), longest)
        spread = tf.broadcast_to(numbers[None, :, None], [self.replicas, self.groups, share])
        dealt = tf.transpose(sorted_rows, [2, 0, 1])
        return tf.reshape(dealt, [self.batch_size]), tf.reshape(spread, [self.batch_size])


def batches(
    data: Labelled,
    cut: Cut,
    *,
    seed: int = 0,
    start_step: int = 0,
    num_pipelines: int = 1,
    pipeline: int = 0,
) -> tf.data.Dataset:
    """Endless training batches; the rows of step s are a function of (seed, s) alone.

    Args:
        data: the rows.
        cut: how a batch is cut.
        seed: draws the permutations.
        start_step: the first step.
        num_pipelines: how many input pipelines share a step; divides the replicas.
        pipeline: which of them this is.

    Returns:
        A data set of dictionaries: `input_word_ids`, `input_mask`, `input_type_ids`
        (share, seq_length), `label_ids` and `length_number` (share,).
    """
    features = packed_rows.features_of(
        data.rows.word_ids, data.rows.first_lengths, data.rows.lengths
    )
    row_lengths, labels = tf.constant(data.rows.lengths), tf.constant(data.labels)
    share = cut.batch_size // num_pipelines

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        positions = step * cut.batch_size + tf.range(cut.batch_size, dtype=tf.int64)
        rows = squad_task.rows_at(positions, len(data.rows), seed)
        rows, numbers = cut.deal(rows, tf.gather(row_lengths, rows))
        rows = rows[pipeline * share : (pipeline + 1) * share]
        return {
            **features(rows),
            "label_ids": tf.gather(labels, rows),
            "length_number": numbers[pipeline * share : (pipeline + 1) * share],
        }

    return tf.data.Dataset.counter(start_step).map(batch).prefetch(2)


def evaluation_batches(
    rows: packed_rows.Rows, cut: Cut, *, num_pipelines: int = 1, pipeline: int = 0
) -> tf.data.Dataset:
    """One pass over the rows, short ones first; full batches for every pipeline.

    `row` says which row each one is; what fills up the last batch says it is row N.
    """
    features = packed_rows.features_of(rows.word_ids, rows.first_lengths, rows.lengths)
    order = tf.constant(np.argsort(rows.lengths, kind="stable"))
    row_lengths = tf.constant(rows.lengths)
    share = cut.batch_size // num_pipelines
    count = -(-len(rows) // cut.batch_size)

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        positions = step * cut.batch_size + tf.range(cut.batch_size, dtype=tf.int64)
        places = tf.gather(order, tf.minimum(positions, len(rows) - 1))
        _, numbers = cut.deal(places, tf.gather(row_lengths, places))
        part = slice(pipeline * share, (pipeline + 1) * share)
        known = tf.where(positions < len(rows), places, len(rows))
        return {
            **features(places[part]),
            "row": tf.cast(known[part], tf.int32),
            "length_number": numbers[part],
        }

    return tf.data.Dataset.range(count).map(batch).prefetch(2)
