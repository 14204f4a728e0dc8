"""What importing tf_lans costs beside importing TensorFlow.

    python -m benchmarks.import_time --output=benchmarks/results/import_time

The wheel is built and installed with its extra [tensorflow], at the pinned versions, in a new
environment that holds nothing else; --python names another environment's Python instead. Programs
take turns, each in a new process, which says how long its imports took: by the clock, and on the
processor, which neighbours on the machine disturb less.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import machine, turns, wheel, whole_files
from tfrecords import command
from tfrecords.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("python", None, "The Python of an environment with both.", flag_values=FLAGS)
flags.DEFINE_integer(
    "rounds", 11, "Measurements of each program.", lower_bound=9, flag_values=FLAGS
)
flags.DEFINE_string("output", None, "Writes OUTPUT.json.", flag_values=FLAGS)

REFERENCE = "import tensorflow"
OURS = "import tf_lans; tf_lans.LANS"
PROGRAMS = (REFERENCE, OURS, "import tf_lans")
TARGET = 1.2
_PACKAGES = ("tensorflow", "keras", "numpy", "tf-lans")
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TIMED = """
import time
clock, processor = time.perf_counter(), time.process_time()
{program}
clock, processor = time.perf_counter() - clock, time.process_time() - processor
import json
print(json.dumps([clock, processor]))
"""


def environment(folder: pathlib.Path) -> str:
    """Makes an environment of the wheel and TensorFlow in an empty folder; its Python."""
    for name in ("tree", "sources", "wheel"):
        (folder / name).mkdir()
    wheel.copy_sources(folder / "tree")
    sources = wheel.source_distribution(folder / "tree", folder / "sources")
    built = wheel.wheel(sources, folder / "wheel")
    wheel.run(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    pinned = _ROOT / "constraints.txt"
    wheel.run(python, "-m", "pip", "install", "--constraint", pinned, f"{built}[tensorflow]")
    return str(python)


def _run(python: str, program: str, folder: str) -> Any:
    """What the program prints last, as JSON; isolated from this process's folder and paths."""
    completed = subprocess.run(
        [python, "-I", "-c", program],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    if completed.returncode:
        raise UserError(
            f"{python} failed: {completed.stderr.strip().splitlines()[-1]}; expected the Python of "
            "an environment with tf-lans and tensorflow"
        )
    return json.loads(completed.stdout.splitlines()[-1])


def measure(python: str, rounds: int) -> dict[str, list[list[float]]]:
    """Seconds by the clock and on the processor of each round, after one that is not counted."""
    found: dict[str, list[list[float]]] = {program: [] for program in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for program in turns.order(PROGRAMS, number):
                taken = _run(python, _TIMED.format(program=program), folder)
                if number:
                    found[program].append(taken)
    return found


def versions(python: str) -> dict[str, str]:
    """Those of that environment's Python and packages."""
    program = (
        "import importlib.metadata, json, platform; "
        f"found = {{name: importlib.metadata.version(name) for name in {_PACKAGES!r}}}; "
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    with tempfile.TemporaryDirectory() as folder:
        return _run(python, program, folder)


def summary(measured: dict[str, list[list[float]]]) -> dict[str, dict[str, Any]]:
    """Each program's medians, its best round, and its medians over those of TensorFlow alone."""
    clocks, processors = (
        {program: [each[part] for each in rounds] for program, rounds in measured.items()}
        for part in (0, 1)
    )

    def row(program: str) -> dict[str, Any]:
        clock, processor = (statistics.median(seconds[program]) for seconds in (clocks, processors))
        return {
            "median_s": clock,
            "best_s": min(clocks[program]),
            "processor_median_s": processor,
            "median_over_tensorflow": clock / statistics.median(clocks[REFERENCE]),
            "processor_over_tensorflow": processor / statistics.median(processors[REFERENCE]),
            "all_s": [round(each, 4) for each in clocks[program]],
            "all_processor_s": [round(each, 4) for each in processors[program]],
        }

    return {program: row(program) for program in measured}


def report(python: str, rounds: int) -> dict[str, Any]:
    """Measures; the figures as they go into the JSON file."""
    return {
        **machine.heading("benchmarks.import_time"),
        "processor": machine.processor(),
        "versions": versions(python),
        "rounds": rounds,
        "target": TARGET,
        "programs": summary(measure(python, rounds)),
    }


_COLUMNS = {
    "median_s": ("median s", "{:.2f}"),
    "best_s": ("best s", "{:.2f}"),
    "processor_median_s": ("processor s", "{:.2f}"),
    "median_over_tensorflow": ("/TensorFlow", "{:.3f}"),
    "processor_over_tensorflow": ("processor/TF", "{:.3f}"),
}


def table(figures: dict[str, Any]) -> str:
    """The report for a reader, with the verdict."""
    lines = [
        figures["processor"],
        f"{figures['date']}  {figures['command']}",
        "  ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"{figures['rounds']} rounds, interleaved",
        "",
        f"{'':30}" + "".join(f"{title:>14}" for title, _ in _COLUMNS.values()),
    ]
    for program, row in figures["programs"].items():
        cells = [style.format(row[key]) for key, (_, style) in _COLUMNS.items()]
        lines.append(f"{program:30}" + "".join(f"{cell:>14}" for cell in cells))
    ratio = figures["programs"][OURS]["median_over_tensorflow"]
    verdict = "met" if ratio < figures["target"] else "missed"
    lines += ["", f"target: under {figures['target']} of TensorFlow's own time: {verdict}"]
    return "\n".join(lines)


def markdown(figures: dict[str, Any]) -> str:
    """The programs as a table of ratios, for a document."""
    lines = ["| program | by the clock | on the processor |", "| --- | --- | --- |"]
    for program, row in figures["programs"].items():
        clock, processor = row["median_over_tensorflow"], row["processor_over_tensorflow"]
        lines.append(f"| `{program}` | {clock:.3f} | {processor:.3f} |")
    return "\n".join(lines)


def body(flag_values: flags.FlagValues) -> None:
    """Measures as the flags say, prints the table, writes the JSON file."""
    if flag_values.output:
        whole_files.check(f"{flag_values.output}.json")
    if flag_values.python is None:
        with tempfile.TemporaryDirectory() as folder:
            print("setting up an environment; a minute or two", flush=True)
            figures = report(environment(pathlib.Path(folder)), flag_values.rounds)
    else:
        figures = report(machine.interpreter(flag_values.python, "--python"), flag_values.rounds)
    print(table(figures))
    if flag_values.output:
        whole_files.write_json(f"{flag_values.output}.json", figures)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
