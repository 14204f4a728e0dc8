r"""The last stage of `make demo`: its table on the screen, and `report.html` with the curves.

Example::

  python -m official_bert.demo_report --work_dir=demo
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from matplotlib.figure import Figure

from official_bert import charts, demo, html_page, report, run_summary
from tfrecords import command, files

ACCURACY = "Masked-LM accuracy: training steps, held-out text, most frequent token"

FLAGS = flags.FlagValues()
flags.DEFINE_string("work_dir", "demo", "Folder of a finished demonstration.", flag_values=FLAGS)
flags.DEFINE_string("source", demo.DOCSTRINGS, "What the text was.", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One pretraining phase.

    Attributes:
      name: its name in the figures.
      run: what it left on disk.
      baseline: accuracy of always answering the most frequent masked token.
    """

    name: str
    run: run_summary.Run
    baseline: float

    @property
    def length(self) -> int:
        """Its steps."""
        return self.run.last_step


def phases(layout: demo.Layout) -> list[Phase]:
    """The two pretraining phases as they lie on disk."""
    return [
        Phase(
            name=f"phase {number} (length {length})",
            run=run_summary.Run.load(layout.path("pretraining", f"phase{number}")),
            baseline=report.most_frequent_token_accuracy(layout.path("shards"), length),
        )
        for number, length in enumerate(demo.SEQ_LENGTHS, start=1)
    ]


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
    figure, axes = charts.canvas()
    for color, name in enumerate(names):
        for start, phase in zip(_starts(phases), phases, strict=True):
            curve = phase.run.curve(name)
            axes.plot(
                [start + step for step, _ in curve],
                [value for _, value in curve],
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
        held_out = phase.run.evaluation_curve("masked_lm_accuracy")
        first = start == 0
        axes.plot(
            [start + step for step, _ in held_out],
            [value for _, value in held_out],
            "o-C1",
            label="held-out" if first else None,
        )
        axes.plot(
            [start, start + phase.length],
            [phase.baseline] * 2,
            "--C7",
            label="most frequent token" if first else None,
        )
    axes.legend()
    return figure


def _starts(phases: Sequence[Phase]) -> list[int]:
    return [sum(phase.length for phase in phases[:index]) for index in range(len(phases))]


def _finish(axes: Any, phases: Sequence[Phase], label: str, log: bool) -> None:
    for start, phase in zip(_starts(phases), phases, strict=True):
        if start:
            axes.axvline(start, color="0.6", linewidth=0.8)
        # A short last phase has no room to the right of its start.
        end = start + phase.length
        place = {"x": end, "ha": "right"} if start > phase.length else {"x": start}
        axes.text(y=1.02, s=phase.name, transform=axes.get_xaxis_transform(), **place)
    charts.finish(axes, label, log)


def summary_rows(phases: Sequence[Phase]) -> list[tuple[str, str]]:
    """Losses and accuracies of the phases, as rows of the table."""
    rows = []
    for phase in phases:
        run = phase.run
        accuracy = run.last_evaluation["masked_lm_accuracy"]
        losses = f"{run.first_loss:.3f} to {run.last_loss:.3f}"
        rows += [
            (f"{phase.name}: training loss, first to last", losses),
            (f"{phase.name}: held-out masked-LM accuracy", f"{100 * accuracy:.1f} %"),
            (f"{phase.name}: most-frequent-token baseline", f"{100 * phase.baseline:.1f} %"),
        ]
    return rows


def format_table(rows: Sequence[tuple[str, str]]) -> str:
    """The table as aligned text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def question_rows(layout: demo.Layout) -> list[tuple[str, str]]:
    """Exact match and F1, in percent, from the pretrained weights and from random ones."""
    pretrained, random = (
        json.loads(files.read_bytes(layout.path(folder, "eval_metrics.json")))
        for folder in ("finetuned", "finetuned_from_random")
    )
    return [
        (
            f"questions: {name}, pretrained against random weights",
            f"{pretrained[key]:.1f} against {random[key]:.1f}",
        )
        for name, key in (("exact match", "exact_match"), ("F1", "f1"))
    ]


def body(flag_values: flags.FlagValues) -> None:
    """Writes the page and prints the table and where everything lies."""
    layout = demo.Layout(root=flag_values.work_dir)
    read = phases(layout)
    rows = summary_rows(read) + question_rows(layout)
    pictures = figures(read)
    files.write_bytes(layout.path("accuracy.png"), html_page.png(pictures[ACCURACY]))
    html_page.write(
        layout.path("report.html"),
        title="From raw text to a finetuned BERT with LANS",
        introduction=f"A demonstration on {flag_values.source}, not a benchmark: a two-layer BERT, "
        "two pretraining phases with the LANS optimizer and the warmup-constant-decay schedule "
        "(arXiv 2006.13484), then extractive question answering.",
        tables=[html_page.Table(rows=rows)],
        pictures=pictures,
    )
    print(f"\nA demonstration on {flag_values.source}; not a benchmark.")
    print(format_table(rows))
    for name, path in (
        ("curves and table", layout.path("report.html")),
        ("pretraining runs", layout.path("pretraining")),
        ("SavedModel", layout.path("export", "encoder")),
        ("predictions", layout.path("finetuned", "predictions.json")),
    ):
        print(f"  {name}: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
