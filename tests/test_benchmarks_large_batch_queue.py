"""The large-batch study's queue, and what its records are shown as."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import (
    data_process,
    large_batch,
    large_batch_methods,
    large_batch_queue,
    large_batch_report,
    large_batch_table,
    large_batch_workers,
)
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_settings import Run
from tests.large_batch_samples import STUDY, play, record_of, run_of
from tfrecords.errors import UserError


def test_a_study_is_breadth_first_and_ends() -> None:
    records = play()
    runs = [Run(**record["settings"]) for record in records]
    assert len({record["run"] for record in records}) == len(records)
    done = large_batch_queue.of_study(STUDY, records)
    assert len(records) == 11 * 2 + 5 * 2 + (11 + 5) * 2
    assert (
        large_batch_queue.total(STUDY, done) == large_batch_queue.total(STUDY, {}) == len(records)
    )
    assert len(large_batch_queue.finished(STUDY, done)) == len(records)
    assert [run.method for run in runs[:11]] == [run.method for run in runs[11:22]] == list(METHODS)
    assert {run.batch for run in runs[:22]} == {16} and {run.batch for run in runs[22:32]} == {8}
    assert [run.seed for run in runs] == [0] * 32 + [1] * 16 + [2] * 16
    assert len({(run.beta_2, run.warmup_ratio) for run in runs[:11]}) == 1
    for method in METHODS.values():
        tuning = [each for each in records[:22] if each["settings"]["method"] == method.name]
        best = min(tuning, key=lambda each: each["validation_loss"])["settings"]
        for run in runs[32:]:
            if run.method == method.name and run.batch == 16:
                assert run == Run(**{**best, "seed": run.seed})
        assert all(
            method.rates[0] <= each["settings"]["learning_rate"] <= method.rates[1]
            for each in tuning
        )


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 64))
def test_a_study_goes_on_where_it_was_cut(cut: int) -> None:
    whole = play()
    done = large_batch_queue.of_study(STUDY, whole[:cut])
    following = next(large_batch_queue.remaining(STUDY, done), None)
    assert (following is None) == (cut == len(whole))
    if following is not None:
        assert following.key(STUDY) == whole[cut]["run"]


def test_a_plan_is_noted_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    other = dataclasses.replace(STUDY, data="other")
    longer = dataclasses.replace(STUDY, draws=3)
    for study in (STUDY, STUDY, other, STUDY, longer, longer, STUDY):
        large_batch_queue.note_plan(path, study, None, {"validation": 3.0, "test": 3.1})
    large_batch_queue.note_plan(path, STUDY, 2.5, {"validation": 3.0, "test": 3.1})
    plans = large_batch_queue.plans(large_batch_queue.read(path))
    assert [plan["study"] == STUDY.key for plan in plans] == [True, False, True, True]
    assert [plan["draws"] for plan in plans] == [2, 2, 3, 2]
    assert [plan["target_loss"] for plan in plans] == [None] * 3 + [2.5]
    assert large_batch_report.target_loss(STUDY, plans, None) == 2.5
    assert large_batch_report.target_loss(STUDY, plans, 2.0) == 2.0


def test_what_a_file_is_of_needs_no_text(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    longer = dataclasses.replace(STUDY, draws=3, earlier_draws=(2,))
    mistyped = dataclasses.replace(STUDY, model="nowhere:bert")
    for study in (dataclasses.replace(STUDY, data="other"), longer, STUDY, mistyped):
        large_batch_queue.note_plan(path, study, None, {})
    assert large_batch_queue.planned(large_batch_queue.read(path)) == []
    large_batch_queue.append(path, {**play(1)[0], "common": STUDY.common()})
    assert large_batch_queue.planned(large_batch_queue.read(path)) == [STUDY, longer]
    flags = [f"--results={path}", "--report_only", f"--document={tmp_path / 'none.md'}"]
    assert large_batch.main(flags) == 2
    assert large_batch.main(flags[:2]) == 0
    empty = tmp_path / "empty.jsonl"
    assert large_batch.main([f"--results={empty}", "--report_only"]) == 2


@given(exponent=st.floats(-6.0, 4.0), diverges_above=st.floats(-2.0, 6.0))
def test_rates_go_on_beyond_an_end_at_which_the_best_lies(
    exponent: float, diverges_above: float
) -> None:
    """The loss is least at 2^exponent of the best rate at the largest batch."""
    study = dataclasses.replace(STUDY, batches=(4, 16), rates=4)
    method = METHODS["AdamW"]
    records = [
        record_of(large_batch_methods.drawn(study, method, number), 3.0 + number)
        for number in range(study.draws)
    ]
    anchor = records[0]["settings"]["learning_rate"]

    def places() -> list[float]:
        done = large_batch_queue.of_study(study, records)
        runs = large_batch_queue.tuning_runs(study, done, method, 4) or []
        for run in runs:
            if run.key(study) not in done:
                place = math.log2(run.learning_rate / anchor)
                records.append(record_of(run, 2 + abs(place - exponent), place > diverges_above))
        return [math.log2(run.learning_rate / anchor) for run in runs]

    tried = places()
    assert tried == pytest.approx([-1, -1.5, 0, -2], abs=0.01)  # of a quarter of the batch
    while len(longer := places()) > len(tried):
        assert len(longer) == len(tried) + 1
        best = min(
            (place for place in tried if place <= diverges_above),
            key=lambda place: abs(place - exponent),
        )
        assert best in (min(tried), max(tried))
        assert longer[-1] == pytest.approx(best + (1 if best == max(tried) else -1), abs=0.01)
        tried = longer
    finished = [place for place in tried if place <= diverges_above]
    best = min(finished, key=lambda place: abs(place - exponent))
    is_inside = min(tried) < best < max(tried)
    assert is_inside or len(tried) == 4 + large_batch_queue.EXTENSIONS
    done = large_batch_queue.of_study(study, records)
    assert large_batch_queue.is_tuned(study, done, method, 4)


def test_a_method_that_never_converges_is_left_at_that() -> None:
    records = play(diverges="AdamW")
    assert sum(each["settings"]["method"] == "AdamW" for each in records) == STUDY.draws
    done = large_batch_queue.of_study(STUDY, records)
    assert len(large_batch_queue.finished(STUDY, done)) == large_batch_queue.total(STUDY, done)
    assert large_batch_queue.is_complete(STUDY, done)
    found = large_batch_report.places(STUDY, records)
    (place,) = (each for each in found if each.method.name == "AdamW")
    assert place.diverged == 2 and place.loss is None
    text = large_batch_table.table(STUDY, records, [], None)
    assert "| AdamW | 16 | | | | 2 | 2 | | diverged |" in text
    assert "less AdamW's" in text and "Not to be compared" not in text


def test_what_a_killed_process_left_half_written_is_no_record(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    records = play(3)
    for record in records[:2]:
        large_batch_queue.append(path, record)
    with path.open("a") as stream:
        stream.write(json.dumps(records[2])[:50])
    assert large_batch_queue.read(path) == records[:2]
    large_batch_queue.append(path, records[2])
    assert large_batch_queue.read(path) == records
    # Killed between the line and its end, or written by an editor that leaves none.
    path.write_text(path.read_text().rstrip("\n"))
    large_batch_queue.append(path, records[0])
    assert large_batch_queue.read(path) == [*records, records[0]]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserError, match="line 1 is no record"):
        large_batch_queue.read(path)


def test_of_growing_studies_the_last_that_is_whole_is_reported() -> None:
    longer = dataclasses.replace(STUDY, draws=3, earlier_draws=(2,))
    records = play()
    done = large_batch_queue.of_study(STUDY, records)
    for studies, cut, expected in (
        ([STUDY, longer], 63, STUDY),
        ([STUDY, longer], 64, STUDY),
        ([longer, STUDY], 64, longer),
    ):
        some = dict(itertools.islice(done.items(), cut))
        assert large_batch_queue.reported(studies, some) == expected
    records = play(study=longer, records=records)
    done = large_batch_queue.of_study(longer, records)
    assert large_batch_queue.is_complete(STUDY, done)
    assert large_batch_queue.reported([STUDY, longer], done) == longer
    # Eleven more draws, and anew what follows from each that was better than those before.
    assert 75 <= len(records) < 64 + 11 + 5 * 2 + (11 + 5) * 2
    assert len(large_batch_queue.finished(STUDY, done)) == 64


@given(seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_no_method_loses_by_more_draws(seed: int) -> None:
    """Losses as chance has them: what the fewer draws led to is among what is chosen from."""
    study = dataclasses.replace(STUDY, data=str(seed), draws=1)
    longer = dataclasses.replace(study, draws=4, earlier_draws=(1, 2))
    records = play(study=longer)
    done = large_batch_queue.of_study(longer, records)
    for method, batch in large_batch_queue.places(longer):
        before, after = (
            large_batch_queue.best_run(each, done, method, batch) for each in (study, longer)
        )
        losses = [done[run.key(longer)]["validation_loss"] for run in (before, after) if run]
        assert len(losses) == 2 and losses[1] <= losses[0]
    tried = [
        len(large_batch_queue.tuning_runs(longer, done, method, 8) or [])
        for method in METHODS.values()
        if method.everywhere
    ]
    # Two rates around each of the bests, of which there are one to three.
    assert set(tried) <= {2, 4, 6}


def test_two_studies_do_not_write_one_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    with (
        large_batch_queue.lock(path),
        pytest.raises(UserError, match="another study"),
        large_batch_queue.lock(path),
    ):
        pass
    with large_batch_queue.lock(path):
        pass


def test_a_key_is_of_what_changes_the_outcome() -> None:
    run = run_of("AdamW")
    more = dataclasses.replace(STUDY, draws=5, seeds=7, batches=(8, 16, 32))
    assert run.key(more) == run.key(STUDY)
    for changed in ({"data": "other"}, {"backend": "jax"}, {"examples": 128}, {"model": "a:b"}):
        assert run.key(dataclasses.replace(STUDY, **changed)) != run.key(STUDY)


# The loop


class Pretended:
    """A worker that answers at once, from a script where it has one."""

    def __init__(self, script: Mapping[int, BaseException] | None = None) -> None:
        self.asked, self.is_closed, self._script = 0, False, script or {}

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked += 1
        if self.asked in self._script:
            raise self._script[self.asked]
        return record_of(Run(**request["run"]), 2.0 + request["run"]["learning_rate"])

    def close(self) -> None:
        self.is_closed = True


def work(
    path: pathlib.Path, staff: Sequence[Pretended], may_start: Callable[[], bool] = lambda: True
) -> list[dict[str, Any]]:
    stop = large_batch_workers.Stop()
    large_batch_workers.work(STUDY, cast("Any", staff), str(path), may_start, stop)
    return large_batch_queue.read(path)


def test_workers_share_the_runs_and_make_each_once(tmp_path: pathlib.Path) -> None:
    staff = [Pretended(), Pretended()]
    records = work(tmp_path / "results.jsonl", staff)
    assert len({record["run"] for record in records}) == len(records) == 64
    assert sum(worker.asked for worker in staff) == 64
    assert work(tmp_path / "results.jsonl", staff) == records
    assert sum(worker.asked for worker in staff) == 64


def test_no_run_is_started_that_the_budget_has_no_room_for(tmp_path: pathlib.Path) -> None:
    answers = itertools.chain([True] * 5, itertools.repeat(False))
    records = work(tmp_path / "results.jsonl", [Pretended()], lambda: next(answers))
    assert len(records) == 5


def test_what_was_finished_is_kept_when_a_worker_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.jsonl"
    staff = [Pretended({4: data_process.FailedError("ended with code -9")})]
    with pytest.raises(data_process.FailedError, match="code -9"):
        work(path, staff)
    assert staff[0].is_closed and len(large_batch_queue.read(path)) == 3
    assert len(work(path, [Pretended()])) == 64


def test_the_first_signal_lets_the_runs_under_way_end(tmp_path: pathlib.Path) -> None:
    path, stop = tmp_path / "results.jsonl", large_batch_workers.Stop()

    class Interrupting(Pretended):
        def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
            stop._hear()
            return super().ask(request)

    large_batch_workers.work(STUDY, cast("Any", [Interrupting()]), str(path), lambda: True, stop)
    assert len(large_batch_queue.read(path)) == 1
    with pytest.raises(KeyboardInterrupt):
        stop._hear()
