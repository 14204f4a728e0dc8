"""All runs of a sweep start from one checkpoint and read the same data, through any restart."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import tensorflow as tf
import yaml

from official_bert import checkpoints, finetune_plan, interruption, sweep
from tests.bert.fake_sweeps import SCORES, Runs, run
from tfrecords.errors import UserError


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


@pytest.mark.usefixtures("_nothing_to_clear")
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


@pytest.mark.usefixtures("_nothing_to_clear")
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


@pytest.mark.usefixtures("_nothing_to_clear")
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


@pytest.mark.usefixtures("_nothing_to_clear")
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
