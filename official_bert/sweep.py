"""Several runs of one finetuning: every learning rate with every seed, and what came of them."""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from official_bert import checkpoints, cluster, configuration, finetune_plan, guard, interruption
from tfrecords import files
from tfrecords.errors import UserError

RESULTS, TABLE, BEST = "results.json", "results.md", "best.json"
_METRICS = "eval_metrics.json"
_DIVERGED = "diverged"
# What the runs of a sweep differ in, and what changes none of their results.
_OWN = ("model_dir", "learning_rate", "seed")
_START, _FINGERPRINT = "init_checkpoint", "init_checkpoint_fingerprint"
_DATA = "data_sha256"

_RUN, _SKIP, _STOP = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a sweep finetunes for.

    Attributes:
        run: from settings and a strategy to a run's metrics.
        main_score: from metrics to what runs are compared by; more is better.
        settings: all that is the same in every run, by flag.
        data: SHA-256 of the files that all runs read, by name.
    """

    run: Callable[[finetune_plan.Settings, tf.distribute.Strategy], Mapping[str, float]]
    main_score: Callable[[Mapping[str, float]], float]
    settings: Mapping[str, Any]
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run.

    Attributes:
        learning_rate: its peak rate.
        seed: its seed.
        score: what runs are compared by; None for a run that diverged.
        metrics: all that was measured; None for what is not finite.
    """

    learning_rate: float
    seed: int
    score: float | None
    metrics: Mapping[str, float | None]

    def __post_init__(self) -> None:
        metrics = {name: _finite(value) for name, value in self.metrics.items()}
        object.__setattr__(self, "score", _finite(self.score))
        object.__setattr__(self, "metrics", metrics)

    @property
    def rank(self) -> float:
        """The score; a run that diverged is worse than any other."""
        return -math.inf if self.score is None else self.score

    @property
    def folder(self) -> str:
        """The run's folder in the sweep's."""
        return folder(self.learning_rate, self.seed)


def folder(learning_rate: float, seed: int) -> str:
    """The name of a run's folder.

    Example:
        >>> folder(1e-4, 3)
        'rate-0.0001-seed-3'
    """
    return f"rate-{learning_rate!r}-seed-{seed}"


def seeds(text: str) -> tuple[int, ...]:
    """A count of seeds from 0 on, or with a comma a list of them.

    Raises:
        UserError: it is neither.

    Example:
        >>> seeds("3"), seeds("3,5"), seeds("7,")
        ((0, 1, 2), (3, 5), (7,))
    """
    listed = [part.strip() for part in text.split(",")]
    try:
        numbers = [int(part) for part in listed if part]
    except ValueError as error:
        raise UserError(
            f"--seeds is {text!r}; expected how many, such as 5, or a list, such as 3,5,8"
        ) from error
    if len(listed) == 1:
        numbers = list(range(numbers[0])) if numbers else []
    if not numbers or not 0 <= min(numbers) <= max(numbers) <= finetune_plan.MAX_SEED:
        raise UserError(
            f"--seeds is {text!r}; expected at least one seed, each from 0 to "
            f"{finetune_plan.MAX_SEED}"
        )
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds is {text!r}; expected each seed once")
    return tuple(numbers)


def learning_rates(texts: Sequence[str]) -> tuple[float, ...]:
    """The rates of a list.

    Raises:
        UserError: one is no number above 0, or occurs twice.
    """
    try:
        rates = tuple(float(text) for text in texts)
    except ValueError as error:
        raise UserError(
            f"--learning_rates is {','.join(texts)!r}; expected numbers, such as 1e-4,3e-4"
        ) from error
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--learning_rates is {','.join(texts)!r}; expected numbers above 0")
    if len(set(rates)) < len(rates):
        raise UserError(f"--learning_rates is {','.join(texts)!r}; expected each rate once")
    return rates


def run(
    settings: finetune_plan.Settings,
    task: Task,
    rates: Sequence[float],
    chosen_seeds: Sequence[int],
    strategy: tf.distribute.Strategy,
    stop: interruption.StopRequest,
) -> list[Result]:
    """Finetunes with every rate and every seed, each in a folder of its own.

    All start from the checkpoint that is the newest of `init_checkpoint` when the sweep begins. A
    finished run's scores are read, a begun one is continued. After every run the tables of all so
    far are written, and which is the best. A run that diverges counts as the worst, and is not
    made again.

    Args:
        settings: of the runs, but for rate, seed and folder.
        task: what they are for.
        rates: peak learning rates.
        chosen_seeds: seeds.
        strategy: of all runs: a process starts a cluster of workers once.
        stop: ends the sweep at a step boundary.

    Raises:
        UserError: the folder holds something else, a run cannot be made, or all diverged.
        interruption.Stopped: `stop` was set.
    """
    root = settings.model_dir
    # Once, for all runs: a pretraining that goes on meanwhile would give later ones another.
    start = checkpoints.latest(settings.init_checkpoint) if settings.init_checkpoint else ""
    settings = dataclasses.replace(settings, init_checkpoint=start)
    task = dataclasses.replace(task, settings={**task.settings, _START: start})
    known = _known(root, task)
    # Now: the pretraining may delete it before the last run is done, each of which restores it.
    fingerprint = checkpoints.fingerprint(start)
    is_chief = cluster.this_worker(strategy).is_chief
    results: list[Result] = []
    for rate in rates:
        for seed in chosen_seeds:
            done = known.get((rate, seed))
            asked = bool(stop.watch().numpy())
            code = _STOP if asked else _SKIP if done else _RUN
            # Every worker does as the chief, who has the files.
            code = cluster.of_the_chief(strategy, code)
            if code == _STOP:
                raise interruption.Stopped(
                    f"{root}: stopped before {folder(rate, seed)} as asked; start again with the "
                    "same command"
                )
            if code == _RUN:
                done = _run_one(settings, task, rate, seed, strategy)
                known[rate, seed] = done
                if is_chief:
                    _keep_newest(os.path.join(root, done.folder))
                    _write(root, task, fingerprint, known)
            if done is not None:
                results.append(done)
    if is_chief:
        _write(root, task, fingerprint, known)
    if cluster.of_the_chief(strategy, int(all(result.score is None for result in results))):
        raise UserError(
            f"{root}: every run diverged, at --learning_rates {', '.join(f'{x:g}' for x in rates)};"
            " add lower ones, or lengthen --warmup_ratio in another --model_dir"
        )
    return results


def _run_one(
    settings: finetune_plan.Settings,
    task: Task,
    rate: float,
    seed: int,
    strategy: tf.distribute.Strategy,
) -> Result:
    # The graphs and the variables of the run before.
    tf_keras.backend.clear_session()
    name = folder(rate, seed)
    print(f"{name}:")
    own: dict[str, Any] = {
        "model_dir": os.path.join(settings.model_dir, name),
        "learning_rate": rate,
        "seed": seed,
    }
    try:
        metrics = dict(task.run(dataclasses.replace(settings, **own), strategy))
    except guard.Diverged as error:
        print(f"{name}: {_DIVERGED}: {error.found}")
        return Result(learning_rate=rate, seed=seed, score=None, metrics={})
    return Result(learning_rate=rate, seed=seed, score=task.main_score(metrics), metrics=metrics)


def _keep_newest(folder: str) -> None:
    """Leaves one checkpoint of a finished run: those of a whole sweep would fill a disk."""
    found = checkpoints.listed(folder) if checkpoints.exists(folder) else []
    if len(found) < 2:
        return
    # First the list: a process killed behind it leaves files that nobody reads.
    checkpoints.write_list(folder, found[-1:])
    for prefix in found[:-1]:
        for path in tf.io.gfile.glob([f"{prefix}.index", f"{prefix}.data-*"]):
            tf.io.gfile.remove(path)


def shared_settings(*settings: Any) -> dict[str, Any]:
    """The fields of dataclasses that all runs of a sweep have in common."""
    return {
        name: value
        for each in settings
        for name, value in dataclasses.asdict(each).items()
        if name not in _OWN
    }


def _known(root: str, task: Task) -> dict[tuple[float, int], Result]:
    """The finished runs of a folder, which must be of the same settings."""
    if tf.io.gfile.exists(os.path.join(root, configuration.PARAMS_FILE)):
        raise UserError(
            f"{root} holds a single run; give another --model_dir for several seeds and rates"
        )
    path = os.path.join(root, RESULTS)
    if not tf.io.gfile.exists(path):
        _check_start(root, {}, task.settings[_START])
        return {}
    try:
        saved = json.loads(files.read_bytes(path))
        before = saved["settings"]
        found = [
            Result(**{field.name: row[field.name] for field in dataclasses.fields(Result)})
            for row in saved["runs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it: runs that are finished are scored again"
        ) from error
    now = json.loads(json.dumps(dict(task.settings)))
    _check_start(root, saved, now[_START])
    for name in sorted({*before, *now} - {_START}):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{root} holds another sweep: --{name} was {before.get(name)!r}, now "
                f"{now.get(name)!r}; choose another --model_dir, or restore the old value"
            )
    for name, digest in saved.get(_DATA, {}).items():
        if task.data.get(name, digest) != digest:
            raise UserError(
                f"{root} holds a sweep on other data: the file of {name} has changed since; choose "
                "another --model_dir, or restore the file"
            )
    return {
        (result.learning_rate, result.seed): result
        for result in found
        if tf.io.gfile.exists(
            os.path.join(root, result.folder, *([] if result.score is None else [_METRICS]))
        )
    }


def _check_start(root: str, saved: Mapping[str, Any], now: str) -> None:
    """Refuses another checkpoint to start from than the runs of a sweep had.

    Where no fingerprint was written, in earlier sweeps and before the end of the first run, the
    runs know their checkpoint.
    """
    before = saved.get("settings", {}).get(_START, now)
    if saved.get(_FINGERPRINT) or (saved and not before):
        used = [before]
        is_same = saved.get(_FINGERPRINT) == checkpoints.fingerprint(now)
    else:
        used = _starts(root) or [before]
        is_same = all(checkpoints.is_same(each, now) for each in used)
    if not is_same:
        raise UserError(
            f"{root} holds another sweep: --{_START} was {' and '.join(map(repr, used))}, now "
            f"{now!r}; choose another --model_dir, or give the old one"
        )


def _starts(root: str) -> list[str]:
    """The different checkpoints that the runs of a sweep started from, as each has it."""
    paths = tf.io.gfile.glob(os.path.join(root, "rate-*-seed-*", configuration.PARAMS_FILE))
    tasks = [configuration.read_saved(os.path.dirname(path)).get("task", {}) for path in paths]
    return sorted({each.get(_START) or "" for each in tasks})


def best(results: Sequence[Result]) -> Result:
    """The best run of the rate with the highest median; the lower rate and seed of equals."""

    def merit(rate: float) -> tuple[float, float, float]:
        ranks = _ranks(results, rate)
        median = statistics.median(ranks)
        # Where half of every rate's runs diverged, the best of the others counts.
        return -median, 0.0 if math.isfinite(median) else -max(ranks), rate

    rate = min({result.learning_rate for result in results}, key=merit)
    of_rate = [result for result in results if result.learning_rate == rate]
    return min(of_rate, key=lambda result: (-result.rank, result.seed))


def spread(results: Sequence[Result], rate: float) -> dict[str, float | None]:
    """Number, smallest, median and largest of a rate's scores; None for those of diverged runs."""
    ranks = _ranks(results, rate)
    values = {"min": min(ranks), "median": statistics.median(ranks), "max": max(ranks)}
    return {"runs": len(ranks)} | {name: _finite(value) for name, value in values.items()}


def _ranks(results: Sequence[Result], rate: float) -> list[float]:
    return [result.rank for result in results if result.learning_rate == rate]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return _DIVERGED if value is None else f"{value:.2f}"


def table(results: Sequence[Result]) -> str:
    """The spread of every rate, as Markdown; the best one is marked."""
    chosen = best(results)
    lines = [
        "| learning rate | runs | min | median | max | |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for rate in sorted({result.learning_rate for result in results}):
        found = spread(results, rate)
        values = " | ".join(_shown(found[name]) for name in ("min", "median", "max"))
        is_best = chosen.score is not None and rate == chosen.learning_rate
        mark = f"best: {chosen.folder}" if is_best else ""
        lines.append(f"| {rate:g} | {found['runs']} | {values} | {mark} |")
    return "\n".join(lines) + "\n"


def details(results: Sequence[Result]) -> str:
    """All metrics of all runs, as Markdown."""
    # The heads are the metrics of a run that has some.
    heads = list(dict.fromkeys(name for each in results for name in each.metrics)) or ["score"]
    lines = [f"| run | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for result in results:
        values = " | ".join(_shown(result.metrics.get(name)) for name in heads)
        lines.append(f"| {result.folder} | {values} |")
    return "\n".join(lines) + "\n"


def _write(
    root: str,
    task: Task,
    fingerprint: str | None,
    known: Mapping[tuple[float, int], Result],
) -> None:
    results = [known[key] for key in sorted(known)]
    chosen = best(results)
    has_best = chosen.score is not None
    rates = sorted({result.learning_rate for result in results})
    content = {
        "settings": dict(task.settings),
        _FINGERPRINT: fingerprint,
        _DATA: dict(task.data),
        "runs": [{"folder": each.folder, **dataclasses.asdict(each)} for each in results],
        "rates": [{"learning_rate": rate, **spread(results, rate)} for rate in rates],
        "best": chosen.folder if has_best else None,
    }
    _write_json(os.path.join(root, RESULTS), content)
    text = f"{table(results)}\n{details(results)}"
    files.write_text(os.path.join(root, TABLE), text)
    if has_best:
        _write_json(os.path.join(root, BEST), {"path": chosen.folder, **dataclasses.asdict(chosen)})


def _write_json(path: str, content: Any) -> None:
    files.write_text(path, json.dumps(content, indent=2) + "\n")
