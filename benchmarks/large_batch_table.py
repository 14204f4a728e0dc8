"""A study's records as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import large_batch_methods, large_batch_queue
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_report import (
    BASELINE,
    CONFIDENCE,
    Place,
    arrivals,
    difference,
    edge,
    frequency_losses,
    mean_steps_to,
    places,
    seeds_of_all,
    shown,
    variance,
)
from benchmarks.large_batch_settings import Study

# A method, one that differs from it in one thing, and that thing.
PAIRS = (
    ("LANS eq. (8)", "LAMB eq. (8)", "LANS in place of LAMB"),
    ("LANS eq. (9)", "LAMB eq. (9)", "LANS in place of LAMB"),
    ("LAMB eq. (9)", "LAMB eq. (8)", "the constant phase"),
    ("LANS eq. (9)", "LANS eq. (8)", "the constant phase"),
    (
        "LANS eq. (9)",
        "LANS eq. (9) without normalisation",
        "a normalised gradient of each block in place of a clipped norm of all",
    ),
    ("BlockNormalizedAdamW", "AdamW", "the same in AdamW"),
    ("BlockNormalizedAdamW", "LAMB eq. (8)", "that AdamW in place of LAMB"),
    ("LANS eq. (9)", "LANS eq. (9) without Nesterov", "Nesterov's term"),
    ("LANS eq. (9), every block adapted", "LANS eq. (9)", "norms and biases adapted and decayed"),
    ("LANS eq. (9)", "Keras Muon", "LANS in place of Muon"),
)
_INTERVAL = f"seed by seed, {100 * CONFIDENCE:.0f} % interval"


def table(
    study: Study, records: Sequence[Mapping[str, Any]], charts: Sequence[str], target: float | None
) -> str:
    """The study as Markdown.

    Args:
        study: which.
        records: of the results file.
        charts: paths to show, as seen from the document.
        target: the loss of the steps to it, or None for no such column.
    """
    done = large_batch_queue.of_study(study, records)
    found = places(study, shown(study, records))
    frequencies = frequency_losses(study, records)
    lines = [_state(study, records), ""]
    if found and not large_batch_queue.is_drawn(study, done):
        lines += [*_draw_rows(study, found, frequencies), ""]
    elif found:
        lines += [*_rows(found, frequencies, target), ""]
        if not large_batch_queue.is_complete(study, done):
            seeds = f"{seeds_of_all(found)} of {study.seeds}"
            lines += [f"Seeds run at the best settings: {seeds}. Not to be compared yet.", ""]
        lines += _pair_rows(found)
    if found:
        lines += [*_search_rows(study), ""]
    measured = variance(study, records)
    if measured is not None:
        lines += [*_variance_rows(measured), ""]
    for chart in charts:
        title = chart.rpartition("/")[2].partition(".")[0].replace("_", " ")
        lines += [f"![{title}]({chart})", ""]
    return "\n".join(lines)


def _state(study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    done = large_batch_queue.of_study(study, records)
    runs = large_batch_queue.finished(study, done)
    sizes = study.sizes
    text = (
        f"{len(runs)} of {large_batch_queue.total(study, done)} runs "
        f"are done, each of {study.examples:,} examples of length {sizes.seq_length}, on "
        f"{study.model or f'a BERT of {sizes.layers} layers, {sizes.width} wide'}, "
        f"{sizes.vocab_size:,} word pieces, {study.backend}."
    )
    if runs:
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
    if further := len(done) - len(runs):
        text += f" {further} further runs, of a longer study that is under way, are not shown."
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
    found: Sequence[Place],
    frequencies: Mapping[str, float],
    target: float | None,
) -> list[str]:
    steps_head = "" if target is None else f" steps to a validation loss of {target:.3f} |"
    lines = [
        "| method | batch | rate | beta_2 | warmup | tuning runs | diverged | seeds | test loss, "
        f"mean | lowest to highest | less {BASELINE.name}'s, {_INTERVAL} |{steps_head}",
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
        lines.append(
            f"{head} {place.best.learning_rate:g}{edge(place)} | {place.best.beta_2:g} | "
            f"{place.best.warmup_ratio:g} | {tried} | "
            f"{len(place.at_best) if place.is_fresh else 0} | {mean} | "
            f"{_spread(place)} | "
            f"{_against(place, baselines.get(place.batch))} |{steps}"
        )
    return lines


def _spread(place: Place) -> str:
    if not place.is_fresh:
        return "the tuning seed alone"
    if place.lost or len(place.losses) < 2:
        return ""
    return f"{min(place.losses):.3f} to {max(place.losses):.3f}"


def _steps(place: Place, target: float) -> str:
    steps = mean_steps_to(place, target)
    if steps is not None:
        return f"{steps:.0f}"
    count = len(arrivals(place, target))
    return f"{count} of {len(place.at_best)} seeds" if count else "never"


def _against(place: Place | None, baseline: Place | None) -> str:
    if place is None or baseline is None or place is baseline:
        return ""
    found = difference(place, baseline)
    return "" if found is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*found)


def _pair_rows(found: Sequence[Place]) -> list[str]:
    """What one thing brings: methods that differ in nothing else, each at its best."""
    by_name = {(place.method.name, place.batch): place for place in found}
    batches = sorted({place.batch for place in found})
    rows = []
    for name, other, brings in PAIRS:
        pairs = [(by_name.get((name, each)), by_name.get((other, each))) for each in batches]
        cells = [_against(*pair) for pair in pairs]
        if any(cells):
            rows.append(f"| {brings} | {name} | {other} | {' | '.join(cells)} |")
    if not rows:
        return []
    heads = " | ".join(f"batch {batch:,}" for batch in batches)
    return [
        f"What each part brings: test loss of the first less that of the second, {_INTERVAL}; "
        "below 0 the first is better.",
        "",
        f"| what | first | second | {heads} |",
        "| --- | --- | --- |" + " --- |" * len(batches),
        *rows,
        "",
    ]


def _search_rows(study: Study) -> list[str]:
    shared = ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in large_batch_methods.SHARED.items()
    )
    low, high = large_batch_methods.WARMUP_RATIOS
    grid = "; ".join(name for name, _ in large_batch_methods.GRID[: study.rates])
    lines = [
        f"All have {shared}; beta_1 and Muon's momentum as in Keras. At the largest batch the "
        f"warmup is drawn from {low:g} to {high:g} of the steps, beta_2 from "
        f"{', '.join(f'{each:g}' for each in large_batch_methods.BETAS_2)}, and the rate from the "
        "range below. At another batch, b of the largest, warmup and beta_2 stay those of the best "
        f"draw, and its rate is taken times these of b: {grid}; where the best of them is the "
        "least or the greatest, half or twice as much is tried, up to "
        f"{large_batch_queue.EXTENSIONS} times.",
        "",
        "| method | rates drawn from |",
        "| --- | --- |",
    ]
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
