"""Shards to batches, in the order of `tfrecords.order.Order`.

A shard is read whole, put into its permuted order and cut into batches, each decoded at once.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfrecords import damage, decoding, files, keras_hub_features, schema, sharding
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.order import Order

MODEL_GARDEN, KERAS_HUB = "model_garden", "keras_hub"
RAISE, SKIP = "raise", "skip"

_Arrangement = Callable[[dict[str, tf.Tensor]], Any]


def _as_decoded(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return features


_ARRANGEMENTS: dict[str, _Arrangement] = {
    MODEL_GARDEN: _as_decoded,
    KERAS_HUB: keras_hub_features.from_model_garden,
}


def read(
    directory: str | os.PathLike[str],
    *,
    split: str = schema.TRAIN,
    seq_length: int,
    global_batch_size: int,
    num_workers: int = 1,
    worker_index: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    seed: int = 0,
    start_step: int = 0,
    first_step: int = 0,
    first_epoch: int = 0,
    training: bool | None = None,
    on_corrupt: str = RAISE,
    corrupt_budget: int = 0,
    features: str | None = MODEL_GARDEN,
    masked_lm_prob: float | None = None,
    max_predictions_per_seq: int | None = None,
    whole_word_mask: bool | None = None,
) -> tf.data.Dataset:
    """The batches of one worker, from a folder that `tfrecords.build` wrote.

    Worker i of W reads shards i, i + W, i + 2W, ... and no other, without replacement: an epoch of
    all workers holds each example exactly once, and no batch holds one twice (section 3.4 of arXiv
    2006.13484). Position in the data is the step number and nothing else.

    Args:
        directory: the folder.
        split: "train" or "eval".
        seq_length: tokens in a row, L; one of the lengths that were built.
        global_batch_size: examples of a step over all workers, B.
        num_workers: W, a divisor of B and of the number of shards.
        worker_index: i.
        input_context: gives W and i in place of the two before, as its number of input pipelines
            and the number of this one. Where a pipeline feeds several replicas, each takes a batch
            of its own: `rebatch` to B / replicas first.
        seed: of the order, and of the masks of dynamic records; from -2^63 to 2^63 - 1.
        start_step: the first batch is that of step `start_step` + 1, the next after `start_step`
            were consumed.
        first_step: a step, `start_step` or one before it, with which an epoch begins, whatever was
            left of the one before: where another number of workers took over.
        first_epoch: the number of that epoch, which the orders and masks of earlier ones are not
            drawn by.
        training: whether to read on without end, in permuted order; otherwise one pass in stored
            order, the same number of batches for every worker, the last filled up with rows of
            zeros. None means true for the split "train".
        on_corrupt: "raise" stops at a damaged record with a message that names file, record and
            byte offset; "skip" gives a row of zeros in its place, so that every other example
            keeps its step, and reports it on standard error.
        corrupt_budget: how many damaged records "skip" tolerates, in each worker and since each
            start.
        features: the names and types to give: "model_garden" (None is the same), those of Model
            Garden's BertPretrainDataLoader; "keras_hub", what `fit` of KerasHub's BertMaskedLM and
            RoformerV2MaskedLM takes.
        masked_lm_prob: of dynamic records, masked here and afresh every epoch, the share of tokens
            to guess; None means what they were built with, as for the next two.
        max_predictions_per_seq: of dynamic records, the most masked positions of a row, M; where
            `masked_lm_prob` is given and this is not, what a full row can need.
        whole_word_mask: of dynamic records, whether the pieces of a word are masked together.

    Returns:
        A dataset of dicts with b = B / W rows and static shapes: `input_word_ids`, `input_mask`,
        `input_type_ids` int32 [b, L]; `masked_lm_positions`, `masked_lm_ids` int32 [b, M],
        `masked_lm_weights` float32 [b, M]; `next_sentence_labels` int32 [b, 1]. Rows of zeros,
        `input_mask` included, are no examples. With `features="keras_hub"`, of tuples
        (x, y, sample_weight) with as many rows: see `keras_hub_features.from_model_garden`.

    Raises:
        UserError: anything above cannot be had; the message says what can.

    Example:
        >>> dataset = tfrecords.read("shards", seq_length=128, global_batch_size=512)
        >>> next(iter(dataset))["input_word_ids"].shape
        TensorShape([512, 128])
    """
    arrange = _ARRANGEMENTS.get(MODEL_GARDEN if features is None else features)
    if arrange is None:
        choices = " or ".join(map(repr, _ARRANGEMENTS))
        raise UserError(f"features is {features!r}; expected {choices}")
    if on_corrupt not in (RAISE, SKIP):
        raise UserError(f"on_corrupt is {on_corrupt!r}; expected {RAISE!r} or {SKIP!r}")
    for name, value in {
        "start_step": start_step,
        "first_step": first_step,
        "first_epoch": first_epoch,
        "corrupt_budget": corrupt_budget,
    }.items():
        if value < 0:
            raise UserError(f"{name} is {value}; expected 0 or more")
    if not -(1 << 63) <= seed < 1 << 63:
        raise UserError(f"seed is {seed}; expected a number from -2^63 to 2^63 - 1")
    if start_step < first_step:
        raise UserError(f"start_step is {start_step}; expected first_step, {first_step}, or more")
    if input_context is not None:
        num_workers = input_context.num_input_pipelines
        worker_index = input_context.input_pipeline_id
    manifest = Manifest.load(directory)
    shards = manifest.shards(split, seq_length)
    sharding.check_workers(len(shards), num_workers, worker_index)
    batch_size = sharding.check_batch(global_batch_size, num_workers)
    owned = sharding.worker_shards(len(shards), num_workers, worker_index)
    manifest.check_shards(split, seq_length, owned, tolerant=on_corrupt == SKIP)
    choice = decoding.MaskingChoice(
        masked_lm_prob=masked_lm_prob,
        max_predictions_per_seq=max_predictions_per_seq,
        whole_word_mask=whole_word_mask,
    )

    reading = _Reading(
        manifest=manifest,
        split=split,
        seq_length=seq_length,
        batch_size=batch_size,
        num_workers=num_workers,
        worker_index=worker_index,
        decoder=decoding.decoder(manifest, seq_length, seed, choice),
        arrange=arrange,
        budget=corrupt_budget if on_corrupt == SKIP else None,
    )
    if split == schema.TRAIN if training is None else training:
        return reading.endless(seed, start_step - first_step, first_epoch)
    return reading.one_pass(start_step - first_step)


def user_error(error: tf.errors.OpError) -> UserError | None:
    """The `UserError` behind an error that iterating over a dataset of `read` raised.

    TensorFlow wraps what the input pipeline raises; None if it was something else.
    """
    found = re.search(rf"{UserError.__name__}: (.*)", str(error))
    return UserError(found.group(1)) if found else None


class _Reading:
    """One worker's share of one split at one length."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        split: str,
        seq_length: int,
        batch_size: int,
        num_workers: int,
        worker_index: int,
        decoder: decoding.Decoder,
        arrange: _Arrangement,
        budget: int | None,
    ) -> None:
        shards = manifest.shards(split, seq_length)
        owned = sharding.worker_shards(len(shards), num_workers, worker_index)
        self._batch_size = batch_size
        self._worker_index = worker_index
        self._shards = [number for number in owned if shards[number].examples]
        self._most = max(
            sum(shards[number].examples for number in sharding.worker_shards(len(shards), *other))
            for other in ((num_workers, worker) for worker in range(num_workers))
        )
        self._where = f"{manifest.directory}: split {split!r}, length {seq_length}"
        self._decoder = decoder
        self._arrange = arrange
        self._loader = _Loader(
            paths=[manifest.path(shard) for shard in shards],
            counts=[shard.examples for shard in shards],
            compression=manifest.compression,
            filler=decoder.filler,
            budget=budget,
            remedy=manifest.remedy,
        )
        self._counts = [shards[number].examples for number in self._shards]

    def endless(self, seed: int, start_step: int, first_epoch: int) -> tf.data.Dataset:
        """Epoch after epoch in permuted order, from `first_epoch` at step 0 on."""
        order = Order(
            shards=self._shards,
            counts=self._counts,
            worker_index=self._worker_index,
            batch_size=self._batch_size,
            seed=seed,
            first_epoch=first_epoch,
        )
        records = order.pieces(start_step).map(self._loader.load).prefetch(1)
        return self._parsed(self._batched(records), tf.data.INFINITE_CARDINALITY)

    def one_pass(self, start_step: int) -> tf.data.Dataset:
        """Every example once in stored order, then rows of zeros up to the last batch of all."""
        if not self._most:
            raise UserError(f"{self._where} has no examples; build with a larger share of the text")
        steps = max(-(-self._most // self._batch_size) - start_step, 0)
        shards = tf.data.Dataset.from_tensor_slices(np.array(self._shards, np.int64))
        counts = tf.data.Dataset.from_tensor_slices(np.array(self._counts, np.int64))
        first = tf.zeros((), tf.int64)
        pieces = tf.data.Dataset.zip(shards, counts).map(
            lambda shard, count: (first, shard[tf.newaxis], tf.range(count))
        )
        padding = tf.data.Dataset.from_tensors(([self._decoder.filler], first[tf.newaxis])).repeat()
        records = pieces.map(self._loader.load).prefetch(1).concatenate(padding)
        return self._parsed(self._batched(records).skip(start_step).take(steps), steps)

    def _batched(self, records: tf.data.Dataset) -> tf.data.Dataset:
        return records.rebatch(self._batch_size, drop_remainder=True)

    def _parsed(self, batches: tf.data.Dataset, cardinality: int) -> tf.data.Dataset:
        def decode(serialized: tf.Tensor, epochs: tf.Tensor) -> Any:
            rows = tf.ensure_shape(serialized, (self._batch_size,))
            return self._arrange(self._decoder.decode(rows, epochs))

        # Nothing in it for AutoGraph, whose conversion takes as long as the tracing.
        decode = tf.autograph.experimental.do_not_convert(decode)
        return (
            batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .apply(tf.data.experimental.assert_cardinality(cardinality))
            .prefetch(tf.data.AUTOTUNE)
        )


class _Loader:
    """Reads records of shards, whole or damaged."""

    def __init__(
        self,
        *,
        paths: Sequence[str],
        counts: Sequence[int],
        compression: str,
        filler: bytes,
        budget: int | None,
        remedy: str,
    ) -> None:
        self._remedy = remedy
        self._paths = paths
        self._counts = counts
        self._compression = compression
        self._filler = filler
        self._budget = budget
        self._skipped: dict[tuple[int, int], int] = {}

    def load(
        self, epoch: tf.Tensor, shards: tf.Tensor, records: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The records at the indices `records` of `shards` laid end to end.

        Python is called only where a shard is damaged, to name the damage.

        Returns:
            string [n], the records; int64 [n], the epoch, for each.
        """
        count = tf.reduce_sum(tf.gather(tf.constant(self._counts, tf.int64), shards))
        # An error ends the dataset; the last element keeps it from being empty.
        readable = tf.data.TFRecordDataset(
            tf.gather(tf.constant(self._paths), shards), self._compression
        )
        readable = readable.ignore_errors(log_warning=False).take(count)
        content = readable.concatenate(tf.data.Dataset.from_tensors("")).batch(count + 1)
        found = content.get_single_element()[:-1]
        whole = tf.size(found, tf.int64) == count
        found = tf.cond(whole, lambda: found, lambda: self._named_damage(shards))
        return tf.gather(found, records), tf.fill(tf.shape(records), epoch)

    def _named_damage(self, shards: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.py_function(self._salvage, (shards,), tf.string), (None,))

    def _salvage(self, shards: tf.Tensor) -> tf.Tensor:
        numbers = shards.numpy().tolist()
        return tf.constant([record for number in numbers for record in self._readable(number)])

    def _readable(self, number: int) -> list[bytes]:
        path = self._paths[number]
        content = damage.decompressed(files.read_bytes(path), self._compression)
        records, damages = damage.salvage(content, self._counts[number])
        for found in damages:
            line = (
                f"{path}: record {found.record} at byte offset {found.offset} is damaged, "
                f"{found.reason}"
            )
            if found.count > 1:
                line += f", and the {found.count - 1} records after it are lost"
            if self._budget is None:
                raise UserError(
                    f"{line}; {self._remedy}, or read with on_corrupt='skip' and a corrupt_budget"
                )
            fresh = (number, found.record) not in self._skipped
            self._skipped[number, found.record] = found.count
            total = sum(self._skipped.values())
            if total > self._budget:
                raise UserError(
                    f"{line}; that makes {total}, more than the corrupt_budget of {self._budget}; "
                    f"{self._remedy}, or raise it"
                )
            if fresh:
                logging.warning("%s; skipped, %d of at most %d", line, total, self._budget)
        return [self._filler if record is None else record for record in records]
