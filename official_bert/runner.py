"""One run: strategy, task, restore, training and evaluation, with everything it leaves on disk.

A `model_dir` holds `params.yaml`, the vocabulary of a pretraining run, checkpoints,
`metrics.jsonl` (a line a step), `evaluations.jsonl` (a line an evaluation) and TensorBoard
summaries.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import orbit
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions, task_factory
from official.modeling import performance
from tqdm import tqdm

from official_bert import checkpoints, configuration, devices, metrics_log, optimization
from official_bert.input import PretrainDataConfig, keep_tokenization
from official_bert.pretraining_task import with_heads_of_data
from official_bert.trainer import Trainer
from tf_lans import family
from tfrecords import command, reader
from tfrecords.errors import UserError

MODES = ("train", "eval", "train_and_eval")

# The parts of a config that make a run what it is: another value is another experiment.
# A run that damage has stopped may go on without the damaged records.
_CHANGEABLE = ("task.train_data.on_corrupt", "task.train_data.corrupt_budget")
_IDENTITY = ("task.model", "task.train_data", "task.init_checkpoint", "trainer.optimizer_config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run ended with.

    Attributes:
      global_step: steps done in all, by this process and those before it.
      evaluation: the last evaluation's values by name; empty where there was none.
    """

    global_step: int
    evaluation: Mapping[str, float]


def run(
    params: config_definitions.ExperimentConfig,
    model_dir: str,
    mode: str = "train_and_eval",
    *,
    description: str = "train",
    task: base_task.Task | None = None,
) -> RunResult:
    """Runs an experiment from where `model_dir` stands to `trainer.train_steps`.

    Args:
      params: the whole config, checked.
      model_dir: folder of the run; created where it is missing, continued where it is not.
      mode: `train`, `eval` or `train_and_eval`.
      description: the name on the progress bar.
      task: built from `params.task` when None. Beyond Model Garden's interface it has
        `build_inputs(params, input_context, start_step)` and `trained_variables(model)`, and
        its config has a `seed`.

    Raises:
      UserError: the mode, a batch or a device does not fit, or `model_dir` holds another run.
    """
    if mode not in MODES:
        raise UserError(f"--mode is {mode!r}; expected one of {', '.join(MODES)}")
    _check_numbers(params, mode)
    params = _completed(params, mode)
    check_model_dir(params, model_dir, mode)
    performance.set_mixed_precision_policy(params.runtime.mixed_precision_dtype or "float32")
    strategy = devices.build_strategy(params.runtime)
    _check_batches(params, strategy.num_replicas_in_sync)
    tf_keras.utils.set_random_seed(params.task.seed)
    screen = sys.stdout
    # orbit prints a running commentary of its own; ours is the progress bar.
    with contextlib.redirect_stdout(sys.stderr), strategy.scope():
        task = task or task_factory.get_task(params.task, logging_dir=model_dir)
        progress = functools.partial(_progress, screen, description)
        try:
            return _Run(params, model_dir, mode, progress, task, strategy).run()
        except tf.errors.OpError as error:
            damage = reader.user_error(error)
            if damage is None:
                raise
            raise damage from error


def check_model_dir(
    params: config_definitions.ExperimentConfig, model_dir: str, mode: str = "train_and_eval"
) -> None:
    """Refuses a `model_dir` that holds another experiment; evaluation asks for the model only.

    Raises:
      UserError: naming the first field that differs.
    """
    params = _completed(params, mode)
    sections = _IDENTITY if "train" in mode else ("task.model",)
    configuration.check_same_run(params, model_dir, sections, but=_CHANGEABLE)


def _completed(
    params: config_definitions.ExperimentConfig, mode: str
) -> config_definitions.ExperimentConfig:
    """The config with what follows from the rest of it written out, as the run records it."""
    return with_heads_of_data(optimization.with_schedule_length(params), mode)


class _Run:
    """The objects of one run and the loop over them."""

    def __init__(
        self,
        params: config_definitions.ExperimentConfig,
        model_dir: str,
        mode: str,
        progress: Callable[[int, int], tqdm],
        task: base_task.Task,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.params, self.model_dir, self.mode = params, model_dir, mode
        self.progress = progress
        self.trainer = build_trainer(params, task, train="train" in mode, evaluate="eval" in mode)
        if mode == "eval":
            checkpoints.latest(model_dir)
        self.metrics = metrics_log.MetricsLog(os.path.join(model_dir, metrics_log.METRICS))
        self.evaluations = metrics_log.MetricsLog(os.path.join(model_dir, metrics_log.EVALUATIONS))
        self.evaluation: dict[str, float] = {}
        self.summaries = tf.summary.create_noop_writer()
        self.controller = self._build_controller(strategy)
        # Restored or initialised: nothing that the user could have mistaken is left, so the
        # folder may be touched.
        if mode != "eval":
            configuration.save(params, model_dir)
            if isinstance(params.task.train_data, PretrainDataConfig):
                keep_tokenization(params.task.train_data, model_dir)
            self.summaries = tf.summary.create_file_writer(
                os.path.join(model_dir, "train", "blocks")
            )
            self.metrics.cut_back(self.step)
            self.evaluations.cut_back(self.step)

    @property
    def step(self) -> int:
        return int(self.trainer.global_step.numpy())

    def run(self) -> RunResult:
        """Trains and evaluates; an evaluation that a kill interrupted is run again."""
        trainer = self.params.trainer
        if self.mode == "eval":
            self.controller.evaluate(steps=trainer.validation_steps)
        else:
            self._train()
        return RunResult(global_step=self.step, evaluation=self.evaluation)

    def _train(self) -> None:
        trainer = self.params.trainer
        evaluate = "eval" in self.mode
        with self.progress(trainer.train_steps, self.step) as self.bar:
            if evaluate and self.step > 0 and self._is_evaluation_due():
                self.controller.evaluate(steps=trainer.validation_steps)
            while self.step < trainer.train_steps:
                target = trainer.train_steps
                if evaluate:
                    target = min(target, _next_multiple(self.step, trainer.validation_interval))
                self.controller.train(target, checkpoint_at_completion=False)
                self.controller.save_checkpoint()
                if evaluate:
                    self.controller.evaluate(steps=trainer.validation_steps)

    def _is_evaluation_due(self) -> bool:
        at_interval = self.step % self.params.trainer.validation_interval == 0
        if not (at_interval or self.step >= self.params.trainer.train_steps):
            return False
        if not tf.io.gfile.exists(self.evaluations.path):
            return True
        return all(row["step"] != self.step for row in metrics_log.read(self.evaluations.path))

    def _build_controller(self, strategy: tf.distribute.Strategy) -> orbit.Controller:
        trainer = self.params.trainer
        manager = tf.train.CheckpointManager(
            self.trainer.checkpoint,
            directory=self.model_dir,
            max_to_keep=trainer.max_to_keep,
            step_counter=self.trainer.global_step,
            checkpoint_interval=trainer.checkpoint_interval,
            init_fn=self.trainer.initialize,
        )
        training = self.mode != "eval"
        evaluating = "eval" in self.mode
        return orbit.Controller(
            strategy=strategy,
            trainer=self.trainer if training else None,
            evaluator=self.trainer if evaluating else None,
            global_step=self.trainer.global_step,
            # Loops end on multiples of steps_per_loop counted from 0, after a restart too.
            steps_per_loop=lambda step: (
                _next_multiple(int(step), trainer.steps_per_loop) - int(step)
            ),
            checkpoint_manager=manager,
            summary_dir=os.path.join(self.model_dir, "train") if training else None,
            eval_summary_dir=os.path.join(self.model_dir, trainer.validation_summary_subdir),
            summary_interval=None,
            train_actions=[self._after_loop],
            eval_actions=[self._after_evaluation],
        )

    def _after_loop(self, output: Mapping[str, Any]) -> None:
        del output
        rows = self.trainer.step_rows
        if self.step % self.params.trainer.summary_interval == 0:
            rows[-1] |= self._optimizer_scalars()
        self.metrics.append(rows)
        shown = ("loss", "masked_lm_accuracy", "learning_rate", "skipped_steps")
        last = rows[-1]
        self.bar.set_postfix(
            {_SHORT.get(name, name): f"{last[name]:.4g}" for name in shown if name in last},
            refresh=False,
        )
        self.bar.update(len(rows))

    def _optimizer_scalars(self) -> dict[str, float]:
        """What an optimizer of ours tells; its blocks' figures go to TensorBoard."""
        optimizer = self.trainer.optimizer
        if not isinstance(optimizer, family.BlockOptimizer):
            return {}
        found = optimizer.diagnostics()
        # every step's row has the rate, the gradient's norm and the skipped steps as they were
        scalars = {
            name: value for name, value in found.scalars().items() if name not in _EVERY_STEP
        }
        with self.summaries.as_default(step=self.step):
            for name in ("trust_ratios", "gradient_norms"):
                values = list((getattr(found, name) or {}).values())
                if values:
                    tf.summary.histogram(name, values)
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
        self.summaries.flush()
        return scalars

    def _after_evaluation(self, output: Mapping[str, Any]) -> None:
        self.evaluation = {name: float(value) for name, value in output.items()}
        if self.mode != "eval":
            self.evaluations.append([{"step": self.step, **self.evaluation}])


def _progress(screen: TextIO, description: str, total: int, initial: int) -> tqdm:
    with contextlib.redirect_stdout(screen):
        return command.progress(total=total, desc=description, unit="step", initial=initial)


_EVERY_STEP = ("learning_rate", "gradient_norm", "skipped_steps")
_SHORT = {"masked_lm_accuracy": "accuracy", "learning_rate": "lr", "skipped_steps": "skipped"}


def build_trainer(
    params: config_definitions.ExperimentConfig, task: base_task.Task, train: bool, evaluate: bool
) -> Trainer:
    """Model, optimizer with its slots, and the orbit trainer over them; nothing restored yet."""
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
    if train and isinstance(optimizer, family.BlockOptimizer):
        optimizer.watch_gradients()
    return Trainer(params, task, model=model, optimizer=optimizer, train=train, evaluate=evaluate)


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval


def _check_numbers(params: config_definitions.ExperimentConfig, mode: str) -> None:
    trainer = params.trainer
    positive = ["steps_per_loop", "summary_interval", "checkpoint_interval", "validation_interval"]
    if mode != "eval":
        positive.append("train_steps")
    for name in positive:
        if getattr(trainer, name) < 1:
            raise UserError(f"trainer.{name} is {getattr(trainer, name)}; expected at least 1")


def _check_batches(params: config_definitions.ExperimentConfig, replicas: int) -> None:
    micro = getattr(params.task, "micro_batch_size", 0)
    for name in ("train_data", "validation_data"):
        size = getattr(params.task, name).global_batch_size
        if size < 1 or size % replicas:
            raise UserError(
                f"task.{name}.global_batch_size is {size}; expected a positive multiple of the "
                f"{replicas} replicas, such as {max(1, round(size / replicas)) * replicas}"
            )
    share = params.task.train_data.global_batch_size // replicas
    if micro < 0 or (micro and share % micro):
        raise UserError(
            f"task.micro_batch_size is {micro}; expected 0 or a divisor of the {share} examples "
            "of each replica"
        )


def _check_exclusions(params: config_definitions.ExperimentConfig, paths: list[str]) -> None:
    if params.trainer.optimizer_config.optimizer.type in optimization.OPTIMIZERS:
        optimization.check_patterns(params.trainer.optimizer_config, paths)
