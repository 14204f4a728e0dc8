"""The figures of each benchmark's JSON as Markdown: blocks of text and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import data_report, train_step_report, turns, update_step_report
from benchmarks.update_contenders import FLOOR

Figures = Mapping[str, Any]
Blocks = list[str]

VERDICTS = (
    "A target of throughput is met, or missed, where the interval of the median over rounds "
    "excludes its bound, and not decided where the bound lies within. The interval goes from one "
    f"round's ratio to another's: the narrowest that has {100 * turns.CONFIDENCE:.0f} % "
    "confidence, or from the lowest to the highest where there are too few rounds. The confidence "
    "stands beside it."
)
_RUN = "run"  # as `benchmarks.large_batch_queue` writes it


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table.

    Args:
        columns: their titles.
        rows: their cells.
        left: how many columns, from the first, hold words; the others are right-aligned.
    """
    marks = ["---" if place < left else "---:" for place in range(len(columns))]
    lines = [columns, marks, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def not_measured(reasons: Mapping[str, str]) -> Blocks:
    """A list of those without figures, and why; no block if there is none."""
    lines = [f"- {name}: {' '.join(reason.split())}" for name, reason in reasons.items()]
    return ["Not measured here:\n\n" + "\n".join(lines)] if lines else []


def targets(
    rows: Iterable[tuple[str, float, float | None, str, str]], spread: str, at_most: str
) -> str:
    """What was to be reached, and what was.

    Args:
        rows: name, bound, what was measured, its spread, whether it is enough.
        spread: what kind of spread that is.
        at_most: how the names begin whose bound is an upper one.
    """
    cells = []
    for name, bound, measured, around, verdict in rows:
        word = "at most" if name.startswith(at_most) else "at least"
        found = "not measured" if measured is None else f"{measured:.2f}"
        cells.append((name, f"{word} {bound:g}", found, around, verdict))
    return table(("target", "bound", "measured", spread, ""), cells)


def _span(values: Sequence[float], style: str, unit: float = 1.0) -> str:
    return f"{min(values) / unit:{style}} to {max(values) / unit:{style}}"


def update_step(figures: Figures) -> Blocks:
    """Every optimizer over our LANS of its group, slowest last."""
    rows: list[tuple[float, list[str]]] = []
    reasons = dict(figures.get("not_measured", {}))
    for number, group in enumerate(figures["groups"], start=1):
        remark = ", drifted" if update_step_report.has_drifted(group) else ""
        for name, row in group.items():
            if name == FLOOR:
                continue
            if "not_measured" in row:
                reasons[name] = row["not_measured"]
                continue
            over = row["over_lans"]
            cells = [
                name,
                f"{number}{remark}",
                f"{over['median']:.2f}",
                f"{over['lowest']:.2f} to {over['highest']:.2f}",
                f"{over['of_medians']:.2f}",
                f"{row['best_over_lans']:.2f}",
                f"{row['median_ms']:.0f}",
                f"{row['over_floor']['median']:.2f}",
                f"{row['first_s']:.1f}",
                f"{row['peak_over_state']:.2f}",
            ]
            rows.append((over["median"], cells))
    columns = (
        *("time of", "group", "/ LANS, median of rounds", "lowest to highest", "of medians"),
        *("of best", "median ms", "/ floor", "first update s", "peak / state"),
    )
    return [
        f"{figures['model']}: {figures['blocks']} blocks, {figures['parameters']:,} parameters, "
        f"float32; {figures['rounds']} rounds. Over the floor: the median of the rounds.",
        table(columns, [cells for _, cells in sorted(rows)]),
        *update_step_report.drifts(figures["groups"]),
        *not_measured(reasons),
    ]


def update_step_gpu(figures: Figures) -> Blocks:
    """Every optimizer over optax's LAMB."""
    rows, reasons = [], {}
    for name, row in figures["contenders"].items():
        if row["status"] != "measured":
            reasons[name] = row["status"]
            continue
        over = row.get("median_over_optax")
        rows.append(
            [
                name,
                "" if over is None else f"{over:.2f}",
                f"{row['median_ms']:.2f}",
                _span(row["all_ms"], ".2f"),
                f"{row['median_over_floor']:.2f}",
                f"{row['compile_s']:.1f}",
                row["state_dtype"],
            ]
        )
    columns = (
        *("optimizer", "median / optax lamb", "median ms", "rounds, ms"),
        *("median / floor", "compilation s", "moments"),
    )
    return [
        f"{'' if figures['gpu'] else 'No GPU: the figures of a CPU. '}{figures['model']}: "
        f"{figures['blocks']} blocks, {figures['parameters']:,} parameters, {figures['dtype']}; "
        f"{figures['rounds']} rounds of {figures['steps']} steps.",
        table(columns, rows),
        *not_measured(reasons),
    ]


def train_step(figures: Figures) -> Blocks:
    """Examples per second, and those over Model Garden's or over the whole batch's."""
    rates, ratios, reasons = [], [], {}
    for row in figures["contenders"]:
        name = row["contender"]
        if "not_measured" in row:
            reasons[name] = row["not_measured"]
            continue
        rates.append(
            [
                name,
                f"{row['examples_per_s']:.1f}",
                _span(row["all_examples_per_s"], ".1f"),
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{row['first_s']:.1f}",
            ]
        )
        for base, each in row["over"].items():
            ratios.append(
                [
                    name,
                    base,
                    f"{each['median']:.2f}",
                    f"{each['lowest']:.2f} to {each['highest']:.2f}",
                    f"{each['of_medians']:.2f}",
                ]
            )
    sizes = figures["workload"]
    instructions = ", ".join(figures["bfloat16_instructions"]) or "none"
    return [
        f"{figures['model']}: {sizes['layers']} layers, hidden {sizes['hidden']}, vocabulary "
        f"{sizes['vocab_size']:,}; batch or micro-batch {sizes['batch_size']}, length "
        f"{sizes['seq_length']}, {sizes['max_predictions']} predictions; {figures['rounds']} "
        f"rounds. Instructions for bfloat16: {instructions}.",
        table(
            ("throughput of", "over", "median of rounds", "lowest to highest", "of medians"),
            ratios,
            left=2,
        ),
        table(("", "examples/s", "lowest to highest", "peak MB", "first step s"), rates),
        targets(
            [
                (
                    *(each["name"], each["bound"], each["measured"]),
                    *(train_step_report.interval(each), train_step_report.verdict(each)),
                )
                # Anew: the results may be older than what is asked of them.
                for each in train_step_report.targets(
                    figures["contenders"],
                    figures["compare"],
                    bool(figures["bfloat16_instructions"]),
                )
            ],
            "interval of the median",
            "memory",
        ),
        *not_measured(reasons),
    ]


def data(figures: Figures) -> Blocks:
    """Text to data, data to batches, the targets, and what a large text would take."""
    text, host, fastest = (figures[key] for key in ("text", "host", "fastest_peer"))
    blocks = [
        f"Text: {text['bytes'] / 1e6:.1f} MB in {text['documents']:,} documents; lengths "
        f"{' and '.join(map(str, figures['seq_lengths']))}.",
        *_building(figures["building"]),
    ]
    if fastest:
        ratios = " and ".join(
            f"{key.removesuffix('_over_it')} rows {value:.2f} times"
            for key, value in fastest.items()
            if key.endswith("_over_it")
        )
        blocks.append(
            f"The fastest peer on one core is {fastest['contender']} ({fastest['makes']}); ours "
            f"makes {ratios} as fast (medians of the ratios within rounds)."
        )
    blocks += [
        *_reading(figures["reading"]),
        f"One host of 8 GPUs consumes {host['examples_per_s']:,.0f} examples/s: {host['source']}.",
        targets(
            [
                (
                    *(name.replace("_", " "), each["target"], each["measured"]),
                    *(_range(each["range"]), data_report.verdict(each)),
                )
                for name, each in figures["targets"].items()
            ],
            "lowest to highest",
            "no such",
        ),
        *_extrapolated(figures["extrapolation"]),
    ]
    return ["`--quick`: these figures say nothing.", *blocks] if figures["is_quick"] else blocks


def _over(row: Figures) -> str:
    return f"{row['over_model_garden']:.1f}" if "over_model_garden" in row else ""


def _range(values: Sequence[float] | None, style: str = ".2f") -> str:
    return _span(values, style) if values else ""


def _building(rows: Sequence[Figures]) -> Blocks:
    found = [row for row in rows if "not_measured" not in row]
    cells = [
        [
            row["contender"],
            row["makes"],
            str(row["cores"]),
            _over(row),
            _range(row.get("over_model_garden_range"), ".1f"),
            f"{row['mb_per_s']:.3g}",
            _span(row["all_s"], ".1f"),
            f"{row['text_bytes'] / 1e6:.1f}",
            f"{row['startup_s']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        ]
        for row in found
    ]
    columns = (
        *("text to data", "makes", "cores", "per core / Model Garden", "lowest to highest"),
        *("MB/s", "rounds, s"),
        *("MB of text", "start s", "peak GB"),
    )
    missing = {f"{row['contender']}, cores: {row['cores']}": row for row in rows}
    reasons = {name: row["not_measured"] for name, row in missing.items() if "not_measured" in row}
    return [table(columns, cells, left=2), *not_measured(reasons)]


def _reading(rows: Sequence[Figures]) -> Blocks:
    found = [row for row in rows if "not_measured" not in row]
    cells = [
        [
            row["reader"],
            str(row["cores"]),
            _over(row),
            _range(row.get("over_model_garden_range"), ".1f"),
            f"{row['examples_per_s']:,.0f}",
            _span(row["all_examples_per_s"], ",.0f"),
            f"{row['host_consumption']:.1f}",
        ]
        for row in found
    ]
    columns = (
        *("data to batches", "cores", "/ Model Garden", "lowest to highest", "examples/s"),
        *("slowest to fastest", "/ host"),
    )
    missing = {f"{row['reader']}, cores: {row['cores']}": row for row in rows}
    reasons = {name: row["not_measured"] for name, row in missing.items() if "not_measured" in row}
    return [table(columns, cells), *not_measured(reasons)]


def _extrapolated(figures: Figures) -> Blocks:
    cells = [[name, f"{hours:.2f}"] for name, hours in figures["hours"].items()]
    return [f"{figures['note']}:", table(("", "hours"), cells)]


def import_time(figures: Figures) -> Blocks:
    """Each program over importing TensorFlow alone, by the clock and on the processor."""
    rows = [
        [
            f"`{program}`",
            f"{row['median_over_tensorflow']:.3f}",
            f"{row['processor_over_tensorflow']:.3f}",
            f"{row['median_s']:.2f}",
            _span(row["all_s"], ".2f"),
        ]
        for program, row in figures["programs"].items()
    ]
    columns = ("", "median / TensorFlow", "on the processor", "median s", "rounds, s")
    bound = f"The target is less than {figures['target']:g}; {figures['rounds']} rounds."
    return [bound, table(columns, rows)]


def quick_study(figures: Figures) -> Blocks:
    """That it ran: its losses say nothing."""
    return [
        f"{figures['runs']} runs of {figures['examples']:,} examples, {figures['methods']} methods "
        f"at batches of {' and '.join(f'{each:,}' for each in figures['batches'])}, on "
        f"{figures['backend']}: {figures['seconds']:.0f} seconds of runs in sum, "
        f"{figures['diverged']} diverged."
    ]


def study(records: Sequence[Figures]) -> Blocks:
    """A row for each study of `large_batch.jsonl`: what it is, and how far it has come."""
    by_study: dict[str, list[Figures]] = {}
    for record in records:
        if record["kind"] == _RUN:
            by_study.setdefault(record["study"], []).append(record)
    rows = []
    for runs in by_study.values():
        common, sizes = runs[0]["common"], runs[0]["common"]["sizes"]
        dates = sorted({run["date"][:10] for run in runs})
        batches = sorted({run["settings"]["batch"] for run in runs})
        rows.append(
            [
                f"{common['backend']}, {', '.join(sorted({run['processor'] for run in runs}))}",
                f"{dates[0]} to {dates[-1]}",
                common["model"] or f"BERT, {sizes['layers']} layers, {sizes['width']} wide",
                ", ".join(f"{each:,}" for each in batches),
                f"{common['examples']:,}",
                str(len(runs)),
                str(sum(run["diverged"] for run in runs)),
                f"{sum(run['seconds'] for run in runs) / 3600:.1f}",
            ]
        )
    columns = (
        *("on", "dates", "model", "batches", "examples of a run"),
        *("runs", "diverged", "hours of runs"),
    )
    return [table(columns, rows, left=4)] if rows else ["No run is finished yet."]
