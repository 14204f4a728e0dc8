"""Section 3.4 of the paper, measured: the variance of the gradient by how a batch is drawn.

With the gradients g_i of N examples, sigma^2 the mean of ||g_i - mean g||^2, and a batch of b:

    with replacement                sigma^2 / b
    without                         sigma^2 / b (N - b) / (N - 1)
    W workers, each without,
    but independent of the others   sigma^2 / b (N - b / W) / (N - 1)

The third is what Model Garden's reader does with `seed` unset: each worker shuffles the list of
files by itself and takes every W-th, so that workers overlap and other files go unread. Each draw
fills the files anew at random, over which the formula is the mean. Gradients
are those of single examples, projected by random signs onto fewer dimensions, which keeps squared
norms in expectation; batches are then means of rows of one matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import large_batch_optimizers
from benchmarks.large_batch_data import Rows
from benchmarks.large_batch_run import Laboratory
from benchmarks.large_batch_settings import Run

FILES, WORKERS = 8, 4
WITH, WITHOUT, OVERLAPPING = "with replacement", "without replacement", "overlapping shards"
SCHEMES = (WITH, WITHOUT, OVERLAPPING)
_DIMENSIONS = 2048
_DRAWS = 400
_TRAINING_RATE = 1e-3


def factor(scheme: str, count: int, batch: int) -> float:
    """The theory's variance, in units of sigma^2 / b."""
    drawn_without = {WITH: 1.0, WITHOUT: batch, OVERLAPPING: batch / WORKERS}[scheme]
    return (count - drawn_without) / (count - 1)


def sketch(gradient: list[np.ndarray], buckets: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """A gradient's random projection: each element, with its sign, into one of the buckets."""
    flat = np.concatenate([np.reshape(each, -1) for each in gradient])
    return np.bincount(buckets, weights=flat * signs, minlength=int(buckets.max()) + 1)


def example_gradients(laboratory: Laboratory, count: int) -> np.ndarray:
    """float64 [count, dimensions]: the projected gradient of each of the first examples."""
    rows = laboratory.text.examples(laboratory.study.sizes, laboratory.study.seed, 0, count)
    size = sum(int(np.prod(each.shape)) for each in laboratory.trainer.variables)
    random = np.random.default_rng(laboratory.study.seed)
    buckets = random.integers(0, _DIMENSIONS, size)
    buckets[0] = _DIMENSIONS - 1  # so that all projections have the same length
    signs = random.choice([-1.0, 1.0], size)
    return np.stack(
        [
            sketch(
                laboratory.trainer.gradient(Rows(*(part[each : each + 1] for part in rows))),
                buckets,
                signs,
            )
            for each in range(count)
        ]
    )


def _with(count: int, batch: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, count, batch)


def _without(count: int, batch: int, random: np.random.Generator) -> np.ndarray:
    return random.permutation(count)[:batch]


def _overlapping(count: int, batch: int, random: np.random.Generator) -> np.ndarray:
    files = random.permutation(count).reshape(FILES, -1)
    parts = []
    for worker in range(WORKERS):
        own = files[random.permutation(FILES)[worker::WORKERS]].reshape(-1)
        parts.append(random.permutation(own)[: batch // WORKERS])
    return np.concatenate(parts)


_DRAWERS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    WITH: _with,
    WITHOUT: _without,
    OVERLAPPING: _overlapping,
}


def measure(gradients: np.ndarray, batches: list[int], seed: int) -> list[dict[str, Any]]:
    """The variance of a batch's mean gradient under each scheme.

    Args:
        gradients: [N, dimensions], shuffled.
        batches: multiples of the workers, at most N.
        seed: of all draws.

    Returns:
        By scheme and batch, measured and theory, both in units of sigma^2 / b, and the standard
        error of the measured.
    """
    centred = gradients - gradients.mean(0)
    sigma = float(np.square(centred).sum(1).mean())
    rows = []
    for scheme in SCHEMES:
        for batch in batches:
            random = np.random.default_rng([seed, SCHEMES.index(scheme), batch])
            squares = [
                float(
                    np.square(centred[_DRAWERS[scheme](len(centred), batch, random)].mean(0)).sum()
                )
                * batch
                / sigma
                for _ in range(_DRAWS)
            ]
            rows.append(
                {
                    "scheme": scheme,
                    "batch": batch,
                    "measured": float(np.mean(squares)),
                    "standard_error": float(np.std(squares) / _DRAWS**0.5),
                    "theory": factor(scheme, len(centred), batch),
                }
            )
    return rows


def coverage(count: int, seed: int) -> float:
    """The share of all examples that an epoch of the overlapping workers draws."""
    random = np.random.default_rng(seed)
    shares = [len(set(_overlapping(count, count, random))) / count for _ in range(_DRAWS)]
    return float(np.mean(shares))


def record(laboratory: Laboratory, count: int) -> dict[str, Any]:
    """The whole measurement, at the initial weights and at those of AdamW's run after a quarter.

    Args:
        laboratory: model and text.
        count: N, a multiple of the files.
    """
    study = laboratory.study
    batch = study.batches[0]
    run = Run(
        method="AdamW", batch=batch, learning_rate=_TRAINING_RATE, beta_2=0.98, warmup_ratio=0.1
    )
    steps = study.examples // batch
    laboratory.begin(study.seed)
    batches = [each for each in (2**power for power in range(2, 20)) if each <= count]
    seed = study.seed
    points = {"initial": measure(example_gradients(laboratory, count), batches, seed)}
    trainer = laboratory.trainer
    trainer.use(large_batch_optimizers.create(run, steps, trainer.variables))
    for step in range(max(1, steps // 4)):
        trainer.step(laboratory.text.examples(study.sizes, seed, step * batch, batch))
    points["trained"] = measure(example_gradients(laboratory, count), batches, seed)
    return {
        "kind": "variance",
        "study": study.key,
        "common": study.common(),
        "examples": count,
        "files": FILES,
        "workers": WORKERS,
        "draws": _DRAWS,
        "dimensions": _DIMENSIONS,
        "epoch_coverage": coverage(count, seed),
        "trained_by": dataclasses.asdict(run),
        "trained_steps": max(1, steps // 4),
        "points": points,
        **laboratory.where(),
    }
