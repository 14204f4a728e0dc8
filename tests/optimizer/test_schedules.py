"""The learning rate at every boundary, the paper's own numbers, and bad phases refused."""

import decimal
import fractions

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.optimizer import harness
from tf_lans import schedules

BOTH = pytest.mark.parametrize("which", harness.KERASES)


def equation_9(t: int, phases: schedules.Phases) -> fractions.Fraction:
    """The rate of update t, exact but for the root, which has 28 digits."""
    peak = fractions.Fraction(phases.peak_learning_rate)
    final = fractions.Fraction(phases.final_learning_rate)
    decay_starts = phases.warmup_steps + phases.constant_steps
    if t <= phases.warmup_steps:
        return peak * t / phases.warmup_steps
    if t <= decay_starts:
        return peak
    if t > phases.total_steps:
        return final
    done = fractions.Fraction(t - decay_starts, phases.total_steps - decay_starts)
    if phases.decay == "1-sqrt":
        done = fractions.Fraction((decimal.Decimal(done.numerator) / done.denominator).sqrt())
    return final + (peak - final) * (1 - done)


@BOTH
@pytest.mark.parametrize("tail", [{}, {"decay": "1-sqrt", "final_learning_rate": 0.001}], ids=str)
@pytest.mark.parametrize(
    ("total", "warmup", "constant"),
    [(3519, 1500, 963), (782, 150, 84), (10, 4, 0), (10, 0, 5), (10, 4, 6), (10, 10, 0), (1, 1, 0)],
)
def test_every_step_is_equation_9(
    which: str, total: int, warmup: int, constant: int, tail: dict
) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay(0.00675, total, warmup, constant, **tail)
    steps = np.arange(total + 3)
    got = np.array(schedule(tf.constant(steps)))
    wanted = [float(equation_9(step + 1, schedule.phases)) for step in steps.tolist()]
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


@given(total=st.integers(1, 10**7), hundredths=st.integers(0, 100))
def test_ratios_floor_exactly(total: int, hundredths: int) -> None:
    """0.29 of 100 is 29 steps, not the 28 that binary floats make of it."""
    assert schedules.phase_steps(total, hundredths / 100) == (total * hundredths // 100,)


@st.composite
def any_phases(draw: st.DrawFn, largest_final: float) -> schedules.Phases:
    """Phases whose final rate is at most so many times the peak."""
    total = draw(st.integers(1, 10**6))
    warmup = draw(st.integers(0, total))
    peak = draw(st.floats(1e-6, 10))
    return schedules.Phases(
        peak_learning_rate=peak,
        total_steps=total,
        warmup_steps=warmup,
        constant_steps=draw(st.integers(0, total - warmup)),
        decay=draw(st.sampled_from(schedules.DECAYS)),
        final_learning_rate=peak * draw(st.just(0.0) | st.floats(0, largest_final)),
    )


def update_numbers(phases: schedules.Phases, some: int) -> list[int]:
    """Some updates in a row, and those at the phases' ends."""
    decay_starts = phases.warmup_steps + phases.constant_steps
    ends = (0, phases.warmup_steps, decay_starts, phases.total_steps)
    numbers = {end + offset for end in ends for offset in (-1, 0, 1, 2)}
    return sorted(number for number in numbers | set(range(some, some + 20)) if number >= 1)


@given(phases=any_phases(largest_final=2.0), some=st.integers(1, 2 * 10**6))
def test_any_phases_are_equation_9(phases: schedules.Phases, some: int) -> None:
    numbers = update_numbers(phases, some)
    got = schedules.learning_rate(np, np.array(numbers, np.float64), phases)
    wanted = [float(equation_9(number, phases)) for number in numbers]
    # s is known to 1e-16 and at least 1e-6, so its root to 1e-16 / 2e-3; the rest rounds by 1e-16
    largest = max(phases.peak_learning_rate, phases.final_learning_rate)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13 * largest)


@given(phases=any_phases(largest_final=1.0), some=st.integers(1, 2 * 10**6))
def test_rates_rise_then_stay_then_fall_to_the_final_rate(
    phases: schedules.Phases, some: int
) -> None:
    numbers = np.array(update_numbers(phases, some), np.float64)
    rates = schedules.learning_rate(np, numbers, phases)
    decay_starts = phases.warmup_steps + phases.constant_steps
    rising = numbers <= phases.warmup_steps
    falling = numbers > decay_starts
    assert (np.diff(rates[rising]) > 0).all()
    assert len(set(rates[~rising & ~falling])) <= 1
    assert (np.diff(rates[falling]) <= 0).all()
    ended = numbers >= phases.total_steps if decay_starts < phases.total_steps else falling
    assert (rates[ended] == phases.final_learning_rate).all()
