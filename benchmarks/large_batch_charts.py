"""The study's charts."""

from __future__ import annotations

import itertools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks import large_batch_queue, large_batch_report, whole_files
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_report import Place
from benchmarks.large_batch_settings import Study
from official_bert import charts

_MARKERS = "osD^vP*Xhp<"
# All that `choose` may choose.
NAMES = (
    *("loss_by_batch", "loss_by_rate", "best_of_n", "loss_curves", "steps_to_target"),
    "variance",
)


def prefix(results: str, study: Study, records: Sequence[Mapping[str, Any]]) -> str:
    """What the names of a study's charts begin with: the file's name alone for its first study."""
    name = os.path.splitext(results)[0]
    is_first = not records or records[0]["study"] == study.key
    return name if is_first else f"{name}_{study.key}"


def choose(
    study: Study, records: Sequence[Mapping[str, Any]], target: float | None
) -> dict[str, Callable[[], Figure]]:
    """The charts for which there are records that compare methods, by name.

    As long as draws are left, those of the draws that all methods have made; batches are compared,
    and steps to the target, once every method has had a rate at each of its own.
    """
    done = large_batch_queue.of_study(study, records)
    found = large_batch_report.places(study, large_batch_report.shown(study, records))
    frequencies = large_batch_report.frequency_losses(study, records)
    measured = large_batch_report.variance(study, records)
    chosen: dict[str, Callable[[], Figure]] = {}
    if any(place.losses for place in found):
        validation = frequencies.get("validation")
        chosen["loss_by_rate"] = lambda: loss_by_rate(study, found, validation)
        chosen["best_of_n"] = lambda: best_of_n(study, found, validation)
        if large_batch_queue.is_drawn(study, done):
            chosen["loss_curves"] = lambda: loss_curves(study, found, validation)
            if {place.batch for place in found} == set(study.batches):
                test = frequencies.get("test")
                chosen = {"loss_by_batch": lambda: loss_by_batch(study, found, test), **chosen}
                if target is not None and any(
                    large_batch_report.mean_steps_to(place, target) for place in found
                ):
                    chosen["steps_to_target"] = lambda: steps_to_target(found, target)
    if measured is not None:
        chosen["variance"] = lambda: variance(measured)
    return chosen


def draw(
    study: Study, records: Sequence[Mapping[str, Any]], prefix: str, target: float | None
) -> list[str]:
    """Writes PREFIX_*.png, those that `choose` chooses, and removes the others of an earlier call.

    Returns:
        Their paths.
    """
    chosen = choose(study, records, target)
    for name in set(NAMES) - set(chosen):
        pathlib.Path(f"{prefix}_{name}.png").unlink(missing_ok=True)
    for name, figure in chosen.items():
        whole_files.write_chart(f"{prefix}_{name}.png", figure())
    return [f"{prefix}_{name}.png" for name in chosen]


def _style(name: str) -> dict[str, Any]:
    number = list(METHODS).index(name)
    # Matplotlib has ten colours.
    color = f"C{number}" if number < 10 else "black"
    return {"color": color, "marker": _MARKERS[number], "markersize": 5, "linewidth": 1.2}


def _of_methods(found: Sequence[Place], keep: Callable[[Place], bool]) -> dict[str, list[Place]]:
    groups: dict[str, list[Place]] = {}
    for place in found:
        if keep(place):
            groups.setdefault(place.method.name, []).append(place)
    return groups


def _finish(axes: Any, x: str, y: str, log: bool = True) -> None:
    charts.finish(axes, y)
    axes.set_xlabel(x)
    axes.set_xscale("log" if log else "linear")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _frequencies(axes: Any, loss: float | None) -> None:
    """The line that a method has to be below to have learnt anything from context."""
    if loss is not None:
        axes.axhline(loss, color="0.4", linestyle=":", label="token frequencies alone")


def _batch_ticks(axes: Any, found: Sequence[Place]) -> None:
    batches = sorted({place.batch for place in found})
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())


def loss_by_batch(study: Study, found: Sequence[Place], frequencies: float | None) -> Figure:
    """Each method at its best; bars from the lowest to the highest seed.

    Hollow where a better rate may lie beyond those tried, crosses where a seed diverged.
    """
    figure, axes = charts.canvas()
    seeds = large_batch_report.seeds_of_all(found)
    if seeds < study.seeds:
        which = f"{seeds} of {study.seeds} seeds" if seeds else "the seed that chose the settings"
        axes.set_title(f"unfinished: {which}", fontsize=9)
    is_any_hollow = False
    for name, group in _of_methods(found, lambda place: bool(place.losses)).items():
        # A place with a seed lost has no mean, and the line a gap.
        losses = [math.nan if place.loss is None else place.loss for place in group]
        low = [loss - min(place.losses) for loss, place in zip(losses, group, strict=True)]
        high = [max(place.losses) - loss for loss, place in zip(losses, group, strict=True)]
        x = [_beside(place) for place in group]
        axes.errorbar(x, losses, [low, high], capsize=3, label=name, **_style(name))
        hollow = [not place.is_tuned or bool(large_batch_report.edge(place)) for place in group]
        is_any_hollow |= any(hollow)
        style = {**_style(name), "linestyle": "", "markerfacecolor": "white", "zorder": 3}
        axes.plot(
            list(itertools.compress(x, hollow)),
            list(itertools.compress(losses, hollow)),
            **style,
        )
    if is_any_hollow:
        style = {"color": "0.4", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
        axes.plot([], [], label="hollow: better may lie beyond the rates tried", **style)
    _lost(axes, found)
    _frequencies(axes, frequencies)
    _finish(axes, "batch", "test masked-LM loss")
    _batch_ticks(axes, found)
    return figure


def _beside(place: Place) -> float:
    """The batch, moved a little by method: equal losses would hide each other."""
    number = list(METHODS).index(place.method.name)
    return place.batch * 2 ** (0.04 * (number - (len(METHODS) - 1) / 2))


def _lost(axes: Any, found: Sequence[Place]) -> None:
    """Crosses on the upper edge where runs at a method's best settings diverged."""
    for place in found:
        if place.lost:
            label = f"{place.method.name}: {place.lost} of {len(place.at_best)} seeds diverged"
            axes.plot(
                [_beside(place)], [1.0], "x", transform=axes.get_xaxis_transform(), clip_on=False,
                color=_style(place.method.name)["color"], label=label,
            )  # fmt: skip


def steps_to_target(found: Sequence[Place], target: float) -> Figure:
    """Steps to one loss, and what they were if twice the batch halved them.

    Each run's schedule was that of the whole run, also where the loss is reached long before.
    """
    figure, axes = charts.canvas()
    steps = {
        (place.method.name, place.batch): large_batch_report.mean_steps_to(place, target)
        for place in found
    }
    for name, group in _of_methods(found, lambda place: True).items():
        there = [place for place in group if steps[name, place.batch] is not None]
        not_all = [f"{place.batch:,}" for place in group if place not in there]
        label = f"{name} (not with every seed at {' and '.join(not_all)})" if not_all else name
        heights = [steps[name, place.batch] for place in there]
        axes.plot([_beside(place) for place in there], heights, label=label, **_style(name))
    known = {key: value for key, value in steps.items() if value}
    first = min(batch for _, batch in known)
    least, best = min((value, name) for (name, batch), value in known.items() if batch == first)
    batches = sorted({place.batch for place in found})
    ideal = [least * first / batch for batch in batches]
    axes.plot(batches, ideal, ":", color="0.4", label=f"linear scaling of {best} at {first:,}")
    _finish(axes, "batch", f"steps to a validation loss of {target:.3f}")
    axes.set_yscale("log")
    _batch_ticks(axes, found)
    return figure


def loss_by_rate(study: Study, found: Sequence[Place], frequencies: float | None) -> Figure:
    """All draws at the largest batch, which differ in beta_2 and warmup too.

    Crosses on the upper edge diverged.
    """
    figure, axes = charts.canvas()
    here = [place for place in found if place.batch == study.largest]
    finished = [each for place in here for each in place.tuning if not each["diverged"]]
    losses = [each["validation_loss"] for each in finished] or [frequencies or 1.0]
    top = max(losses) + 0.05 * (max(losses) - min(losses))
    for place in here:
        style = {**_style(place.method.name), "linestyle": ""}
        good = [
            (each["settings"]["learning_rate"], each["validation_loss"])
            for each in place.tuning
            if not each["diverged"]
        ]
        bad = [each["settings"]["learning_rate"] for each in place.tuning if each["diverged"]]
        axes.plot(*zip(*good, strict=True) if good else ([], []), label=place.method.name, **style)
        axes.plot(bad, [top] * len(bad), "x", color=style["color"], clip_on=False)
    if any(place.diverged for place in here):
        axes.plot([], [], "x", color="0.4", label="diverged")
    _frequencies(axes, frequencies)
    _finish(axes, f"learning rate at batch {study.largest:,}", "validation loss")
    return figure


def best_of_n(study: Study, found: Sequence[Place], frequencies: float | None) -> Figure:
    """The expected best of so many of the draws: how hard a method is to tune.

    A draw that diverged counts as the loss before training.
    """
    figure, axes = charts.canvas()
    for place in found:
        if place.batch != study.largest:
            continue
        losses = large_batch_report.tried_losses(place)
        tries = range(1, len(losses) + 1)
        axes.plot(
            tries,
            [large_batch_report.best_of(losses, each) for each in tries],
            label=place.method.name,
            **_style(place.method.name),
        )
    _frequencies(axes, frequencies)
    _finish(axes, "draws of the hyper-parameters", "best validation loss", log=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def loss_curves(study: Study, found: Sequence[Place], frequencies: float | None) -> Figure:
    """At the largest batch, each method's middle run of those at its best settings."""
    figure, axes = charts.canvas()
    for place in found:
        if place.batch == study.largest and place.losses:
            ranked = sorted(
                place.at_best,
                key=lambda each: math.inf if each["diverged"] else each["validation_loss"],
            )
            record = ranked[(len(ranked) - 1) // 2]
            points = [(step, loss) for step, _, loss in record["curve"] if loss is not None]
            style = {**_style(place.method.name), "markersize": 3}
            axes.plot(*zip(*points, strict=True), label=place.method.name, **style)
    _frequencies(axes, frequencies)
    _finish(axes, f"step at batch {study.largest:,}", "validation loss", log=False)
    return figure


def variance(record: Mapping[str, Any]) -> Figure:
    """Measured points and the theory's lines, of both points of training."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("initial weights", f"after {record['trained_steps']:,} steps")
    for axes, (_, rows), title in zip(panels, record["points"].items(), titles, strict=True):
        schemes = list(dict.fromkeys(row["scheme"] for row in rows))
        for number, scheme in enumerate(schemes):
            own = [row for row in rows if row["scheme"] == scheme]
            batches = [row["batch"] for row in own]
            axes.plot(batches, [row["theory"] for row in own], color=f"C{number}", linewidth=1)
            axes.errorbar(
                batches,
                [row["measured"] for row in own],
                [2 * row["standard_error"] for row in own],
                fmt=_MARKERS[number],
                color=f"C{number}",
                markersize=4,
                label=scheme,
            )
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"batch of {record['examples']:,} examples")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("variance x batch / sigma²")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=7, title="points: measured; lines: theory", title_fontsize=7)
    return figure
