"""Turns are fair, children that end are told of, and mistakes are refused before measuring."""

import collections
import itertools
import pathlib
import sys
from collections.abc import Callable

import pytest
from scipy import stats

from benchmarks import (
    child,
    data,
    data_rates,
    exactness,
    import_time,
    machine,
    train_step,
    transfer,
    turns,
    update_step,
    version_matrix,
    whole_files,
)
from benchmarks.data_process import FailedError
from tfrecords.errors import UserError


@pytest.mark.parametrize(("count", "left_out"), [(1, 0), (5, 0), (7, 0), (8, 0), (9, 1), (30, 9)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, left_out: int) -> None:
    """The k that tables of the sign test have for 5 %, against SciPy's binomial distribution."""
    low, high, confidence = turns.median_interval([float(each) for each in range(count)][::-1])
    assert (low, high) == (left_out, count - 1 - left_out)
    assert confidence == pytest.approx(1 - 2 * stats.binom.cdf(left_out, count, 0.5))
    assert confidence >= 0.95 or left_out == 0
    assert 1 - 2 * stats.binom.cdf(left_out + 1, count, 0.5) < 0.95


def test_a_heading_names_day_commit_and_command() -> None:
    heading = machine.heading("benchmarks.x")
    assert set(heading) == {"date", "commit", "command"}
    assert heading["commit"] == machine.commit()


@pytest.mark.parametrize("count", range(1, 13))
def test_over_a_cycle_places_and_predecessors_are_shared_out_equally(count: int) -> None:
    times = 1 if count % 2 == 0 else 2
    places: collections.Counter[tuple[int, int]] = collections.Counter()
    pairs: collections.Counter[tuple[int, int]] = collections.Counter()
    for number in range(times * count):
        order = turns.order(range(count), number)
        assert sorted(order) == list(range(count))
        places.update(enumerate(order))
        pairs.update(itertools.pairwise(order))
    assert set(places) == set(itertools.product(range(count), repeat=2))
    assert set(pairs) == set(itertools.permutations(range(count), 2))
    assert {*places.values(), *pairs.values()} == {times}


@pytest.mark.parametrize("count", range(3, 13))
def test_nobody_who_ends_a_round_begins_the_next(count: int) -> None:
    orders = [turns.order(range(count), number) for number in range(4 * count)]
    assert all(one[-1] != other[0] for one, other in itertools.pairwise(orders))


def test_ratios_are_within_rounds_and_of_medians() -> None:
    assert turns.ratios([1.0, 8.0, 3.0], [1.0, 2.0, 1.0]) == {
        "median": 3.0,
        "lowest": 1.0,
        "highest": 4.0,
        "of_medians": 3.0,
    }
    with pytest.raises(ValueError, match="shorter"):
        turns.ratios([1.0, 2.0], [1.0])


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


ANSWERS = "import sys\nprint('{}', flush=True)\n"


def test_a_child_answers_each_line() -> None:
    doubles = program(ANSWERS + "for each in sys.stdin: print(2 * int(each), flush=True)")
    with child.started(doubles) as running:
        assert running.ready == {} and [running.ask(each) for each in (1, 4)] == [2, 8]


@pytest.mark.parametrize(
    ("ends", "told"),
    [("sys.exit('no memory')", "no memory"), ("sys.exit(3)", "ended with exit code 3")],
)
def test_a_child_that_ends_says_why_at_every_question(ends: str, told: str) -> None:
    with (
        child.started(program(f"{ANSWERS}sys.stdin.readline()\n{ends}")) as running,
    ):
        for _ in range(2):  # the second one into a broken pipe
            with pytest.raises(FailedError, match=f"^{told}$"):
                running.ask("now")
    with (
        pytest.raises(FailedError, match=f"^{told}$"),
        child.started(program(f"import sys; {ends}")),
    ):
        pass


def test_a_python_is_found_or_refused(tmp_path: pathlib.Path) -> None:
    assert machine.interpreter(sys.executable, "--python") == sys.executable
    for missing in (str(tmp_path / "none"), str(tmp_path), ""):
        with pytest.raises(UserError, match="--x_python is .*expected an environment's Python"):
            machine.interpreter(missing, "--x_python")


def test_outputs_that_cannot_be_written_are_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.json"
    for _ in range(2):
        whole_files.check(file)
        file.touch()
    assert list(tmp_path.iterdir()) == [file]
    for path, told in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "a.json", "there is no folder .*none"),
        (file / "a.json", "there is no folder"),
        (pathlib.Path("/proc/a.json"), "takes no files"),
    ):
        with pytest.raises(UserError, match=f"--output: cannot write .*{told}"):
            whole_files.check(path)


NOWHERE = "--output=/nowhere/figures"
MISTAKES: list[tuple[Callable[[list[str]], int], list[str], str]] = [
    (update_step.main, [NOWHERE], "no folder /nowhere"),
    (update_step.main, ["--only=LANS,typo"], "'typo', which is part of no name"),
    *(
        (update_step.main, [f"--{peer}_python=/nowhere/python"], f"--{peer}_python is '/nowhere/p")
        for peer in ("tfa", "jax", "torch")
    ),
    (train_step.main, [NOWHERE], "no folder /nowhere"),
    (data.main, [NOWHERE], "no folder /nowhere"),
    (data.main, ["--only=tf-lans,typo"], "'typo', which is part of no name"),
    (data.main, ["--google_bert=/nowhere"], "--google_bert is '/nowhere', which is no folder"),
    (data.main, ["--lddl_python=/nowhere"], "--lddl_python is '/nowhere', which cannot be run"),
    (data_rates.main, [NOWHERE], "no folder /nowhere"),
    (exactness.main, [NOWHERE], "no folder /nowhere"),
    (exactness.main, ["--stock_trials=4"], "stock_trials"),
    (import_time.main, [NOWHERE], "no folder /nowhere"),
    (import_time.main, ["--python=/nowhere"], "--python is '/nowhere', which cannot be run"),
    (transfer.main, [NOWHERE, "--corpus=a.txt"], "no folder /nowhere"),
    (version_matrix.main, ["--output=/nowhere/figures.json"], "no folder /nowhere"),
]


@pytest.mark.parametrize(
    ("main", "arguments", "told"),
    MISTAKES,
    ids=[f"{main.__module__} {arguments[0]}" for main, arguments, _ in MISTAKES],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    main: Callable[[list[str]], int],
    arguments: list[str],
    told: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "subprocess.Popen", lambda *_, **__: pytest.fail("a process was started first")
    )
    assert main(arguments) == 2
    output, error = capfd.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
    assert not output and not list(tmp_path.iterdir())
