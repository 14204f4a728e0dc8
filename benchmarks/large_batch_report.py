"""What the records of a study say: each method at its best, and the tables."""

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
# Less than this below the loss of frequencies is the noise of the rows that were held out.
_LEARNT = 0.05
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


def frequency_losses(study: Study, records: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """`Text.frequency_loss` of "validation" and "test", as the last plan has it; or nothing."""
    plans = [each for each in large_batch_queue.plans(records) if each["study"] == study.key]
    return plans[-1].get("frequency_losses", {}) if plans else {}


def variance(study: Study, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last measurement of gradient variance of a study."""
    found = [each for each in records if each["kind"] == "variance" and each["study"] == study.key]
    return found[-1] if found else None


def default_target(study: Study, records: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of the losses at the largest batch, over the methods that learn there.

    Of each method that runs at all batches, the worst validation loss over its seeds counts, where
    it is below that of token frequencies: half of these methods reach the target with every seed.
    None before all seeds have run there, or if no method learns.
    """
    found = [
        place
        for place in places(study, records)
        if place.batch == study.largest and place.method.everywhere
    ]
    if not all(place.is_tuned and place.best is None or place.is_whole(study) for place in found):
        return None
    limit = frequency_losses(study, records).get("validation", math.inf) - _LEARNT
    worst = [
        max(each["validation_loss"] for each in place.at_best)
        for place in found
        if place.losses and len(place.losses) == len(place.at_best)
    ]
    learnt = [loss for loss in worst if loss < limit]
    return statistics.median(learnt) if learnt else None


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
    done = large_batch_queue.of_study(study, records)
    found = places(study, shown(study, records))
    frequencies = frequency_losses(study, records)
    lines = [_state(study, records), ""]
    if found and not large_batch_queue.is_drawn(study, done):
        lines += [*_draw_rows(study, found, frequencies), ""]
    elif found:
        target = default_target(study, records) if target is None else target
        lines += [*_rows(study, found, frequencies, target), ""]
        if not large_batch_queue.is_complete(study, done):
            lines += ["What is unfinished or without seeds is not to be compared yet.", ""]
    if found:
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
        f"{large_batch_queue.finished(study, done)} of {large_batch_queue.total(study, done)} runs "
        f"are done, each of {study.examples:,} examples of length {sizes.seq_length}, on "
        f"{study.model or f'a BERT of {sizes.layers} layers, {sizes.width} wide'}, "
        f"{sizes.vocab_size:,} word pieces, {study.backend}."
    )
    if done:
        runs = list(done.values())
        dates = sorted(each["date"][:10] for each in runs)
        versions = {
            ", ".join(f"{name} {version}" for name, version in each["versions"].items()): None
            for each in runs
        }
        commits = {each.get("commit", ""): None for each in runs}
        hours = sum(each["seconds"] for each in runs) / 3600
        text += (
            f" Text: {runs[-1]['source']}. {hours:.1f} hours of runs in sum, {dates[0]} to "
            f"{dates[-1]}, on {' and '.join(sorted({each['processor'] for each in runs}))}; "
            f"{' and '.join(versions)}"
        )
        named = [f"`{commit}`" for commit in commits if commit]
        text += f"; the code of {', '.join(named)}." if named else "."
    return text


def _draw_rows(study: Study, found: Sequence[Place], frequencies: Mapping[str, float]) -> list[str]:
    rounds = len(found[0].tuning)
    lines = [
        f"So far every method has had {rounds} of {study.draws} draws at a batch of "
        f"{study.largest:,}, the same ones, on one seed. These are validation losses, which the "
        "other draws may put in another order.",
        "",
        "| method | diverged | least | median | greatest | rate of the least | beta_2 | warmup |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    line = frequencies.get("validation")
    below = []
    if line is not None:
        lines.append(f"| how frequent each token is, and no more | | {line:.3f} | | | | | |")
    for place in found:
        losses = [each["validation_loss"] for each in place.tuning if not each["diverged"]]
        head = f"| {place.method.name} | {place.diverged} |"
        if place.best is None:
            lines.append(f"{head} | | | | | |")
            continue
        best = place.best
        if line is not None and min(losses) < line:
            below.append(place.method.name)
        lines.append(
            f"{head} {min(losses):.3f} | {statistics.median(losses):.3f} | {max(losses):.3f} | "
            f"{best.learning_rate:g} | {best.beta_2:g} | {best.warmup_ratio:g} |"
        )
    if line is not None:
        names = "; ".join(below) or "no method"
        lines += ["", f"Below the line of the frequencies with one of its draws: {names}."]
    return lines


def _rows(
    study: Study,
    found: Sequence[Place],
    frequencies: Mapping[str, float],
    target: float | None,
) -> list[str]:
    steps_head = "" if target is None else f" steps to a validation loss of {target:.3f} |"
    lines = [
        "| method | batch | rate | beta_2 | warmup | tuning runs | diverged | seeds | test loss, "
        f"mean | lowest to highest | less {BASELINE.name}'s, seed by seed |{steps_head}",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
        + (" ---: |" if steps_head else ""),
    ]
    if "test" in frequencies:
        loss = f"{frequencies['test']:.3f}"
        cells = f"| how frequent each token is, and no more | | | | | | | | {loss} | | |"
        lines.append(cells + (" |" if steps_head else ""))
    baselines = {place.batch: place for place in found if place.method is BASELINE}
    for place in found:
        tried = f"{len(place.tuning)}{'' if place.is_tuned else ', unfinished'} | {place.diverged}"
        head = f"| {place.method.name} | {place.batch:,} |"
        steps = "" if target is None else f" {_steps(place, target)} |"
        if place.best is None:
            lines.append(f"{head} | | | {tried} | | diverged | | |{' |' if steps_head else ''}")
            continue
        mean = f"{place.lost} diverged" if place.loss is None else f"{place.loss:.3f}"
        spread = f"{min(place.losses):.3f} to {max(place.losses):.3f}" if place.losses else ""
        lines.append(
            f"{head} {place.best.learning_rate:g}{edge(place)} | {place.best.beta_2:g} | "
            f"{place.best.warmup_ratio:g} | {tried} | "
            f"{len(place.at_best) if place.is_fresh else 0} | {mean} | "
            f"{spread if place.is_fresh else 'the tuning seed alone'} | "
            f"{_against(place, baselines.get(place.batch))} |{steps}"
        )
    return lines


def _steps(place: Place, target: float) -> str:
    steps = mean_steps_to(place, target)
    return "never" if steps is None else f"{steps:.0f}"


def _against(place: Place, baseline: Place | None) -> str:
    if baseline is None or place.method is BASELINE:
        return ""
    found = difference(place, baseline)
    return "" if found is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*found)


def edge(place: Place) -> str:
    """Marks a best rate that is the least or the greatest of those tried: it may lie beyond."""
    tried = [each["settings"]["learning_rate"] for each in place.tuning]
    ends = {min(tried): " (the least tried)", max(tried): " (the greatest tried)"}
    rate = place.best.learning_rate if place.best else math.nan
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
