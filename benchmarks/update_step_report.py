"""Updates to ratios within rounds, a table and a chart."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks import turns
from benchmarks.update_contenders import FLOOR, TRIAD_BYTES
from tfrecords.errors import UserError

REFERENCE = "tf_lans LANS, Keras 3"
STATE_BYTES = 16  # x, m, v and g
_FLOOR_BYTES = 28

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's figures; seconds, and bytes beyond what the process took before.

    Attributes:
        first: the time to the end of the first update, tracing and compiling included.
        updates: the time of each update, one a round.
        peak_bytes: the most memory it held while updating.
    """

    first: float
    updates: list[float]
    peak_bytes: int


def rows(group: Mapping[str, Measured | str], parameters: int) -> dict[str, Row]:
    """The figures of one group, as ratios within its rounds to its own floor and its own LANS.

    Args:
        group: by name, the figures, or why there are none.
        parameters: of the model.

    Raises:
        UserError: there are none of the floor or of LANS, so nothing to hold the others against.
    """
    for name in (FLOOR, REFERENCE):
        if isinstance(group[name], str):
            raise UserError(
                f"{name} could not be measured, to which all are compared: {group[name]}"
            )
    floor, reference = group[FLOOR], group[REFERENCE]
    assert isinstance(floor, Measured) and isinstance(reference, Measured)
    scale = _FLOOR_BYTES * parameters / TRIAD_BYTES
    least = [scale * each for each in floor.updates]

    def row(measured: Measured) -> Row:
        best = min(measured.updates)
        return {
            "first_s": measured.first,
            "median_ms": 1e3 * statistics.median(measured.updates),
            "best_ms": 1e3 * best,
            "over_lans": turns.ratios(measured.updates, reference.updates),
            "best_over_lans": best / min(reference.updates),
            "over_floor": turns.ratios(measured.updates, least),
            "best_over_floor": best / min(least),
            "peak_over_state": measured.peak_bytes / (STATE_BYTES * parameters),
            "all_ms": _milliseconds(measured.updates),
        }

    return {
        name: {"not_measured": each} if isinstance(each, str) else row(each)
        for name, each in group.items()
        if name != FLOOR
    } | {
        FLOOR: {
            "bandwidth_gb_per_s": TRIAD_BYTES / min(floor.updates) / 1e9,
            "best_ms": 1e3 * min(least),
            "median_ms": 1e3 * statistics.median(least),
            "all_ms": _milliseconds(least),
        }
    }


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [round(1e3 * each, 3) for each in seconds]


def over_lans(row: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, float]:
    """`turns.ratios` of a row to LANS; results without them have the rounds."""
    return row.get("over_lans") or turns.ratios(row["all_ms"], group[REFERENCE]["all_ms"])


_WIDTH = 36


def table(figures: Mapping[str, Any]) -> str:
    """The report for a reader: every group, with its own floor."""
    lines = [
        figures["processor"],
        f"{figures['date']}  {figures['command']}",
        *("  ".join(f"{name} {each}" for name, each in found.items())
          for found in (figures["versions"], *figures["peers"].values())),
        f"{figures['model']}: {figures['blocks']} blocks, {figures['parameters']:,} parameters, "
        f"float32; {figures['rounds']} rounds, interleaved; ratios are medians of those within "
        "rounds",
    ]  # fmt: skip
    titles = ("first s", "median ms", "best ms", "/LANS", "best/LANS", "/floor", "best/floor")
    for group in figures["groups"]:
        floor = group[FLOOR]
        lines += [
            "",
            f"triad {floor['bandwidth_gb_per_s']:.1f} GB/s; floor {floor['best_ms']:.1f} ms "
            f"(median {floor['median_ms']:.1f}), {_FLOOR_BYTES} bytes a parameter",
            f"{'':{_WIDTH}}" + "".join(f"{title:>12}" for title in (*titles, "peak/state")),
        ]
        lines += [_line(name, row) for name, row in group.items() if name != FLOOR]
    absent = figures["not_measured"].items()
    lines += [""] * bool(absent) + [
        f"{name:{_WIDTH}}  not measured here: {reason}" for name, reason in absent
    ]
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any]) -> str:
    if "not_measured" in row:
        return f"{name:{_WIDTH}}  not measured: {row['not_measured']}"
    cells = [f"{row[key]:.1f}" for key in ("first_s", "median_ms", "best_ms")]
    for base in ("lans", "floor"):
        cells += [f"{row[f'over_{base}']['median']:.2f}", f"{row[f'best_over_{base}']:.2f}"]
    cells.append(f"{row['peak_over_state']:.2f}")
    return f"{name:{_WIDTH}}" + "".join(f"{cell:>12}" for cell in cells)


def chart(figures: Mapping[str, Any]) -> Figure:
    """Bars of the update over that of our LANS in the same group, shortest first."""
    ratios: dict[str, float] = {}
    for group in figures["groups"]:
        for name, row in group.items():
            if name != FLOOR and "not_measured" not in row:
                ratios.setdefault(name, over_lans(row, group)["median"])
    names = sorted(ratios, key=ratios.__getitem__, reverse=True)
    figure = Figure(figsize=(8, 0.4 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:red" if name.startswith("tf_lans") else "tab:gray" for name in names]
    bars = axes.barh(names, [ratios[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"update time over {REFERENCE} (median of rounds)")
    axes.set_title(f"{figures['model']}, float32, {figures['processor']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
