"""The order of section 3.4, against an independent reference in plain Python."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import UserError, hashing, sharding
from tfrecords.order import Order

_WORD = 2**64 - 1


def mix(*words: int) -> int:
    """SplitMix64's output function, word by word."""
    state = 0
    for word in words:
        state = ((state ^ (word & _WORD)) + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


def reference(order: Order, forgetful: int | None = None) -> Iterator[tuple[int, int]]:
    """Every (shard, record) from step 0 on, as DESIGN words it.

    The epoch `forgetful` is a wrong one: it knows nothing of what the batch before it holds.
    """
    batch, size = order.batch_size, sum(order.counts)
    held: set[tuple[int, int]] = set()
    previous_last = None
    for epoch in itertools.count():
        number = order.first_epoch + epoch
        drawn_epoch = order.first_epoch if len(order.shards) == 2 else number
        indices = sorted(
            range(len(order.shards)),
            key=lambda index: mix(order.seed, drawn_epoch, order.worker_index, 0, index),
        )
        if len(indices) > 1 and indices[0] == previous_last:
            indices[0], indices[1] = indices[1], indices[0]
        previous_last = indices[-1]
        examples = [
            (order.shards[index], record)
            for index in indices
            for record in sorted(
                range(order.counts[index]),
                key=lambda record: mix(order.seed, number, order.shards[index], 1, record),
            )
        ]
        if epoch == forgetful:
            held = set()
        spanning = epoch * size % batch
        collides = held & set(examples[: batch - spanning])
        if len(order.shards) == 1 or collides:
            examples = [e for e in examples if e not in held] + [e for e in examples if e in held]
        yield from examples
        tail = (epoch + 1) * size % batch
        held = set(examples[len(examples) - tail :])


def read(order: Order, start_step: int, count: int) -> list[tuple[int, int]]:
    """The first `count` examples from a step on, as the dataset gives them."""
    counts = dict(zip(order.shards, order.counts, strict=True))
    found: list[tuple[int, int]] = []
    epochs: list[int] = []
    for epoch, shards, records in order.pieces(start_step).as_numpy_iterator():
        where = [(int(shard), record) for shard in shards for record in range(counts[int(shard)])]
        found += [where[record] for record in records]
        epochs += [int(epoch)] * len(records)
        if len(found) >= count:
            begin = start_step * order.batch_size
            begun = [(begin + at) // order.epoch_size for at in range(len(epochs))]
            assert epochs == [order.first_epoch + number for number in begun]
            return found[:count]
    raise AssertionError("the dataset ended")


@st.composite
def orders(draw: st.DrawFn) -> Order:
    num_shards = draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(1, 14), min_size=num_shards, max_size=num_shards))
    return Order(
        shards=[3 * index + 1 for index in range(num_shards)],
        counts=counts,
        worker_index=draw(st.integers(0, 3)),
        batch_size=draw(st.integers(1, min(sum(counts), 20))),
        seed=draw(st.integers(0, 2**40)),
        first_epoch=draw(st.integers(0, 3)),
    )


@settings(max_examples=12)
@given(orders(), st.integers(0, 30))
def test_order(order: Order, start_step: int) -> None:
    size, batch = order.epoch_size, order.batch_size
    count = start_step * batch + 3 * size
    expected = list(itertools.islice(reference(order), count))
    assert read(order, 0, count) == expected
    assert read(order, start_step, 3 * size) == expected[start_step * batch :]

    everything = {
        (shard, record)
        for shard, examples in zip(order.shards, order.counts, strict=True)
        for record in range(examples)
    }
    for begin in range(0, count - size + 1, size):
        assert set(expected[begin : begin + size]) == everything
    for begin in range(0, count - batch + 1, batch):
        assert len(set(expected[begin : begin + batch])) == batch


@st.composite
def orders_with_moves(draw: st.DrawFn) -> Order:
    """One shard, or several of which one at least is smaller than a batch."""
    batch_size = draw(st.integers(2, 24))
    counts = draw(st.lists(st.integers(1, 40), max_size=4))
    smallest = max(1, batch_size - sum(counts))
    largest = max(smallest, batch_size - 1 if counts else 40)
    counts.insert(draw(st.integers(0, len(counts))), draw(st.integers(smallest, largest)))
    return Order(
        shards=[2 * index + draw(st.integers(0, 1)) for index in range(len(counts))],
        counts=counts,
        worker_index=draw(st.integers(0, 3)),
        batch_size=batch_size,
        seed=draw(st.integers(0, 2**40)),
        first_epoch=draw(st.integers(0, 3)),
    )


@settings(max_examples=12)
@given(orders_with_moves(), st.integers(0, 8), st.floats(0, 1))
def test_a_restart_in_any_epoch(order: Order, epoch: int, progress: float) -> None:
    assert len(order.shards) == 1 or min(order.counts) < order.batch_size
    start_step = int((epoch + progress) * order.epoch_size / order.batch_size)
    begin, count = start_step * order.batch_size, 3 * order.epoch_size
    expected = list(itertools.islice(reference(order), begin, begin + count))
    assert read(order, start_step, count) == expected


@pytest.mark.parametrize(
    ("counts", "batch_size", "seed"),
    [([9], 7, 0), ([3, 40, 2], 16, 0), ([5, 4, 6, 3, 5], 11, 0)],
)
def test_a_restart_knows_what_earlier_epochs_held(
    counts: list[int], batch_size: int, seed: int
) -> None:
    order = Order(
        shards=range(len(counts)), counts=counts, worker_index=0, batch_size=batch_size, seed=seed
    )
    start_step = -(-6 * order.epoch_size // batch_size)
    begin, count = start_step * batch_size, 2 * order.epoch_size
    expected = list(itertools.islice(reference(order), begin, begin + count))
    # All of epoch 6 hangs on what two epochs before it held.
    for forgetful in (5, 6):
        assert list(itertools.islice(reference(order, forgetful), begin, begin + count)) != expected
    assert read(order, start_step, count) == expected


def test_a_restart_draws_only_what_batches_between_epochs_hold() -> None:
    # No memory holds the third shard, which these epochs have neither first nor last.
    order = Order(
        shards=range(5), counts=[4, 5, 10**12, 4, 5], worker_index=0, batch_size=6, seed=792
    )
    start_step = (3 * order.epoch_size - 1) // order.batch_size
    # Nor may it be read ahead, by a map that tf.data makes parallel.
    options = tf.data.Options()
    options.experimental_optimization.map_parallelization = False
    dataset = order.pieces(start_step).take(3).with_options(options)
    pieces = list(dataset.as_numpy_iterator())
    assert [pieces[0][0], pieces[-1][0]] == [2, 3]
    assert max(len(records) for _, _, records in pieces) <= 10


def test_epochs_differ_and_shards_stay_whole() -> None:
    order = Order(shards=[0, 1, 2, 3], counts=[50] * 4, worker_index=0, batch_size=16, seed=1)
    examples = read(order, 0, 2000)
    epochs = [examples[begin : begin + 200] for begin in range(0, 2000, 200)]
    visited = [[shard for shard, _ in itertools.groupby(e, key=lambda x: x[0])] for e in epochs]
    assert all(sorted(visit) == [0, 1, 2, 3] for visit in visited)
    assert len({tuple(visit) for visit in visited}) > 3
    assert len({tuple(epoch) for epoch in epochs}) == 10
    for before, after in itertools.pairwise(visited):
        assert before[-1] != after[0]
    # A permutation, not the stored order, and another one for another seed.
    other = Order(shards=[0, 1, 2, 3], counts=[50] * 4, worker_index=0, batch_size=16, seed=2)
    assert read(other, 0, 200) != epochs[0]


def test_shards_smaller_than_a_batch_are_not_all_read_at_once() -> None:
    counts = [7, 9, 8, 6, 9, 7, 8, 6, 9, 8, 7, 9]
    order = Order(shards=range(len(counts)), counts=counts, worker_index=0, batch_size=12, seed=3)
    sizes = [len(shards) for _, shards, _ in order.pieces(0).take(200).as_numpy_iterator()]
    # Most pieces are a shard; one that was moved to an epoch's end holds less than a batch.
    assert np.mean(np.array(sizes) == 1) > 0.8
    assert max(sizes) <= 4


def test_a_worker_with_less_than_a_batch() -> None:
    with pytest.raises(UserError, match="worker 1 has 5 examples in 2 shards, fewer than its bat"):
        Order(shards=[1, 3], counts=[3, 2], worker_index=1, batch_size=6, seed=0)


@pytest.mark.parametrize(
    ("num_shards", "num_workers", "message"),
    [
        (8, 3, "8 shards cannot be dealt out to 3 workers; use 2 or 4 workers.* 6 or 9 shards"),
        (4, 8, "use 4 workers.* 8 shards"),
    ],
)
def test_shards_and_workers(num_shards: int, num_workers: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sharding.check_workers(num_shards, num_workers, 0)


def test_worker_index_and_batch() -> None:
    sharding.check_workers(8, 4, 3)
    with pytest.raises(UserError, match="worker_index is 4 of num_workers 4"):
        sharding.check_workers(8, 4, 4)
    assert sharding.check_batch(98_304, 1536) == 64
    with pytest.raises(
        UserError, match="98300 is no positive multiple of 1536 workers; use 96768 or 98304"
    ):
        sharding.check_batch(98_300, 1536)
    with pytest.raises(UserError, match="-5 is no positive multiple of 2 workers; use 2$"):
        sharding.check_batch(-5, 2)


def test_hashes_agree() -> None:
    words = np.arange(-3, 500, dtype=np.int64)
    expected = [mix(12, int(word), 3) for word in words]
    assert hashing.mix(12, words, 3).tolist() == expected
    assert hashing.mix_tensors(12, tf.constant(words), 3).numpy().tolist() == expected
    order = hashing.order_of(tf.constant(expected, tf.uint64)).numpy()
    assert order.tolist() == np.argsort(np.array(expected, np.uint64), kind="stable").tolist()


def test_document_hashes_are_even() -> None:
    keys = sharding.document_keys("a/b.txt", np.arange(40_000))
    assert len(set(keys.tolist())) == 40_000
    sizes = np.bincount(sharding.buckets(5, keys, 10), minlength=10)
    # Five standard deviations of a binomial count, n = 40,000.
    assert (np.abs(sizes - 4000) < 5 * 60).all()
    assert abs(sharding.is_eval(5, keys, 0.05).mean() - 0.05) < 5 * 0.0011
    assert sharding.num_buckets(0, 10) == 1
    assert sharding.num_buckets(101, 10) == 11
