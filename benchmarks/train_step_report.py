"""Turns to rates, ratios within rounds, targets, a table and a chart."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks import turns
from benchmarks.train_step_contenders import (
    CONTENDERS,
    FOUR,
    MICRO_BATCHES,
    MODEL_GARDEN,
    OURS,
    OURS_BFLOAT16,
    SIXTEEN,
    STOCK,
    STOCK_BFLOAT16,
    Contender,
)

Rows = list[dict[str, Any]]
THROUGHPUT, MEMORY = "throughput", "memory"
# Five rounds, the fewest that there are, have an interval of nearly that of `turns.CONFIDENCE`; one
# of less says nothing.
_LEAST_CONFIDENCE = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """Some steps without a pause.

    Attributes:
        steps: how many.
        seconds: of all of them.
        loss: for a look whether they train: the mean of the steps, or the last one's.
        peak_bytes: the most memory meanwhile, beyond what the process held before its model.
    """

    steps: int
    seconds: float
    loss: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's figures.

    Attributes:
        contender: who.
        first_s: seconds to the end of its first step, tracing and compiling included.
        parameters: of its model.
        turns: a turn a round.
    """

    contender: Contender
    first_s: float
    parameters: int
    turns: list[Turn]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a ratio of two contenders is to reach.

    Attributes:
        comparison: in which it is measured.
        what: "throughput", examples per second, or "memory", where less is better.
        of: who.
        over: to whom.
        bound: the least ratio, the largest of memory.
        needs_bfloat16: whether it is meant for CPUs with such instructions only.
    """

    comparison: str
    what: str
    of: Contender
    over: Contender
    bound: float
    needs_bfloat16: bool = False

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.what}: {self.of.name} / {self.over.name}"


_TARGETS = (
    Target(comparison=MODEL_GARDEN, what=THROUGHPUT, of=OURS, over=STOCK, bound=1.0),
    Target(
        comparison=MODEL_GARDEN,
        what=THROUGHPUT,
        of=OURS_BFLOAT16,
        over=STOCK_BFLOAT16,
        bound=1.0,
    ),
    Target(
        comparison=MODEL_GARDEN,
        what=THROUGHPUT,
        of=OURS_BFLOAT16,
        over=STOCK,
        bound=2.5,
        needs_bfloat16=True,
    ),
    Target(comparison=MICRO_BATCHES, what=THROUGHPUT, of=SIXTEEN, over=OURS, bound=0.95),
    # The allocators of two processes do not end up alike to the last page.
    Target(comparison=MICRO_BATCHES, what=MEMORY, of=SIXTEEN, over=FOUR, bound=1.05),
)


def rows(measured: Mapping[str, Measured | str], batch_size: int) -> Rows:
    """A row for each contender, with its throughput over that of those it is held against.

    A ratio is there in two ways: of the medians of all rounds, and the median of the ratios
    within the rounds, whose turns lay close to each other; with the least and the largest of the
    latter.

    Args:
        measured: by name, the figures, or why there are none.
        batch_size: examples of a micro-batch.
    """
    found = []
    for name, each in measured.items():
        row: dict[str, Any] = {"contender": name}
        row |= {"not_measured": each} if isinstance(each, str) else _row(each, batch_size)
        found.append(row)
    for row in found:
        if "not_measured" not in row:
            bases = (_find(found, base) for base in CONTENDERS[row["contender"]].bases)
            row["over"] = {base["contender"]: ratios(row, base) for base in bases if base}
    return found


def _row(measured: Measured, batch_size: int) -> dict[str, Any]:
    examples = batch_size * measured.contender.micro_batches
    rates = [turn.steps / turn.seconds for turn in measured.turns]
    return {
        "parameters": measured.parameters,
        "first_s": measured.first_s,
        "steps_per_turn": measured.turns[0].steps,
        "steps_per_s": statistics.median(rates),
        "best_steps_per_s": max(rates),
        "examples_per_s": examples * statistics.median(rates),
        "peak_bytes": max(turn.peak_bytes for turn in measured.turns),
        "loss": measured.turns[-1].loss,
        "all_examples_per_s": [examples * rate for rate in rates],
    }


def _find(found: Rows, contender: Contender) -> dict[str, Any] | None:
    for row in found:
        if row["contender"] == contender.name and "not_measured" not in row:
            return row
    return None


def ratios(row: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """The throughput of one row over that of another."""
    return turns.ratios(row["all_examples_per_s"], base["all_examples_per_s"])


def targets(found: Rows, comparison: str, has_bfloat16: bool) -> list[dict[str, Any]]:
    """What a comparison is to reach, what it reached, and whether that is enough.

    Throughput is enough, or too little, where the interval of the median over rounds excludes the
    bound; where the bound lies within, "met" is None as it is where nothing was measured.

    Args:
        found: the rows.
        comparison: which one they are of.
        has_bfloat16: whether the CPU has instructions for bfloat16.
    """
    return [
        _verdict(target, found, has_bfloat16)
        for target in _TARGETS
        if target.comparison == comparison
    ]


def _verdict(target: Target, found: Rows, has_bfloat16: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": target.name,
        "bound": target.bound,
        "measured": None,
        "met": None,
    }
    of, over = _find(found, target.of), _find(found, target.over)
    if of is None or over is None or (target.needs_bfloat16 and not has_bfloat16):
        return row
    if target.what == MEMORY:
        measured = of["peak_bytes"] / over["peak_bytes"]
        return row | {"measured": measured, "met": measured <= target.bound}
    rounds = zip(of["all_examples_per_s"], over["all_examples_per_s"], strict=True)
    low, high, confidence = turns.median_interval([one / other for one, other in rounds])
    met = None
    if confidence >= _LEAST_CONFIDENCE and not low <= target.bound <= high:
        met = low > target.bound
    return row | {
        "measured": ratios(of, over)["median"],
        "interval": [low, high],
        "confidence": confidence,
        "met": met,
    }


def interval(target: dict[str, Any]) -> str:
    """Of the median over rounds, with its confidence; "" where there is none."""
    if "interval" not in target:
        return ""
    low, high = target["interval"]
    return f"{low:.3f} to {high:.3f} ({100 * target['confidence']:.0f} %)"


def verdict(target: dict[str, Any]) -> str:
    """In words; "" where nothing was measured."""
    if target["measured"] is None:
        return ""
    return {True: "met", False: "missed", None: "not decided"}[target["met"]]


_COLUMNS = {
    "steps_per_turn": ("steps/turn", "{:d}", 1),
    "steps_per_s": ("steps/s", "{:.3f}", 1),
    "best_steps_per_s": ("best", "{:.3f}", 1),
    "examples_per_s": ("examples/s", "{:.2f}", 1),
    "peak_bytes": ("peak MB", "{:.0f}", 1e6),
    "first_s": ("first s", "{:.1f}", 1),
    "loss": ("loss", "{:.2f}", 1),
}
_RATIOS = ("of_medians", "median", "lowest", "highest")
_WIDTH = 56


def table(figures: dict[str, Any]) -> str:
    """The report for a reader."""
    sizes = figures["workload"]
    found = figures["contenders"]
    parameters = {row["parameters"] for row in found if "not_measured" not in row}
    instructions = ", ".join(figures["bfloat16_instructions"]) or "none"
    lines = [
        f"{figures['processor']}; instructions for bfloat16: {instructions}",
        f"{figures['date']}  {figures['command']}",
        "  ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"{figures['model']}: {sizes['layers']} layers, hidden {sizes['hidden']}, vocabulary "
        f"{sizes['vocab_size']}, {' or '.join(f'{each:,}' for each in sorted(parameters))} "
        f"parameters; batch or micro-batch {sizes['batch_size']}, length {sizes['seq_length']}, "
        f"{sizes['max_predictions']} predictions",
        f"{figures['rounds']} rounds after a warm-up, interleaved",
        "",
        " " * _WIDTH + "".join(f"{title:>12}" for title, _, _ in _COLUMNS.values()),
    ]
    lines += [_line(row) for row in found]
    title = "throughput over"
    lines += ["", f"{title:{_WIDTH}}" + "".join(f"{name:>12}" for name in _RATIOS)]
    for row in found:
        for base, each in row.get("over", {}).items():
            lines.append(f"{row['contender']}")
            cells = "".join(f"{each[name]:12.3f}" for name in _RATIOS)
            lines.append(f"{'    ' + base:{_WIDTH}}{cells}")
    return "\n".join([*lines, "", *map(_target_line, figures["targets"])])


def _line(row: dict[str, Any]) -> str:
    start = f"{row['contender']:{_WIDTH}}"
    if "not_measured" in row:
        return f"{start}  not measured: {row['not_measured']}"
    cells = (
        style.format(row[key] / unit if unit != 1 else row[key])
        for key, (_, style, unit) in _COLUMNS.items()
    )
    return start + "".join(f"{cell:>12}" for cell in cells)


def _target_line(target: dict[str, Any]) -> str:
    measured = target["measured"]
    found = "not measured" if measured is None else f"{measured:.3f}"
    word = "at most" if target["name"].startswith(MEMORY) else "at least"
    facts = [found, *filter(None, [interval(target), verdict(target)])]
    return f"{target['name']}: target {word} {target['bound']:g}, {' '.join(facts)}"


def chart(figures: dict[str, Any]) -> Figure:
    """Bars of the throughput over that of the first contender; least and largest of the rounds."""
    measured = [row for row in figures["contenders"] if "not_measured" not in row]
    figure = Figure(figsize=(9, 0.45 * len(measured) + 1.6), layout="constrained")
    axes = figure.subplots()
    for row in reversed(measured):
        each = ratios(row, measured[0])
        color = "tab:red" if CONTENDERS[row["contender"]].is_ours else "tab:gray"
        spread = [[each["median"] - each["lowest"]], [each["highest"] - each["median"]]]
        bars = axes.barh(row["contender"], each["median"], xerr=spread, color=color, capsize=3)
        axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    first = measured[0]["contender"] if measured else "none"
    axes.set_xlabel(f"examples per second over {first}")
    sizes = figures["workload"]
    axes.set_title(
        f"{figures['model']}, batch {sizes['batch_size']}, length {sizes['seq_length']}, "
        f"{figures['processor']}; {figures['rounds']} rounds",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure
