r"""Text to pretraining data, and data to batches, against what other packages offer.

    python -m benchmarks.data --output=benchmarks/results/data

Every contender turns the same text, with the same vocabulary, into data of lengths 128 and 512: on
one core, to which its processes are bound, and on all. What a command takes on next to no text
(imports above all) is measured in the same rounds and taken off; what is left, over the text's
size, is the rate. Contenders take turns; slow ones get less text and fewer rounds. Then readers
take turns on what our builds left.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import (
    data_process,
    data_reading,
    data_report,
    data_text,
    data_turns,
    machine,
    turns,
    whole_files,
)
from benchmarks.data_contenders import CONTENDERS, SEQ_LENGTHS
from tfrecords import command
from tfrecords.errors import UserError

FLAGS = flags.FlagValues()
data_text.define_flags(FLAGS)
flags.DEFINE_integer(
    "rounds", 5, "Measurements of each contender.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "slow_rounds", 3, "Those of slow contenders, and of start-up.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_float(
    "megabytes", 1e3, "At most so much text for each contender.", lower_bound=0.06,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float("read_seconds", 3.0, "Length of a reader's turn.", flag_values=FLAGS)
flags.DEFINE_bool("quick", False, "One round on little text: does it run?", flag_values=FLAGS)
flags.DEFINE_list(
    "only", [], "Contenders whose names contain one of these; all if empty.", flag_values=FLAGS
)
flags.DEFINE_string(
    "work_dir", None, "Keeps its files there; temporary if not given.", flag_values=FLAGS
)
flags.DEFINE_string(
    "output", None, "Writes OUTPUT.json and the chart OUTPUT.png.", flag_values=FLAGS
)
flags.DEFINE_string("google_bert", None, "A checkout of google-research/bert.", flag_values=FLAGS)
flags.DEFINE_string(
    "huggingface_python", None, "The Python that imports datasets and tokenizers.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("lddl_python", None, "The Python that imports lddl.", flag_values=FLAGS)

_ENVIRONMENTS = ("google_bert", "huggingface_python", "lddl_python")
_PACKAGES = (
    *("tensorflow", "tensorflow-text", "tf-models-official", "numpy", "tokenizers", "tf-lans"),
)
_QUICK = {"rounds": 1, "slow_rounds": 1, "megabytes": 0.2, "read_seconds": 0.2}
_STARTUP_BYTES = 50_000
_LARGE_BYTES, _HOST_CORES = 20e9, 16


def body(flag_values: flags.FlagValues) -> None:
    """Measures as the flags say, prints the report, writes the JSON file and the chart."""
    if flag_values.quick:
        for name, value in _QUICK.items():
            flag_values[name].value = value
    names, environments = turns.chosen(CONTENDERS, flag_values.only), peers(flag_values)
    output = flag_values.output
    whole_files.check_report(output)
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = pathlib.Path(flag_values.work_dir or temporary).absolute()
        work_dir.mkdir(parents=True, exist_ok=True)
        figures = report(flag_values, names, environments, work_dir)
    print(data_report.table(figures))
    whole_files.write_report(output, figures, data_report.chart)


def peers(flag_values: flags.FlagValues) -> dict[str, str]:
    """The peers' checkouts and Pythons that were named, by flag.

    Absolute, since commands run from the root of the checkout.

    Raises:
        UserError: one is not there.
    """
    found = {}
    for name in _ENVIRONMENTS:
        path = flag_values[name].value
        if path is None:
            continue
        if name.endswith("_python"):
            found[name] = machine.interpreter(path, f"--{name}")
        elif os.path.isdir(path):
            found[name] = os.path.abspath(path)
        else:
            raise UserError(f"--{name} is {path!r}, which is no folder; expected a checkout")
    return found


def report(
    flag_values: flags.FlagValues,
    names: Sequence[str],
    environments: Mapping[str, str],
    work_dir: pathlib.Path,
) -> dict[str, Any]:
    """Runs everything; the figures as they go into the JSON file."""
    heading = machine.heading("benchmarks.data")
    text = data_text.prepare(flag_values.input, flag_values.vocab_file, work_dir)
    setup = data_turns.Setup(
        text=text,
        work_dir=work_dir,
        environments=environments,
        megabytes=flag_values.megabytes,
        startup_bytes=_STARTUP_BYTES,
        cores=sorted({1, len(os.sched_getaffinity(0))}),
    )
    rounds = flag_values.rounds
    slow_rounds = min(rounds, flag_values.slow_rounds)
    contenders = {name: CONTENDERS[name] for name in names}
    building = data_report.building(data_turns.measure(setup, contenders, rounds, slow_rounds))
    reading = data_report.reading(data_turns.read(setup, rounds, flag_values.read_seconds))
    return {
        **heading,
        "processor": machine.processor(),
        "versions": machine.versions(_PACKAGES),
        "is_quick": flag_values.quick,
        "text": {
            "source": text.source,
            "bytes": text.num_bytes,
            "documents": len(text.documents),
            "vocabulary": os.path.basename(text.vocab_file),
        },
        "seq_lengths": list(SEQ_LENGTHS),
        "method": {
            "rate": data_report.RATE_METHOD,
            "startup_bytes": _STARTUP_BYTES,
            "memory": data_process.MEMORY_METHOD,
        },
        "building": building,
        "reading": reading,
        "host": {"examples_per_s": data_reading.HOST_CONSUMES, "source": data_reading.HOST_SOURCE},
        **data_report.conclusions(building, reading, extrapolate_to=(_LARGE_BYTES, _HOST_CORES)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
