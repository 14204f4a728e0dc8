"""Measurements to figures, ratios, targets, a table and a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import data_reading, turns
from benchmarks.data_contenders import CONTENDERS, DYNAMIC, MODEL_GARDEN, STORED
from benchmarks.data_turns import Key, Measured, Read

Rows = list[dict[str, Any]]

RATE_METHOD = (
    "megabytes (10^6) of text, both lengths together, over the seconds of the command less those "
    "of the same command on next to no text in the same round, or in the last one that measured "
    "it, but at least a hundredth of them; the median over the rounds; ratios are medians of those "
    "within the rounds that both took part in; text_bytes beyond the text's own are its documents "
    "over again"
)
# Shorter than its noise, what a command takes beyond its start says nothing.
_LEAST_SHARE = 0.01
_TARGETS = {
    "stored_over_model_garden": 20.0,
    "dynamic_over_model_garden": 100.0,
    "stored_all_cores_over_one": 1.8,
    "dynamic_all_cores_over_one": 1.8,
    "reading_stored_over_model_garden": 5.0,
    "reading_dynamic_over_model_garden": 10.0,
}


def building(measured: Mapping[Key, Measured | str]) -> Rows:
    """A row for each contender and number of cores."""
    rows = []
    for (name, cores), each in measured.items():
        row: dict[str, Any] = {"contender": name, "cores": cores}
        row["makes"] = CONTENDERS[name].makes
        row |= {"not_measured": each} if isinstance(each, str) else _build_row(each, cores)
        rows.append(row)
    return _rated(rows)


def _build_row(measured: Measured, cores: int) -> dict[str, Any]:
    return {
        "rounds": len(measured.runs),
        "text_bytes": measured.text_bytes,
        "startup_bytes": measured.startup_bytes,
        "output_bytes": measured.output_bytes,
        "startup_s": statistics.median(each.seconds for each in measured.startups),
        "median_s": statistics.median(each.seconds for each in measured.runs),
        "peak_bytes": max(each.peak_bytes for each in measured.runs),
        "startup_peak_bytes": max(each.peak_bytes for each in measured.startups),
        "all_s": [round(each.seconds, 6) for each in measured.runs],
        "all_startup_s": [round(each.seconds, 6) for each in measured.startups],
    }


def _rated(rows: Rows) -> Rows:
    """The rows with the rates that follow from their seconds, and those over Model Garden's."""
    found = [row if "not_measured" in row else row | _rates(row) for row in rows]
    base = _find(found, MODEL_GARDEN, 1)
    for row in found:
        if base and "all_mb_per_s" in row:
            row |= _over_model_garden(_ratios(row, base, "all_mb_per_s", 1 / row["cores"]))
    return found


def _rates(row: dict[str, Any]) -> dict[str, Any]:
    seconds, starts = row["all_s"], row["all_startup_s"]
    # Slow contenders are measured in some rounds alone, and so are starts: a round without one has
    # that of the last before.
    last = [starts[number * len(starts) // len(seconds)] for number in range(len(seconds))]
    megabytes = (row["text_bytes"] - row["startup_bytes"]) / 1e6
    rates = [
        megabytes / max(each - start, _LEAST_SHARE * each)
        for each, start in zip(seconds, last, strict=True)
    ]
    return {
        "all_mb_per_s": rates,
        "mb_per_s": statistics.median(rates),
        "best_mb_per_s": max(rates),
        "mb_per_s_per_core": statistics.median(rates) / row["cores"],
    }


def _ratios(
    of: dict[str, Any], to: dict[str, Any], name: str, scale: float = 1.0
) -> dict[str, float]:
    """`turns.ratios` of the rounds that both took part in."""
    count = min(len(of[name]), len(to[name]))

    def shared(values: list[float]) -> list[float]:
        return [values[-(-number * len(values) // count)] for number in range(count)]

    return turns.ratios([scale * each for each in shared(of[name])], shared(to[name]))


def _over_model_garden(found: dict[str, float]) -> dict[str, Any]:
    spread = [found["lowest"], found["highest"]]
    return {"over_model_garden": found["median"], "over_model_garden_range": spread}


def reading(measured: Mapping[Key, Read | str]) -> Rows:
    """A row for each reader and number of cores, ratios among those of the same number."""
    rows = []
    for (name, cores), each in measured.items():
        row: dict[str, Any] = {"reader": name, "cores": cores}
        if isinstance(each, str):
            row["not_measured"] = each
        else:
            row["examples_per_s"] = statistics.median(each.rates)
            row["best_examples_per_s"] = max(each.rates)
            row["host_consumption"] = row["examples_per_s"] / data_reading.HOST_CONSUMES
            row["all_examples_per_s"] = [round(rate) for rate in each.rates]
        rows.append(row)
    _read_ratios(rows)
    return rows


def _read_ratios(rows: Rows) -> None:
    for row in rows:
        base = _find(rows, data_reading.MODEL_GARDEN, row["cores"])
        if base and "examples_per_s" in row:
            row |= _over_model_garden(_ratios(row, base, "all_examples_per_s"))


def _find(rows: Rows, name: str, cores: int) -> dict[str, Any] | None:
    for row in rows:
        if name in (row.get("contender"), row.get("reader")) and row["cores"] == cores:
            return None if "not_measured" in row else row
    return None


def conclusions(rows: Rows, readers: Rows, extrapolate_to: tuple[float, int]) -> dict[str, Any]:
    """The fastest peer, the targets, and what a large text would take."""
    peers = [row for row in rows if not CONTENDERS[row["contender"]].is_ours and "mb_per_s" in row]
    alone = [row for row in peers if row["cores"] == 1]
    fastest = max(alone, key=lambda row: row["mb_per_s"], default=None)
    ours = {"stored": _find(rows, STORED, 1), "dynamic": _find(rows, DYNAMIC, 1)}
    return {
        "fastest_peer": fastest
        and {
            "contender": fastest["contender"],
            "makes": fastest["makes"],
            "mb_per_s": fastest["mb_per_s"],
            **{
                f"{name}_over_it": _ratios(row, fastest, "all_mb_per_s")["median"]
                for name, row in ours.items()
                if row
            },
        },
        "targets": _targets(rows, readers),
        "extrapolation": _extrapolation(rows, *extrapolate_to),
    }


def _targets(rows: Rows, readers: Rows) -> dict[str, Any]:
    most = max(row["cores"] for row in rows)

    def ratio(
        of: dict[str, Any] | None, to: dict[str, Any] | None, name: str = "all_mb_per_s"
    ) -> dict[str, float] | None:
        return _ratios(of, to, name) if of and to else None

    def reader_ratio(name: str) -> dict[str, float] | None:
        rows = (_find(readers, each, 1) for each in (name, data_reading.MODEL_GARDEN))
        return ratio(*rows, "all_examples_per_s")

    base = _find(rows, MODEL_GARDEN, 1)
    stored, dynamic = (_find(rows, name, 1) for name in (STORED, DYNAMIC))
    found = {
        "stored_over_model_garden": ratio(stored, base),
        "dynamic_over_model_garden": ratio(dynamic, base),
        "stored_all_cores_over_one": ratio(_find(rows, STORED, most), stored),
        "dynamic_all_cores_over_one": ratio(_find(rows, DYNAMIC, most), dynamic),
        "reading_stored_over_model_garden": reader_ratio(data_reading.STORED),
        "reading_dynamic_over_model_garden": reader_ratio(data_reading.DYNAMIC),
    }
    return {
        name: {
            "target": _TARGETS[name],
            "measured": each and each["median"],
            "range": each and [each["lowest"], each["highest"]],
            "met": each and each["median"] >= _TARGETS[name],
        }
        for name, each in found.items()
    }


def verdict(target: dict[str, Any]) -> str:
    """In words; "" where nothing was measured."""
    return {True: "met", False: "missed"}.get(target["met"], "")


def _extrapolation(rows: Rows, num_bytes: float, cores: int) -> dict[str, Any]:
    """From the rate per core on all cores."""
    most = max(row["cores"] for row in rows)
    hours = {}
    for row in rows:
        name = row["contender"]
        if row["cores"] != most or "mb_per_s" not in row:
            continue
        hours[name] = num_bytes / 1e6 / (row["mb_per_s_per_core"] * cores) / 3600
    return {
        "note": f"EXTRAPOLATED, not measured: from the rate per core on {most} cores, as if it "
        f"held on {cores} and for {num_bytes / 1e9:g} GB",
        "text_bytes": num_bytes,
        "cores": cores,
        "hours": hours,
    }


def table(figures: dict[str, Any]) -> str:
    """The report for a reader."""
    text, host = figures["text"], figures["host"]
    lines = ["--quick: it runs; its figures say nothing"] if figures["is_quick"] else []
    lines += [
        figures["processor"],
        f"{figures['date']}  {figures['command']}",
        "  ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"text: {text['source']}, {text['bytes'] / 1e6:.1f} MB in {text['documents']:,} documents",
        f"lengths {figures['seq_lengths']}; rates without start-up; memory: "
        + figures["method"]["memory"],
        "",
        f"{'':24}{'cores':>6}{'text MB':>9}{'rounds':>7}{'start s':>9}{'MB/s':>8}{'/core':>8}"
        f"{'/MG':>8}{'':17}{'peak GB':>9}  makes",
    ]
    lines += [_build_line(row) for row in figures["building"]]
    if figures["fastest_peer"]:
        fastest = figures["fastest_peer"]
        ratios = [
            f"{key.removesuffix('_over_it')} {value:.1f} times it"
            for key, value in fastest.items()
            if key.endswith("_over_it")
        ]
        lines += [
            f"fastest peer: {fastest['contender']} ({fastest['makes']}); ours: {', '.join(ratios)}"
        ]
    lines += ["", f"{'':36}{'cores':>6}{'examples/s':>12}{'/MG':>8}{'':17}{'/host':>8}"]
    lines += [_read_line(row) for row in figures["reading"]]
    lines += [f"one 8-GPU host consumes {host['examples_per_s']:,.0f}: {host['source']}", ""]
    lines += [_target_line(name, each) for name, each in figures["targets"].items()]
    extrapolation = figures["extrapolation"]
    lines += ["", extrapolation["note"] + ":"]
    for name, hours in extrapolation["hours"].items():
        lines.append(f"  {name:24}{hours:9.2f} hours")
    return "\n".join(lines)


def _build_line(row: dict[str, Any]) -> str:
    start = f"{row['contender']:24}{row['cores']:6}"
    if "not_measured" in row:
        return f"{start}  not measured: {row['not_measured']}"
    return (
        f"{start}{row['text_bytes'] / 1e6:9.1f}{row['rounds']:7}{row['startup_s']:9.1f}"
        f"{row['mb_per_s']:8.3f}{row['mb_per_s_per_core']:8.3f}{_ratio(row)}"
        f"{row['peak_bytes'] / 1e9:9.2f}  {row['makes']}"
    )


def _read_line(row: dict[str, Any]) -> str:
    start = f"{row['reader']:36}{row['cores']:6}"
    if "not_measured" in row:
        return f"{start}  not measured: {row['not_measured']}"
    return f"{start}{row['examples_per_s']:12,.0f}{_ratio(row)}{row['host_consumption']:8.1f}"


def _ratio(row: dict[str, Any]) -> str:
    """Over Model Garden, the median of the rounds, the lowest and the highest."""
    if "over_model_garden" not in row:
        return f"{'':25}"
    low, high = row["over_model_garden_range"]
    spread = f"({low:.1f} to {high:.1f})"
    return f"{row['over_model_garden']:8.1f} {spread:16}"


def _target_line(name: str, each: dict[str, Any]) -> str:
    found = "not measured"
    if each["measured"] is not None:
        low, high = each["range"]
        found = f"{each['measured']:.2f}, {low:.2f} to {high:.2f}"
    return f"{name.replace('_', ' '):36} target {each['target']:6g}  {found}  {verdict(each)}"


def chart(figures: dict[str, Any]) -> Figure:
    """Bars on logarithmic axes: text per second and core, and examples read per second."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2)
    built = [row for row in figures["building"] if row["cores"] == 1 and "mb_per_s" in row]
    _bars(above, {row["contender"]: row["mb_per_s"] for row in built}, "%.3g")
    above.set_xlabel("MB of text per second on one core, lengths 128 and 512")
    above.set_title(figures["processor"], fontsize=10)
    read = [row for row in figures["reading"] if row["cores"] == 1 and "examples_per_s" in row]
    _bars(below, {row["reader"]: row["examples_per_s"] for row in read}, "{:,.0f}")
    below.set_xlabel("examples of length 128 read per second on one core, batches of 512")
    below.axvline(figures["host"]["examples_per_s"], color="black", linestyle="--", linewidth=1)
    below.annotate(
        "8 A100 consume",
        (figures["host"]["examples_per_s"], 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=8,
    )
    return figure


def _bars(axes: Axes, values: Mapping[str, float], style: str) -> None:
    names = sorted(values, key=values.__getitem__)
    ours = ("tf-lans", "tfrecords")
    colors = ["tab:red" if name.startswith(ours) else "tab:gray" for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colors)
    axes.bar_label(bars, fmt=style, padding=3)
    if names:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
