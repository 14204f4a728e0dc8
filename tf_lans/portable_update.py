"""Keras 3 on JAX and PyTorch: the rules on `keras.ops`, pure functions from values to values.

Nothing here imports TensorFlow. A block's new values are computed, then assigned, so that the
update works in Keras's stateless scope, where JAX compiles it with the rest of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from tf_lans import update_rules
from tf_lans.hyperparameters import LayerAdaptiveHyperparameters
from tf_lans.update_rules import Block, Step, Treatment, Updated

if keras.backend.backend() == "jax":
    from tf_lans.jax_program import either as _either
    from tf_lans.jax_program import sums as _sums
else:
    _either = ops.cond

    def _sums(*arrays: Any) -> tuple[Any, ...]:
        return tuple(ops.sum(array) for array in arrays)


class _BlockValues(NamedTuple):
    """What an update may change of one block; None where the optimizer keeps no such thing."""

    x: Any
    m: Any
    v: Any
    average: Any
    accumulated: Any


class _Scalars(NamedTuple):
    """What one update has in common for all blocks.

    Attributes:
        learning_rate: eta_t.
        number: t, from 1.
        ema_momentum: the moving average's momentum now.
        ema_overwrites: whether the averages become the weights now; None for never.
    """

    learning_rate: Any
    number: Any
    ema_momentum: Any
    ema_overwrites: Any


class PortableOptimizer(keras.optimizers.Optimizer):
    """The part of a Keras 3 optimizer of the family that the backend decides."""

    can_watch_gradients = False

    def _dense(self, gradient: Any) -> Any:
        return ops.convert_to_tensor(gradient, sparse=False)

    def _squared_weight_norms(self) -> list[Any]:
        return [
            ops.sum(ops.square(ops.cast(each, "float32"))) for each in self._trainable_variables
        ]

    def _beside(self, reference_variable: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _add_accumulator(self, **arguments: Any) -> Any:
        return self.add_variable(**arguments)

    def _update(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        state = [self._block_variables(variable) for variable in variables]
        before = [_values(block) for block in state]
        old = before
        gradients = [
            ops.cast(self._dense(gradient), block.m.dtype)
            for gradient, block in zip(grads, old, strict=True)
        ]
        complete: Any = True
        micro_steps = self.gradient_accumulation_steps
        if micro_steps:
            old = [
                block._replace(accumulated=block.accumulated + gradient)
                for block, gradient in zip(old, gradients, strict=True)
            ]
            complete = (self._iterations + 1) % micro_steps == 0

        def means() -> list[Any]:
            return [block.accumulated / micro_steps for block in old] if micro_steps else gradients

        squares = [ops.sum(ops.square(mean)) for mean in means()]
        applies = complete
        if self.hyperparameters.skip_nonfinite:
            finite = ops.all(ops.isfinite(ops.stack(squares)))
            applies = finite if complete is True else ops.logical_and(complete, finite)
        treatments = [self._treatments[index] for index in self._indices(variables)]
        scalars = self._scalars()

        def updated() -> Iterator[_BlockValues]:
            # The means once more: handed over, they would be held beside the sums.
            clipped = zip(*self._clipped(means(), squares), strict=True)
            for block, given, treatment, variable in zip(
                old, clipped, treatments, variables, strict=True
            ):
                yield self._updated(block, *given, scalars, treatment, variable.constraint)

        def kept() -> Iterator[_BlockValues]:
            return (_emptied(block, complete) for block in old)

        new = updated() if applies is True else _either(applies, updated, kept)
        # One block at a time: outside a compiled program the new values of only one block exist.
        for block, values, known in zip(state, new, before, strict=True):
            _assign(block, values, known)
        if micro_steps:
            self._empty_without_gradient(variables, complete)
        if self.use_ema:
            self._average_without_gradient(variables, scalars, applies)
        self._count(complete, applies)

    def _block_variables(self, variable: Any) -> _BlockValues:
        index = self._get_variable_index(variable)
        return _BlockValues(
            x=variable,
            m=self._momentums[index],
            v=self._velocities[index],
            average=self._average_of(index),
            accumulated=(
                self._accumulated_gradients[index] if self.gradient_accumulation_steps else None
            ),
        )

    def _scalars(self) -> _Scalars:
        return _Scalars(
            learning_rate=self._get_current_learning_rate(),
            number=self.iterations + 1,
            ema_momentum=self._ema_momentum_now() if self.use_ema else None,
            ema_overwrites=self._ema_overwrites_now() if self.use_ema else None,
        )

    def _clipped(
        self, gradients: list[Any], squares: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        bounds = self._clipping()
        bound = bounds.pop("clipvalue")
        if bound is not None:
            gradients = [ops.clip(gradient, -bound, bound) for gradient in gradients]
            squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
        clips = update_rules.clip_factors(ops, squares, **bounds)
        return gradients, squares, clips

    def _updated(
        self,
        old: _BlockValues,
        gradient: Any,
        square: Any,
        clip: Any,
        scalars: _Scalars,
        treatment: Treatment,
        constraint: Any,
    ) -> _BlockValues:
        """One block's values after an update with the mean gradient."""
        dtype = old.m.dtype
        step = Step(
            learning_rate=ops.cast(scalars.learning_rate, dtype),
            number=ops.cast(scalars.number, dtype),
            squared_norm=square,
            clip=ops.cast(clip, dtype),
        )
        block = Block(ops.cast(old.x, dtype), old.m, old.v, gradient)
        new = type(self).rule(ops, _sums, block, step, treatment, self.hyperparameters)
        x, average = _averaged(new.x, old.average, scalars)
        x = x if constraint is None else constraint(x)
        accumulated = None if old.accumulated is None else ops.zeros_like(old.accumulated)
        return _BlockValues(ops.cast(x, old.x.dtype), new.m, new.v, average, accumulated)

    def _empty_without_gradient(self, updated: Sequence[Any], complete: Any) -> None:
        """Drops, with the window, what the other variables gathered in it, as Keras does."""
        with_gradient = set(self._indices(updated))
        for index, accumulator in enumerate(self._accumulated_gradients):
            if index not in with_gradient:
                accumulator.assign(ops.where(complete, 0.0, ops.stop_gradient(accumulator)))

    def _average_without_gradient(
        self, updated: Sequence[Any], scalars: _Scalars, applies: Any
    ) -> None:
        """Goes on with the averages of the other variables, as Keras does.

        Left at zero, the average of a variable that never has a gradient would become its value
        when training ends.
        """
        with_gradient = set(self._indices(updated))
        for index, variable in enumerate(self._trainable_variables):
            average = self._average_of(index)
            if index in with_gradient or average is None:
                continue
            old_x, old_average = ops.stop_gradient(variable), ops.stop_gradient(average)
            x, new_average = _averaged(old_x, old_average, scalars)
            variable.assign(ops.where(applies, x, old_x))
            average.assign(ops.where(applies, new_average, old_average))

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        """Keras's own, with copies: JAX cannot donate one buffer as two variables."""
        for variable in trainable_variables:
            average = self._average_of(self._get_variable_index(variable))
            if average is not None:
                variable.assign(ops.copy(average))

    def _count(self, complete: Any, applies: Any) -> None:
        """A skipped window of micro-steps is begun again: its phase is its first one's."""
        stride = self.gradient_accumulation_steps or 1
        dtype = self._iterations.dtype
        skipped = ops.cast(complete, dtype) - ops.cast(applies, dtype)
        self._iterations.assign_add(1 - skipped * stride)
        self.skipped_steps.assign_add(skipped)

    def _trust_ratios(self, settings: LayerAdaptiveHyperparameters) -> dict[str, Any]:
        return {
            path: ops.cast(
                update_rules.momentum_trust_ratio(
                    ops,
                    _sums,
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


def _values(block: _BlockValues) -> _BlockValues:
    """The values of a block's variables, outside any gradient tape."""
    return _BlockValues(*(None if each is None else ops.stop_gradient(each) for each in block))


def _assign(block: _BlockValues, values: _BlockValues, before: _BlockValues) -> None:
    for variable, value, known in zip(block, values, before, strict=True):
        if value is not known:
            variable.assign(value)


def _emptied(old: _BlockValues, complete: Any) -> _BlockValues:
    """A block that is not updated: its accumulated gradient ends with the window."""
    if old.accumulated is None:
        return old
    return old._replace(accumulated=ops.where(complete, 0.0, old.accumulated))


def _averaged(x: Any, average: Any, scalars: _Scalars) -> tuple[Any, Any]:
    if average is None:
        return x, None
    momentum = ops.cast(scalars.ema_momentum, average.dtype)
    average = momentum * average + (1 - momentum) * ops.cast(x, average.dtype)
    if scalars.ema_overwrites is not None:
        x = ops.where(scalars.ema_overwrites, ops.cast(average, x.dtype), x)
    return x, average
