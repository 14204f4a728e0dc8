"""The figures of `benchmarks.exactness` as small multiples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure, SubFigure

from benchmarks import exactness_report
from benchmarks.exactness_report import COVERAGE, CUTS, ERROR, KILLS, PARTS, scientific

DPI = 150
OURS, STOCK = "tab:red", "tab:gray"
_LEAST = 1e-8  # what is shorter on a logarithmic axis has no bar

# Of a bar: its label, its length, its text, whether it is ours.
Bar = tuple[str, float, str, bool]


def _draw(panel: SubFigure, bars: Sequence[Bar], title: str, *, logarithmic: bool) -> None:
    panel.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = panel.subplots()
    positions = range(len(bars))
    lengths = [max(length, _LEAST) if logarithmic else length for _, length, _, _ in bars]
    colors = [OURS if is_ours else STOCK for *_, is_ours in bars]
    drawn = axes.barh(list(positions), lengths, color=colors)
    axes.bar_label(drawn, labels=[text for _, _, text, _ in bars], padding=3, fontsize=9)
    axes.set_yticks(list(positions), [label for label, *_ in bars], fontsize=9)
    axes.invert_yaxis()
    # Room for the values beside the bars.
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(_LEAST, 30 * max([1.0, *lengths]))
    else:
        axes.set_xlim(0, 135)
        axes.set_xticks([0, 50, 100])
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _coverage(panel: SubFigure, part: Mapping[str, Any]) -> None:
    bars: list[Bar] = []
    for row in part["cases"]:
        for reader in ("stock", "ours"):
            found = row[reader]
            share = 0.0 if "refused" in found else found["mean_share"]
            text = "refused" if "refused" in found else exactness_report.percent(share)
            # One label for the two.
            label = row["case"].replace(", seed", "\nseed") if reader == "stock" else ""
            bars.append((label, 100 * share, text, reader == "ours"))
    _draw(panel, bars, "Examples drawn in an epoch, %, mean", logarithmic=False)


def _error(panel: SubFigure, part: Mapping[str, Any]) -> None:
    bars = [
        (
            row["method"].removeprefix("tf-lans "),
            row["relative_l2_error"],
            scientific(row["relative_l2_error"]),
            row["is_ours"],
        )
        for row in part["methods"]
    ]
    title = f"Error of float32 against the formula, {part['steps']} updates"
    _draw(panel, bars, title, logarithmic=True)


def _cuts(panel: SubFigure, part: Mapping[str, Any]) -> None:
    bars = [
        (
            f"{row['system'].removeprefix('tf-lans ').replace('Model Garden', 'stock')}, "
            f"{row['cut']}",
            row["relative_l2_difference"],
            scientific(row["relative_l2_difference"]),
            row["is_ours"],
        )
        for row in part["rows"]
    ]
    title = (
        f"Weights without key biases,\n{part['global_batch_size']} rows cut against whole, "
        f"{part['steps']} updates"
    )
    _draw(panel, bars, title, logarithmic=True)


def _kills(panel: SubFigure, part: Mapping[str, Any]) -> None:
    bars: list[Bar] = []
    for workers, title in ((1, "one worker"), (2, "two workers")):
        counts = exactness_report.survived(part, workers)
        for reader in ("stock", "ours"):
            good, made = counts[reader]
            share = 100 * good / made if made else 0.0
            label = title if reader == "stock" else ""
            bars.append((label, share, exactness_report.of(counts[reader]), reader == "ours"))
    _draw(panel, bars, "Kills after which a run ends with the same bits, %", logarithmic=False)


_PANELS = {COVERAGE: _coverage, ERROR: _error, CUTS: _cuts, KILLS: _kills}


def chart(figures: Mapping[str, Any]) -> Figure:
    """Four panels; that of a part which is missing stays empty."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle("red: tf-lans; grey: stock Model Garden or Keras", fontsize=10)
    panels = figure.subfigures(2, 2, height_ratios=(1, 1.2), hspace=0.04)
    # The two with few bars above those with many.
    places = {COVERAGE: panels[0, 0], KILLS: panels[0, 1], ERROR: panels[1, 0], CUTS: panels[1, 1]}
    for part in PARTS:
        if part in figures:
            _PANELS[part](places[part], figures[part])
    return figure
