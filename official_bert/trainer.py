"""The orbit trainer: Model Garden's, that also remembers every step's scalars.

Model Garden averages a loop's losses; `metrics.jsonl` has a line for each step, so the loop
here returns a row a step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from official.core import base_trainer

from official_bert import optimization
from tf_lans import family


class Trainer(base_trainer.Trainer):
    """Trains steps `[global_step, ...)` and keeps the scalars of each.

    After `train(n)`, `step_rows` has n dictionaries with `step`, `learning_rate`,
    `gradient_norm` and `skipped_steps` (where the optimizer is one of ours) and whatever scalars
    the task's train step returned (their mean over the replicas).
    """

    def __init__(self, config: Any, task: Any, **kwargs: Any) -> None:
        # The order of the training examples is a function of the step to start at, which is
        # known after the checkpoint is restored: until then there is nothing to iterate.
        nothing_yet = tf.data.Dataset.range(0)
        super().__init__(config, task, train_dataset=nothing_yet, **kwargs)
        self._has_train_dataset = False
        self._columns: list[str] = []
        self.step_rows: list[dict[str, float]] = []

    def train_loop_begin(self) -> None:
        """Opens the training data at the global step; orbit calls this before iterating."""
        if self._has_train_dataset:
            return
        start_step = int(self.global_step.numpy())
        params = self.config.task.train_data

        def build(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return self.task.build_inputs(params, context, start_step=start_step)

        self.train_dataset = self.strategy.distribute_datasets_from_function(build)
        self._has_train_dataset = True

    def create_train_loop_fn(self) -> Callable[[Any, tf.Tensor], None]:
        """A compiled loop of `num_steps` steps that leaves a row of scalars for each."""

        @tf.function
        def loop(iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
            rows = tf.TensorArray(tf.float32, size=num_steps)
            for index in tf.range(num_steps):
                rows = rows.write(index, self._step_row(next(iterator)))
            return rows.stack()

        def run(iterator: Any, num_steps: tf.Tensor) -> None:
            first = int(self.global_step.numpy()) + 1
            table = loop(iterator, num_steps).numpy()
            self.step_rows = [
                {"step": first + index, **self._named(row)} for index, row in enumerate(table)
            ]

        return run

    def _step_row(self, inputs: Any) -> tf.Tensor:
        learning_rate = optimization.current_learning_rate(self.optimizer)

        def step(batch: Any) -> dict[str, tf.Tensor]:
            logs = self.task.train_step(batch, self.model, self.optimizer, self.train_metrics)
            self.global_step.assign_add(1)
            return logs

        logs = self.strategy.run(step, args=(inputs,), options=self._runtime_options)
        mean = tf.distribute.ReduceOp.MEAN
        row = {name: self.strategy.reduce(mean, logs[name], axis=None) for name in sorted(logs)}
        row["learning_rate"] = learning_rate
        if isinstance(self.optimizer, family.BlockOptimizer):
            row["gradient_norm"] = self.optimizer.last_gradient_norm()
            row["skipped_steps"] = self.optimizer.skipped_steps
        self._columns = list(row)
        return tf.stack([tf.cast(value, tf.float32) for value in row.values()])

    def _named(self, row: np.ndarray) -> dict[str, float]:
        named: dict[str, Any] = dict(zip(self._columns, map(float, row), strict=True))
        if "skipped_steps" in named:
            named["skipped_steps"] = int(named["skipped_steps"])
        return named

    def train_loop_end(self) -> dict[str, float]:
        """The scalars of the loop's last step, for summaries."""
        self.join()
        return {name: value for name, value in self.step_rows[-1].items() if name != "step"}
