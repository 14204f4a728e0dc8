"""The counts of `benchmarks.data_rates` as Markdown."""

from __future__ import annotations

from typing import Any

_PERCENT = {
    "masked": "masked, of what may be",
    "shown_as_mask": "of those: [MASK]",
    "shown_as_original": "the token itself",
    "shown_as_another": "another token",
    "random_next": "random next",
    "fill": "fill",
    "under_half_full": "rows under half full",
}


def markdown(figures: dict[str, Any]) -> str:
    """A table for each length, a column for each maker."""
    tables = []
    for seq_length in figures["max_predictions_per_seq"]:
        rows = [row for row in figures["rows"] if row["seq_length"] == int(seq_length)]
        lines = [
            [f"length {seq_length}", *(row["maker"] for row in rows)],
            ["---", *("---:" for _ in rows)],
            ["rows", *(f"{row['rows']:,}" for row in rows)],
        ]
        lines += [
            [title, *(f"{100 * row[name]:.2f} %" for row in rows)]
            for name, title in _PERCENT.items()
        ]
        lines += [
            ["full rows", *(f"{100 * row['full_rows']:.2f} %" for row in rows)],
            ["masks in a full row, mean", *(_mean(row["masks_per_full_row"]) for row in rows)],
            [
                "tokens: least, deciles, most",
                *(" ".join(map(str, row["length_deciles"])) for row in rows),
            ],
        ]
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    tables += [f"not measured: {name}: {why}" for name, why in figures["not_measured"].items()]
    return "\n\n".join(tables)


def _mean(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
