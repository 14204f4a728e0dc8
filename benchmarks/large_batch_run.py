"""One run of the study: from the initial weights of its seed to its record.

A backend's `Trainer(model, micro_batch)` has `use(optimizer)`, `step(rows)`, `gradient(rows)`,
`evaluate(rows, weights)`, `store()`, after which the state lies in Keras's variables too, and
`release()`, which forgets it, so that what is assigned to the variables is what counts.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from typing import Any

import keras
import numpy as np

from benchmarks import large_batch_model, large_batch_optimizers, machine
from benchmarks.large_batch_data import Text
from benchmarks.large_batch_settings import Run, Study
from tfrecords.errors import UserError

# Of a run's length, how often the validation loss is taken.
EVALUATIONS = 16
_PACKAGES = ("tensorflow", "jax", "keras", "numpy", "tf-lans")


class Laboratory:
    """What the runs of one process share: the text, a model, and its compiled gradient.

    Args:
        study: the settings.
        text: its rows.
        micro_batch: rows of one gradient; it changes no result.

    Raises:
        UserError: the model is not as `large_batch_model.bert` documents it, or the backend is
            not supported.
    """

    def __init__(self, study: Study, text: Text, micro_batch: int) -> None:
        self.study, self.text = study, text
        self._commit = machine.commit()  # of the code as it was loaded
        backend = keras.backend.backend()
        if backend not in ("tensorflow", "jax"):
            raise UserError(f"KERAS_BACKEND is {backend}; expected tensorflow or jax")
        kind = importlib.import_module(f"benchmarks.large_batch_step_{backend}").Trainer
        self.model = self._build(study.seed)
        self.trainer = kind(self.model, micro_batch)
        self._held_out = {part: text.held_out(study.sizes, part) for part in ("validation", "test")}

    def _build(self, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        model = large_batch_model.builder(self.study.model)(self.study.sizes)
        if not isinstance(model, keras.Model) or len(model.inputs) != 2:
            raise UserError(
                f"--model={self.study.model} gives {type(model).__name__}; expected a keras.Model "
                "from [word_ids, positions] to logits"
            )
        expected = (None, self.study.sizes.max_predictions, self.study.sizes.vocab_size)
        if tuple(model.output_shape) != expected:
            raise UserError(
                f"--model={self.study.model} gives {model.output_shape}; expected logits {expected}"
            )
        return model

    def begin(self, seed: int) -> None:
        """The initial weights of a seed, the same for every method."""
        self.trainer.release()
        for variable, value in zip(self.model.variables, self._build(seed).variables, strict=True):
            variable.assign(value)

    def train(self, run: Run) -> dict[str, Any]:
        """A whole run; its record."""
        self.begin(run.seed)
        steps = self.study.examples // run.batch
        optimizer = large_batch_optimizers.create(run, steps, self.trainer.variables)
        start = time.perf_counter()
        first = self._loss(run, optimizer, "validation")
        curve: list[list[Any]] = [[0, None, first]]
        self.trainer.use(optimizer)
        marks = {round(steps * each / EVALUATIONS) for each in range(1, EVALUATIONS + 1)}
        losses: list[float] = []
        for step in range(steps):
            rows = self.text.examples(self.study.sizes, run.seed, step * run.batch, run.batch)
            losses.append(self.trainer.step(rows))
            if not math.isfinite(losses[-1]):
                curve.append([step + 1, None, None])
                break
            if step + 1 in marks:
                loss = self._loss(run, optimizer, "validation")
                curve.append([step + 1, float(np.mean(losses)), _finite(loss)])
                losses = []
        last = curve[-1][2]
        diverged = last is None or last > first
        return {
            "kind": "run",
            "study": self.study.key,
            "run": run.key(self.study),
            "settings": dataclasses.asdict(run),
            "common": self.study.common(),
            "curve": curve,
            "validation_loss": last,
            "test_loss": None if last is None else _finite(self._loss(run, optimizer, "test")),
            "diverged": diverged,
            "seconds": round(time.perf_counter() - start, 1),
            **self.where(),
        }

    def where(self) -> dict[str, Any]:
        """Where a record was made."""
        return {
            "date": machine.heading("")["date"],
            "source": self.text.source,
            "commit": self._commit,
            "processor": machine.processor(),
            "versions": machine.versions(_PACKAGES),
        }

    def _loss(self, run: Run, optimizer: keras.optimizers.Optimizer, part: str) -> float:
        weights = None
        if large_batch_optimizers.averages(run):
            self.trainer.store()
            weights = large_batch_optimizers.averaged_weights(optimizer, self.trainer.variables)
        return self.trainer.evaluate(self._held_out[part], weights)

    def examples_per_second(self, run: Run, seconds: float) -> float:
        """The speed of a run's training step, measured for about so long."""
        self.begin(run.seed)
        steps = self.study.examples // run.batch
        self.trainer.use(large_batch_optimizers.create(run, steps, self.trainer.variables))
        rows = self.text.examples(self.study.sizes, run.seed, 0, run.batch)
        self.trainer.step(rows)
        taken, start = 0, time.perf_counter()
        while taken < 2 or time.perf_counter() - start < seconds:
            self.trainer.step(rows)
            taken += 1
        return taken * run.batch / (time.perf_counter() - start)


def _finite(loss: float) -> float | None:
    """JSON has no NaN."""
    return loss if math.isfinite(loss) else None
