"""The training step on a CPU: steps per second of `official_bert` and of stock Model Garden.

    python -m benchmarks.train_step --output=train_step
    python -m benchmarks.train_step --compare=micro_batches --output=train_step_micro_batches

Every contender trains the same model on the same batches in a process of its own. They take turns,
one at a time, a turn being as many steps as take about `--turn_seconds`, so that all see the same
machine; the first round is a warm-up, and tells how many steps that is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags

from benchmarks import child, data_process, machine, train_step_report, turns, whole_files
from benchmarks.data_process import FailedError
from benchmarks.train_step_batches import LEAST_VOCAB_SIZE
from benchmarks.train_step_contenders import (
    COMPARISONS,
    MODEL_GARDEN,
    MODELS,
    Contender,
    Workload,
    chosen,
)
from benchmarks.train_step_report import Measured, Turn
from tfrecords import command
from tfrecords.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "compare", MODEL_GARDEN, tuple(COMPARISONS),
    "Our steps with those of Model Garden, or accumulated micro-batches with one alone.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum("model", "bert_mini", MODELS, "What is trained.", flag_values=FLAGS)
flags.DEFINE_integer(
    "vocab_size", 30522, "Rows of its embedding table.", lower_bound=LEAST_VOCAB_SIZE,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "batch_size", 32, "Examples of a step, or of each of its micro-batches.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("seq_length", 128, "Tokens of an example.", lower_bound=16, flag_values=FLAGS)
flags.DEFINE_integer(
    "max_predictions", 20, "Masked positions of an example.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("rounds", 7, "Turns of each contender.", lower_bound=5, flag_values=FLAGS)
flags.DEFINE_float(
    "turn_seconds", 1.5, "About how long a turn is, if a step is not longer.", lower_bound=0.0,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "only", [], "Contenders whose names contain one of these, and whom they are held against; all "
    "of the comparison if empty.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "output", None, "Writes OUTPUT.json and the chart OUTPUT.png.", flag_values=FLAGS
)

_PACKAGES = ("tensorflow", "tf-keras", "tf-models-official", "numpy", "tf-lans")
_SIZES = ("vocab_size", "batch_size", "seq_length", "max_predictions")
# As the kernel names them: x86 two, then ARM.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def command_line(contender: Contender, workload: Workload) -> list[str]:
    """The command of a contender's process."""
    sizes = json.dumps(dataclasses.asdict(workload))
    return [sys.executable, "-m", "benchmarks.train_step_process", contender.name, sizes]


def measure(
    contenders: Sequence[Contender], workload: Workload, rounds: int, turn_seconds: float
) -> dict[str, Measured | str]:
    """Lets the contenders take turns, in an order that `benchmarks.turns` changes each round.

    Args:
        contenders: who.
        workload: what they train.
        rounds: turns of each, the warm-up not counted.
        turn_seconds: about how long a turn is, where a step is not longer.

    Returns:
        By name, the figures, or why there are none.
    """
    problems: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, child.Child] = {}
        for each in contenders:  # one after another: a first step has the machine to itself
            print(f"  {each.name} ...", file=sys.stderr, flush=True)
            try:
                _check_memory(running.values())
                running[each.name] = stack.enter_context(
                    child.started(command_line(each, workload))
                )
            except FailedError as error:
                problems[each.name] = str(error)
        steps = dict.fromkeys(running, 1)
        taken: dict[str, list[Turn]] = {name: [] for name in running}
        for number in range(1 + rounds):
            names = [name for name in running if name not in problems]
            for name in turns.order(names, number):
                try:
                    answer = running[name].ask(steps[name])
                except FailedError as error:
                    problems[name] = str(error)
                    continue
                taken[name].append(Turn(steps=steps[name], **answer))
            if number == 0:
                steps = {name: _steps_within(turn_seconds, *taken[name]) for name in names}
                taken = {name: [] for name in names}
        return {
            each.name: problems.get(each.name)
            or Measured(contender=each, turns=taken[each.name], **running[each.name].ready)
            for each in contenders
        }


def _check_memory(running: Collection[child.Child]) -> None:
    """A machine that begins to swap would measure its disk."""
    needed = max((data_process.tree_bytes(each.pid) for each in running), default=0)
    available = machine.available_bytes()
    if needed > available:
        raise FailedError(
            f"{available / 1e9:.1f} GB of memory are left beside the contenders before, which take "
            f"up to {needed / 1e9:.1f} GB each; use --only"
        )


def _steps_within(turn_seconds: float, *warm_up: Turn) -> int:
    return max([1, *(math.ceil(turn_seconds / turn.seconds) for turn in warm_up)])


def report(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Measures as the flags say; the figures as they go into the JSON file."""
    try:
        workload = Workload.of_model(
            flag_values.model,
            **{name: flag_values[name].value for name in _SIZES},
        )
        contenders = chosen(flag_values.compare, flag_values.only)
    except ValueError as error:
        raise UserError(str(error)) from error
    heading = machine.heading("benchmarks.train_step")
    measured = measure(contenders, workload, flag_values.rounds, flag_values.turn_seconds)
    rows = train_step_report.rows(measured, workload.batch_size)
    instructions = bfloat16_instructions()
    return {
        **heading,
        "processor": machine.processor(),
        "bfloat16_instructions": instructions,
        "versions": machine.versions(_PACKAGES),
        "compare": flag_values.compare,
        "model": flag_values.model,
        "workload": dataclasses.asdict(workload),
        "rounds": flag_values.rounds,
        "turn_seconds": flag_values.turn_seconds,
        "contenders": rows,
        "targets": train_step_report.targets(rows, flag_values.compare, bool(instructions)),
    }


def bfloat16_instructions() -> list[str]:
    """Those that this CPU has for products of bfloat16."""
    information = pathlib.Path("/proc/cpuinfo")
    words = set(information.read_text().split()) if information.exists() else set()
    return [name for name in _BFLOAT16_INSTRUCTIONS if name in words]


def body(flag_values: flags.FlagValues) -> None:
    """Measures, prints the report, writes the JSON file and the chart."""
    output = flag_values.output
    whole_files.check_report(output)
    figures = report(flag_values)
    print(train_step_report.table(figures))
    whole_files.write_report(output, figures, train_step_report.chart)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
