"""A global batch's gradient, scalars and norm by pieces, whatever pieces it was cut into."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from official_bert import global_batch
from official_bert.global_batch import StepSettings
from official_bert.loss_scaling import LossScale
from tests.optimizer.harness import two_replicas

COLUMNS = 3


def in_replicas(replicas: int, function, *batches: np.ndarray):
    """What each replica answers, of the consecutive parts of the batches that it is given."""
    if replicas == 1:
        return [function(*map(tf.constant, batches))]
    strategy = two_replicas()

    def part(batch: np.ndarray):
        parts = np.split(batch, replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    answers = strategy.run(function, args=tuple(map(part, batches)))
    by_value = [strategy.experimental_local_results(each) for each in tf.nest.flatten(answers)]
    return [tf.nest.pack_sequence_as(answers, each) for each in zip(*by_value, strict=True)]


def summed(slopes: np.ndarray, replicas: int, micro_batches: int, scale: float | None):
    """Each replica's `Summed` of the loss (slopes @ weight) / 4, whose gradient is their sum / 4.

    As (gradients, scalars, piece_gradient_norm); the scalars are the slopes' sum and the rows.
    """
    scope = two_replicas().scope() if replicas == 2 else contextlib.nullcontext()
    with scope:
        weights = [tf.Variable(tf.ones(COLUMNS)), tf.Variable(1.0)]
        settings = StepSettings(loss_scale=None if scale is None else LossScale(scale))
    micro = len(slopes) // replicas // micro_batches if micro_batches > 1 else 0

    def share(batch, shared, loss_scale):
        with tf.GradientTape() as tape:
            rows = tf.linalg.matvec(batch["slopes"], weights[0]) + weights[1]
            loss = loss_scale * tf.reduce_sum(rows) / shared["four"]
        sums = [tf.reduce_sum(batch["slopes"]), tf.cast(len(batch["slopes"]), tf.float32)]
        return tape.gradient(loss, weights), sums

    def one(part: tf.Tensor):
        shared = {"four": tf.constant(4.0)}
        found = global_batch.summed(share, {"slopes": part}, shared, weights, 2, micro, settings)
        norm = found.piece_gradient_norm
        return found.gradients, found.scalars, tf.constant(-1.0) if norm is None else norm

    return in_replicas(replicas, one, slopes)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Slopes of a batch, replicas, micro-batches of each."""
    replicas, micro_batches = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    rows = replicas * micro_batches * draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-9, 9), min_size=rows * COLUMNS, max_size=rows * COLUMNS)
    slopes = np.array(draw(numbers), np.float32).reshape(rows, COLUMNS)
    return slopes, replicas, micro_batches


@given(cut=cuts(), power=st.none() | st.integers(-30, 40))
def test_sums_do_not_depend_on_cut_and_scale(cut, power: int | None) -> None:
    """Whole numbers, so that every sum is exact, as is the scale; the norm's root is not.

    A root, a square and their division by the scale round by 2^-24 each: 1e-6 is five times that.
    """
    slopes, replicas, micro_batches = cut
    pieces = replicas * micro_batches
    answers = summed(slopes, replicas, micro_batches, None if power is None else 2.0**power)
    assert len(answers) == replicas
    shares = [np.append(part.sum(0), len(part)) / 4 for part in np.split(slopes, pieces)]
    expected = pieces * np.square(shares).sum()
    for (gradient, offset), scalars, norm in answers:
        np.testing.assert_array_equal(gradient, slopes.sum(0) / 4)
        assert float(offset) == len(slopes) / 4
        np.testing.assert_array_equal(scalars, [slopes.sum(), len(slopes)])
        if pieces == 1:
            assert norm == -1.0
        else:
            assert float(norm) ** 2 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_gradient_below_float16_survives_by_the_scale_alone(replicas: int) -> None:
    """1e-9, of which float16 makes 0: its smallest number is 2^-24, 6e-8.

    Times 2^15 it is 550 such numbers, which rounding to one of them changes by 1/1100 at most.
    """
    scope = two_replicas().scope() if replicas == 2 else contextlib.nullcontext()
    with scope:
        weight = tf.Variable(1.0)
        scale = LossScale()

    def share(batch, shared, loss_scale):
        with tf.GradientTape() as tape:
            half = tf.cast(weight, tf.float16) * tf.constant(1.0, tf.float16)
            loss = loss_scale * tf.reduce_mean(batch["size"]) * tf.cast(half, tf.float32)
        return [tape.gradient(loss, weight)], [loss]

    def gradient(loss_scale: LossScale | None) -> list[float]:
        def one(part: tf.Tensor) -> tf.Tensor:
            settings = StepSettings(loss_scale=loss_scale)
            found = global_batch.summed(share, {"size": part}, {}, [weight], 1, 0, settings)
            return found.gradients[0]

        sizes = np.full(2, 1e-9 / replicas, np.float32)
        return list(map(float, in_replicas(replicas, one, sizes)))

    assert gradient(None) == [0.0] * replicas
    # Half of 1e-9 a replica is half as many such numbers.
    assert gradient(scale) == pytest.approx([1e-9] * replicas, rel=replicas / 1100)


@given(
    rows=st.integers(1, 3),
    replicas=st.integers(1, 2),
    shape=st.lists(st.integers(1, 3), max_size=2),
)
def test_rows_of_all_replicas_are_put_end_to_end(rows: int, replicas: int, shape: list) -> None:
    shape = [replicas * rows, *shape]
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    answers = in_replicas(replicas, global_batch.of_all_replicas, whole)
    assert len(answers) == replicas
    for answer in answers:
        np.testing.assert_array_equal(answer, whole)


@given(count=st.integers(1, 4), size=st.integers(1, 3))
def test_what_is_accumulated_is_the_sum_in_order(count: int, size: int) -> None:
    """Weighted by the number of the micro-batch, which each must be given."""
    batch = np.arange(count * size, dtype=np.float32)

    def step(index: tf.Tensor, inputs) -> list[tf.Tensor]:
        return [tf.reduce_sum(inputs["x"]) * tf.cast(1 + index, tf.float32), inputs["x"]]

    zeros = [tf.zeros([]), tf.zeros([size])]
    found = global_batch.accumulate(step, {"x": tf.constant(batch)}, count, zeros)
    parts = batch.reshape(count, size)
    assert float(found[0]) == (parts.sum(1) * np.arange(1, 1 + count)).sum()
    np.testing.assert_array_equal(found[1], parts.sum(0))
