"""Keras 3 on JAX and PyTorch: the rules on `keras.ops`, pure functions from values to values.

Nothing here imports TensorFlow. New values are computed first, then assigned, so that the
update works in Keras's stateless scope, where JAX compiles it with the rest of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from tf_lans import update_rules
from tf_lans.hyperparameters import LayerAdaptiveHyperparameters
from tf_lans.update_rules import Block, Step, Updated


class _Values(NamedTuple):
    """Every value an update may change, one list entry for each block."""

    x: list[Any]
    m: list[Any]
    v: list[Any]
    averages: list[Any]
    accumulated: list[Any]
    iterations: Any
    skipped: Any


def plain_sums(*arrays: Any) -> tuple[Any, ...]:
    """The sum of each array."""
    return tuple(ops.sum(array) for array in arrays)


class PortableOptimizer(keras.optimizers.Optimizer):
    """The part of a Keras 3 optimizer of the family that the backend decides."""

    def _beside(self, reference_variable: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _add_accumulator(self, **arguments: Any) -> Any:
        return self.add_variable(**arguments)

    def _update(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        indices = self._indices(variables)
        state = _Values(
            x=list(variables),
            m=[self._momentums[index] for index in indices],
            v=[self._velocities[index] for index in indices],
            averages=[self._average_of(index) for index in indices] if self.use_ema else [],
            accumulated=[],
            iterations=self._iterations,
            skipped=self.skipped_steps,
        )
        micro_steps = self.gradient_accumulation_steps
        if micro_steps:
            accumulators = [self._accumulated_gradients[index] for index in indices]
            state = state._replace(accumulated=accumulators)
        old = _values(state)
        dense = [ops.convert_to_tensor(gradient, sparse=False) for gradient in grads]
        if not micro_steps:
            new = self._stepped(old, dense, variables)
        else:
            totals = [
                total + ops.cast(gradient, total.dtype)
                for total, gradient in zip(old.accumulated, dense, strict=True)
            ]
            new = ops.cond(
                (old.iterations + 1) % micro_steps == 0,
                lambda: self._stepped(old, [each / micro_steps for each in totals], variables),
                lambda: old._replace(accumulated=totals, iterations=old.iterations + 1),
            )
        _assign(state, new)

    def _stepped(self, old: _Values, gradients: Sequence[Any], variables: Sequence[Any]) -> _Values:
        """The values after an update with the mean gradients; unchanged if it is skipped."""
        settings = self.hyperparameters
        dtypes = [moment.dtype for moment in old.m]
        gradients = _cast_all(gradients, dtypes)
        squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
        finite = ops.convert_to_tensor(True)
        if settings.skip_nonfinite:
            finite = ops.all(ops.stack([ops.isfinite(square) for square in squares]))
        gradients, squares, clips = self._clipped(gradients, squares)
        blocks = map(Block, _cast_all(old.x, dtypes), old.m, old.v, gradients)
        updated = [
            type(self).rule(
                ops,
                plain_sums,
                block,
                self._scalars(dtype, square, clip),
                self._treatments[index],
                settings,
            )
            for index, block, dtype, square, clip in zip(
                self._indices(variables), blocks, dtypes, squares, clips, strict=True
            )
        ]
        x, averages = self._averaged([each.x for each in updated], old.averages)
        x = [
            each if variable.constraint is None else variable.constraint(each)
            for each, variable in zip(x, variables, strict=True)
        ]
        applied = ops.cast(finite, old.iterations.dtype)
        stride = self.gradient_accumulation_steps or 1
        return _Values(
            x=_where(finite, x, old.x),
            m=_where(finite, [each.m for each in updated], old.m),
            v=_where(finite, [each.v for each in updated], old.v),
            averages=_where(finite, averages, old.averages),
            accumulated=[ops.zeros_like(total) for total in old.accumulated],
            iterations=old.iterations + (1 - stride + applied * stride),
            skipped=old.skipped + (1 - applied),
        )

    def _scalars(self, dtype: Any, square: Any, clip: Any) -> Step:
        number = ops.cast(self.iterations, dtype) + 1
        rate = ops.cast(self._get_current_learning_rate(), dtype)
        return Step(rate, number, square, ops.cast(clip, dtype))

    def _clipped(
        self, gradients: list[Any], squares: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        if self.clipvalue:
            gradients = [ops.clip(each, -self.clipvalue, self.clipvalue) for each in gradients]
            squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
        clips = update_rules.clip_factors(
            ops, squares, clipnorm=self.clipnorm, global_clipnorm=self.global_clipnorm
        )
        return gradients, squares, clips

    def _averaged(self, x: list[Any], averages: list[Any]) -> tuple[list[Any], list[Any]]:
        if not averages:
            return x, []
        momentum = self._ema_momentum_now()
        averages = [
            ops.cast(momentum, old.dtype) * old
            + (1 - ops.cast(momentum, old.dtype)) * ops.cast(new, old.dtype)
            for new, old in zip(x, averages, strict=True)
        ]
        overwrites = self._ema_overwrites_now()
        if overwrites is not None:
            x = _where(overwrites, averages, x)
        return x, averages

    def _trust_ratios(self, settings: LayerAdaptiveHyperparameters) -> dict[str, Any]:
        return {
            path: ops.cast(
                update_rules.momentum_trust_ratio(
                    ops,
                    plain_sums,
                    Updated(
                        ops.cast(ops.stop_gradient(variable), moment.dtype),
                        ops.convert_to_tensor(moment),
                        ops.convert_to_tensor(velocity),
                    ),
                    ops.cast(self.iterations, moment.dtype),
                    treatment,
                    settings,
                ),
                "float32",
            )
            for path, variable, moment, velocity, treatment in zip(
                self._block_paths,
                self._trainable_variables,
                self._momentums,
                self._velocities,
                self._treatments,
                strict=True,
            )
            if treatment.adapts and moment is not None
        }


def _values(state: _Values) -> _Values:
    """The values of the variables, outside any gradient tape."""
    return _Values(
        *([ops.stop_gradient(variable) for variable in column] for column in state[:-2]),
        *(ops.convert_to_tensor(variable) for variable in state[-2:]),
    )


def _assign(state: _Values, new: _Values) -> None:
    for column, values in zip(state[:-2], new[:-2], strict=True):
        for variable, value in zip(column, values, strict=True):
            variable.assign(value)
    for variable, value in zip(state[-2:], new[-2:], strict=True):
        variable.assign(value)


def _cast_all(arrays: Sequence[Any], dtypes: Sequence[Any]) -> list[Any]:
    return [ops.cast(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]


def _where(condition: Any, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    return [
        ops.where(condition, ops.cast(each, before.dtype), before)
        for each, before in zip(new, old, strict=True)
    ]
