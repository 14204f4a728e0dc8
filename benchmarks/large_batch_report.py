"""What the records of a study say: each method at its best, and how far apart two are."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from benchmarks import large_batch_queue
from benchmarks.large_batch_methods import METHODS, Method
from benchmarks.large_batch_settings import Run, Study

CONFIDENCE = 0.95
# What a table of how often each token occurs does not reach, nor the noise of the held-out rows.
TARGET_BELOW_FREQUENCIES = 0.25
BASELINE = next(iter(METHODS.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A method at a batch.

    Attributes:
        method: which.
        batch: examples of a step.
        best: its best settings so far, or None if nothing converged.
        is_tuned: whether all runs that choose those are done.
        tuning: the records of these runs so far.
        at_best: the records on fresh seeds, or, as long as there are none, the best itself.
        is_fresh: whether they are on fresh seeds.
    """

    method: Method
    batch: int
    best: Run | None
    is_tuned: bool
    tuning: Sequence[Mapping[str, Any]]
    at_best: Sequence[Mapping[str, Any]]
    is_fresh: bool

    @property
    def losses(self) -> list[float]:
        """The test losses at the best settings, of the runs that did not diverge."""
        return [each["test_loss"] for each in self.at_best if not each["diverged"]]

    @property
    def lost(self) -> int:
        """How many of the runs at the best settings diverged."""
        return len(self.at_best) - len(self.losses)

    @property
    def loss(self) -> float | None:
        """Their mean; None where a run diverged, which no mean of the others tells."""
        return statistics.fmean(self.losses) if self.losses and not self.lost else None

    def is_whole(self, study: Study) -> bool:
        """Whether all seeds have run."""
        return self.is_fresh and len(self.at_best) == study.seeds

    @property
    def diverged(self) -> int:
        """How many of the tuning runs did."""
        return sum(each["diverged"] for each in self.tuning)


def places(study: Study, records: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Every method and batch that has a run; in the order of methods, then batches."""
    done = large_batch_queue.of_study(study, records)
    found = []
    order = list(METHODS.values())
    for method, batch in sorted(
        large_batch_queue.places(study), key=lambda each: (order.index(each[0]), each[1])
    ):
        runs = large_batch_queue.tuning_runs(study, done, method, batch) or []
        tuning = [done[run.key(study)] for run in runs if run.key(study) in done]
        if not tuning:
            continue
        best = large_batch_queue.best_run(study, done, method, batch)
        seeds = large_batch_queue.seed_runs(study, done, method, batch)
        fresh = [done[run.key(study)] for run in seeds if run.key(study) in done]
        found.append(
            Place(
                method=method,
                batch=batch,
                best=best,
                is_tuned=large_batch_queue.is_tuned(study, done, method, batch),
                tuning=tuning,
                at_best=fresh or ([done[best.key(study)]] if best else []),
                is_fresh=bool(fresh),
            )
        )
    return found


def shown(study: Study, records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The records that treat all methods alike: draws, rates and seeds that all have made."""
    kept = large_batch_queue.comparable(study, large_batch_queue.of_study(study, records))
    return [each for each in records if each["kind"] != "run" or each["run"] in kept]


def seeds_of_all(found: Sequence[Place]) -> int:
    """The seeds that every method with best settings has had, at all of its batches."""
    return min(
        (len(place.at_best) if place.is_fresh else 0 for place in found if place.best), default=0
    )


def frequency_losses(study: Study, records: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """`Text.frequency_loss` of "validation" and "test", as the last plan has it; or nothing."""
    plans = [each for each in large_batch_queue.plans(records) if each["study"] == study.key]
    return plans[-1].get("frequency_losses", {}) if plans else {}


def variance(study: Study, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last measurement of gradient variance of a study."""
    found = [each for each in records if each["kind"] == "variance" and each["study"] == study.key]
    return found[-1] if found else None


def target_loss(
    study: Study, records: Sequence[Mapping[str, Any]], given: float | None
) -> float | None:
    """The validation loss of the steps to it, which no method's outcome decides.

    Args:
        study: which.
        records: of the results file.
        given: by the flag, or None.

    Returns:
        What is given, else what a plan of the study named last, else `TARGET_BELOW_FREQUENCIES`
        below the loss of token frequencies; None where that is not known either.
    """
    plans = [each for each in large_batch_queue.plans(records) if each["study"] == study.key]
    named = [plan["target_loss"] for plan in plans if plan.get("target_loss") is not None]
    if given is not None or named:
        return given if given is not None else named[-1]
    frequencies = frequency_losses(study, records).get("validation")
    return None if frequencies is None else frequencies - TARGET_BELOW_FREQUENCIES


def difference(place: Place, baseline: Place) -> tuple[float, float, float] | None:
    """The mean of a method's test loss less another's on the same seed, and its interval.

    A seed gives all methods the same initial weights, order and masks, so that only pairs compare
    methods. Student's t over seeds, two-sided, for this one comparison.

    Returns:
        The mean and the ends of the interval; None without two common seeds, and where a seed of
        either diverged: what is left would tell of the lucky ones.
    """
    losses = [
        {each["settings"]["seed"]: each["test_loss"] for each in one.at_best}
        for one in (place, baseline)
    ]
    seeds = sorted(losses[0].keys() & losses[1].keys())
    if not (place.is_fresh and baseline.is_fresh) or len(seeds) < 2:
        return None
    if place.lost or baseline.lost:
        return None
    test = stats.ttest_rel(*([each[seed] for seed in seeds] for each in losses))
    low, high = test.confidence_interval(CONFIDENCE)
    mean = statistics.fmean(losses[0][seed] - losses[1][seed] for seed in seeds)
    return mean, float(low), float(high)


def steps_to(curve: Sequence[Sequence[Any]], target: float) -> float | None:
    """The first step at which a curve's validation loss is at `target`, interpolated.

    Args:
        curve: step, training loss, validation loss.
        target: the loss.
    """
    for (left, _, before), (right, _, after) in zip(curve, curve[1:], strict=False):
        if before is None or after is None:
            return None
        if after <= target:
            share = (before - target) / (before - after) if before > after else 0.0
            return left + max(0.0, share) * (right - left)
    return None


def arrivals(place: Place, target: float) -> list[float]:
    """The steps to a validation loss, of those runs at the best settings that get there."""
    each = [steps_to(record["curve"], target) for record in place.at_best]
    return [steps for steps in each if steps is not None]


def mean_steps_to(place: Place, target: float) -> float | None:
    """Their mean; None where one of the runs never gets there."""
    steps = arrivals(place, target)
    return statistics.fmean(steps) if steps and len(steps) == len(place.at_best) else None


def best_of(losses: Sequence[float], tries: int) -> float:
    """The expected least of `tries` different ones of the losses.

    With the n losses ascending, the i-th is the least of C(n - i, k - 1) of the C(n, k) choices.
    """
    count = len(losses)
    choices = math.comb(count, tries)
    return sum(
        loss * math.comb(count - place, tries - 1) / choices
        for place, loss in enumerate(sorted(losses), start=1)
    )


def tried_losses(place: Place) -> list[float]:
    """The validation losses of the draws; that before training for those that diverged."""
    return [
        each["curve"][0][2] if each["diverged"] else each["validation_loss"]
        for each in place.tuning
    ]


def edge(place: Place) -> str:
    """Marks a best rate that is the least or the greatest of those tried: it may lie beyond.

    Where rates around several draws were tried, those around the one that it belongs to count.
    """
    if place.best is None:
        return ""
    own = (place.best.beta_2, place.best.warmup_ratio)
    rates = [
        (
            each["settings"]["learning_rate"],
            (each["settings"]["beta_2"], each["settings"]["warmup_ratio"]),
        )
        for each in place.tuning
    ]
    around = [rate for rate, of in rates if of == own]
    tried = around if len(around) > 1 else [rate for rate, _ in rates]
    ends = {min(tried): " (the least tried)", max(tried): " (the greatest tried)"}
    return ends.get(place.best.learning_rate, "") if len(tried) > 1 else ""
