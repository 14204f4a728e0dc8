"""The learning rate eta as a pure function of the step, and what its two Keras wrappers share.

Equation (9) of the paper (arXiv 2006.13484), with equation (8) as its case without a constant
phase; today also called warmup-stable-decay.
"""

from __future__ import annotations

import dataclasses
import fractions
import importlib
import math
from typing import Any, Self

from tf_lans import hyperparameters

DECAYS = ("linear", "1-sqrt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """The validated arguments of `WarmupConstantDecay`; see there.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value outside its range, or phases longer than the run.
    """

    peak_learning_rate: float
    total_steps: int
    warmup_steps: int
    constant_steps: int = 0
    decay: str = "linear"
    final_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peak_learning_rate", "final_learning_rate"):
            rate = hyperparameters.number(name, getattr(self, name), "a number of at least 0")
            if rate < 0.0:
                raise ValueError(f"{name}={rate}: expected a number of at least 0")
            object.__setattr__(self, name, rate)
        for name, minimum in (("total_steps", 1), ("warmup_steps", 0), ("constant_steps", 0)):
            steps = hyperparameters.integer(name, getattr(self, name), minimum=minimum)
            object.__setattr__(self, name, steps)
        if self.warmup_steps + self.constant_steps > self.total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and constant_steps={self.constant_steps} make "
                f"{self.warmup_steps + self.constant_steps} steps of a run of "
                f"total_steps={self.total_steps}: shorten them or lengthen the run"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r}: expected one of {', '.join(DECAYS)}")


def learning_rate(xp: Any, number: Any, phases: Phases) -> Any:
    """The learning rate eta_t of equation (9).

    With s = (t - T_w - T_c) / (T - T_w - T_c):

        t <= T_w              peak t / T_w
        t <= T_w + T_c        peak
        t <= T                final + (peak - final) (1 - s)
        t >  T                final

    with sqrt(s) in place of s where `phases.decay` is "1-sqrt".

    Args:
        xp: the array namespace: `where`, `sqrt`, `minimum`, `maximum`.
        number: t, from 1: a floating-point array of any shape.
        phases: peak, final, T_w = warmup_steps, T_c = constant_steps, T = total_steps.

    Returns:
        An array like `number`.
    """
    decay_steps = phases.total_steps - phases.warmup_steps - phases.constant_steps
    rising = phases.peak_learning_rate * (number / max(phases.warmup_steps, 1))
    steps_left = phases.total_steps - number + (1 if decay_steps == 0 else 0)
    left = xp.minimum(xp.maximum(steps_left / max(decay_steps, 1), 0.0), 1.0)
    if phases.decay == "1-sqrt":
        left = left / (1.0 + xp.sqrt(1.0 - left))  # 1 - sqrt(s) for s = 1 - left
    span = phases.peak_learning_rate - phases.final_learning_rate
    falling = phases.final_learning_rate + span * left
    return xp.where(number <= phases.warmup_steps, rising, falling)


def phase_steps(total_steps: int, *ratios: float) -> tuple[int, ...]:
    """The steps of consecutive phases given as ratios of the run.

    The end of each phase is floor(T times the sum of the ratios up to it), computed exactly, so
    that rounding never accumulates: 42.65 % and 27.35 % of 3519 are 1500 and 963.

    Raises:
        TypeError: a ratio is no number.
        ValueError: a ratio is outside [0, 1], or they sum to more than 1.

    Example:
        >>> phase_steps(3519, 0.4265, 0.2735)
        (1500, 963)
    """
    expected = "a number in [0, 1]"
    total = fractions.Fraction(0)
    ends = [0]
    for ratio in ratios:
        value = hyperparameters.number("ratio", ratio, expected)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"a phase's ratio is {value}: expected {expected}")
        total += fractions.Fraction(str(value))
        ends.append(math.floor(total * total_steps))
    if total > 1:
        raise ValueError(f"the phases' ratios sum to {float(total)}: expected at most 1")
    return tuple(end - begin for begin, end in zip(ends, ends[1:], strict=False))


class WarmupConstantDecaySchedule:
    """The learning rate of equations (8) and (9) of the paper: warmup, constant, decay.

    With t = step + 1 (Keras passes 0 to the first update), T_w = `warmup_steps`,
    T_c = `constant_steps`, T = `total_steps`:

        t <= T_w              peak t / T_w
        t <= T_w + T_c        peak
        t <= T                final + (peak - final) (T - t) / (T - T_w - T_c)
        t >  T                final

    so the first update is at peak / T_w, not at 0. Equation (8) is the case T_c = 0.

    Args:
        peak_learning_rate: eta, the rate of the constant phase, at least 0.
        total_steps: T, the updates of the run, at least 1.
        warmup_steps: T_w, at least 0; 0 starts at the peak.
        constant_steps: T_c, at least 0; T_w + T_c is at most T.
        decay: "linear" as above, or "1-sqrt", whose fall is 1 - sqrt(s) of the span for the
            fraction s of the decay phase that is done.
        final_learning_rate: where the decay ends, at least 0.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range, or phases longer than the run.

    Example:
        >>> schedule = tf_lans.WarmupConstantDecay(0.00675, 3519, 1500, 963)
        >>> float(schedule(1499))  # update 1500 ends the warmup
        0.006750000175088644
        >>> schedule = tf_lans.WarmupConstantDecay.from_ratios(0.00675, 3519, 0.4265, 0.2735)
        >>> schedule.warmup_steps, schedule.constant_steps
        (1500, 963)

    Reference:
        Zheng, Lin, Zha, Li, "Accelerated Large Batch Optimization of BERT Pretraining in 54
        minutes", arXiv 2006.13484, equations (8) and (9).
    """

    def __init__(
        self,
        peak_learning_rate: float,
        total_steps: int,
        warmup_steps: int,
        constant_steps: int = 0,
        decay: str = "linear",
        final_learning_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.phases = Phases(
            peak_learning_rate=peak_learning_rate,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            constant_steps=constant_steps,
            decay=decay,
            final_learning_rate=final_learning_rate,
        )

    @classmethod
    def from_ratios(
        cls,
        peak_learning_rate: float,
        total_steps: int,
        warmup_ratio: float,
        constant_ratio: float = 0.0,
        decay: str = "linear",
        final_learning_rate: float = 0.0,
    ) -> Self:
        """The schedule whose phases are ratios of the run, as the paper's Table 1 states them.

        T_w = floor(warmup_ratio T) and T_w + T_c = floor((warmup_ratio + constant_ratio) T).

        Args:
            peak_learning_rate: as in the constructor.
            total_steps: as in the constructor.
            warmup_ratio: in [0, 1].
            constant_ratio: in [0, 1]; the two sum to at most 1.
            decay: as in the constructor.
            final_learning_rate: as in the constructor.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument outside its range, or ratios that sum to more than 1.
        """
        hyperparameters.integer("total_steps", total_steps, minimum=1)
        warmup_steps, constant_steps = phase_steps(total_steps, warmup_ratio, constant_ratio)
        return cls(
            peak_learning_rate,
            total_steps,
            warmup_steps,
            constant_steps,
            decay,
            final_learning_rate,
        )

    @property
    def peak_learning_rate(self) -> float:
        """The rate of the constant phase."""
        return self.phases.peak_learning_rate

    @property
    def total_steps(self) -> int:
        """T, the updates of the run."""
        return self.phases.total_steps

    @property
    def warmup_steps(self) -> int:
        """T_w, the updates of the warmup."""
        return self.phases.warmup_steps

    @property
    def constant_steps(self) -> int:
        """T_c, the updates at the peak."""
        return self.phases.constant_steps

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dataclasses.asdict(self.phases)


if __name__ == "__main__":
    importlib.import_module("tf_lans.schedule_plot").run()
