"""One self-contained HTML page about a demonstration run: its table and its curves."""

import base64
import dataclasses
import html
import io
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import tfrecords
from official_bert import metrics_log
from tfrecords import files

_PACKAGES = ("tf-lans", "tensorflow", "tf_keras", "tf-models-official", "numpy")
ACCURACY = "Masked-LM accuracy: training steps, held-out text, most frequent token"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ccc; padding: .3em 1em .3em 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5em 0; } img { max-width: 100%; } code { background: #f3f3f3; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One pretraining phase as it lies on disk.

    Attributes:
      name: its name in the figures.
      steps: rows of `metrics.jsonl`.
      evaluations: rows of `evaluations.jsonl`.
      baseline: accuracy of always answering the most frequent masked token.
    """

    name: str
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    baseline: float

    @property
    def losses(self) -> tuple[float, float]:
        """Training loss of the first step, and mean of the last twentieth of the steps."""
        values = [row["loss"] for row in self.steps]
        return values[0], float(np.mean(values[-max(1, len(values) // 20) :]))

    @property
    def accuracy(self) -> float:
        """Held-out masked-LM accuracy at the end."""
        return float(self.evaluations[-1]["masked_lm_accuracy"])


def load_phase(name: str, model_dir: str, shards: str, seq_length: int) -> Phase:
    """Reads a phase's curves, and counts its baseline on the held-out shards."""
    return Phase(
        name=name,
        steps=metrics_log.read(os.path.join(model_dir, metrics_log.METRICS)),
        evaluations=metrics_log.read(os.path.join(model_dir, metrics_log.EVALUATIONS)),
        baseline=most_frequent_token_accuracy(shards, seq_length),
    )


def most_frequent_token_accuracy(shards: str, seq_length: int) -> float:
    """Masked-LM accuracy, on the eval split, of answering its most frequent token everywhere.

    Args:
      shards: a folder written by `tfrecords.build`.
      seq_length: which of its lengths.
    """
    vocab_size = tfrecords.Manifest.load(shards).vocab_size
    counts = np.zeros(vocab_size)
    batches = tfrecords.read(shards, split="eval", seq_length=seq_length, global_batch_size=64)
    for batch in batches.as_numpy_iterator():
        counts += np.bincount(
            batch["masked_lm_ids"].ravel(),
            weights=batch["masked_lm_weights"].ravel(),
            minlength=vocab_size,
        )
    return float(counts.max() / counts.sum())


def figures(phases: Sequence[Phase]) -> dict[str, Figure]:
    """The four curves over the phases laid end to end, by caption."""
    return {
        "Pretraining loss (masked words plus next sentence), every step": _curves(
            phases, ["loss"], "loss in nats"
        ),
        ACCURACY: _accuracy(phases),
        "Learning rate: warmup, constant, decay in each phase": _curves(
            phases, ["learning_rate"], "learning rate"
        ),
        "Trust ratios over the blocks: smallest, median, largest": _curves(
            phases,
            ["trust_ratio_max", "trust_ratio_median", "trust_ratio_min"],
            "trust ratio",
            log=True,
        ),
    }


def _curves(phases: Sequence[Phase], names: Sequence[str], label: str, log: bool = False) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for color, name in enumerate(names):
        for start, phase in zip(_starts(phases), phases, strict=True):
            rows = [row for row in phase.steps if name in row]
            axes.plot(
                [start + row["step"] for row in rows],
                [row[name] for row in rows],
                color=f"C{color}",
                alpha=0.7,
                linewidth=1.0,
                label=name if start == 0 else None,
            )
    _finish(axes, phases, label, log)
    return figure


def _accuracy(phases: Sequence[Phase]) -> Figure:
    figure = _curves(phases, ["masked_lm_accuracy"], "accuracy")
    axes = figure.axes[0]
    for start, phase in zip(_starts(phases), phases, strict=True):
        held_out = [(start + row["step"], row["masked_lm_accuracy"]) for row in phase.evaluations]
        first = start == 0
        axes.plot(*zip(*held_out, strict=True), "o-C1", label="held-out" if first else None)
        axes.plot(
            [start, start + len(phase.steps)],
            [phase.baseline] * 2,
            "--C7",
            label="most frequent token" if first else None,
        )
    axes.legend()
    return figure


def _starts(phases: Sequence[Phase]) -> list[int]:
    return [sum(len(phase.steps) for phase in phases[:index]) for index in range(len(phases))]


def _finish(axes: Any, phases: Sequence[Phase], label: str, log: bool) -> None:
    for start, phase in zip(_starts(phases), phases, strict=True):
        if start:
            axes.axvline(start, color="0.6", linewidth=0.8)
        # A short last phase has no room to the right of its start.
        end = start + len(phase.steps)
        place = {"x": end, "ha": "right"} if start > len(phase.steps) else {"x": start}
        axes.text(y=1.02, s=phase.name, transform=axes.get_xaxis_transform(), **place)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_yscale("log" if log else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _data_address(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode("ascii")


def versions() -> str:
    """Python, the packages that matter here and the processor's architecture, in a line."""
    found = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return f"Python {platform.python_version()}, {found}, {os.cpu_count()} x {platform.machine()}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "from a checkout"


def write(
    path: str,
    title: str,
    introduction: str,
    rows: Sequence[tuple[str, str]],
    pictures: Mapping[str, Figure],
) -> None:
    """Writes the page, atomically; it refers to no other file.

    Args:
      path: the HTML file.
      title: heading of the page.
      introduction: what was run, in a paragraph.
      rows: the table, name and value.
      pictures: figures by caption.
    """
    table = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    images = "".join(
        f'<figure><img src="{_data_address(figure)}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, figure in pictures.items()
    )
    files.write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(introduction)}</p><table>{table}</table>{images}"
        f"<p><small>{html.escape(versions())}</small></p></html>\n",
    )


def summary_rows(phases: Sequence[Phase]) -> list[tuple[str, str]]:
    """Losses and accuracies of the phases, as rows of the table."""
    rows = []
    for phase in phases:
        first, last = phase.losses
        rows += [
            (f"{phase.name}: training loss, first to last", f"{first:.3f} to {last:.3f}"),
            (f"{phase.name}: held-out masked-LM accuracy", f"{100 * phase.accuracy:.1f} %"),
            (f"{phase.name}: most-frequent-token baseline", f"{100 * phase.baseline:.1f} %"),
        ]
    return rows


def format_table(rows: Sequence[tuple[str, str]]) -> str:
    """The table as aligned text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
