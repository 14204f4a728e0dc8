"""Several seeds and rates in one command, and flags from recipes."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import statistics
from collections.abc import Mapping
from typing import Any

import pytest
import tensorflow as tf
import tf_keras
import yaml

from official_bert import (
    checkpoints,
    finetune,
    finetune_folder,
    finetune_plan,
    finetune_recipe,
    guard,
    interruption,
    sweep,
)
from tests.bert.tiny_squad import command_line, make_folder
from tfrecords.errors import UserError


def result(rate: float, seed: int, score: float) -> sweep.Result:
    return sweep.Result(
        learning_rate=rate, seed=seed, score=score, metrics={"accuracy": score, "f1": score / 2}
    )


class Runs:
    """Runs that leave a file and score what a table says, or diverge; the n-th may be stopped."""

    def __init__(self, scores: Mapping[tuple[float, int], float | None]) -> None:
        self.scores = scores
        self.made: list[tuple[float, int]] = []
        self.stop_at: int | None = None

    def task(self, **settings: Any) -> sweep.Task:
        return sweep.Task(
            run=self._run, main_score=lambda metrics: metrics["accuracy"], settings=settings
        )

    def _run(
        self, settings: finetune_plan.Settings, strategy: tf.distribute.Strategy
    ) -> Mapping[str, float]:
        assert strategy.num_replicas_in_sync == 1 and settings.learning_rate is not None
        if len(self.made) == self.stop_at:
            raise interruption.Stopped("stopped as asked")
        key = settings.learning_rate, settings.seed
        self.made.append(key)
        folder = pathlib.Path(settings.model_dir)
        folder.mkdir(parents=True)
        score = self.scores[key]
        if score is None:
            raise guard.Diverged("not finite: set trainer.x", "not finite")
        (folder / "eval_metrics.json").write_text("{}")
        return {"accuracy": score, "f1": score / 2}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that build nothing leave nothing to clear, which takes seconds."""
    monkeypatch.setattr(tf_keras.backend, "clear_session", lambda: None)


SCORES = {
    (1e-4, 0): 80.0, (1e-4, 1): 99.0, (1e-4, 2): 81.0,
    (3e-4, 0): 90.0, (3e-4, 1): 70.0, (3e-4, 2): 91.0,
}  # fmt: skip


def run(
    folder: pathlib.Path, runs: Runs, stop: interruption.StopRequest | None = None, **settings: Any
) -> list[sweep.Result]:
    chosen = finetune_plan.Settings(model_dir=str(folder))
    stop = stop or interruption.StopRequest()
    strategy = tf.distribute.get_strategy()
    return sweep.run(chosen, runs.task(**settings), (1e-4, 3e-4), (0, 1, 2), strategy, stop)


@pytest.mark.usefixtures("_quick")
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


@pytest.mark.usefixtures("_quick")
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


@pytest.mark.usefixtures("_quick")
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


@pytest.mark.usefixtures("_quick")
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


@pytest.mark.usefixtures("_quick")
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


@pytest.mark.usefixtures("_quick")
def test_finished_runs_keep_their_newest_checkpoint(tmp_path: pathlib.Path) -> None:
    run(tmp_path, SavingRuns(SCORES))
    for key in SCORES:
        folder = tmp_path / sweep.folder(*key)
        assert {path.stem for path in folder.glob("ckpt-*")} == {"ckpt-10"}
        assert checkpoints.listed(str(folder)) == [str(folder / "ckpt-10")]
        step = tf.Variable(0)
        tf.train.Checkpoint(step=step).restore(checkpoints.newest_whole(str(folder)))
        assert int(step.numpy()) == 10


@pytest.mark.usefixtures("_quick")
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


def save_start(folder: pathlib.Path, step: int) -> str:
    """A checkpoint of a pretraining that is at `step`; its prefix."""
    content = tf.train.Checkpoint(step=tf.Variable(step))
    manager = tf.train.CheckpointManager(content, str(folder), max_to_keep=5)
    return manager.save(checkpoint_number=step)


class StartingRuns(Runs):
    """Runs that write down where they started, after which the pretraining goes on."""

    def __init__(self, pretraining: pathlib.Path) -> None:
        super().__init__(SCORES)
        self.pretraining, self.step = pretraining, 1
        self.starts: list[str] = []

    def _run(
        self, settings: finetune_plan.Settings, strategy: tf.distribute.Strategy
    ) -> Mapping[str, float]:
        metrics = super()._run(settings, strategy)
        # What a finetuning does with what it is given.
        start = checkpoints.latest(settings.init_checkpoint)
        self.starts.append(start)
        saved = {"task": {"init_checkpoint": start}}
        (pathlib.Path(settings.model_dir) / "params.yaml").write_text(yaml.safe_dump(saved))
        self.step += 1
        save_start(self.pretraining, self.step)
        return metrics


def sweep_from(root: pathlib.Path, runs: Runs, start: object, seeds: tuple[int, ...]) -> None:
    """As the command does it: what is given is among the settings."""
    chosen = finetune_plan.Settings(model_dir=str(root), init_checkpoint=str(start))
    task = runs.task(init_checkpoint=str(start), epochs=2.0)
    strategy = tf.distribute.get_strategy()
    sweep.run(chosen, task, (1e-4,), seeds, strategy, interruption.StopRequest())


@pytest.mark.usefixtures("_quick")
def test_all_runs_of_a_sweep_start_from_one_checkpoint(tmp_path: pathlib.Path) -> None:
    pretraining, root = tmp_path / "pretraining", tmp_path / "sweep"
    first = save_start(pretraining, 1)
    runs = StartingRuns(pretraining)
    sweep_from(root, runs, pretraining, (0, 1))
    assert runs.starts == [first, first]
    saved = json.loads((root / sweep.RESULTS).read_text())
    assert saved["settings"]["init_checkpoint"] == first
    before = (root / sweep.RESULTS).read_bytes()
    with pytest.raises(UserError, match="another sweep: --init_checkpoint was '.*ckpt-1', now '.*"):
        sweep_from(root, runs, pretraining, (0, 1, 2))
    assert (root / sweep.RESULTS).read_bytes() == before and len(runs.made) == 2
    pretraining.rename(tmp_path / "moved")
    runs.pretraining = tmp_path / "moved"
    moved = str(tmp_path / "moved" / "ckpt-1")
    sweep_from(root, runs, moved, (0, 1, 2))
    assert runs.starts == [first, first, moved]


@pytest.mark.usefixtures("_quick")
def test_a_start_that_is_deleted_meanwhile_is_known_when_it_is_given_back(
    tmp_path: pathlib.Path,
) -> None:
    pretraining, root = tmp_path / "pretraining", tmp_path / "sweep"
    first = save_start(pretraining, 1)
    shutil.copytree(pretraining, tmp_path / "copy")

    class Pruning(StartingRuns):
        def _run(self, *arguments: Any) -> Mapping[str, float]:
            metrics = super()._run(*arguments)
            for path in pretraining.glob("ckpt-1.*"):
                path.unlink()
            return metrics

    sweep_from(root, Pruning(pretraining), first, (0,))
    runs = StartingRuns(pretraining)
    copy = str(tmp_path / "copy" / "ckpt-1")
    sweep_from(root, runs, copy, (0, 1))
    assert runs.starts == [copy]


@pytest.mark.usefixtures("_quick")
def test_scores_of_other_data_are_not_mixed(tmp_path: pathlib.Path) -> None:
    class Reading(Runs):
        data: Mapping[str, str] = {}  # noqa: RUF012

        def task(self, **settings: Any) -> sweep.Task:
            return dataclasses.replace(super().task(**settings), data=self.data)

    runs = Reading(SCORES)
    run(tmp_path, runs)  # as earlier versions left it
    runs.data = {"--train_file": "1", "--dev_file": "2"}
    results = run(tmp_path, runs)
    runs.data = {"--train_file": "1"}  # the run tells what is missing
    assert run(tmp_path, runs) == results
    runs.data = {"--train_file": "1", "--dev_file": "3"}
    run(tmp_path / "other", runs)
    runs.data = {"--train_file": "4", "--dev_file": "3"}
    with pytest.raises(UserError, match="other data: the file of --train_file has changed"):
        run(tmp_path / "other", runs)


@pytest.mark.usefixtures("_quick")
def test_an_earlier_sweep_goes_on_from_its_runs_checkpoint(tmp_path: pathlib.Path) -> None:
    """It names the folder that it was given; only its runs know the checkpoint."""
    pretraining, root = tmp_path / "pretraining", tmp_path / "sweep"
    first = save_start(pretraining, 1)
    runs = StartingRuns(pretraining)
    sweep_from(root, runs, pretraining, (0,))
    saved = json.loads((root / sweep.RESULTS).read_text())
    saved["settings"]["init_checkpoint"] = str(pretraining)
    del saved["init_checkpoint_fingerprint"]
    for content in (json.dumps(saved), None):  # None: stopped before the end of its first run
        if content is None:
            (root / sweep.RESULTS).unlink()
        else:
            (root / sweep.RESULTS).write_text(content)
        with pytest.raises(UserError, match="--init_checkpoint was '.*ckpt-1', now '.*ckpt-2'"):
            sweep_from(root, runs, pretraining, (0, 1))
    (root / sweep.RESULTS).write_text(json.dumps(saved))
    sweep_from(root, runs, first, (0, 1))
    assert runs.starts == [first, first]
    saved = json.loads((root / sweep.RESULTS).read_text())
    assert saved["settings"]["init_checkpoint"] == first


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_folder(tmp_path_factory.mktemp("sweep"))


def test_a_sweep_by_recipe(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two real runs; what the recipe says holds but for what the command line says."""
    recipe = folder / "recipe.yaml"
    values = {"task": "squad", "train_steps": 9, "learning_rates": [1e-3, "2e-3"], "seeds": "4,"}
    recipe.write_text(yaml.safe_dump(values))
    arguments = [
        each for each in command_line(folder, "swept") if not each.startswith("--learning_rate=")
    ]
    arguments += [f"--init_checkpoint={folder / 'pretraining'}", f"--recipe={recipe}"]
    arguments += ["--train_steps=2"]
    assert finetune.main(arguments) == 0
    root = folder / "swept"
    saved = json.loads((root / sweep.RESULTS).read_text())
    assert [row["folder"] for row in saved["runs"]] == ["rate-0.001-seed-4", "rate-0.002-seed-4"]
    assert saved["settings"]["train_steps"] == 2 and "seed" not in saved["settings"]
    best = json.loads((root / sweep.BEST).read_text())
    scores = {row["folder"]: row["metrics"]["f1"] for row in saved["runs"]}
    assert best["score"] == max(scores.values()) == scores[best["path"]]
    for name in scores:
        run = root / name
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
        assert json.loads((run / "eval_metrics.json").read_text())["f1"] == scores[name]
    assert "best: rate-0.00" in capsys.readouterr().out
    digest = hashlib.sha256((folder / "squad.json").read_bytes()).hexdigest()
    assert saved["data_sha256"]["--dev_file"] == digest
    # Finished runs are read, not made again.
    modified = [(root / name / "predictions.json").stat().st_mtime_ns for name in scores]
    assert finetune.main(arguments) == 0
    assert modified == [(root / name / "predictions.json").stat().st_mtime_ns for name in scores]
    assert finetune.main([*arguments, "--seed=1", "--seeds=2"]) == 2
    assert "--seed and --seeds are given" in capsys.readouterr().err
    # A single run has no place here; it does no harm either.
    before = sorted(root.rglob("*"))
    single = [each for each in arguments if not each.startswith("--recipe=")]
    assert finetune.main(single) == 2
    assert "swept holds a sweep" in capsys.readouterr().err and before == sorted(root.rglob("*"))


@pytest.mark.parametrize(
    ("given", "content", "expected"),
    [
        ("--seed=7", "seeds: 4", {"seed": 7, "seeds": None}),
        ("--seeds=7", "seed: 4", {"seed": 0, "seeds": "7"}),
        ("--learning_rate=1", "learning_rates: [2, 3]", {"learning_rates": None}),
        ("--learning_rates=1,2", "learning_rate: 3", {"learning_rate": None}),
        ("--epochs=1", "train_steps: 9", {"epochs": 1.0, "train_steps": None}),
        ("--batch_size=8", "{seeds: 4, batch_size: 2}", {"seeds": "4", "batch_size": 8}),
    ],
)
def test_the_command_line_wins_by_either_name(
    given: str, content: str, expected: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    parsed = finetune.FLAGS
    parsed.unparse_flags()
    parsed(["finetune", "--model_dir=run", given])
    finetune_recipe.apply(str(recipe), parsed)
    assert {name: parsed[name].value for name in expected} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "'learning_rat' is no flag of a recipe; did you mean learning_rate?"),
        ("model_dir: x", "'model_dir' is no flag of a recipe"),
        ("epochs: many", "epochs: "),
        ("optimizer: sgd", "optimizer: "),
        ("- task", "holds no flag: value pairs"),
        ("a: [", "is no YAML"),
    ],
)
def test_bad_recipes(
    content: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    assert finetune.main([f"--model_dir={tmp_path / 'run'}", f"--recipe={recipe}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_recipe_names_those_there_are(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune.main([f"--model_dir={tmp_path / 'run'}", "--recipe=none.yaml"]) == 2
    assert "no recipe at none.yaml" in capsys.readouterr().err


RECIPES = sorted(pathlib.Path(finetune_recipe.FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_packaged_recipes_are_whole(path: pathlib.Path) -> None:
    parsed = finetune.FLAGS
    parsed.unparse_flags()
    parsed(["finetune", "--model_dir=run", "--train_file=a", "--dev_file=b"])
    finetune_recipe.apply(path.name, parsed)
    chosen = finetune.from_flags(finetune_plan.Settings, parsed)
    assert chosen.model_dir == "run"
    assert sweep.seeds(parsed.seeds) and sweep.learning_rates(parsed.learning_rates)
    head = path.read_text()
    for word in ("Command:", "Cost:", "Result:", "Run:"):
        assert f"# {word}" in head
