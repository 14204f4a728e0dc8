"""Which runs are asked for, which are done, and in what order the others come.

At the largest batch first, since the settings elsewhere follow from there: draw 1 of every method
before draw 2 of any. Then the rates at the other batches, the first of them everywhere before the
second, and last the seeds at the best settings, a seed of all before the next. What a study that
is cut off shows are the groups that are whole, so that it has treated all methods alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import large_batch_methods
from benchmarks.large_batch_methods import METHODS, Method
from benchmarks.large_batch_settings import Run, Study
from tfrecords.errors import UserError

Records = Mapping[str, Mapping[str, Any]]

# Beyond the rates that scaling rules name, at most so many where the best lies at their end.
EXTENSIONS = 3


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a results file; none if there is no file.

    A process that was killed while it wrote leaves a last line without an end, which is no record.

    Raises:
        UserError: another line is no record.
    """
    if not os.path.exists(path):
        return []
    records = []
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            records.append(record)
        elif line and number < len(lines):
            raise UserError(f"{os.fspath(path)}: line {number} is no record of a run; remove it")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        record["kind"], record["study"]
    except (ValueError, KeyError, TypeError):
        return None
    return record


def append(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Adds a record as one line, in one write; what a killed process left half is cut off."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with open(path, "ab+") as stream:
        stream.seek(0)
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if _record(content[end:]) is None:
            stream.truncate(end)
        else:
            line = b"\n" + line
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a results file, which is made where it is missing.

    Raises:
        UserError: another process holds it.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another study is writing {os.fspath(path)}; wait for it, or give other --results"
            ) from error
        yield


def note_plan(
    path: str | os.PathLike[str],
    study: Study,
    target_loss: float | None,
    frequency_losses: Mapping[str, float],
) -> None:
    """Adds which runs a study asks for, where no record says so yet.

    Args:
        path: of the results.
        study: the settings.
        target_loss: as given; None for the report's own choice.
        frequency_losses: `Text.frequency_loss` of "validation" and "test".
    """
    record = {
        "kind": "plan",
        "study": study.key,
        "batches": list(study.batches),
        "draws": study.draws,
        "earlier_draws": list(study.earlier_draws),
        "rates": study.rates,
        "seeds": study.seeds,
        "target_loss": target_loss,
        "frequency_losses": dict(frequency_losses),
    }
    if record not in plans(read(path)):
        append(path, record)


def plans(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What `note_plan` wrote."""
    return [record for record in records if record["kind"] == "plan"]


def planned(records: Sequence[Mapping[str, Any]]) -> list[Study]:
    """The studies of the text, the model and the backend that the last plan with runs is of.

    Returns:
        One for each number of draws, ascending; none where no plan has a run yet.
    """
    studies = all_planned(records)
    by_draws = {each.draws: each for each in studies if each.key == studies[-1].key}
    return [by_draws[draws] for draws in sorted(by_draws)]


def all_planned(records: Sequence[Mapping[str, Any]]) -> list[Study]:
    """The studies of all plans that have runs."""
    made = {each["study"]: each["common"] for each in records if each["kind"] == "run"}
    return [_study(plan, made[plan["study"]]) for plan in plans(records) if plan["study"] in made]


def _study(plan: Mapping[str, Any], common: Mapping[str, Any]) -> Study:
    names = ("batches", "draws", "earlier_draws", "rates", "seeds")
    asked = {name: plan[name] for name in names if name in plan}
    shared = {name: value for name, value in common.items() if name != "version"}
    return Study.from_json(json.dumps({**shared, **asked}))


def of_study(study: Study, records: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The runs of one study, by key."""
    return {
        record["run"]: record
        for record in records
        if record["kind"] == "run" and record["study"] == study.key
    }


def tuning_runs(study: Study, done: Records, method: Method, batch: int) -> list[Run] | None:
    """The runs that choose a method's settings at a batch; None as long as they are unknown.

    They are unknown where the best at the largest batch is, and there are none where nothing
    converges there. Where more draws have another best, rates around it are tried as well as those
    around the best of fewer: no method may lose by being tuned for longer.
    """
    if batch == study.largest:
        return [large_batch_methods.drawn(study, method, each) for each in range(study.draws)]
    if not is_tuned(study, done, method, study.largest):
        return None
    runs: dict[Run, None] = {}
    for draws in (*study.earlier_draws, study.draws):
        stage = dataclasses.replace(study, draws=draws)
        best = best_run(stage, done, method, study.largest)
        if best is not None:
            grid = [large_batch_methods.scaled(study, best, batch, n) for n in range(study.rates)]
            runs |= dict.fromkeys([*grid, *_beyond(study, done, grid)])
    return list(runs)


def _beyond(study: Study, done: Records, runs: Sequence[Run]) -> list[Run]:
    """Further rates by factors of two, as long as the best of those tried lies at their end.

    Otherwise a method whose best rate does not scale as others' do would look worse than it is.
    Of one or two rates each lies at an end.
    """
    more: list[Run] = []
    while len(runs) > 2 and len(more) < EXTENSIONS:
        tried = [*runs, *more]
        if any(run.key(study) not in done for run in tried):
            break
        records = {run.learning_rate: done[run.key(study)] for run in tried}
        losses = {
            rate: record["validation_loss"]
            for rate, record in records.items()
            if not record["diverged"]
        }
        if not losses:
            break
        best = min(losses, key=losses.__getitem__)
        factors = {min(records): 0.5, max(records): 2.0}
        if best not in factors:
            break
        rate = float(f"{best * factors[best]:.4g}")
        more.append(dataclasses.replace(runs[0], learning_rate=rate))
    return more


def is_tuned(study: Study, done: Records, method: Method, batch: int) -> bool:
    """Whether all of the runs that choose a method's settings at a batch are done."""
    runs = tuning_runs(study, done, method, batch)
    return runs is not None and all(run.key(study) in done for run in runs)


def best_run(study: Study, done: Records, method: Method, batch: int) -> Run | None:
    """The one of least validation loss among those done; None if none converged."""
    runs = tuning_runs(study, done, method, batch) or []
    finished = [(run, done[run.key(study)]) for run in runs if run.key(study) in done]
    good = [
        (record["validation_loss"], number, run)
        for number, (run, record) in enumerate(finished)
        if not record["diverged"]
    ]
    return min(good)[2] if good else None


def seed_runs(study: Study, done: Records, method: Method, batch: int) -> list[Run]:
    """The runs at the best settings, on seeds that had no part in choosing them."""
    best = best_run(study, done, method, batch)
    if best is None:
        return []
    return [dataclasses.replace(best, seed=seed) for seed in range(1, study.seeds + 1)]


def places(study: Study) -> list[tuple[Method, int]]:
    """Every method at each of its batches, the largest first."""
    return [
        (method, batch)
        for batch in reversed(study.batches)
        for method in METHODS.values()
        if method.everywhere or batch == study.largest
    ]


def groups(study: Study, done: Records) -> Iterator[list[Run]]:
    """The runs whose settings are known, in their order: a draw, a rate or a seed of all methods.

    A group lacks the methods whose settings do not follow yet from what is done.
    """
    everywhere = places(study)
    for here in (True, False):
        tuning = [
            tuning_runs(study, done, method, batch) or []
            for method, batch in everywhere
            if (batch == study.largest) == here
        ]
        for number in range(max(map(len, tuning), default=0)):
            yield [run for runs in tuning for run in runs[number:][:1]]
    seeds = [
        seed_runs(study, done, method, batch)
        for method, batch in everywhere
        if is_tuned(study, done, method, batch)
    ]
    for number in range(study.seeds):
        yield [run for runs in seeds for run in runs[number:][:1]]


def remaining(study: Study, done: Records) -> Iterator[Run]:
    """The runs that are not done and whose settings are known, in their order."""
    return (run for group in groups(study, done) for run in group if run.key(study) not in done)


def comparable(study: Study, done: Records) -> set[str]:
    """The keys of the runs up to the first group that is not whole.

    A group that lacks a method is behind one that is not whole.
    """
    keys = ({run.key(study) for run in group} for group in groups(study, done))
    return set().union(*itertools.takewhile(lambda group: group <= done.keys(), keys))


def is_drawn(study: Study, done: Records) -> bool:
    """Whether every method has made all of its draws at the largest batch."""
    return all(is_tuned(study, done, method, study.largest) for method in METHODS.values())


def total(study: Study, done: Records) -> int:
    """How many runs the study has, if what has not been tuned yet converges somewhere."""
    count = 0
    for method, batch in places(study):
        runs = tuning_runs(study, done, method, batch)
        count += study.rates if runs is None else len(runs)
        if not is_tuned(study, done, method, batch) or best_run(study, done, method, batch):
            count += study.seeds
    return count


def is_complete(study: Study, done: Records) -> bool:
    """Whether no run is left."""
    return next(remaining(study, done), None) is None


def reported(studies: Sequence[Study], done: Records) -> Study:
    """Of studies that are made one after another, the last that is complete; else the first."""
    complete = list(itertools.takewhile(lambda each: is_complete(each, done), studies))
    return complete[-1] if complete else studies[0]


def finished(study: Study, done: Records) -> list[Mapping[str, Any]]:
    """The records of those that are done."""
    keys: set[str] = set()
    for method, batch in places(study):
        runs = list(tuning_runs(study, done, method, batch) or [])
        if is_tuned(study, done, method, batch):
            runs += seed_runs(study, done, method, batch)
        keys |= {run.key(study) for run in runs}
    return [record for key, record in done.items() if key in keys]
