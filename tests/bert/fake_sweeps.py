"""Sweeps of runs that train nothing and score what a table says."""

import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from official_bert import finetune_plan, guard, interruption, sweep


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
