"""Curves over steps: thinned, smoothed, and drawn over one another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

MAX_POINTS = 2000
# A smoothed point is the mean of this share of the curve.
_SMOOTHED_SHARE = 50
_LINE_STYLES = ("-", "--", "-.", ":")
_COLORS = 10
_FEW = 30

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's line in a chart.

    Attributes:
        name: in the legend.
        points: step and value.
        marks: step and value of what is measured now and then, such as evaluations.
        level: a height to compare with, drawn as a dotted line, or None.
    """

    name: str
    points: Points
    marks: Points = ()
    level: float | None = None


def canvas() -> tuple[Figure, Any]:
    """A figure as wide as a page and its axes."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    return figure, figure.subplots()


def finish(axes: Any, label: str, log: bool = False) -> None:
    """Labels the axes and adds a legend where there is more than one name."""
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_yscale("log" if log else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()


def overlay(
    curves: Sequence[Curve], label: str, *, log: bool = False, smooth: bool = True
) -> Figure:
    """All curves in one chart, each in its own colour and dashes: equal ones stay visible.

    Args:
        curves: the runs; one without points is left out, and the same place in the sequence has
            the same look in every chart.
        label: of the vertical axis.
        log: whether that axis is logarithmic.
        smooth: whether to draw the running mean over the pale curve itself.
    """
    figure, axes = canvas()
    for number, curve in enumerate(curves):
        if not curve.points:
            continue
        style: dict[str, Any] = {"color": f"C{number % _COLORS}", "linewidth": 1.2}
        style["linestyle"] = _LINE_STYLES[number % len(_LINE_STYLES)]
        steps, values = thinned(curve.points)
        if smooth:
            axes.plot(steps, values, **{**style, "linewidth": 0.6}, alpha=0.25)
            values = running_mean(values, max(1, len(values) // _SMOOTHED_SHARE))
        marker = "." if len(steps) < _FEW else ""
        axes.plot(steps, values, **style, marker=marker, label=curve.name)
        if curve.marks:
            axes.plot(*zip(*curve.marks, strict=True), "o", color=style["color"], markersize=4)
        if curve.level is not None:
            axes.axhline(curve.level, color=style["color"], linestyle=":", linewidth=0.8)
    finish(axes, label, log)
    return figure


def thinned(points: Points, max_points: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` points: each the mean value of a run of points, at its last step.

    Args:
        points: step and value, by step.
        max_points: at least 1.

    Returns:
        Steps and values, float64, of equal length.
    """
    steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
    if len(steps) <= max_points:
        return steps, values
    size = -(-len(steps) // max_points)
    starts = np.arange(0, len(steps), size)
    ends = np.minimum(starts + size, len(steps))
    return steps[ends - 1], np.add.reduceat(values, starts) / (ends - starts)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values up to each; at the beginning of those there are."""
    # Each window is summed by itself: a running total would carry a spike's rounding ever after.
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
