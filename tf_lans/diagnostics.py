"""What an optimizer can tell of its last step, for callbacks and logs.

The optimizers of either Keras inherit `ObservedOptimizer`; an adapter offers what it declares.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """One look at an optimizer, its values as plain Python numbers.

    Attributes:
        iterations: updates made.
        skipped_steps: steps skipped for a non-finite gradient.
        learning_rate: eta of the next update.
        weight_norm: the norm of all blocks together.
        trust_ratios: the momentum term's trust ratio of each block that adapts, by block path.
        gradient_norms: the norm of each block's gradient in the last step, by block path: that of
            the global batch, all-reduced, before clipping. None where gradients are not watched.
        skipped_in_a_row: steps skipped since the last update; None likewise.
    """

    iterations: int
    skipped_steps: int
    learning_rate: float
    weight_norm: float
    trust_ratios: dict[str, float]
    gradient_norms: dict[str, float] | None = None
    skipped_in_a_row: int | None = None

    @property
    def gradient_norm(self) -> float | None:
        """The norm of all blocks' gradients together, None where they are not watched."""
        if self.gradient_norms is None:
            return None
        return math.hypot(*self.gradient_norms.values())

    def scalars(self) -> dict[str, float]:
        """The figures for a log: without trust ratios or gradients where there are none."""
        found: dict[str, float] = {"learning_rate": self.learning_rate}
        if self.gradient_norm is not None:
            found["gradient_norm"] = self.gradient_norm
        ratios = sorted(self.trust_ratios.values())
        if ratios:
            found["trust_ratio_min"] = ratios[0]
            found["trust_ratio_median"] = statistics.median_low(ratios)
            found["trust_ratio_max"] = ratios[-1]
        found["weight_norm"] = self.weight_norm
        found["skipped_steps"] = self.skipped_steps
        return found


def nonfinite_blocks(gradient_norms: dict[str, Any]) -> list[str]:
    """The paths of the blocks whose gradient norm is NaN or infinite."""
    return [path for path, norm in gradient_norms.items() if not math.isfinite(norm)]


def plain(value: Any) -> Any:
    """The value of a variable of either Keras, mirrored or not, or of an array on any device."""
    if hasattr(value, "detach"):  # PyTorch's, whose `numpy` is for those of the CPU
        value = value.detach().cpu()
    return value.numpy() if hasattr(value, "numpy") else value


class ObservedOptimizer:
    """The part of an optimizer that reports on it.

    Attributes:
        can_watch_gradients: whether the backend lets `watch_gradients` work.
        watches_gradients: whether it was called.
        skipped_steps: an integer variable, the steps skipped for a non-finite gradient.
    """

    can_watch_gradients: ClassVar[bool]
    watches_gradients = False
    skipped_steps: Any
    iterations: Any
    learning_rate: Any
    _record: Any = None
    _block_paths: Sequence[str]
    _is_built: Callable[[], bool]
    _squared_weight_norms: Callable[[], list[Any]]
    _create_record: Callable[[], Any]
    _last_gradient_norm: Callable[[Any], Any]

    def watch_gradients(self) -> None:
        """Keeps, from the next step that is traced, the norm of each block's gradient.

        See `gradient_norms`. It costs nothing that can be measured. A training function that was
        traced before must be made anew: `model.make_train_function(force=True)`.

        Raises:
            NotImplementedError: Keras runs on another backend than TensorFlow.
        """
        if not self.can_watch_gradients:
            raise NotImplementedError(
                f"{type(self).__name__}.watch_gradients() needs Keras on TensorFlow: set "
                "KERAS_BACKEND=tensorflow"
            )
        self.watches_gradients = True
        if self._is_built() and self._record is None:
            self._record = self._create_record()

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each block's gradient in the last step, by block path.

        It is the true gradient's: of the global batch, accumulated and all-reduced, before
        clipping; NaN or infinite in a skipped step, 0 for a block that had no gradient.

        Raises:
            ValueError: the gradients are not watched, or the optimizer is not built yet.
        """
        squares = self._watched().squared_norms.numpy()
        return {
            path: math.sqrt(square)
            for path, square in zip(self._block_paths, squares.tolist(), strict=True)
        }

    def skipped_in_a_row(self) -> int:
        """The steps skipped since the last update.

        Raises:
            ValueError: as for `gradient_norms`.
        """
        return int(self._watched().skipped_in_a_row.numpy())

    def last_gradient_norm(self) -> Any:
        """The norm of all blocks' gradients together in the last step, also in compiled functions.

        Returns:
            A float32 scalar tensor; see `gradient_norms`.

        Raises:
            ValueError: as for `gradient_norms`.
        """
        return self._last_gradient_norm(self._watched())

    def steps_taken(self) -> int:
        """The steps so far, updates and skipped ones."""
        return int(plain(self.iterations)) + int(plain(self.skipped_steps))

    def _coming_learning_rate(self) -> Any:
        return self.learning_rate

    def _watched(self) -> Any:
        if self._record is None:
            raise ValueError(
                f"{type(self).__name__} keeps no gradient norms yet: call watch_gradients() and "
                "take a step"
            )
        return self._record

    def diagnostics(self) -> Diagnostics:
        """A look at the optimizer: rate, norms, trust ratios, skipped steps, as Python numbers.

        It reads all weights and moments once. Call it outside of compiled functions.

        Raises:
            ValueError: the optimizer is not built yet.
        """
        if not self._is_built():
            raise ValueError(f"{type(self).__name__}.diagnostics() came before the first step")
        # BlockNormalizedAdamW adapts no block
        ratios = self.trust_ratios() if hasattr(self, "trust_ratios") else {}
        watched = self._record is not None
        return Diagnostics(
            iterations=int(plain(self.iterations)),
            skipped_steps=int(plain(self.skipped_steps)),
            learning_rate=float(plain(self._coming_learning_rate())),
            weight_norm=math.sqrt(sum(map(float, self._squared_weight_norms()))),
            trust_ratios={path: float(ratio) for path, ratio in ratios.items()},
            gradient_norms=self.gradient_norms() if watched else None,
            skipped_in_a_row=self.skipped_in_a_row() if watched else None,
        )
