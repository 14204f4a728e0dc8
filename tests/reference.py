"""The algorithms again, in float64 NumPy, written from the paper and sharing no code with tf_lans.

`Reference` runs one optimizer over a list of blocks. It is deliberately naive: one division per
equation, norms by `numpy.linalg.norm`, bias corrections by powers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Of `relative_error`, for float32 parameters, moments and gradients. A parameter is rounded to
# 6e-8 of itself at every step; where the elements that move most move 0.5 % of the largest, which
# is the least in these tests, that is up to 1.2e-5 of the way. A direction's own rounding, some
# dozens of operations of 6e-8 each, adds less than that again.
FLOAT32_TOLERANCE = 2e-5


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else np.zeros_like(vector)


def _scaled(direction: np.ndarray, weight_norm: float, bounds: tuple[float, float] | None):
    length = np.linalg.norm(direction)
    if weight_norm == 0 or length == 0:
        return direction
    phi = weight_norm if bounds is None else np.clip(weight_norm, *bounds)
    return phi * direction / length


@dataclasses.dataclass
class Reference:
    """One optimizer: "lans", "lamb", "block_normalized_adamw" or "adamw".

    `normalize` and `nesterov` switch the two ideas of "lans", and mean nothing to the others.
    """

    algorithm: str
    values: list[np.ndarray]
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    decays: list[bool] | None = None
    adapts: list[bool] | None = None
    weight_norm_bounds: tuple[float, float] | None = None
    normalize: bool = True
    nesterov: bool = True

    def __post_init__(self) -> None:
        self.values = [np.array(value, np.float64) for value in self.values]
        self.m = [np.zeros_like(value) for value in self.values]
        self.v = [np.zeros_like(value) for value in self.values]
        self.t = 0

    def step(self, gradients: list[np.ndarray], learning_rate: float) -> None:
        self.t += 1
        for index, gradient in enumerate(gradients):
            direction = self._direction(index, np.asarray(gradient, np.float64))
            self.values[index] = self.values[index] - learning_rate * direction

    def _direction(self, index: int, gradient: np.ndarray) -> np.ndarray:
        x = self.values[index]
        normalizes = {"lans": self.normalize, "block_normalized_adamw": True}
        g = _unit(gradient) if normalizes.get(self.algorithm, False) else gradient
        self.m[index] = self.beta_1 * self.m[index] + (1 - self.beta_1) * g
        self.v[index] = self.beta_2 * self.v[index] + (1 - self.beta_2) * g**2
        m_hat = self.m[index] / (1 - self.beta_1**self.t)
        v_hat = self.v[index] / (1 - self.beta_2**self.t)
        r = m_hat / (np.sqrt(v_hat) + self.epsilon)
        c = g / (np.sqrt(v_hat) + self.epsilon)
        decay = self.weight_decay if self.decays is None or self.decays[index] else 0.0
        if self.algorithm in ("adamw", "block_normalized_adamw"):
            return r + decay * x
        adapts = self.adapts is None or self.adapts[index]
        norm = float(np.linalg.norm(x))

        def term(direction: np.ndarray) -> np.ndarray:
            return _scaled(direction, norm, self.weight_norm_bounds) if adapts else direction

        if self.algorithm == "lamb" or not self.nesterov:
            return term(r + decay * x)
        return self.beta_1 * term(r + decay * x) + (1 - self.beta_1) * term(c + decay * x)

    def trust_ratio(self, index: int) -> float:
        """phi(||x||) / ||r + lambda x|| from the state after the last step."""
        x = self.values[index]
        m_hat = self.m[index] / (1 - self.beta_1**self.t)
        v_hat = self.v[index] / (1 - self.beta_2**self.t)
        decay = self.weight_decay if self.decays is None or self.decays[index] else 0.0
        direction = m_hat / (np.sqrt(v_hat) + self.epsilon) + decay * x
        norm, length = np.linalg.norm(x), np.linalg.norm(direction)
        if norm == 0 or length == 0:
            return 1.0
        phi = norm if self.weight_norm_bounds is None else np.clip(norm, *self.weight_norm_bounds)
        return float(phi / length)


def relative_error(
    got: list[np.ndarray], reference: list[np.ndarray], start: list[np.ndarray]
) -> float:
    """The largest error of any element over the largest displacement of any element."""
    displacement = max(
        np.max(np.abs(end - np.asarray(begin, np.float64)), initial=0.0)
        for end, begin in zip(reference, start, strict=True)
    )
    error = max(
        np.max(np.abs(np.asarray(value, np.float64) - end), initial=0.0)
        for value, end in zip(got, reference, strict=True)
    )
    return float(error / displacement)


def rounding(values: np.ndarray) -> np.ndarray:
    """How far each value may lie from the number that it was rounded to nearest from."""
    return 0.5 * np.spacing(np.abs(values)).astype(np.float64)
