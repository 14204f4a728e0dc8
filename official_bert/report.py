r"""Compares training runs on one page: figures, differing settings and curves.

Example::

  python -m official_bert.report runs/lans runs/lamb --output=report.html

writes an HTML file that refers to no other. Runs that are still going are shown as far as they
have come, and one run alone is welcome.
"""

import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

import tfrecords
from official_bert import comparison, html_page, run_summary
from tfrecords import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "report.html", "The HTML file to write.", flag_values=FLAGS)
flags.DEFINE_bool(
    "baseline", False, "Also show the accuracy of always guessing the most frequent masked token, "
    "counted over each run's evaluation shards.", flag_values=FLAGS,
)  # fmt: skip


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


def baseline(run: run_summary.Run) -> float | None:
    """That accuracy on a run's evaluation shards; None without them, or of another task."""
    shards = run.get("task.validation_data.input_path")
    is_masked_lm = any(comparison.ACCURACY in row for row in run.evaluations)
    if not (is_masked_lm and shards and tf.io.gfile.exists(shards)):
        return None
    return most_frequent_token_accuracy(shards, run.get("task.validation_data.seq_length"))


def body(flag_values: flags.FlagValues, model_dirs: list[str]) -> None:
    """Writes the page and says where."""
    runs = comparison.load(model_dirs)
    baselines = {}
    if flag_values.baseline:
        baselines = {name: baseline(run) for name, run in runs.items()}
    html_page.write(
        flag_values.output,
        title="Training runs: " + ", ".join(runs),
        introduction="Losses are in nats, batches and noise scales in examples. Pale lines are "
        "single steps, strong ones running means over a fiftieth of the run.",
        tables=comparison.tables(runs, baselines),
        pictures=comparison.figures(runs, baselines),
    )
    print(f"{flag_values.output}: {', '.join(runs)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
