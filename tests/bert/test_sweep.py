"""Several seeds and rates in one command: the best, stops, divergence, and whose folder it is."""

import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import pytest
import tensorflow as tf

from official_bert import checkpoints, finetune_folder, finetune_plan, interruption, sweep
from tests.bert.fake_sweeps import SCORES, Runs, run
from tfrecords.errors import UserError


def result(rate: float, seed: int, score: float) -> sweep.Result:
    return sweep.Result(
        learning_rate=rate, seed=seed, score=score, metrics={"accuracy": score, "f1": score / 2}
    )


@pytest.mark.usefixtures("_nothing_to_clear")
def test_every_rate_with_every_seed_and_the_best_by_median(tmp_path: pathlib.Path) -> None:
    runs = Runs(SCORES)
    results = run(tmp_path, runs, epochs=2.0)
    assert runs.made == [(each.learning_rate, each.seed) for each in results] == list(SCORES)
    saved = json.loads((tmp_path / sweep.RESULTS).read_text())
    for row in saved["rates"]:
        scores = [score for (rate, _), score in SCORES.items() if rate == row["learning_rate"]]
        assert row["runs"] == 3
        assert (row["min"], row["max"]) == (min(scores), max(scores))
        assert row["median"] == statistics.median(scores)
    # 99 is the best run of all, but its rate's median is not.
    best = json.loads((tmp_path / sweep.BEST).read_text())
    assert best["path"] == saved["best"] == "rate-0.0003-seed-2"
    assert best["metrics"] == {"accuracy": 91.0, "f1": 45.5}
    assert (tmp_path / best["path"]).is_dir()
    text = (tmp_path / sweep.TABLE).read_text()
    assert "| 0.0003 | 3 | 70.00 | 90.00 | 91.00 | best: rate-0.0003-seed-2 |" in text
    assert "| rate-0.0001-seed-1 | 99.00 | 49.50 |" in text
    assert [each["folder"] for each in saved["runs"]] == [each.folder for each in results]


@pytest.mark.usefixtures("_nothing_to_clear")
def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    runs = Runs(SCORES)
    runs.stop_at = 2
    with pytest.raises(interruption.Stopped):
        run(tmp_path, runs)
    assert len(json.loads((tmp_path / sweep.RESULTS).read_text())["runs"]) == 2
    runs.stop_at = None
    results = run(tmp_path, runs)
    assert runs.made == list(SCORES)
    again = Runs({})
    assert run(tmp_path, again) == results and again.made == []
    # A run whose folder is gone is made again.
    (tmp_path / "rate-0.0001-seed-1" / "eval_metrics.json").unlink()
    (tmp_path / "rate-0.0001-seed-1").rmdir()
    runs.made.clear()
    assert run(tmp_path, runs) == results and runs.made == [(1e-4, 1)]


def test_a_stop_between_runs_begins_no_other(tmp_path: pathlib.Path) -> None:
    stop = interruption.StopRequest()
    stop.set()
    runs = Runs(SCORES)
    with pytest.raises(interruption.Stopped, match="stopped before rate-0.0001-seed-0 as asked"):
        run(tmp_path, runs, stop)
    assert runs.made == [] and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_nothing_to_clear")
def test_other_settings_are_another_sweep(tmp_path: pathlib.Path) -> None:
    run(tmp_path, Runs(SCORES), epochs=2.0, strict=False)
    with pytest.raises(UserError, match="another sweep: --epochs was 2.0, now 3.0"):
        run(tmp_path, Runs(SCORES), epochs=3.0, strict=False)
    (tmp_path / sweep.RESULTS).write_text("{")
    with pytest.raises(UserError, match="results.json is damaged"):
        run(tmp_path, Runs(SCORES), epochs=2.0)
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "params.yaml").write_text("")
    with pytest.raises(UserError, match="holds a single run"):
        run(tmp_path / "single", Runs(SCORES))


def strict_json(path: pathlib.Path) -> Any:
    """What a reader that knows no NaN reads."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.usefixtures("_nothing_to_clear")
def test_a_diverging_rate_does_not_end_the_sweep(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(SCORES | {(3e-4, 0): None, (3e-4, 1): None, (1e-4, 1): float("nan")})
    results = run(tmp_path, runs)
    assert runs.made == list(SCORES)
    said = capsys.readouterr().out
    assert "rate-0.0003-seed-0: diverged: not finite\n" in said and "trainer" not in said
    saved = strict_json(tmp_path / sweep.RESULTS)
    assert [row["score"] for row in saved["runs"]] == [80.0, None, 81.0, None, None, 91.0]
    assert [row["median"] for row in saved["rates"]] == [80.0, None]
    # 91 is the best of all, but most runs of its rate diverged.
    assert strict_json(tmp_path / sweep.BEST)["path"] == saved["best"] == "rate-0.0001-seed-2"
    text = (tmp_path / sweep.TABLE).read_text()
    assert "| 0.0003 | 3 | diverged | diverged | 91.00 |" in text
    assert "| rate-0.0003-seed-1 | diverged | diverged |" in text
    again = Runs({})
    assert run(tmp_path, again) == results and again.made == []


@pytest.mark.usefixtures("_nothing_to_clear")
def test_a_sweep_that_diverged_everywhere_is_one_line(tmp_path: pathlib.Path) -> None:
    for runs, made in ((Runs(dict.fromkeys(SCORES)), list(SCORES)), (Runs({}), [])):
        with pytest.raises(UserError, match="every run diverged, at --learning_rates 0.0001, 0"):
            run(tmp_path, runs)
        assert runs.made == made
    saved = strict_json(tmp_path / sweep.RESULTS)
    assert saved["best"] is None and not (tmp_path / sweep.BEST).exists()


def test_what_is_not_finite_is_never_the_best() -> None:
    for lost in (float("nan"), float("inf"), None):
        rows = [(1e-4, 0, lost), (1e-4, 1, 50.0), (3e-4, 0, 40.0), (3e-4, 1, 41.0)]
        results = [
            sweep.Result(learning_rate=rate, seed=seed, score=score, metrics={})
            for rate, seed, score in rows
        ]
        for order in (results, results[::-1]):
            assert sweep.best(order).folder == "rate-0.0003-seed-1"
        assert sweep.best(results[:2]).folder == "rate-0.0001-seed-1"


class SavingRuns(Runs):
    """Runs that also leave three checkpoints."""

    def _run(
        self, settings: finetune_plan.Settings, strategy: tf.distribute.Strategy
    ) -> Mapping[str, float]:
        metrics = super()._run(settings, strategy)
        step = tf.Variable(0)
        saved = tf.train.Checkpoint(step=step)
        manager = tf.train.CheckpointManager(saved, settings.model_dir, max_to_keep=3)
        for number in (1, 2, 10):
            step.assign(number)
            manager.save(checkpoint_number=number)
        return metrics


@pytest.mark.usefixtures("_nothing_to_clear")
def test_finished_runs_keep_their_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    run(tmp_path, SavingRuns(SCORES))
    for key in SCORES:
        folder = tmp_path / sweep.folder(*key)
        assert {path.stem for path in folder.glob("ckpt-*")} == {"ckpt-10"}
        assert checkpoints.listed(str(folder)) == [str(folder / "ckpt-10")]
        step = tf.Variable(0)
        tf.train.Checkpoint(step=step).restore(checkpoints.newest_whole(str(folder)))
        assert int(step.numpy()) == 10


@pytest.mark.usefixtures("_nothing_to_clear")
@pytest.mark.parametrize("is_old", [False, True])
def test_a_finished_sweep_may_be_moved(is_old: bool, tmp_path: pathlib.Path) -> None:
    """Its lists of checkpoints have no path of a folder; those of earlier sweeps are not minded."""
    root = tmp_path / "sweep"
    run(root, SavingRuns(SCORES))
    lists = list(root.glob("rate-*/checkpoint"))
    assert len(lists) == len(SCORES)
    for path in lists:
        assert str(tmp_path) not in path.read_text()
        if is_old:
            newest = str(path.parent / "ckpt-10")
            tf.compat.v1.train.update_checkpoint_state(str(path.parent), newest, [newest])
            assert str(tmp_path) in path.read_text()
    root.rename(tmp_path / "moved")
    for key in SCORES:
        folder = tmp_path / "moved" / sweep.folder(*key)
        assert checkpoints.latest(str(folder)) == str(folder / "ckpt-10")


def _touch(folder: pathlib.Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return str(folder)


@pytest.mark.parametrize("name", [sweep.RESULTS, sweep.BEST, "rate-0.0001-seed-0/params.yaml"])
def test_no_single_run_in_a_sweeps_folder(name: str, tmp_path: pathlib.Path) -> None:
    folder = _touch(tmp_path, name)
    finetune_folder.check(folder, several=True)
    with pytest.raises(UserError, match="holds a sweep; give its --seeds or --learning_rates"):
        finetune_folder.check(folder, several=False)


def test_no_run_in_a_folder_of_something_else(tmp_path: pathlib.Path) -> None:
    thesis = _touch(tmp_path / "thesis", "a.tex", "b.tex", "c.tex", "d.tex", "vocab.txt")
    early = ("vocab.txt", "labels.json", ".lock", "logs/worker-0.log", "params.yaml.partial-00")
    for several in (False, True):
        with pytest.raises(UserError, match=r"something else \(a.tex, b.tex, c.tex, ...\)"):
            finetune_folder.check(thesis, several=several)
        finetune_folder.check(str(tmp_path / "new"), several=several)
        # Whatever a killed run was writing first, it can be started again.
        for count in range(len(early) + 1):
            begun = tmp_path / f"{several}{count}"
            begun.mkdir()
            finetune_folder.check(_touch(begun, *early[:count]), several=several)
    for name in ("params.yaml", "ckpt-7.index"):
        finetune_folder.check(_touch(tmp_path / name, name, "other"), several=False)


def test_ties_go_to_the_lower_rate_and_seed() -> None:
    results = [result(rate, seed, 50.0) for rate in (3e-4, 1e-4) for seed in (1, 0)]
    assert sweep.best(results).folder == "rate-0.0001-seed-0"


@pytest.mark.parametrize(
    ("text", "expected"), [("3", (0, 1, 2)), ("3,5,8", (3, 5, 8)), ("7,", (7,)), ("1", (0,))]
)
def test_seeds(text: str, expected: tuple[int, ...]) -> None:
    assert sweep.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1,1", "2,-3", ",", "1,2147483648"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds is"):
        sweep.seeds(text)


@pytest.mark.parametrize("texts", [[], ["x"], ["0"], ["-1e-4"], ["inf"], ["1e-4", "0.0001"]])
def test_bad_rates(texts: list[str]) -> None:
    with pytest.raises(UserError, match="--learning_rates is"):
        sweep.learning_rates(texts)
