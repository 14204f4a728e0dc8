"""What the study's training step computes on Keras's backend, from weights both backends share.

KERAS_BACKEND=jax python -m tests.large_batch_step OUTPUT.npz
"""

import dataclasses
import sys

import keras
import numpy as np

from benchmarks import large_batch_methods, large_batch_optimizers
from benchmarks.large_batch_data import Rows
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_run import Laboratory
from benchmarks.large_batch_settings import Study
from tests.large_batch_samples import SIZES, text_of

STUDY = Study(data="none", sizes=SIZES, examples=64, batches=(16,), draws=1, rates=1, seeds=1)
# One with a schedule, and the one whose evaluated weights are not those it trains.
TRAINED = ("LANS eq. (9)", "ScheduleFreeAdamW, Keras mended")
STEPS, BATCH, MICRO_BATCH = 3, 16, 4


def batches() -> list[Rows]:
    """A batch for each step, its weights unequal, so that a mean of means is another number."""
    random = np.random.default_rng(1)
    found = []
    for step in range(STEPS):
        rows = text_of(100).examples(SIZES, 0, step * BATCH, BATCH)
        weights = random.random(rows.weights.shape).astype(np.float32)
        found.append(rows._replace(weights=weights))
    return found


def start(laboratory: Laboratory) -> None:
    """The same weights on every backend, no gain 1 and no bias 0."""
    laboratory.begin(0)
    random = np.random.default_rng(2)
    for variable in laboratory.model.variables:
        values = random.normal(0, 0.3, variable.shape)
        variable.assign((values + variable.path.endswith("gamma")).astype(np.float32))


def computed() -> dict[str, np.ndarray]:
    """Gradients, losses, evaluations and trained weights, by name."""
    laboratory = Laboratory(STUDY, text_of(100), MICRO_BATCH)
    start(laboratory)
    first, *_ = batches()
    found = {"evaluated": np.float64(laboratory.trainer.evaluate(first))}
    for variable, gradient in zip(
        laboratory.trainer.variables, laboratory.trainer.gradient(first), strict=True
    ):
        found[f"start/{variable.path}"] = np.array(keras.ops.convert_to_numpy(variable))
        found[f"gradient/{variable.path}"] = gradient
    # The first once more: the step gives its buffers away, and the next run must not see them.
    for label, name in (*zip(TRAINED, TRAINED, strict=True), ("again", TRAINED[0])):
        start(laboratory)
        trainer = laboratory.trainer
        run = large_batch_methods.drawn(STUDY, METHODS[name], 0)
        run = dataclasses.replace(run, learning_rate=0.01, warmup_ratio=0.0)
        optimizer = large_batch_optimizers.create(run, STEPS, trainer.variables)
        trainer.use(optimizer)
        losses = [trainer.step(rows) for rows in batches()]
        trainer.store()
        weights = None
        if large_batch_optimizers.averages(run):
            weights = large_batch_optimizers.averaged_weights(optimizer, trainer.variables)
        found[f"{label}/losses"] = np.array(losses)
        found[f"{label}/evaluated"] = np.float64(trainer.evaluate(first, weights))
        for variable in trainer.variables:
            value = np.array(keras.ops.convert_to_numpy(variable))
            found[f"{label}/trained/{variable.path}"] = value
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **computed())  # type: ignore[arg-type]
