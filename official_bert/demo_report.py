r"""The last stage of `make demo`: its table on the screen, and `report.html` with the curves.

Example::

  python -m official_bert.demo_report --work_dir=demo
"""

import json
import sys
from collections.abc import Sequence

from absl import flags

from official_bert import demo, report
from tfrecords import command, files

FLAGS = flags.FlagValues()
flags.DEFINE_string("work_dir", "demo", "Folder of a finished demonstration.", flag_values=FLAGS)
flags.DEFINE_string("source", demo.DOCSTRINGS, "What the text was.", flag_values=FLAGS)


def phases(layout: demo.Layout) -> list[report.Phase]:
    """The two pretraining phases as they lie on disk."""
    return [
        report.load_phase(
            f"phase {number} (length {length})",
            layout.path("pretraining", f"phase{number}"),
            layout.path("shards"),
            length,
        )
        for number, length in enumerate(demo.SEQ_LENGTHS, start=1)
    ]


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
    rows = report.summary_rows(read) + question_rows(layout)
    pictures = report.figures(read)
    files.write_bytes(layout.path("accuracy.png"), report.png(pictures[report.ACCURACY]))
    report.write(
        layout.path("report.html"),
        title="From raw text to a finetuned BERT with LANS",
        introduction=f"A demonstration on {flag_values.source}, not a benchmark: a two-layer BERT, "
        "two pretraining phases with the LANS optimizer and the warmup-constant-decay schedule "
        "(arXiv 2006.13484), then extractive question answering.",
        rows=rows,
        pictures=pictures,
    )
    print(f"\nA demonstration on {flag_values.source}; not a benchmark.")
    print(report.format_table(rows))
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
