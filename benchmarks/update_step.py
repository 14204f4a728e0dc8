"""The update step of tf_lans on a CPU against what other packages offer.

    python -m benchmarks.update_step --model=bert_base --output=update_step

Every optimizer lives in a process of its own and they take turns, one update at a time, so that
all see the same machine; so does the stream triad a = b + c, whose bandwidth sets the floor: 28
bytes a parameter, for x, m, v and g read and x, m and v written once. Where memory does not hold
all processes at once they run in groups, with the triad and our LANS in each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags
from matplotlib.figure import Figure

from benchmarks import bert_shapes, machine, whole_files
from benchmarks.update_contenders import CONTENDERS, FLOOR, TRIAD_BYTES

_MODEL = flags.DEFINE_enum("model", "bert_base", bert_shapes.MODELS, "Whose blocks to update.")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Measurements of each optimizer.", lower_bound=5)
_ONLY = flags.DEFINE_list("only", [], "Optimizers whose names contain one of these; all if empty.")
_OUTPUT = flags.DEFINE_string("output", None, "Writes OUTPUT.json and the chart OUTPUT.png.")
_PYTHONS = {
    name: flags.DEFINE_string(f"{name}_python", None, f"The Python that imports {what}.")
    for name, what in (
        ("tfa", "tensorflow-addons (with tensorflow 2.15)"),
        ("jax", "jax and optax; this one if not given"),
        ("torch", "torch; this one if not given"),
    )
}

REFERENCE = "tf_lans LANS, Keras 3"
RIVAL = "Keras Lamb, jit"
_FLOOR_BYTES = 28
_STATE_BYTES = 16  # x, m, v and g
_PROCESS_BYTES = 2**30  # a framework and its compiler
_PACKAGES = ("tensorflow", "keras", "tf-keras", "tf-models-official", "numpy", "tf-lans")
_ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's figures; seconds, and bytes beyond what the process took before.

    Attributes:
        first: the time to the end of the first update, tracing and compiling included.
        updates: the time of each update.
        peak_bytes: the most memory it held while updating.
    """

    first: float
    updates: list[float]
    peak_bytes: int


class Process:
    """A contender in a process of its own; see `benchmarks.update_contenders`."""

    def __init__(self, name: str, model: str, python: str, log: Any) -> None:
        self._name, self._log = name, log
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.update_contenders", name, model],
            cwd=_ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.first: float = self._answer()["first_s"]

    def update(self) -> tuple[float, int]:
        """One update: its seconds, and the peak memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("update\n")
        self._process.stdin.flush()
        figures = self._answer()
        return figures["seconds"], figures["peak_bytes"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            words = [each for each in self._log.read().splitlines() if each.strip()]
            raise RuntimeError(words[-1] if words else "its process ended without a word")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and its pipes."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def process(name: str, model: str, python: str) -> Iterator[Process | str]:
    """The contender's process after its first update, or why there is none."""
    with tempfile.TemporaryFile("w+") as log:
        try:
            running = Process(name, model, python, log)
        except RuntimeError as error:
            yield str(error)
            return
        try:
            yield running
        finally:
            running.close()


def groups(names: Sequence[str], size: int) -> list[list[str]]:
    """The names in groups of at most `size`, the triad and the reference in each."""
    others = [name for name in names if name not in (FLOOR, REFERENCE)]
    step = max(size - 2, 1)
    parts = [others[begin : begin + step] for begin in range(0, len(others), step)] or [[]]
    return [[FLOOR, REFERENCE, *part] for part in parts]


def measure(names: Sequence[str], model: str, rounds: int) -> dict[str, Measured | str]:
    """Lets the contenders take turns, each following each as the rounds go on."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:  # one after another: each first update has the machine to itself
            print(f"  {name} ...", file=sys.stderr, flush=True)
            found[name] = stack.enter_context(process(name, model, _python(name)))
        running = {name: each for name, each in found.items() if isinstance(each, Process)}
        seconds: dict[str, list[float]] = {name: [] for name in running}
        peaks = dict.fromkeys(running, 0)
        for number in range(rounds):
            first = number % len(running)
            for name in [*running][first:] + [*running][:first]:
                taken, peaks[name] = running[name].update()
                seconds[name].append(taken)
        return {
            name: each
            if isinstance(each, str)
            else Measured(first=each.first, updates=seconds[name], peak_bytes=peaks[name])
            for name, each in found.items()
        }


def _python(name: str) -> str:
    flag = _PYTHONS.get(CONTENDERS[name].environment)
    return sys.executable if flag is None or flag.value is None else flag.value


def rows(group: dict[str, Measured | str], parameters: int) -> dict[str, dict[str, Any]]:
    """The figures of one group, as ratios to its own floor and its own LANS."""
    floor, reference = group[FLOOR], group[REFERENCE]
    if isinstance(floor, str) or isinstance(reference, str):
        raise RuntimeError(f"{REFERENCE} could not be measured: {reference}")
    scale = _FLOOR_BYTES * parameters / TRIAD_BYTES
    best_floor = scale * min(floor.updates)
    median_floor = scale * statistics.median(floor.updates)

    def row(measured: Measured) -> dict[str, Any]:
        best, median = min(measured.updates), statistics.median(measured.updates)
        return {
            "first_s": measured.first,
            "median_ms": 1e3 * median,
            "best_ms": 1e3 * best,
            "best_over_floor": best / best_floor,
            "median_over_floor": median / median_floor,
            "best_over_lans": best / min(reference.updates),
            "median_over_lans": median / statistics.median(reference.updates),
            "peak_over_state": measured.peak_bytes / (_STATE_BYTES * parameters),
            "all_ms": [round(1e3 * each, 3) for each in measured.updates],
        }

    return {
        name: {"not_measured": each} if isinstance(each, str) else row(each)
        for name, each in group.items()
        if name != FLOOR
    } | {
        FLOOR: {
            "bandwidth_gb_per_s": TRIAD_BYTES / min(floor.updates) / 1e9,
            "best_ms": 1e3 * best_floor,
            "median_ms": 1e3 * median_floor,
        }
    }


def report(model: str, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    """Runs everything; the figures as they go into the JSON file."""
    shapes = bert_shapes.block_shapes(model)
    parameters = bert_shapes.parameters(shapes)
    names = [
        name
        for name, each in CONTENDERS.items()
        if (not only or any(part in name for part in only))
        and (each.environment != "tfa" or _PYTHONS["tfa"].value)
    ]
    needed = 1.4 * _STATE_BYTES * parameters + _PROCESS_BYTES
    size = int(0.85 * machine.available_bytes() / needed)
    measured = []
    for group in groups(names, size):
        print(f"a group of {len(group)}:", file=sys.stderr)
        measured.append(rows(measure(group, model, rounds), parameters))
    return {
        **machine.heading("benchmarks.update_step"),
        "processor": machine.processor(),
        "versions": machine.versions(_PACKAGES),
        "model": model,
        "blocks": len(shapes),
        "parameters": parameters,
        "rounds": rounds,
        "groups": measured,
    }


_COLUMNS = {
    "first_s": ("first s", "{:.1f}"),
    "median_ms": ("median ms", "{:.1f}"),
    "best_ms": ("best ms", "{:.1f}"),
    "median_over_lans": ("median/LANS", "{:.2f}"),
    "best_over_lans": ("best/LANS", "{:.2f}"),
    "median_over_floor": ("median/floor", "{:.2f}"),
    "best_over_floor": ("best/floor", "{:.2f}"),
    "peak_over_state": ("peak/state", "{:.2f}"),
}


def table(figures: dict[str, Any]) -> str:
    """The report for a reader: every group, with its own floor."""
    lines = [
        figures["processor"],
        f"{figures['date']}  {figures['command']}",
        "  ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"{figures['model']}: {figures['blocks']} blocks, {figures['parameters']:,} parameters, "
        f"float32; {figures['rounds']} rounds, interleaved",
    ]
    for group in figures["groups"]:
        floor = group[FLOOR]
        lines += [
            "",
            f"triad {floor['bandwidth_gb_per_s']:.1f} GB/s; floor {floor['best_ms']:.1f} ms "
            f"(median {floor['median_ms']:.1f}), {_FLOOR_BYTES} bytes a parameter",
            f"{'':36}" + "".join(f"{title:>14}" for title, _ in _COLUMNS.values()),
        ]
        for name, row in group.items():
            if name == FLOOR:
                continue
            if "not_measured" in row:
                lines.append(f"{name:36}  not measured: {row['not_measured']}")
                continue
            cells = [style.format(row[key]) for key, (_, style) in _COLUMNS.items()]
            lines.append(f"{name:36}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def chart(figures: dict[str, Any]) -> Figure:
    """Bars of the median update over that of our LANS in the same group, shortest first."""
    ratios: dict[str, float] = {}
    for group in figures["groups"]:
        for name, row in group.items():
            if "median_over_lans" in row:
                ratios.setdefault(name, row["median_over_lans"])
    names = sorted(ratios, key=ratios.__getitem__, reverse=True)
    figure = Figure(figsize=(8, 0.4 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:red" if name.startswith("tf_lans") else "tab:gray" for name in names]
    bars = axes.barh(names, [ratios[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"update time over {REFERENCE} (medians)")
    axes.set_title(f"{figures['model']}, float32, {figures['processor']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(arguments: Sequence[str]) -> None:
    """Measures as the flags say, prints the table, writes the JSON file and the chart."""
    if len(arguments) > 1:
        raise app.UsageError(f"got {arguments[1]!r}: expected flags only, see --help")
    figures = report(_MODEL.value, _ROUNDS.value, _ONLY.value)
    print(table(figures))
    if _OUTPUT.value is not None:
        whole_files.write_json(f"{_OUTPUT.value}.json", figures)
        whole_files.write_chart(f"{_OUTPUT.value}.png", chart(figures))


if __name__ == "__main__":
    app.run(main)
