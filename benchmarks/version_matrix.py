"""The tests of tf_lans and tfrecords on several versions of TensorFlow and Keras.

    python -m benchmarks.version_matrix --environments=pinned=.venv/bin/python

Each environment is a name and its Python. Every suite runs there in a process of its own; what
passed, beside the versions found there, goes into the JSON file and from there into the table of
every document that has a place for it. Environments that are not named keep what the file has of
them, so that with none the tables are written anew and nothing is run.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import machine, markdown_part, whole_files
from tfrecords import command
from tfrecords.errors import UserError

SUITES = {"tf_lans": "tests/optimizer", "tfrecords": "tests/data"}
RESULTS = "benchmarks/results/version_matrix.json"
MODULE = "benchmarks.version_matrix"

FLAGS = flags.FlagValues()
flags.DEFINE_list("environments", [], "NAME=PYTHON of each to test in.", flag_values=FLAGS)
flags.DEFINE_string("output", RESULTS, "The JSON file to write.", flag_values=FLAGS)

_ALL_PASSED, _SOME_FAILED = 0, 1  # pytest's exit codes
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_INSTALL = "in a clone, pip install '.[data,dev]' there"
_COLUMNS = {
    "python": "Python",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
    "tf_keras": "tf_keras",
    "tensorflow-text": "tensorflow-text",
}
_PACKAGES = [*list(_COLUMNS)[1:], "numpy", "tokenizers", "sentencex", "tf-models-official"]


def environments(named: Sequence[str]) -> dict[str, str]:
    """The Python of each environment.

    Raises:
        UserError: one is not NAME=PYTHON, or its Python is not there.
    """
    found = {}
    for each in named:
        name, _, python = each.partition("=")
        if not name or not os.access(python, os.X_OK):
            raise UserError(
                f"--environments has {each!r}: expected NAME=PYTHON, such as "
                "pinned=.venv/bin/python, with a Python that can be run"
            )
        found[name] = os.path.abspath(python)
    return found


def counts(report: pathlib.Path) -> dict[str, Any]:
    """What a report in JUnit's XML says: tests passed and failed, and why some were skipped."""
    passed = failed = 0
    skipped: collections.Counter[str] = collections.Counter()
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif reason is not None:
            skipped[reason.get("message", "")] += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": dict(sorted(skipped.items()))}


def versions(python: str) -> dict[str, str]:
    """The versions that the suites depend on, in that Python's environment."""
    program = (
        "import json; from benchmarks import machine; "
        f"print(json.dumps(machine.versions({_PACKAGES!r})))"
    )
    completed = subprocess.run(
        [python, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        last = (completed.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{python} cannot say its packages: {last}; {_INSTALL}")
    found = json.loads(completed.stdout)
    if "tensorflow" not in found:
        raise UserError(f"{python} has no tensorflow; {_INSTALL}")
    return found


def text_is_missing(found: dict[str, str]) -> str:
    """Why tfrecords cannot run on these versions; empty where it can.

    A release of tensorflow-text is for the TensorFlow of the same two numbers.
    """
    text = found.get("tensorflow-text", "")
    if text.split(".")[:2] == found["tensorflow"].split(".")[:2]:
        return ""
    return f"no tensorflow-text for TensorFlow {found['tensorflow']}"


def run_suite(python: str, folder: str) -> dict[str, Any]:
    """Runs the tests of a folder with that Python."""
    with tempfile.TemporaryDirectory() as temporary:
        report = pathlib.Path(temporary, "report.xml")
        options = ["-q", "--continue-on-collection-errors", f"--junitxml={report}"]
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        environment.pop("PYTHONPATH", None)
        completed = subprocess.run(
            [python, "-m", "pytest", *options, folder], cwd=_ROOT, env=environment, check=False
        )
        if completed.returncode not in (_ALL_PASSED, _SOME_FAILED):
            raise UserError(
                f"pytest could not run {folder} with {python}, exit code {completed.returncode}; "
                "its output above says why"
            )
        return counts(report)


def tested(python: str) -> dict[str, Any]:
    """All suites in one environment, as they go into the JSON file."""
    found = versions(python)
    missing = text_is_missing(found)
    suites = {
        name: {"not_run": missing} if name == "tfrecords" and missing else run_suite(python, folder)
        for name, folder in SUITES.items()
    }
    return {"date": machine.heading(MODULE)["date"], "versions": found, "suites": suites}


def failures(figures: dict[str, Any]) -> list[str]:
    """The suites with a test that failed."""
    return [
        f"{suite} on {name}"
        for name, environment in figures["environments"].items()
        for suite, result in environment["suites"].items()
        if result.get("failed")
    ]


def _cell(result: dict[str, Any]) -> str:
    if "not_run" in result:
        return f"not run: {result['not_run']}"
    skipped = sum(result["skipped"].values())
    parts = {"passed": result["passed"], "failed": result["failed"], "skipped": skipped}
    shown = [f"{count:,} {word}" for word, count in parts.items() if count or word == "passed"]
    return ", ".join(shown)


def _reasons(name: str, environment: dict[str, Any]) -> list[str]:
    return [
        f"- {name}, `{suite}`: {count} skipped, {reason}"
        for suite, result in environment["suites"].items()
        for reason, count in result.get("skipped", {}).items()
    ]


def table(figures: dict[str, Any]) -> str:
    """The report in Markdown: a row for each environment, and why tests were skipped."""
    if not figures["environments"]:
        return ""
    heads = ["", *_COLUMNS.values(), *(f"`{name}`" for name in SUITES)]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    reasons = []
    for name, environment in figures["environments"].items():
        found = environment["versions"]
        cells = [f"{name}, {environment['date'][:10]}"]
        cells += [found.get(package, "none") for package in _COLUMNS]
        cells += [_cell(environment["suites"][suite]) for suite in SUITES]
        lines.append("| " + " | ".join(cells) + " |")
        reasons += _reasons(name, environment)
    return "\n".join([*lines, "", *reasons] if reasons else lines) + "\n"


def recorded(path: pathlib.Path) -> dict[str, Any]:
    """What the JSON file has; no environments where there is none."""
    if not path.is_file():
        return {"environments": {}}
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; remove it to begin anew") from error
    if not isinstance(figures, dict) or "environments" not in figures:
        raise UserError(f"{path} has no environments; expected what this command writes")
    return figures


def documents(root: pathlib.Path = _ROOT) -> list[pathlib.Path]:
    """The documents with a place for the table."""
    begin, _ = markdown_part.marks(MODULE)
    candidates = [root / "README.md", root / "benchmarks/README.md", *root.glob("docs/*.md")]
    return [path for path in candidates if begin in path.read_text(encoding="utf-8")]


def body(flag_values: flags.FlagValues) -> None:
    """Runs the suites, prints the table, writes it wherever it stands."""
    output = pathlib.Path(flag_values.output)
    whole_files.check(output)
    figures = recorded(output)
    for name, python in environments(flag_values.environments).items():
        print(f"== {name}: {python}", flush=True)
        figures["environments"][name] = tested(python)
        whole_files.write_json(output, figures)
    print(table(figures))
    for path in documents():
        markdown_part.write(path, MODULE, table(figures))
    failed = failures(figures)
    if failed:
        raise UserError(f"tests failed: {', '.join(failed)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
