"""How many kills a run outlives: the sweep of tests/bert/test_kill.py, and stock jobs.

The sweep's chains are run by pytest as `make test-kill` runs them. A chain is one run and the
kills that it has to outlive, one a start; its test passes when each kill happened where it should
and the run then ended, to the bit, as one that was never killed.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from benchmarks import exactness_data, exactness_stock_kills
from tests.bert import test_kill
from tfrecords.errors import UserError

FEW, ALL = "few", "all"
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TEST = "tests/bert/test_kill.py::test_a_killed_run_ends_as_the_uninterrupted_one"

Rows = list[dict[str, Any]]


def chains(choice: str) -> list[str]:
    """The names of the chains of `make test`, or of the whole sweep."""
    return list(test_kill.FEW if choice == FEW else test_kill.CHAINS)


def run_chains(names: Sequence[str]) -> Rows:
    """Lets pytest run chains; a row for each.

    Raises:
        UserError: pytest could not run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                f"--junitxml={report}",
                *(f"{_TEST}[{name}]" for name in names),
            ],
            cwd=_ROOT,
            env=os.environ | {test_kill.SWEEP: "1"},
            check=False,
        )
        if not report.exists():
            raise UserError(
                "pytest left no report; is it installed? pip install '.[dev]' in a clone"
            )
        return rows_of(report.read_text(encoding="utf-8"), names)


def rows_of(report: str, names: Sequence[str]) -> Rows:
    """Rows from a JUnit report, of the chains that it says ran."""
    passed: dict[str, bool] = {}
    seconds: dict[str, float] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = case.get("name", "").partition("[")[2].removesuffix("]")
        if case.find("skipped") is not None:
            continue
        passed[name] = all(case.find(kind) is None for kind in ("failure", "error"))
        seconds[name] = float(case.get("time", 0))
    rows = []
    for name in filter(passed.__contains__, names):
        chain = test_kill.CHAINS[name]
        rows.append(
            {
                "chain": name,
                "kind": chain.kind,
                "workers": test_kill.KINDS[chain.kind].workers,
                "kills": len(chain.kills),
                "bit_equal": passed[name],
                "seconds": round(seconds[name], 1),
            }
        )
    return rows


def measure_ours(choice: str, known: Rows, keep: Callable[[Rows], None]) -> Rows:
    """The chains that are not known yet, those of one kind of run after those of another."""
    rows = list(known)
    missing = [name for name in chains(choice) if name not in {row["chain"] for row in rows}]
    for kind in test_kill.KINDS:
        names = [name for name in missing if test_kill.CHAINS[name].kind == kind]
        if names:
            rows += run_chains(names)
            keep(rows)
    return rows


def planned() -> dict[str, int]:
    """The kills of the whole sweep, by the number of workers."""
    totals: dict[str, int] = {}
    for chain in test_kill.CHAINS.values():
        workers = str(test_kill.KINDS[chain.kind].workers)
        totals[workers] = totals.get(workers, 0) + len(chain.kills)
    return totals


def measure(
    text: Callable[[], exactness_data.Corpus],
    folder: pathlib.Path,
    choice: str,
    stock_trials: int,
    known: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The whole part, what is known already aside.

    Args:
        text: makes what stock jobs read.
        folder: for shards and runs.
        choice: `FEW` or `ALL` chains of the sweep.
        stock_trials: stock jobs of one worker, and of two.
        known: what an earlier call returned, or kept.
        keep: is given what there is after each kind of run and each stock trial.
    """
    figures = {"ours": [], "stock": [], **known, "planned_kills": planned()}

    def keeper(name: str) -> Callable[[Rows], None]:
        def keep_rows(rows: Rows) -> None:
            figures[name] = rows
            keep(figures)

        return keep_rows

    if any(
        exactness_stock_kills.missing(figures["stock"], workers, stock_trials) for workers in (1, 2)
    ):
        manifest = exactness_data.shards(text(), folder / "shards-8", 8)
        figures["stock"] = exactness_stock_kills.measure(
            manifest, folder, stock_trials, figures["stock"], keeper("stock")
        )
    figures["ours"] = measure_ours(choice, figures["ours"], keeper("ours"))
    return figures
