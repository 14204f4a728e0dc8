"""The plan's steps: a rate for every batch, how it is cut, what epochs and texts come to."""

import dataclasses
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from official_bert import plan_steps
from tfrecords.errors import UserError

counts = st.integers(1, 4096)
optimizers = st.sampled_from(["lans", "lamb"])
lengths = st.sampled_from([128, 512])


def test_lamb_has_its_own_reference() -> None:
    start = plan_steps.reference("lamb", 128)
    whole = plan_steps.cut(65_536, replicas=1024, workers=128, micro_batch=64)
    phase = plan_steps.plan_phase(start, whole, seq_length=128)
    assert (phase.steps, phase.rate) == (7038, 0.006)
    assert phase.warmup_and_constant_steps == (math.floor(7038 * 0.2843), 0)
    # As many updates of warmup at any batch, as arXiv 1904.00962 has it.
    small = dataclasses.replace(whole, global_batch=1024, replicas=1)
    steps = plan_steps.plan_phase(start, small, seq_length=128).warmup_and_constant_steps[0]
    assert steps == pytest.approx(2000, rel=1e-3)


@given(optimizer=optimizers, length=lengths, batch=st.integers(1, 10**6), more=counts)
def test_rates_and_ratios_grow_with_the_batch_up_to_the_cap(optimizer, length, batch, more) -> None:
    start = plan_steps.reference(optimizer, length)
    rate, larger = (plan_steps.learning_rate(start, size) for size in (batch, batch + more))
    assert 0 < rate <= larger <= start.max_rate
    exact = start.rate * math.sqrt(batch / start.batch)
    assert rate == pytest.approx(min(start.max_rate, exact), rel=5e-4)
    for ours, grown, theirs in zip(
        plan_steps.ratios(start, batch),
        plan_steps.ratios(start, batch + more),
        (start.warmup_ratio, start.constant_ratio),
        strict=True,
    ):
        assert 0 <= ours <= grown <= theirs


def test_a_rate_of_ones_own() -> None:
    own = plan_steps.reference("lans", 128, rate=0.001, batch=1024)
    assert plan_steps.learning_rate(own, 4096) == 0.002
    assert plan_steps.learning_rate(own, 10**6) == 0.00675
    capped = plan_steps.reference("lans", 128, rate=0.001, batch=1024, max_rate=0.0015)
    assert plan_steps.learning_rate(capped, 4096) == 0.0015
    assert plan_steps.ratios(own, 8192) == (0.03554, 0.02279)


@given(workers=st.integers(1, 64), per_worker=st.integers(1, 16), micro=counts, passes=counts)
def test_a_cut_adds_up(workers, per_worker, micro, passes) -> None:
    replicas = workers * per_worker
    batch = replicas * micro * passes
    found = plan_steps.cut(batch, replicas=replicas, workers=workers, micro_batch=micro)
    assert batch == found.replicas * found.micro_batch * found.micro_batches
    assert batch == found.workers * found.per_worker == found.replicas * found.per_replica


@given(batch=st.integers(1, 10**6), replicas=counts, micro=st.integers(1, 512))
def test_a_batch_that_is_no_multiple_is_told_the_nearest(batch, replicas, micro) -> None:
    unit = replicas * micro
    assume(batch % unit)
    with pytest.raises(UserError) as error:
        plan_steps.cut(batch, replicas=replicas, workers=1, micro_batch=micro)
    offered = str(error.value).split("take ")[1].split(",")[0].split(" or ")
    numbers = [int(word) for word in offered]
    assert all(number % unit == 0 and abs(number - batch) < unit for number in numbers)
    for number in numbers:
        plan_steps.cut(number, replicas=replicas, workers=1, micro_batch=micro)


@given(
    batch=st.integers(1, 10**6),
    rest=st.integers(0, 10**6),
    epochs=st.floats(0.01, 100, allow_nan=False),
    workers=st.integers(1, 500),
)
def test_steps_cover_the_epochs_and_no_more(batch, rest, epochs, workers) -> None:
    examples = batch + rest
    whole = plan_steps.cut(batch, replicas=1, workers=1, micro_batch=batch)
    start = plan_steps.reference("lans", 128)
    phase = plan_steps.plan_phase(start, whole, seq_length=128, examples=examples, epochs=epochs)
    wanted = epochs * examples
    assert phase.examples_seen >= wanted * (1 - 1e-12)
    assert phase.steps == 1 or phase.examples_seen - batch < wanted * (1 + 1e-12)
    assert phase.epochs == phase.examples_seen / examples
    shards = plan_steps.count_shards(examples, workers)
    assert shards % workers == 0 and shards >= workers
    assert examples <= shards * plan_steps.EXAMPLES_OF_A_SHARD
    assert plan_steps.count_steps(start, batch, examples, epochs + 1) >= phase.steps


def test_a_text_fills_rows() -> None:
    assert plan_steps.examples_of_text(1250, 128) == 10
    assert plan_steps.examples_of_text(1249.9, 128) == 9
    with pytest.raises(UserError, match="more than 3"):
        plan_steps.examples_of_text(1e6, 3)
