"""Values and gradients that the optimizers are tested on, and what clipping makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_values(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[np.ndarray]:
    """A float64 block of each shape."""
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.normal(size=shape) * 0.5) for shape in shapes]


def gradient_steps(
    values: Sequence[np.ndarray], steps: int, seed: int = 1
) -> list[list[np.ndarray]]:
    """Gradients that drift, so that momentum means something, each block at its own scale."""
    generator = np.random.default_rng(seed)
    drift = [generator.normal(size=value.shape) for value in values]
    return [
        [
            np.asarray(
                10.0 ** (index % 3 - 1) * (base + generator.normal(size=base.shape)), value.dtype
            )
            for index, (base, value) in enumerate(zip(drift, values, strict=True))
        ]
        for _ in range(steps)
    ]


def clipped(
    gradients: Sequence[np.ndarray],
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
    clipvalue: float | None = None,
) -> list[np.ndarray]:
    """Gradient clipping as its three definitions say."""
    if clipvalue is not None:
        return [np.clip(each, -clipvalue, clipvalue) for each in gradients]
    norms = [np.linalg.norm(each) for each in gradients]
    if clipnorm is not None:
        factors = [clipnorm / max(norm, clipnorm) for norm in norms]
    else:
        factors = [global_clipnorm / max(np.linalg.norm(norms), global_clipnorm)] * len(norms)
    return [factor * each for factor, each in zip(factors, gradients, strict=True)]
