"""The figures of `benchmarks.exactness` as the rows of a table."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import provenance

COVERAGE, ERROR, CUTS, KILLS = PARTS = ("coverage", "error", "cuts", "kills")
MISSING = "not measured"
KILLED = ("ours", "stock")  # whose kills, in that part

_PAPER = "arXiv 2006.13484"
_OPTIMIZERS = {"Algorithm 1": "LAMB", "Algorithm 2": "LANS"}

# What picks parts in a command, and asks for them anew.
_CHOICE = re.compile(r" --(?:only(?:=| )\S+|(?:no)?again(?:=\S+)?)(?!\S)")

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
        title = (
            f"float32 {_OPTIMIZERS[formula]} ({formula}): relative distance to float64 after "
            f"{part['steps']} updates"
        )
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
        title = (
            f"weights without key biases, {part['global_batch_size']} rows cut into {cut} against "
            f"whole: relative distance after {part['steps']} updates"
        )
        rows.append((title, "; ".join(cells[False]) or "cannot", "; ".join(cells[True])))
    return rows


def _key_biases(part: Figures) -> str:
    most = max(row["with_key_biases"] for row in part["rows"] if row["is_ours"])
    stock = max(row["with_key_biases"] for row in part["rows"] if not row["is_ours"])
    return (
        "Those of a cut batch are without the attention's key biases. Softmax ignores those, so "
        "that their gradient is rounding alone, which LANS scales to whole steps; with them our "
        f"largest difference is {scientific(most)}, stock's {scientific(stock)}. The batch has "
        f"{part['global_batch_size']} rows; stock's difference shrinks as it grows."
    )


_DISTANCES = (
    "Relative distances are L2 norms over all weights together, divided by how far the reference "
    f"moved from its initial weights. Algorithms 1 and 2 are those of {_PAPER}."
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


def _in_runs(counts: tuple[int, int], rows: Sequence[Figures]) -> str:
    # A row is a run, which may be killed more than once.
    return of(counts) + (f", in {len(rows)} run{'s' * (len(rows) > 1)}" if counts[1] else "")


def _kills(part: Figures) -> list[Row]:
    rows = []
    for workers, title in ((1, "one worker"), (2, "two workers")):
        counts = survived(part, workers)
        of_stock, of_ours = (
            [row for row in part[name] if row["workers"] == workers] for name in ("stock", "ours")
        )
        stock = _in_runs(counts["stock"], of_stock)
        ends = collections.Counter(row["restarted"] for row in of_stock)
        for end in ("crashed", "hung"):
            if ends[end]:
                stock += f"; {ends[end]} restart{'s' if ends[end] > 1 else ''} {end}"
        ours = _in_runs(counts["ours"], of_ours)
        planned = part["planned_kills"][str(workers)]
        if 0 < counts["ours"][1] < planned:
            ours += f", made so far; the sweep has {planned}"
        rows.append((f"kills after which a restarted run ends bit-equal, {title}", stock, ours))
    return rows


_PARTS = {COVERAGE: _coverage, ERROR: _error, CUTS: _cuts, KILLS: _kills}


def rows(figures: Figures) -> list[Row]:
    """What was measured, stock's figure, ours, of the parts that there are."""
    return [row for part in PARTS if part in figures for row in _PARTS[part](figures[part])]


def commands(figures: Figures) -> list[str]:
    """What measures each part as it was measured, a command for those of the same settings.

    Parts may have been measured one by one, and some again.
    """
    parts: dict[str, list[str]] = {}
    for part in PARTS:
        if part in figures:
            settings = _CHOICE.sub("", figures[part]["command"])
            parts.setdefault(settings, []).append(part)
    return [
        settings if len(names) == len(PARTS) else f"{settings} --only={','.join(names)}"
        for settings, names in parts.items()
    ]


def headings(figures: Figures) -> list[Figures]:
    """That of each part, and in its place those of its kills."""
    found: list[Figures] = []
    for part in filter(figures.__contains__, PARTS):
        kills = [row for name in KILLED for row in figures[part].get(name, [])]
        # Results from before kills had headings of their own have one for all.
        found += [row for row in kills if "date" in row] or [figures[part]]
    return found


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(figures: Figures) -> str:
    """The report as Markdown."""
    lines = ["| | Model Garden, Keras | tf-lans |", "| --- | --- | --- |"]
    lines += [_markdown(row) for row in rows(figures)]
    if ERROR in figures or CUTS in figures:
        lines += ["", _DISTANCES]
    if CUTS in figures:
        lines += ["", _key_biases(figures[CUTS])]
    measured = headings(figures)
    if measured:
        code = provenance.commits(measured)
        facts = [provenance.versions(measured), *filter(None, [code])]
        lines += ["", f"Measured {provenance.dates(measured)} with {', '.join(facts)}."]
    return "\n".join(lines) + "\n"
