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
# A machine whose speed changed by more between the first third of the rounds and the last was
# another one by then.
_MOST_DRIFT = 0.2

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's figures; seconds, and bytes beyond what the process took before.

    Attributes:
        first: the time to the end of the first update, tracing and compiling included.
        updates: the time of each update, one a round.
        peak_bytes: the most memory it held while compiling and updating.
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


def _ends(group: Mapping[str, Any]) -> tuple[float, float]:
    """The reference's median milliseconds in the first third of the rounds and in the last."""
    rounds = group[REFERENCE]["all_ms"]
    third = max(1, len(rounds) // 3)
    return statistics.median(rounds[:third]), statistics.median(rounds[-third:])


def has_drifted(group: Mapping[str, Any]) -> bool:
    """Whether the machine changed its speed while the group was measured."""
    first, last = _ends(group)
    return abs(last / first - 1) > _MOST_DRIFT


def drifts(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each group in which the machine changed its speed."""
    found = []
    for number, group in enumerate(groups, start=1):
        if has_drifted(group):
            first, last = _ends(group)
            found.append(
                f"Group {number}: {REFERENCE}, over which the others are, took {first:.0f} ms in "
                f"the first third of the rounds and {last:.0f} ms in the last. The machine changed "
                "speed within this group; its ratios are to be measured again."
            )
    return found


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
    lines += ["", *drifts(figures["groups"])] if drifts(figures["groups"]) else []
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


def _quartiles(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    within = [one / other for one, other in zip(ones, others, strict=True)]
    if len(within) < 2:  # `statistics` has none
        return within[0], within[0]
    first, _, third = statistics.quantiles(within, n=4, method="inclusive")
    return first, third


def chart(figures: Mapping[str, Any]) -> Figure:
    """Bars of the update over that of our LANS in the same group, shortest first.

    The median of the rounds, with their quartiles.
    """
    ratios: dict[str, float] = {}
    quartiles: dict[str, tuple[float, float]] = {}
    drifted = any(map(has_drifted, figures["groups"]))
    for group in figures["groups"]:
        for name, row in group.items():
            title = f"{name} *" if has_drifted(group) and name != REFERENCE else name
            if name == FLOOR or "not_measured" in row or title in ratios:
                continue
            ratios[title] = row["over_lans"]["median"]
            quartiles[title] = _quartiles(row["all_ms"], group[REFERENCE]["all_ms"])
    names = sorted(ratios, key=ratios.__getitem__, reverse=True)
    figure = Figure(figsize=(8, 0.4 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:red" if name.startswith("tf_lans") else "tab:gray" for name in names]
    whiskers = [
        [ratios[name] - quartiles[name][0] for name in names],
        [quartiles[name][1] - ratios[name] for name in names],
    ]
    values = [ratios[name] for name in names]
    bars = axes.barh(names, values, xerr=whiskers, color=colors, capsize=2)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    remark = "\n* the machine changed speed meanwhile" if drifted else ""
    axes.set_xlabel(f"update time over {REFERENCE}: median, quartiles of rounds{remark}")
    axes.set_title(f"{figures['model']}, float32, {figures['processor']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
