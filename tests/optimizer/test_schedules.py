"""The learning rate at every boundary, the paper's own numbers, and bad phases refused."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optimizer import harness
from tf_lans import schedules

BOTH = pytest.mark.parametrize("which", harness.KERASES)


def equation_9(t: int, peak: float, total: int, warmup: int, constant: int) -> float:
    if t <= warmup:
        return peak * t / warmup
    if t <= warmup + constant:
        return peak
    if t <= total:
        return peak * (1 - (t - warmup - constant) / (total - warmup - constant))
    return 0.0


@BOTH
@pytest.mark.parametrize(
    ("total", "warmup", "constant"),
    [(3519, 1500, 963), (782, 150, 84), (10, 4, 0), (10, 0, 5), (10, 4, 6), (10, 10, 0), (1, 1, 0)],
)
def test_every_step_is_equation_9(which: str, total: int, warmup: int, constant: int) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay(0.00675, total, warmup, constant)
    steps = np.arange(total + 3)
    got = np.array(schedule(tf.constant(steps)))
    wanted = [equation_9(step + 1, 0.00675, total, warmup, constant) for step in steps]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9)
    assert float(schedule(0)) == pytest.approx(0.00675 / max(warmup, 1), rel=1e-6)
    assert got.dtype == np.float32


@BOTH
def test_the_papers_phases_from_its_ratios(which: str) -> None:
    make = harness.PACKAGES[which].WarmupConstantDecay.from_ratios
    first, second = make(0.00675, 3519, 0.4265, 0.2735), make(0.005, 782, 0.192, 0.108)
    assert (first.warmup_steps, first.constant_steps) == (1500, 963)
    assert (second.warmup_steps, second.constant_steps) == (150, 84)


@BOTH
def test_figure_1_areas(which: str) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay
    steps = tf.range(3519)

    def area(peak: float, constant: int) -> float:
        return float(
            np.sum(np.array(schedule(peak, 3519, 1500, constant)(steps)), dtype=np.float64)
        )

    tall, low, held = area(0.01, 0), area(0.007, 0), area(0.007, 963)
    assert tall - low == pytest.approx(5.28, abs=0.005)
    assert tall - held == pytest.approx(1.91, abs=0.005)


@BOTH
def test_one_minus_sqrt_tail_and_final_rate(which: str) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay(1.0, 20, 2, 2, "1-sqrt", 0.25)
    for step in range(3, 23):
        done = min(max((step + 1 - 4) / 16, 0), 1)
        assert float(schedule(step)) == pytest.approx(0.25 + 0.75 * (1 - done**0.5), rel=1e-6)


@BOTH
def test_configuration_round_trip(which: str) -> None:
    base = harness.BASES[which].optimizers.schedules
    schedule = harness.PACKAGES[which].WarmupConstantDecay(0.5, 20, 2, 3, "1-sqrt", 0.1)
    again = base.deserialize(base.serialize(schedule))
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config() == {
        "peak_learning_rate": 0.5,
        "total_steps": 20,
        "warmup_steps": 2,
        "constant_steps": 3,
        "decay": "1-sqrt",
        "final_learning_rate": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.1, 10, 8, 3), ValueError, "11 steps of a run of total_steps=10"),
        ((-0.1, 10, 1), ValueError, "peak_learning_rate=-0.1"),
        ((float("nan"), 10, 1), ValueError, "not finite"),
        (("0.1", 10, 1), TypeError, "is a str"),
        ((0.1, 10.5, 1), TypeError, "total_steps=10.5"),
        ((0.1, 10, True), TypeError, "warmup_steps=True"),
        ((0.1, 0, 0), ValueError, "at least 1"),
        ((0.1, 10, 1, 0, "cosine"), ValueError, "linear, 1-sqrt"),
    ],
)
def test_bad_phases_are_refused(arguments: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        harness.PACKAGES["keras3"].WarmupConstantDecay(*arguments)


def test_ratios_beyond_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1.2"):
        schedules.phase_steps(100, 0.6, 0.6)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        schedules.phase_steps(100, -0.1)


@settings(deadline=None, max_examples=200)
@given(total=st.integers(1, 10**7), hundredths=st.integers(0, 100))
def test_ratios_floor_exactly(total: int, hundredths: int) -> None:
    """0.29 of 100 is 29 steps, not the 28 that binary floats make of it."""
    assert schedules.phase_steps(total, hundredths / 100) == (total * hundredths // 100,)


@settings(deadline=None, max_examples=200)
@given(
    total=st.integers(1, 10**6),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    step=st.integers(1, 2 * 10**6),
    decay=st.sampled_from(schedules.DECAYS),
)
def test_rates_stay_between_zero_and_peak(total, shares, step, decay) -> None:
    warmup = int(shares[0] * total)
    phases = schedules.Phases(
        peak_learning_rate=0.5,
        total_steps=total,
        warmup_steps=warmup,
        constant_steps=int(shares[1] * (total - warmup)),
        decay=decay,
    )
    assert 0.0 <= schedules.learning_rate(np, np.float64(step), phases) <= 0.5
