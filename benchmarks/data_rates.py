r"""What lies in the rows: masks, pairs and fill, of Model Garden's script and of our builds.

    python -m benchmarks.data_rates --output=benchmarks/results/data_rates \
        --document=docs/data.md

All of them read the same text with the same vocabulary, mask whole words and have room for as many
predictions. Model Garden's script keeps the algorithm of google-research/bert.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import data_process, data_text, machine, markdown_part, whole_files
from benchmarks.data_contenders import (
    CONTENDERS,
    DYNAMIC,
    MAX_PREDICTIONS,
    MODEL_GARDEN,
    SEQ_LENGTHS,
    STORED,
    Job,
)
from benchmarks.data_rates_report import markdown
from tfrecords import command, inspect, schema
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import Vocabulary

FLAGS = flags.FlagValues()
data_text.define_flags(FLAGS)
flags.DEFINE_float("megabytes", 2.0, "How much of the text.", lower_bound=0.06, flag_values=FLAGS)
flags.DEFINE_string("output", None, "Writes OUTPUT.json.", flag_values=FLAGS)
flags.DEFINE_string(
    "document", None, "Markdown file whose generated part is replaced.", flag_values=FLAGS
)

_MODULE = "benchmarks.data_rates"
_MAKERS = (MODEL_GARDEN, STORED, DYNAMIC)
_ALL_ROWS = 10**9


def body(flag_values: flags.FlagValues) -> None:
    """Builds, counts, prints tables and writes the JSON file and the document's part."""
    if flag_values.document is not None:
        markdown_part.check(flag_values.document, _MODULE)
    if flag_values.output is not None:
        whole_files.check(f"{flag_values.output}.json")
    with tempfile.TemporaryDirectory() as folder:
        figures = report(flag_values, pathlib.Path(folder))
    tables = markdown(figures)
    print(tables)
    if flag_values.output is not None:
        whole_files.write_json(f"{flag_values.output}.json", figures)
    if flag_values.document is not None:
        markdown_part.write(flag_values.document, _MODULE, tables)


def report(flag_values: flags.FlagValues, work_dir: pathlib.Path) -> dict[str, Any]:
    """Builds everything; the figures as they go into the JSON file."""
    heading = machine.heading(_MODULE)
    text = data_text.prepare(flag_values.input, flag_values.vocab_file, work_dir)
    (content,) = text.parts(1, 1e6 * flag_values.megabytes)
    text_file = work_dir / "text.txt"
    text_file.write_bytes(content)
    vocab_file = str(pathlib.Path(text.vocab_file).absolute())
    rows: list[dict[str, Any]] = []
    problems = {}
    for maker in _MAKERS:
        output_dir = work_dir / maker.replace(" ", "-")
        output_dir.mkdir()
        job = Job(
            texts=[str(text_file)],
            vocab_file=vocab_file,
            output_dir=str(output_dir),
            cores=1,
            environments={},
        )
        print(f"  {maker}", file=sys.stderr, flush=True)
        try:
            for step in CONTENDERS[maker].steps(job):
                data_process.run(step)
        except data_process.FailedError as error:
            problems[maker] = str(error)
            continue
        for seq_length in SEQ_LENGTHS:
            found = counted(read(output_dir, seq_length), Vocabulary.load(vocab_file))
            rows.append({"maker": maker, "seq_length": seq_length, **found})
    return {
        **heading,
        "processor": machine.processor(),
        "versions": machine.versions(("tensorflow", "tf-models-official", "tf-lans")),
        "text": {"source": text.source, "bytes": len(content)},
        "makers": {maker: CONTENDERS[maker].makes for maker in _MAKERS},
        "max_predictions_per_seq": MAX_PREDICTIONS,
        "rows": rows,
        "not_measured": problems,
    }


def read(output_dir: pathlib.Path, seq_length: int) -> Mapping[str, np.ndarray]:
    """The rows of our shards, or of the files of Model Garden's script."""
    shards = output_dir / "shards"
    if shards.is_dir():
        return inspect.read_rows(Manifest.load(shards), schema.TRAIN, seq_length, _ALL_ROWS)
    features = {
        feature.name: tf.io.FixedLenFeature(
            [feature.size], tf.float32 if feature.dtype == "float32" else tf.int64
        )
        for feature in schema.features(seq_length, MAX_PREDICTIONS[seq_length])
    }
    paths = sorted(map(str, output_dir.glob(f"*-seq{seq_length}-*.tfrecord")))
    records = list(tf.data.TFRecordDataset(paths).as_numpy_iterator())
    parsed = tf.io.parse_example(tf.constant(records), features)
    return {name: each.numpy() for name, each in parsed.items()}


def counted(rows: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> dict[str, Any]:
    """`tfrecords.inspect.rates`, and the masks of rows that are full."""
    masks = (rows[schema.MASKED_LM_WEIGHTS] > 0).sum(axis=1)
    is_full = rows[schema.INPUT_MASK].all(axis=1)
    found = dataclasses.asdict(inspect.rates(rows, vocabulary))
    return {
        **{
            name: float(value) if isinstance(value, np.floating) else value
            for name, value in found.items()
        },
        "full_rows": float(is_full.mean()),
        "masks_per_full_row": float(masks[is_full].mean()) if is_full.any() else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
