r"""What does not depend on anybody's hardware: ours beside stock Model Garden and Keras.

    python -m benchmarks.exactness --output=benchmarks/results/exactness

Four parts: `coverage`, the examples that the workers of an epoch draw; `error`, optimizers in
float32 against float64; `cuts`, the weights by replicas and micro-batches; `kills`, runs that are
killed and started again. A part that OUTPUT.json has is not measured again, nor is a kill;
--again=true does so. --only picks parts.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from benchmarks import (
    exactness_chart,
    exactness_coverage,
    exactness_cuts,
    exactness_data,
    exactness_error,
    exactness_kills,
    exactness_report,
    exactness_stock_kills,
    machine,
    markdown_part,
    provenance,
    whole_files,
)
from benchmarks.exactness_report import COVERAGE, CUTS, ERROR, KILLS, PARTS
from tfrecords import command
from tfrecords.errors import UserError

_MODULE = "benchmarks.exactness"
_PACKAGES = ("tensorflow", "keras", "tf-keras", "tf-models-official", "numpy", "tf-lans")

FLAGS = flags.FlagValues()
flags.DEFINE_list("only", [], f"Of {', '.join(PARTS)}; all if empty.", flag_values=FLAGS)
flags.DEFINE_bool("again", False, "Measure what OUTPUT.json has already.", flag_values=FLAGS)
flags.DEFINE_string(
    "input", None, "Text: files, folders, globs; by default ../shared's novels, or docstrings.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "text_bytes", 2e6, "How much of the text is read.", lower_bound=1e5, flag_values=FLAGS
)
flags.DEFINE_integer(
    "epochs", 10, "Epochs drawn for each row of `coverage`, each from a seed of its own.",
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "error_steps", exactness_error.STEPS, "Updates of each optimizer in `error`.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "cut_steps", exactness_cuts.STEPS, "Updates of each run in `cuts`.", lower_bound=3,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "kills", exactness_kills.ALL, [exactness_kills.FEW, exactness_kills.ALL],
    "The kills of `make test`, or those of `make test-kill`.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "stock_trials", 3, "Stock jobs that are killed, each otherwise: so many of one worker, as many "
    "of two.", lower_bound=0, upper_bound=exactness_stock_kills.MOST_TRIALS, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "output", None, "Writes OUTPUT.json and the chart OUTPUT.png.", flag_values=FLAGS
)
flags.DEFINE_string(
    "document", None, "Markdown file whose generated part is replaced.", flag_values=FLAGS
)

Figures = dict[str, Any]


def chosen(only: Sequence[str]) -> list[str]:
    """The parts to measure, in the order in which they were named.

    Raises:
        UserError: there is no such part.
    """
    for name in only:
        if name not in PARTS:
            raise UserError(f"--only names {name!r}; expected some of {', '.join(PARTS)}")
    return list(dict.fromkeys(only)) or list(PARTS)


def read(output: str | None) -> Figures:
    """What OUTPUT.json has; nothing where there is no such file.

    Raises:
        UserError: it is not what this command writes.
    """
    path = pathlib.Path(f"{output}.json")
    if output is None or not path.exists():
        return {}
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(figures) - set(PARTS)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"{path} is not JSON of this command: {error}; move it away") from error
    if not isinstance(figures, dict) or unknown:
        raise UserError(f"{path} is not JSON of this command; move it away")
    return figures


def _measure(
    part: str,
    flag_values: flags.FlagValues,
    folder: pathlib.Path,
    known: Figures,
    keep: Callable[[Figures], None],
) -> Figures:
    """One part's figures."""

    def text() -> exactness_data.Corpus:
        return exactness_data.prepare(flag_values.input, folder / "text", flag_values.text_bytes)

    if part == COVERAGE:
        return exactness_coverage.measure(text(), folder, flag_values.epochs)
    if part == ERROR:
        return exactness_error.measure(flag_values.error_steps)
    if part == CUTS:
        return exactness_cuts.measure(text(), folder, flag_values.cut_steps)
    return exactness_kills.measure(
        text, folder, flag_values.kills, flag_values.stock_trials, known, keep
    )


def labelled(part: str, found: Figures, known: Figures, heading: Figures) -> Figures:
    """A part with the heading that it was measured with.

    Kills are measured one by one, so each has its own, and the part that of the last call that
    measured one.

    Args:
        part: its name.
        found: what was measured, for kills with what was known before.
        known: what was known before.
        heading: of this call.
    """
    if part != KILLS:
        return {**found, **heading}
    rows = {
        name: provenance.stamped(found[name], known.get(name, []), known, heading)
        for name in exactness_report.KILLED
    }
    is_new = any(
        provenance.known(row, known.get(name, [])) is None
        for name in exactness_report.KILLED
        for row in found[name]
    )
    label = heading if is_new or not known else {key: known[key] for key in heading if key in known}
    return {**found, **label, **rows}


def body(flag_values: flags.FlagValues) -> None:
    """Measures what is not known yet, then reports."""
    parts = chosen(flag_values.only)
    if flag_values.document:
        markdown_part.check(flag_values.document, _MODULE)
    output = flag_values.output
    whole_files.check_report(output)
    figures = read(output)
    heading = {
        **machine.heading(_MODULE),
        "processor": machine.processor(),
        "versions": machine.versions(_PACKAGES),
    }

    def keep(part: str, found: Figures, known: Figures) -> None:
        figures.update(read(output))  # another part may have been measured meanwhile
        figures[part] = labelled(part, found, known, heading)
        if output:
            ordered = {name: figures[name] for name in PARTS if name in figures}
            whole_files.write_json(f"{output}.json", ordered)

    # A kill is kept by itself, so that more of them can be added.
    missing = [part for part in parts if flag_values.again or part == KILLS or part not in figures]
    if CUTS in missing:
        exactness_cuts.prepare_devices(exactness_cuts.MOST_REPLICAS)
    for part in missing:
        print(f"== {part}", flush=True)
        known = {} if flag_values.again else figures.get(part, {})
        with tempfile.TemporaryDirectory() as folder:
            found = _measure(
                part,
                flag_values,
                pathlib.Path(folder),
                known,
                lambda found, part=part, known=known: keep(part, found, known),
            )
        if found != known:
            keep(part, found, known)
    table = exactness_report.table(figures)
    print(table)
    if output:
        chart = exactness_chart.chart(figures)
        whole_files.write_chart(f"{output}.png", chart, exactness_chart.DPI)
    if flag_values.document:
        markdown_part.write(flag_values.document, _MODULE, table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
