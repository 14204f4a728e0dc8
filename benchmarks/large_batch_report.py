"""What the records of a study say: each method at its best, and the tables."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import large_batch_queue
from benchmarks.large_batch_methods import METHODS, Method
from benchmarks.large_batch_settings import Run, Study

_EDGE = 1.3  # a best rate so near an end of its range may lie beyond it


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
    def loss(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.losses) if self.losses else None

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


def variance(study: Study, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last measurement of gradient variance of a study."""
    found = [each for each in records if each["kind"] == "variance" and each["study"] == study.key]
    return found[-1] if found else None


def default_target(study: Study, found: Sequence[Place]) -> float | None:
    """The median, over methods, of the worst seed's validation loss at the largest batch.

    Half of the methods reach it there with every seed.
    """
    losses = [
        max(each["validation_loss"] for each in place.at_best if not each["diverged"])
        for place in found
        if place.batch == study.largest and place.method.everywhere and place.losses
    ]
    return statistics.median(losses) if losses else None


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


def mean_steps_to(place: Place, target: float) -> float | None:
    """The mean over the runs at the best settings; None where one never gets there."""
    each = [steps_to(record["curve"], target) for record in place.at_best]
    known = [steps for steps in each if steps is not None]
    return statistics.fmean(known) if known and len(known) == len(each) else None


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


def table(
    study: Study, records: Sequence[Mapping[str, Any]], charts: Sequence[str], target: float | None
) -> str:
    """The study as Markdown.

    Args:
        study: which.
        records: of the results file.
        charts: paths to show, as seen from the document.
        target: the loss of the steps, or None for `default_target`.
    """
    found = places(study, records)
    target = default_target(study, found) if target is None else target
    lines = [_state(study, records), ""]
    if found:
        lines += [*_rows(study, found, target), ""]
        lines += [*_range_rows(), ""]
    measured = variance(study, records)
    if measured is not None:
        lines += [*_variance_rows(measured), ""]
    for chart in charts:
        title = chart.rpartition("/")[2].partition(".")[0].replace("_", " ")
        lines += [f"![{title}]({chart})", ""]
    return "\n".join(lines)


def _state(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    done = large_batch_queue.of_study(study, records)
    sizes = study.sizes
    text = (
        f"{large_batch_queue.finished(study, done)} of {large_batch_queue.total(study)} runs are "
        f"done, each of {study.examples:,} examples of length {sizes.seq_length}, on "
        f"{study.model or f'a BERT of {sizes.layers} layers, {sizes.width} wide'}, "
        f"{sizes.vocab_size:,} word pieces, {study.backend}."
    )
    if done:
        last = list(done.values())[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        hours = sum(each["seconds"] for each in done.values()) / 3600
        text += (
            f" Text: {last['source']}. {hours:.1f} hours of runs in sum, the last "
            f"{last['date'][:10]} on {last['processor']}, {versions}."
        )
    return text


def _rows(study: Study, found: Sequence[Place], target: float | None) -> list[str]:
    reach = "" if target is None else f" to {target:.3f}"
    lines = [
        "| method | batch | rate | beta_2 | warmup | tuning runs | diverged | "
        f"held-out loss, mean | lowest to highest | seeds | steps{reach} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for place in found:
        tried = f"{len(place.tuning)}{'' if place.is_tuned else ', unfinished'} | {place.diverged}"
        head = f"| {place.method.name} | {place.batch:,} |"
        if place.best is None or place.loss is None:
            lines.append(f"{head} | | | {tried} | diverged | | | |")
            continue
        steps = None if target is None else mean_steps_to(place, target)
        spread = f"{min(place.losses):.3f} to {max(place.losses):.3f}"
        lines.append(
            f"{head} {place.best.learning_rate:g}{_edge(study, place.best, place)} | "
            f"{place.best.beta_2:g} | "
            f"{place.best.warmup_ratio:g} | {tried} | {place.loss:.3f} | "
            f"{spread if place.is_fresh else 'the tuning seed alone'} | "
            f"{len(place.losses) if place.is_fresh else 0} | "
            f"{'never' if steps is None else f'{steps:.0f}'} |"
        )
    return lines


def _edge(study: Study, best: Run, place: Place) -> str:
    """Marks a best rate at an end of the range that it was drawn from, or of the grid."""
    rate = best.learning_rate
    if place.batch == study.largest:
        low, high = place.method.rates
        return " (near the range's end)" if rate < low * _EDGE or rate > high / _EDGE else ""
    tried = [each["settings"]["learning_rate"] for each in place.tuning]
    ends = {min(tried): " (the least tried)", max(tried): " (the greatest tried)"}
    return ends.get(rate, "") if len(tried) > 1 else ""


def _range_rows() -> list[str]:
    lines = ["| method | rates drawn from |", "| --- | --- |"]
    for method in METHODS.values():
        lines.append(f"| {method.name} | {method.rates[0]:g} to {method.rates[1]:g} |")
    return lines


def _variance_rows(record: Mapping[str, Any]) -> list[str]:
    schemes: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["points"]["trained"]:
        schemes.setdefault(row["scheme"], []).append(row)
    lines = [
        f"Gradient variance over {record['examples']:,} examples, times the batch, over that of a "
        f"single example, after {record['trained_steps']:,} steps; an epoch of {record['workers']} "
        f"overlapping workers on {record['files']} files draws "
        f"{100 * record['epoch_coverage']:.0f} % of the examples on average:",
        "",
        "| batch |" + "".join(f" {scheme} | theory |" for scheme in schemes),
        "| ---: |" + " ---: | ---: |" * len(schemes),
    ]
    for rows in zip(*schemes.values(), strict=True):
        cells = (f" {_with_error(row)} | {row['theory']:.3f} |" for row in rows)
        lines.append(f"| {rows[0]['batch']:,} |" + "".join(cells))
    return lines


def _with_error(row: Mapping[str, Any]) -> str:
    return f"{row['measured']:.3f} ± {row['standard_error']:.3f}"
