"""The update step of tf_lans on a CPU against what other packages offer.

    python -m benchmarks.update_step --model=bert_base --output=update_step

Every optimizer lives in a process of its own and they take turns, one update at a time, so that
all see the same machine; so does the stream triad a = b + c, whose bandwidth sets the floor: 28
bytes a parameter, for x, m, v and g read and x, m and v written once. Where memory does not hold
all processes at once they run in groups, with the triad and our LANS in each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import bert_shapes, child, machine, turns, update_step_report, whole_files
from benchmarks.data_process import FailedError
from benchmarks.update_contenders import CONTENDERS, FLOOR, MAIN
from benchmarks.update_step_report import REFERENCE, STATE_BYTES, Measured
from tfrecords import command

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "model", "bert_base", bert_shapes.MODELS, "Whose blocks to update.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "rounds", 11, "Measurements of each optimizer.", lower_bound=5, flag_values=FLAGS
)
flags.DEFINE_list(
    "only", [], "Optimizers whose names contain one of these; all if empty.", flag_values=FLAGS
)
flags.DEFINE_string(
    "output", None, "Writes OUTPUT.json and the chart OUTPUT.png.", flag_values=FLAGS
)
_PEERS = {
    "tfa": "tensorflow-addons (with tensorflow 2.15)",
    "jax": "jax and optax",
    "torch": "torch",
}
for _name, _what in _PEERS.items():
    flags.DEFINE_string(
        f"{_name}_python", None, f"The Python that imports {_what}; this one if not given.",
        flag_values=FLAGS,
    )  # fmt: skip

_PROCESS_BYTES = 2**30  # a framework and its compiler
_PACKAGES = ("tensorflow", "keras", "tf-keras", "tf-models-official", "numpy", "tf-lans")

Versions = dict[str, str]


def absent(names: Sequence[str], pythons: Mapping[str, str]) -> dict[str, str]:
    """Those that this machine cannot measure, and why: their environments are not here.

    Args:
        names: of contenders.
        pythons: the Pythons of other environments that were given.
    """
    reasons = {}
    for name in names:
        environment, module = CONTENDERS[name].environment, CONTENDERS[name].module
        is_given = environment == MAIN or environment in pythons
        if not is_given and importlib.util.find_spec(module.partition(".")[0]) is None:
            reasons[name] = f"no --{environment}_python was given"
    return reasons


def groups(names: Sequence[str], size: int) -> list[list[str]]:
    """The names in groups of at most `size`, the triad and the reference in each."""
    others = [name for name in names if name not in (FLOOR, REFERENCE)]
    step = max(size - 2, 1)
    parts = [others[begin : begin + step] for begin in range(0, len(others), step)] or [[]]
    return [[FLOOR, REFERENCE, *part] for part in parts]


def command_line(name: str, model: str, python: str) -> list[str]:
    """The command of a contender's process; see `benchmarks.update_contenders`."""
    return [
        *("env", "KERAS_BACKEND=tensorflow", python),
        *("-m", "benchmarks.update_contenders", name, model),
    ]


def measure(
    names: Sequence[str], model: str, rounds: int, pythons: Mapping[str, str]
) -> tuple[dict[str, Measured | str], dict[str, Versions]]:
    """Lets the contenders take turns, in an order that `benchmarks.turns` changes each round.

    Args:
        names: of contenders.
        model: whose blocks they update.
        rounds: updates of each.
        pythons: of environments other than this one.

    Returns:
        By name, the figures, or why there are none; and by environment other than this one, the
        versions that its process told.
    """
    problems: dict[str, str] = {}
    versions: dict[str, Versions] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, child.Child] = {}
        for name in names:  # one after another: each first update has the machine to itself
            print(f"  {name} ...", file=sys.stderr, flush=True)
            environment = CONTENDERS[name].environment
            python = pythons.get(environment, sys.executable)
            try:
                running[name] = stack.enter_context(
                    child.started(command_line(name, model, python))
                )
            except FailedError as error:
                problems[name] = str(error)
                continue
            if environment != MAIN:
                versions[environment] = running[name].ready["versions"]
        seconds: dict[str, list[float]] = {name: [] for name in running}
        peaks = dict.fromkeys(running, 0)
        for number in range(rounds):
            alive = [name for name in running if name not in problems]
            for name in turns.order(alive, number):
                try:
                    figures = running[name].ask("update")
                except FailedError as error:
                    problems[name] = str(error)
                    continue
                seconds[name].append(figures["seconds"])
                peaks[name] = figures["peak_bytes"]
        found = {
            name: problems.get(name)
            or Measured(
                first=running[name].ready["first_s"], updates=seconds[name], peak_bytes=peaks[name]
            )
            for name in names
        }
    return found, versions


def report(
    model: str, rounds: int, only: Sequence[str], pythons: Mapping[str, str]
) -> dict[str, Any]:
    """Runs everything; the figures as they go into the JSON file."""
    names = turns.chosen(CONTENDERS, only)
    heading = machine.heading("benchmarks.update_step")
    shapes = bert_shapes.block_shapes(model)
    parameters = bert_shapes.parameters(shapes)
    missing = absent(names, pythons)
    needed = 1.4 * STATE_BYTES * parameters + _PROCESS_BYTES
    size = int(0.85 * machine.available_bytes() / needed)
    measured, peers = [], {}
    for group in groups([name for name in names if name not in missing], size):
        print(f"a group of {len(group)}:", file=sys.stderr)
        found, versions = measure(group, model, rounds, pythons)
        measured.append(update_step_report.rows(found, parameters))
        peers.update(versions)
    return {
        **heading,
        "processor": machine.processor(),
        "versions": machine.versions(_PACKAGES),
        "peers": peers,
        "model": model,
        "blocks": len(shapes),
        "parameters": parameters,
        "rounds": rounds,
        "groups": measured,
        "not_measured": missing,
    }


def body(flag_values: flags.FlagValues) -> None:
    """Measures as the flags say, prints the table, writes the JSON file and the chart."""
    named = {name: flag_values[f"{name}_python"].value for name in _PEERS}
    pythons = {
        name: machine.interpreter(path, f"--{name}_python")
        for name, path in named.items()
        if path is not None
    }
    output = flag_values.output
    whole_files.check_report(output)
    figures = report(flag_values.model, flag_values.rounds, flag_values.only, pythons)
    print(update_step_report.table(figures))
    whole_files.write_report(output, figures, update_step_report.chart)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
