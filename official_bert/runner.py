"""One run: strategy, task, restore, training and evaluation, with everything it leaves on disk.

A `model_dir` holds `params.yaml`, the vocabulary of a pretraining run, checkpoints,
`metrics.jsonl` (a line a step), `evaluations.jsonl` (a line an evaluation), `speed.jsonl`,
`changes.jsonl` where a continued run was given another schedule, TensorBoard summaries, and at
the end `README.md`, the model card.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO, cast

import orbit
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions, task_factory
from official.modeling import performance
from tqdm import tqdm

from official_bert import (
    checkpoints,
    cluster,
    continuation,
    devices,
    disk_space,
    guard,
    interruption,
    model_card,
    noise_scale,
    optimization,
    preflight,
    ranges,
    run_data,
)
from official_bert.input import PretrainDataConfig
from official_bert.output_lines import Unbroken
from official_bert.pretraining_task import with_heads_of_data
from official_bert.run_checkpoints import RunCheckpoints
from official_bert.run_files import TRAIN_SUMMARIES, RunFiles
from official_bert.trainer import TrainerConfig, build_trainer
from tf_lans import family
from tfrecords import command, reader
from tfrecords.errors import UserError

MODES = ("train", "eval", "train_and_eval")


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
    strategy: tf.distribute.Strategy | None = None,
    stop: interruption.StopRequest | None = None,
    repartition: bool = False,
) -> RunResult:
    """Runs an experiment from where `model_dir` stands to `trainer.train_steps`.

    Args:
      params: the whole config, checked.
      model_dir: folder of the run; created where it is missing, continued where it is not.
      mode: `train`, `eval` or `train_and_eval`.
      description: the name on the progress bar.
      task: built from `params.task` when None. Beyond Model Garden's interface it has
        `build_inputs(params, input_context, start_step)` and `trained_variables(model)`, its
        train step returns the same scalars on every replica, and its config has a `seed`.
      strategy: of `devices.build_strategy`, for a process that runs several phases; built from
        `params.runtime` when None.
      stop: ends the run at a step boundary.
      repartition: whether pretraining goes on with another number of workers, which ends the epoch
        that was begun and begins another.

    Raises:
      UserError: the mode, a batch or a device does not fit, `model_dir` holds another run, a
        checkpoint cannot be written, or gradients stay non-finite.
      interruption.Stopped: `stop` was set; everything up to here is saved.
    """
    if mode not in MODES:
        raise UserError(f"--mode is {mode!r}; expected one of {', '.join(MODES)}")
    for problem in ranges.problems(params, mode).values():
        raise UserError(problem)
    strategy = strategy or devices.build_strategy(params.runtime)
    params = completed(params, mode, cluster.input_pipelines(strategy), model_dir)
    changes = continuation.check(params, model_dir, mode, repartition=repartition)
    performance.set_mixed_precision_policy(params.runtime.mixed_precision_dtype or "float32")
    pipelines, replicas = cluster.input_pipelines(strategy), strategy.num_replicas_in_sync
    preflight.check_batches(params, mode, workers=pipelines, replicas=replicas)
    tf_keras.utils.set_random_seed(params.task.seed)
    interruption.beat()
    stop = stop or interruption.StopRequest()
    stop.has_steps = "train" in mode
    stop.watch()
    screen = sys.stdout
    with (
        devices.determinism(params.runtime, strategy),
        # orbit prints a running commentary, which it logs as well; ours is the progress bar.
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        _user_errors(),
        strategy.scope(),
    ):
        task = task or task_factory.get_task(params.task, logging_dir=model_dir)
        progress = functools.partial(_progress, screen, description)
        this = _Run(params, model_dir, mode, progress, task, strategy, stop)
        with contextlib.closing(this):
            return this.run(changes)


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Tells what the user can mend in a line: damaged records, a full disk, too little memory."""
    try:
        yield
    except tf.errors.OpError as error:
        damage = reader.user_error(error)
        reason = " ".join(str(error.message).split())[:200]
        if damage is None and "No space left" in str(error):
            damage = UserError(
                f"no space left on the disk: {reason}; make room and start again with the same "
                "command"
            )
        elif damage is None and isinstance(error, tf.errors.ResourceExhaustedError):
            damage = UserError(
                f"a device has too little memory for the step: {reason}; give a smaller micro-batch"
                " (task.micro_batch_size, or finetuning's --micro_batch_size), which changes no "
                "result"
            )
        if damage is None:
            raise
        raise damage from error


def check_model_dir(
    params: config_definitions.ExperimentConfig,
    model_dir: str,
    mode: str = "train_and_eval",
    strategy: tf.distribute.Strategy | None = None,
    *,
    repartition: bool = False,
) -> None:
    """Refuses a `model_dir` that holds something else; evaluation asks for the model only.

    Raises:
      UserError: naming the first field that differs.
    """
    workers = cluster.input_pipelines(strategy or tf.distribute.get_strategy())
    params = completed(params, mode, workers, model_dir)
    continuation.check(params, model_dir, mode, repartition=repartition)


def completed(
    params: config_definitions.ExperimentConfig, mode: str, workers: int, model_dir: str
) -> config_definitions.ExperimentConfig:
    """The config with what follows from the rest of it written out, as the run records it.

    Args:
      params: the config.
      mode: one of `MODES`.
      workers: input pipelines.
      model_dir: the run's folder, which says what a run that has begun started from.

    Raises:
      UserError: the shards, from which the heads follow, or what the folder says cannot be read.
    """
    params = continuation.with_start(params, model_dir)
    params = with_heads_of_data(optimization.with_schedule_length(params), mode)
    if not hasattr(params.runtime, "num_workers"):
        return params
    return params.replace(runtime=params.runtime.replace(num_workers=workers))


class _Run:
    """The objects of one run and the loop over them."""

    def __init__(
        self,
        params: config_definitions.ExperimentConfig,
        model_dir: str,
        mode: str,
        progress: Callable[..., tqdm],
        task: base_task.Task,
        strategy: tf.distribute.Strategy,
        stop: interruption.StopRequest,
    ) -> None:
        self.params, self.model_dir, self.mode = params, model_dir, mode
        self.stop = stop
        worker = cluster.this_worker(strategy)
        self.progress = functools.partial(progress, shown=worker.is_chief)
        self.trainer = build_trainer(
            params,
            task,
            train="train" in mode,
            evaluate="eval" in mode,
            settings=devices.step_settings(params.runtime, strategy),
            stop=stop,
        )
        if mode == "eval":
            checkpoints.latest(model_dir)
        self.files = RunFiles(params, model_dir, writes=worker.is_chief and mode != "eval")
        self.evaluation: dict[str, float] = {}
        self.checkpoints = RunCheckpoints(
            self.trainer.checkpoint,
            model_dir,
            max_to_keep=params.trainer.max_to_keep,
            global_step=self.trainer.global_step,
            interval=params.trainer.checkpoint_interval,
            initialize=self.trainer.initialize,
            logs=self.files.logs,
            restored=None if "train" in mode else self._evaluated(),
        )
        # What a killed worker left there is gone by now.
        full = None if worker.is_chief or mode == "eval" else disk_space.own_problem(params)
        if full:
            raise UserError(full)
        self.controller = self._build_controller(strategy)

    @property
    def step(self) -> int:
        return int(self.trainer.global_step.numpy())

    def _evaluated(self) -> dict[str, Any]:
        """What an evaluation needs of a checkpoint."""
        return {"model": self.trainer.model, "global_step": self.trainer.global_step}

    def close(self) -> None:
        """Leaves nothing behind but the run's files."""
        self.checkpoints.close()

    def run(self, changes: tuple[continuation.Change, ...]) -> RunResult:
        """Trains and evaluates; an evaluation that a kill interrupted is run again."""
        trainer = self.params.trainer
        if self.mode == "eval":
            self.controller.evaluate(steps=trainer.validation_steps)
            return RunResult(global_step=self.step, evaluation=self.evaluation)
        # Restored or initialised: nothing that the user could have mistaken is left, so the
        # folder may be touched.
        with self.files.locked():
            self.checkpoints.catch_up()
            self.checkpoints.tidy()
            self.guard = self._begin(changes)
            self._train()
            if self.files.writes:
                model_card.write(self.model_dir, self.params)
        return RunResult(global_step=self.step, evaluation=self.evaluation)

    def _begin(self, changes: tuple[continuation.Change, ...]) -> guard.SkippedStepsGuard:
        """Settles the folder; what counts the lost steps, those of the rows so far included."""
        limit = getattr(self.params.trainer, "max_skipped_steps", TrainerConfig.max_skipped_steps)
        return guard.SkippedStepsGuard(
            limit, self.files.begin(self.step, changes, self._partitions())
        )

    def _partitions(self) -> tuple[run_data.Partition, ...]:
        """Who has shared the epochs of pretraining; the task is told where they begin."""
        data, trainer = self.params.task.train_data, self.trainer
        if not isinstance(data, PretrainDataConfig):
            return ()
        known: tuple[run_data.Partition, ...] = (run_data.Partition(),)
        if self.files.writes:
            steps_left = self.params.trainer.train_steps - self.step
            workers = cluster.input_pipelines(trainer.strategy)
            known = run_data.settle(data, self.model_dir, self.step, workers, steps_left)
        trainer.task.partition = run_data.of_the_chief(trainer.strategy, known[-1])
        return known

    def _train(self) -> None:
        trainer = self.params.trainer
        evaluate = "eval" in self.mode
        self._tell_stop()
        with self.progress(trainer.train_steps, self.step) as self.bar:
            if evaluate and self.step > 0 and self._is_evaluation_due():
                self._evaluate()
            while self.step < trainer.train_steps:
                target = trainer.train_steps
                if evaluate:
                    target = min(target, _next_multiple(self.step, trainer.validation_interval))
                self.controller.train(target, checkpoint_at_completion=False)
                self._save()
                self._tell_stop()
                if evaluate:
                    self._evaluate()

    def _tell_stop(self) -> None:
        """Behind the last step a stop need not wait: all is saved, and there is no boundary."""
        self.stop.has_steps = self.step < self.params.trainer.train_steps

    def _evaluate(self) -> None:
        self.controller.evaluate(steps=self.params.trainer.validation_steps)
        interruption.beat()

    def _save(self) -> None:
        self.controller.save_checkpoint()
        interruption.beat()

    def _is_evaluation_due(self) -> bool:
        at_interval = self.step % self.params.trainer.validation_interval == 0
        due = at_interval or self.step >= self.params.trainer.train_steps
        return due and not self.files.has_evaluation(self.step)

    def _build_controller(self, strategy: tf.distribute.Strategy) -> orbit.Controller:
        trainer = self.params.trainer
        training = self.mode != "eval"
        return orbit.Controller(
            strategy=strategy,
            trainer=self.trainer if training else None,
            evaluator=self.trainer if "eval" in self.mode else None,
            global_step=self.trainer.global_step,
            # Loops end on multiples of steps_per_loop counted from 0, after a restart too.
            steps_per_loop=lambda step: (
                _next_multiple(int(step), trainer.steps_per_loop) - int(step)
            ),
            checkpoint_manager=self.checkpoints,
            summary_dir=self.files.summary_folder(TRAIN_SUMMARIES) if training else None,
            eval_summary_dir=self.files.summary_folder(trainer.validation_summary_subdir),
            summary_interval=None,
            train_actions=[self._after_loop],
            eval_actions=[self._after_evaluation],
        )

    def _after_loop(self, output: Mapping[str, Any]) -> None:
        del output
        rows = self.trainer.step_rows
        summary = self.step % self.params.trainer.summary_interval == 0
        if summary:
            rows[-1] |= self._optimizer_scalars()
        self.files.add_steps(rows, self.trainer.loop_seconds, summary)
        self._show(rows)
        interruption.beat()
        if summary:
            self._summarize_noise_scale()
        reached = self.guard.see(rows)
        if reached is not None:
            self._end_diverged(reached)
        if self.trainer.stopped:
            self.stop.reached.set()
            self._save()
            raise interruption.Stopped(
                f"{self.model_dir}: stopped at step {self.step} as asked, all of it saved; start "
                "again with the same command"
            )

    def _show(self, rows: list[dict[str, Any]]) -> None:
        last = rows[-1]
        examples = len(rows) * self.params.task.train_data.global_batch_size
        shown = {_SHORT.get(name, name): last[name] for name in _SHOWN if name in last}
        shown["examples/s"] = examples / self.trainer.loop_seconds
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self.bar.update(len(rows))

    def _end_diverged(self, row: Mapping[str, Any]) -> None:
        """Saves nothing: the checkpoints before the lost steps hold what is left of the run."""
        optimizer = self.trainer.optimizer
        ours = isinstance(optimizer, family.BlockOptimizer)
        norms = (optimizer.diagnostics().gradient_norms or {}) if ours else {}
        skips, lost = ours and optimizer.hyperparameters.skip_nonfinite, self.guard.in_a_row
        checkpoint = guard.sound_checkpoint(
            self.model_dir, None if skips else row["step"] - lost + 1
        )
        scale = self.params.runtime.loss_scale
        fixed = scale if isinstance(scale, int | float) else None
        raise guard.diverged(row, lost, norms, checkpoint, skips=skips, fixed_loss_scale=fixed)

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
        blocks = {name: getattr(found, name) or {} for name in ("trust_ratios", "gradient_norms")}
        histograms = {name: list(values.values()) for name, values in blocks.items() if values}
        self.files.summarize(self.step, scalars, histograms)
        return scalars

    def _summarize_noise_scale(self) -> None:
        pieces = self.trainer.pieces
        size = self.params.task.train_data.global_batch_size
        found = noise_scale.from_rows(list(self.files.recent), size, pieces)
        if found is not None:
            self.files.summarize(self.step, {"gradient_noise_scale": found.noise_scale})

    def _after_evaluation(self, output: Mapping[str, Any]) -> None:
        self.evaluation = {name: float(value) for name, value in output.items()}
        self.files.add_evaluation(self.step, self.evaluation)


def _progress(
    screen: TextIO, description: str, total: int, initial: int, shown: bool = True
) -> tqdm:
    with contextlib.redirect_stdout(cast(TextIO, Unbroken(screen))):
        return command.progress(
            total=total, desc=description, unit="step", initial=initial, disable=not shown
        )


_EVERY_STEP = ("learning_rate", "gradient_norm", "skipped_steps")
_SHOWN = ("loss", "masked_lm_accuracy", "learning_rate", "skipped_steps")
_SHORT = {"masked_lm_accuracy": "accuracy", "learning_rate": "lr", "skipped_steps": "skipped"}


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval
