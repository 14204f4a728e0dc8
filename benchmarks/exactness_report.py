"""The figures of `benchmarks.exactness` as the rows of a table."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

COVERAGE, ERROR, CUTS, KILLS = PARTS = ("coverage", "error", "cuts", "kills")
MISSING = "not measured"

Figures = Mapping[str, Any]
Row = tuple[str, str, str]


def percent(share: float) -> str:
    """A share, rounded down, so that only all is 100 %.

    Example:
        >>> percent(0.9999), percent(1.0)
        ('99.9 %', '100 %')
    """
    per_mille = int(1000 * share + 1e-9)
    return f"{per_mille / 10:g} %"


def scientific(value: float) -> str:
    """Two figures and a power of ten; exactly zero is 0.

    Example:
        >>> scientific(3.14e-7), scientific(0.0)
        ('3.1e-7', '0')
    """
    if not value:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def drawn(reader: Figures) -> str:
    """What one reader drew in one case."""
    if "refused" in reader:
        return "refused before training"
    share = percent(reader["mean_share"])
    if reader["each_exactly_once"]:
        return f"{share}, each once"
    low, high = percent(reader["lowest_share"]), percent(reader["highest_share"])
    return f"{share} ({low} to {high})"


def _coverage(part: Figures) -> list[Row]:
    return [
        (
            f"of {row['examples']:,} examples, an epoch draws: {row['case']}",
            drawn(row["stock"]),
            drawn(row["ours"]),
        )
        for row in part["cases"]
    ]


def _error(part: Figures) -> list[Row]:
    rows = []
    for formula in dict.fromkeys(row["formula"] for row in part["methods"]):
        cells: dict[bool, list[str]] = {True: [], False: []}
        for row in part["methods"]:
            if row["formula"] == formula:
                remark = f" ({row['remark']})" if row["remark"] else ""
                error = scientific(row["relative_l2_error"])
                cells[row["is_ours"]].append(f"{row['method']}: {error}{remark}")
        title = f"float32 against {formula} in float64 after {part['steps']} updates"
        rows.append((title, "; ".join(cells[False]) or "none", "; ".join(cells[True])))
    return rows


def _cuts(part: Figures) -> list[Row]:
    rows = []
    for cut in dict.fromkeys(row["cut"] for row in part["rows"]):
        cells: dict[bool, list[str]] = {True: [], False: []}
        for row in part["rows"]:
            if row["cut"] == cut:
                optimizer = row["system"].rpartition(" ")[2]
                difference = scientific(row["relative_l2_difference"])
                cells[row["is_ours"]].append(f"{optimizer} {difference}")
        title = f"weights, batch cut into {cut} against whole, after {part['steps']} updates"
        rows.append((title, "; ".join(cells[False]) or "cannot", "; ".join(cells[True])))
    return rows


def _key_biases(part: Figures) -> str:
    most = max(row["with_key_biases"] for row in part["rows"] if row["is_ours"])
    stock = max(row["with_key_biases"] for row in part["rows"] if not row["is_ours"])
    return (
        "The weights are without the attention's key biases. Softmax ignores those, so that their "
        "gradient is rounding alone, which LANS scales to whole steps; with them our largest "
        f"difference is {scientific(most)}, stock's {scientific(stock)}. The batch has "
        f"{part['global_batch_size']} rows; stock's difference shrinks as it grows."
    )


def survived(part: Figures, workers: int) -> dict[str, tuple[int, int]]:
    """For stock and ours: how many kills were outlived to the bit, of how many made."""
    stock = [row for row in part["stock"] if row["workers"] == workers]
    ours = [row for row in part["ours"] if row["workers"] == workers]
    return {
        "stock": (sum(row["bit_equal"] for row in stock), len(stock)),
        "ours": (
            sum(row["kills"] for row in ours if row["bit_equal"]),
            sum(row["kills"] for row in ours),
        ),
    }


def of(counts: tuple[int, int]) -> str:
    """As "n of N"."""
    return f"{counts[0]} of {counts[1]}" if counts[1] else MISSING


def _kills(part: Figures) -> list[Row]:
    rows = []
    for workers, title in ((1, "one worker"), (2, "two workers")):
        counts = survived(part, workers)
        stock = of(counts["stock"])
        ends = collections.Counter(
            row["restarted"] for row in part["stock"] if row["workers"] == workers
        )
        for end in ("crashed", "hung"):
            if ends[end]:
                stock += f"; {ends[end]} restart{'s' if ends[end] > 1 else ''} {end}"
        ours = of(counts["ours"])
        planned = part["planned_kills"][str(workers)]
        if 0 < counts["ours"][1] < planned:
            ours += f" made so far; the sweep has {planned}"
        rows.append((f"kills after which a restarted run ends bit-equal, {title}", stock, ours))
    return rows


_PARTS = {COVERAGE: _coverage, ERROR: _error, CUTS: _cuts, KILLS: _kills}


def rows(figures: Figures) -> list[Row]:
    """What was measured, stock's figure, ours, of the parts that there are."""
    return [row for part in PARTS if part in figures for row in _PARTS[part](figures[part])]


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(figures: Figures) -> str:
    """The report as Markdown."""
    lines = ["| | Model Garden, Keras | tf-lans |", "| --- | --- | --- |"]
    lines += [_markdown(row) for row in rows(figures)]
    if CUTS in figures:
        lines += ["", _key_biases(figures[CUTS])]
    measured = [figures[part] for part in PARTS if part in figures]
    dates = sorted(part["date"][:10] for part in measured)
    if measured:
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        versions = ", ".join(f"{name} {each}" for name, each in measured[0]["versions"].items())
        lines += ["", f"Measured {span} with {versions}."]
    return "\n".join(lines) + "\n"
