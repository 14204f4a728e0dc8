"""What the large-batch study's records are shown as."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import (
    large_batch_charts,
    large_batch_queue,
    large_batch_report,
    large_batch_table,
)
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_report import Place
from tests.large_batch_samples import STUDY, play, record_of, run_of


@given(st.lists(st.floats(0, 10), min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_choices(losses: list[float], data: st.DataObject) -> None:
    tries = data.draw(st.integers(1, len(losses)))
    choices = [min(chosen) for chosen in itertools.combinations(losses, tries)]
    expected = sum(choices) / len(choices)
    assert large_batch_report.best_of(losses, tries) == pytest.approx(expected, abs=1e-9)


def test_steps_to_a_target_are_interpolated() -> None:
    curve = [[0, None, 4.0], [10, 3.9, 3.0], [20, 3.4, 2.0]]
    assert large_batch_report.steps_to(curve, 2.5) == pytest.approx(15)
    assert large_batch_report.steps_to(curve, 3.0) == pytest.approx(10)
    assert large_batch_report.steps_to(curve, 1.0) is None
    assert large_batch_report.steps_to([[0, None, 4.0], [5, None, None]], 3.0) is None


def place_of(method: str, losses: Sequence[float], first_seed: int = 1) -> Place:
    records = [
        record_of(run_of(method, seed=seed), loss - 0.1, math.isinf(loss))
        for seed, loss in enumerate(losses, start=first_seed)
    ]
    return Place(
        method=METHODS[method],
        batch=16,
        best=run_of(method),
        is_tuned=True,
        tuning=[],
        at_best=records,
        is_fresh=True,
    )


def test_differences_are_of_the_same_seed() -> None:
    # What both methods have in common on a seed is no difference: 1, 5 and 3.
    one, other = place_of("LANS eq. (8)", [1.1, 5.3, 3.2]), place_of("AdamW", [1, 5, 3])
    found = large_batch_report.difference(one, other)
    assert found is not None
    # Student's t of two degrees of freedom at 97.5 %, from a table; the deviation is 0.1.
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-4)
    # Seed 1 has no other.
    assert large_batch_report.difference(one, place_of("AdamW", [5], 2)) is None
    # Two seeds finished; they were the lucky ones.
    lost = place_of("AdamW", [1, 5, math.inf])
    assert large_batch_report.difference(one, lost) is None
    assert large_batch_report.difference(lost, one) is None
    tuned = dataclasses.replace(other, is_fresh=False)
    assert large_batch_report.difference(one, tuned) is None


# Draws of eleven methods, rates of five at the other batch, seeds of both: the first run, and how
# many a group has.
GROUPS = ((0, 11), (22, 5), (32, 16))


@given(cut=st.integers(0, 64))
@settings(max_examples=15, deadline=None)
def test_methods_are_shown_after_equal_tries(cut: int) -> None:
    records = play(cut)
    done = large_batch_queue.of_study(STUDY, records)
    found = large_batch_report.places(STUDY, large_batch_report.shown(STUDY, records))
    draws, rates, seeds = (min(2, max(0, cut - before) // size) for before, size in GROUPS)
    here = [place for place in found if place.batch == 16]
    elsewhere = [place for place in found if place.batch == 8]
    assert {len(place.tuning) for place in here} == ({draws} if draws else set())
    assert {len(place.tuning) for place in elsewhere} == ({rates} if rates else set())
    assert {len(place.at_best) if place.is_fresh else 0 for place in found} <= {seeds}
    assert large_batch_queue.is_drawn(STUDY, done) == (cut >= 22)
    assert large_batch_queue.is_complete(STUDY, done) == (cut == 64)


def test_a_study_that_did_not_wait_for_a_slow_run_shows_whole_groups() -> None:
    records = play(32)

    def tries(missing: int) -> list[int]:
        there = [*records[:missing], *records[missing + 1 :]]
        found = large_batch_report.places(STUDY, large_batch_report.shown(STUDY, there))
        return [len(place.tuning) for place in found]

    assert tries(3) == []  # of the first draw
    assert tries(13) == [1] * 11
    assert tries(24) == [2] * 11  # of the first rate
    assert sorted(tries(29)) == [1] * 5 + [2] * 11
    assert tries(32) == [2] * 16


def test_the_target_is_given_or_below_what_needs_no_context() -> None:
    plan = {"kind": "plan", "study": STUDY.key, "target_loss": None}
    known = {**plan, "frequency_losses": {"validation": 4.0}}
    assert large_batch_report.target_loss(STUDY, [plan], None) is None
    assert large_batch_report.target_loss(STUDY, [plan, known], None) == pytest.approx(3.75)
    assert large_batch_report.target_loss(STUDY, [known, {**known, "study": "other"}], 2.0) == 2.0


def test_who_does_not_always_arrive_is_said_to(tmp_path: pathlib.Path) -> None:
    records = play()
    for record in records:
        settings = record["settings"]
        # From 3.5 at step 2 to the loss at step 4.
        arrives = settings["method"] == "AdamW" or settings["seed"] == 1
        record["curve"][-1][2] = 2.5 if arrives and settings["method"] != "Keras Muon" else 3.2
    text = large_batch_table.table(STUDY, records, [], 3.0)
    last = {
        row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip("| ")
        for row in text.splitlines()
        if row.startswith("|") and "16 |" in row
    }
    assert last["AdamW"] == "3" and last["Keras Muon"] == "never"
    assert last["LANS eq. (9)"] == "1 of 2 seeds"
    assert "steps_to_target" in large_batch_charts.choose(STUDY, records, 3.0)
    assert "steps_to_target" not in large_batch_charts.choose(STUDY, records, 2.0)
    found = large_batch_report.places(STUDY, records)
    (axes,) = large_batch_charts.steps_to_target(found, 3.0).axes
    labels = [str(line.get_label()) for line in axes.get_lines()]
    assert "AdamW" in labels and "linear scaling of AdamW at 8" in labels
    assert "LANS eq. (9) (not with every seed at 8 and 16)" in labels


def test_what_each_part_brings_is_taken_seed_by_seed() -> None:
    records = play()
    for record in records:
        settings = record["settings"]
        extra = 0.5 if settings["method"] == "LANS eq. (9) without Nesterov" else 0.0
        record["test_loss"] = (
            3.0 + settings["seed"] + (1.01 if settings["seed"] == 2 else 1) * extra
        )
    text = large_batch_table.table(STUDY, records, [], None)
    (row,) = (line for line in text.splitlines() if line.startswith("| Nesterov's term |"))
    # Differences of -0.5 and -0.505; of one degree of freedom, Student's t is 12.706.
    half = 12.706 * 0.0025
    cells = ["", f"-0.502 ({-0.5025 - half:+.3f} to {-0.5025 + half:+.3f})"]
    assert [cell.strip() for cell in row.split("|")[4:6]] == cells
    assert "the constant phase" in text and "below 0 the first is better" in text
    assert "What each part brings" not in large_batch_table.table(STUDY, play(48), [], None)


def test_runs_of_a_longer_study_are_counted_apart() -> None:
    longer = dataclasses.replace(STUDY, draws=3, earlier_draws=(2,))
    records = play(70, study=longer, records=play())
    text = large_batch_table.table(STUDY, records, [], None)
    assert "64 of 64 runs are done" in text and "6 further runs" in text
    assert f"{64 / 3600:.1f} hours" in text
    assert "further runs" not in large_batch_table.table(STUDY, play(), [], None)


def test_charts_and_table_show_what_there_is(tmp_path: pathlib.Path) -> None:
    drawn = {64: 5, 0: 0, 1: 0, 9: 0, 12: 2, 26: 3, 27: 5, 63: 5}
    for count, charts in drawn.items():
        records = play(count)
        plan = {
            "kind": "plan",
            "study": STUDY.key,
            "frequency_losses": {"validation": 4.0, "test": 4.1},
        }
        records = [plan, *records]
        target = large_batch_report.target_loss(STUDY, records, None)
        paths = large_batch_charts.draw(STUDY, records, str(tmp_path / "study"), target)
        assert len(paths) == charts, count
        # Those of the count before are gone where they are not chosen any more.
        assert sorted(map(str, tmp_path.glob("*.png"))) == sorted(paths)
        text = large_batch_table.table(STUDY, records, paths, target)
        assert f"{count} of 64 runs" in text
        assert ("so far every method" in text.lower()) == (11 <= count < 22)
        assert ("how frequent each token is" in text) == (count >= 11)
        assert ("with one of its draws" in text) == (11 <= count < 22)
        assert ("Not to be compared" in text) == (22 <= count < 64)
        assert ("steps to a validation loss" in text) == (count >= 22)
        tables = [part for part in text.split("\n\n") if part.startswith("|")]
        for rows in tables:
            assert len({row.count("|") for row in rows.splitlines()}) == 1
        is_partly_tuned = "the tuning seed alone" in text or ", unfinished" in text
        assert is_partly_tuned == (22 <= count < 48)


@pytest.mark.parametrize(
    ("tried", "best", "mark"),
    [
        ([1.0, 2.0, 3.0], 1.0, " (the least tried)"),
        ([1.0, 2.0, 3.0], 2.0, ""),
        ([1.0, 2.0, 3.0], 3.0, " (the greatest tried)"),
        ([1.0], 1.0, ""),
    ],
)
def test_a_best_rate_at_an_end_is_marked(tried: list[float], best: float, mark: str) -> None:
    # Those around another draw go further to both sides.
    others = [0.5, 4.0] if len(tried) > 1 else []
    runs = [run_of("AdamW", learning_rate=rate) for rate in tried]
    runs += [run_of("AdamW", learning_rate=rate, beta_2=0.5) for rate in others]
    place = dataclasses.replace(
        place_of("AdamW", [3.0]),
        best=run_of("AdamW", learning_rate=best),
        tuning=[{"settings": dataclasses.asdict(run)} for run in runs],
    )
    assert large_batch_report.edge(place) == mark


def test_a_seed_that_diverges_is_not_averaged_away(tmp_path: pathlib.Path) -> None:
    records = play()
    for record in records:
        settings = record["settings"]
        if settings["method"] == "LANS eq. (9)" and settings["seed"] == 2:
            record["diverged"], record["validation_loss"] = True, None
            record["curve"][-1][2] = None
    found = large_batch_report.places(STUDY, records)
    for place in found:
        lost = place.method.name == "LANS eq. (9)"
        assert (place.lost, place.loss is None) == ((1, True) if lost else (0, False))
    text = large_batch_table.table(STUDY, records, [], None)
    (row,) = (line for line in text.splitlines() if line.startswith("| LANS eq. (9) | 16 |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[8:10] == ["2", "1 diverged"] and cells[11] == ""
    figure = large_batch_charts.loss_by_batch(STUDY, found, None)
    assert "LANS eq. (9): 1 of 2 seeds diverged" in {
        each.get_label() for each in figure.axes[0].get_lines()
    }
