"""The orbit trainer: Model Garden's, that also remembers every step's scalars.

Model Garden averages a loop's losses; `metrics.jsonl` has a line for each step, so the loop
here returns a row a step.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, base_trainer, config_definitions

from official_bert import cluster, dropout, optimization
from official_bert.global_batch import StepSettings
from official_bert.interruption import StopRequest
from official_bert.loss_scaling import LossScale
from tf_lans import family


@dataclasses.dataclass
class TrainerConfig(config_definitions.TrainerConfig):
    """Model Garden's fields, and one of ours.

    Attributes:
      max_skipped_steps: how many steps in a row may be skipped for a non-finite gradient before
        the run ends.
    """

    max_skipped_steps: int = 20


class Trainer(base_trainer.Trainer):
    """Trains steps `[global_step, ...)` and keeps the scalars of each.

    After `train(n)`, `step_rows` has n dictionaries with `step`, `learning_rate`,
    `gradient_norm` and `skipped_steps` (where the optimizer is one of ours) and whatever scalars
    the task's train step returned, which are equal on every replica. It has fewer where a stop
    was asked for on any worker: the loop ends at the next step, and `stopped` is True.
    `loop_seconds` is what the loop took.
    """

    def __init__(
        self,
        config: Any,
        task: Any,
        *,
        stop: StopRequest,
        loss_scale: LossScale | None = None,
        **kwargs: Any,
    ) -> None:
        # The order of the training examples is a function of the step to start at, which is
        # known after the checkpoint is restored: until then there is nothing to iterate.
        nothing_yet = tf.data.Dataset.range(0)
        super().__init__(config, task, train_dataset=nothing_yet, **kwargs)
        self._has_train_dataset = False
        self._columns: list[str] = []
        self._stop = stop
        self._many_workers = cluster.this_worker(self.strategy).count > 1
        self.stopped = False
        self.loop_seconds = 0.0
        # A fixed scale is the config's, whatever it was before.
        if loss_scale is not None and loss_scale.dynamic:
            self.checkpoint.loss_scale = loss_scale
        self.step_rows: list[dict[str, float]] = []

    @property
    def pieces(self) -> int:
        """Into how many pieces a batch is cut: replicas times micro-batches."""
        replicas = self.strategy.num_replicas_in_sync
        micro = getattr(self.config.task, "micro_batch_size", 0)
        share = self.config.task.train_data.global_batch_size // replicas
        return replicas * (share // micro if micro else 1)

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
        def loop(iterator: Any, num_steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = tf.TensorArray(tf.float32, size=num_steps)
            index, stop = tf.constant(0), tf.constant(False)
            while tf.logical_and(index < num_steps, tf.logical_not(stop)):
                row, stop = self._step_row(next(iterator))
                rows = rows.write(index, row)
                index += 1
            return rows.gather(tf.range(index)), stop

        def run(iterator: Any, num_steps: tf.Tensor) -> None:
            first = int(self.global_step.numpy()) + 1
            started = time.perf_counter()
            table, stop = (tensor.numpy() for tensor in loop(iterator, num_steps))
            self.loop_seconds = time.perf_counter() - started
            self.stopped = bool(stop)
            self.step_rows = [
                {"step": first + index, **self._named(row)} for index, row in enumerate(table)
            ]

        return run

    # Nothing here is Python that AutoGraph would have to convert, which takes seconds.
    @tf.autograph.experimental.do_not_convert
    def _step_row(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        stop = self._stop.watch().read_value()

        def step(batch: Any, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            context = tf.distribute.get_replica_context()
            key = dropout.step_key(
                self.config.task.seed, self.global_step, context.replica_id_in_sync_group
            )
            learning_rate = tf.convert_to_tensor(optimization.current_learning_rate(self.optimizer))
            with dropout.keyed(key):
                logs = self.task.train_step(batch, self.model, self.optimizer, self.train_metrics)
            logs = {**dict(sorted(logs.items())), "learning_rate": learning_rate}
            if isinstance(self.optimizer, family.BlockOptimizer):
                logs["gradient_norm"] = self.optimizer.last_gradient_norm()
                logs["skipped_steps"] = self.optimizer.skipped_steps.read_value()
            self.global_step.assign_add(1)
            if self._many_workers:
                # All leave the loop after the same step, or the others would wait for ever.
                asked = tf.cast(stop, tf.float32)
                stop = context.all_reduce(tf.distribute.ReduceOp.SUM, asked) > 0
            return logs, stop

        logs, stop = self.strategy.run(step, args=(inputs, stop), options=self._runtime_options)
        self._columns = list(logs)
        scalars = [tf.cast(self._local(value), tf.float32) for value in logs.values()]
        return tf.stack(scalars), self._local(stop)

    def _local(self, value: Any) -> tf.Tensor:
        return self.strategy.experimental_local_results(value)[0]

    def _named(self, row: np.ndarray) -> dict[str, float]:
        named: dict[str, Any] = dict(zip(self._columns, map(float, row), strict=True))
        if "skipped_steps" in named:
            named["skipped_steps"] = int(named["skipped_steps"])
        if "piece_gradient_norm" in named:
            named["pieces"] = self.pieces
        return named

    def train_loop_end(self) -> dict[str, float]:
        """The scalars of the loop's last step, for summaries."""
        self.join()
        return {name: value for name, value in self.step_rows[-1].items() if name != "step"}


def build_trainer(
    params: config_definitions.ExperimentConfig,
    task: base_task.Task,
    train: bool,
    evaluate: bool,
    settings: StepSettings | None = None,
    stop: StopRequest | None = None,
) -> Trainer:
    """Model, optimizer with its slots, and the orbit trainer over them; nothing restored yet.

    Args:
      params: the whole config.
      task: whose step is trained.
      train: whether it will train.
      evaluate: whether it will evaluate.
      settings: how a step is carried out.
      stop: ends a loop of steps.
    """
    settings = settings or StepSettings()
    task.step_settings = settings
    model = task.build_model()
    trainer = params.trainer
    optimizer = optimization.build_optimizer(trainer.optimizer_config, trainer.train_steps)
    variables = task.trained_variables(model)
    paths = [variable.name.split(":")[0] for variable in variables]
    _check_exclusions(params, paths)
    # Slots that exist before a restore are restored at once, and those of Model Garden's legacy
    # optimizers cannot be created inside the loop of steps.
    legacy = isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer)
    (optimizer._create_all_weights if legacy else optimizer.build)(variables)
    if train:
        dropout.install(model)
        if isinstance(optimizer, family.BlockOptimizer):
            optimizer.watch_gradients()
    return Trainer(
        params,
        task,
        stop=stop or StopRequest(),
        loss_scale=settings.loss_scale,
        model=model,
        optimizer=optimizer,
        train=train,
        evaluate=evaluate,
    )


def _check_exclusions(params: config_definitions.ExperimentConfig, paths: list[str]) -> None:
    if params.trainer.optimizer_config.optimizer.type in optimization.OPTIMIZERS:
        optimization.check_patterns(params.trainer.optimizer_config, paths)
