"""Keras 3 on TensorFlow: state on the strategy's devices, updates by `distributed_update`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lans import compiled_update, distributed_update
from tf_lans.hyperparameters import LayerAdaptiveHyperparameters


def _native(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def check_loss_scaling(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses Keras 3's loss scaling where it would be wrong: under several replicas.

    Nothing tells an optimizer that another one wraps it, so the wrapper is looked for among the
    living objects.

    Raises:
        RuntimeError: a LossScaleOptimizer holds the optimizer, directly or in a MultiOptimizer,
            and several replicas train.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return
    for wrapper in gc.get_objects():
        if not issubclass(type(wrapper), keras.optimizers.LossScaleOptimizer):
            continue
        inner = getattr(wrapper, "inner_optimizer", None)
        if any(each is optimizer for each in (inner, *getattr(inner, "optimizers", ()))):
            raise RuntimeError(
                f"{type(optimizer).__name__} is in a LossScaleOptimizer under {replicas} replicas: "
                "that of Keras 3 judges a step by one replica's gradients, before they are summed, "
                "and misses the overflow of another; train with the policy mixed_bfloat16, which "
                "needs no loss scaling, or on one replica"
            )


class TensorFlowOptimizer(keras.optimizers.Optimizer):
    """The part of a Keras 3 optimizer of the family that TensorFlow decides."""

    can_watch_gradients = True
    _record: distributed_update.GradientRecord | None
    _loss_scaling_checked = False

    def _create_record(self) -> distributed_update.GradientRecord:
        return distributed_update.gradient_record(
            len(self._trainable_variables), self._distribution_strategy
        )

    def _last_gradient_norm(self, record: distributed_update.GradientRecord) -> tf.Tensor:
        return distributed_update.last_gradient_norm(record)

    def _squared_weight_norms(self) -> list[tf.Tensor]:
        natives = [_native(variable) for variable in self._trainable_variables]
        return distributed_update.squared_weight_norms(natives)

    def _dense(self, gradient: Any) -> tf.Tensor:
        # Keras's own conversion leaves IndexedSlices as they are.
        return compiled_update.dense(gradient)

    def _beside(self, reference_variable: Any) -> contextlib.AbstractContextManager:
        extended = self._distribution_strategy.extended
        return extended.colocate_vars_with(_native(reference_variable))

    def _add_accumulator(self, *, initializer: Any, name: str, **arguments: Any) -> keras.Variable:
        """A sum of local gradients: a checkpoint holds its total over replicas."""
        with keras.name_scope(self.name, caller=self):
            accumulator = keras.Variable(
                initializer=keras.initializers.get(initializer),
                trainable=False,
                aggregation="sum",
                synchronization="on_read",
                name=name,
                **arguments,
            )
        self._track_variable(accumulator)
        return accumulator

    def _update(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        distributed_update.check_replica_context(self)
        if not self._loss_scaling_checked:
            check_loss_scaling(self)
            self._loss_scaling_checked = True
        if not self.gradient_accumulation_steps:
            self._update_summed(grads, variables)
            return
        distributed_update.accumulate_in_replica(
            [_native(self._accumulated_gradients[index]) for index in self._indices(variables)],
            grads,
            micro_steps_made=_native(self._iterations),
            micro_steps=self.gradient_accumulation_steps,
            update=lambda means: self._close_window(means, variables),
        )

    def _close_window(self, means: Sequence[Any], variables: Sequence[Any]) -> None:
        self._update_summed(means, variables)
        closed = set(self._indices(variables))
        for index, accumulator in enumerate(self._accumulated_gradients):
            if index not in closed:  # what it holds of earlier micro-steps is lost, as in Keras
                _native(accumulator).assign(tf.zeros(accumulator.shape, accumulator.dtype))

    def _update_summed(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        natives = [_native(variable) for variable in variables]
        reduced = self._all_reduce_sum_gradients(list(zip(grads, natives, strict=True)))
        updates_made = tf.convert_to_tensor(self.iterations)
        averaging = None
        if self.use_ema:
            averaging = distributed_update.MovingAverage(
                momentum=self._ema_momentum_now(), overwrite=self._ema_overwrites_now()
            )
        distributed_update.update_in_replica(
            type(self).rule,
            self.hyperparameters,
            self._blocks(variables),
            [gradient for gradient, _ in reduced],
            learning_rate=tf.convert_to_tensor(self._get_current_learning_rate()),
            updates_made=updates_made,
            clipping=distributed_update.GradientClipping(**self._clipping()),
            averaging=averaging,
            counters=distributed_update.Counters(
                iterations=_native(self._iterations),
                skipped=_native(self.skipped_steps),
                stride=self.gradient_accumulation_steps or 1,
            ),
            record=self._record,
        )
        if averaging is not None:
            self._average_without_gradient(variables, averaging, updates_made)

    def _average_without_gradient(
        self,
        updated: Sequence[Any],
        averaging: distributed_update.MovingAverage,
        updates_before: tf.Tensor,
    ) -> None:
        """Goes on with the averages of the other variables, as Keras does.

        Left at zero, the average of a variable that never has a gradient would become its value
        when training ends.
        """
        with_gradient = set(self._indices(updated))
        others = [
            (_native(variable), _native(self._average_of(index)))
            for index, variable in enumerate(self._trainable_variables)
            if index not in with_gradient and self._average_of(index) is not None
        ]
        if not others:
            return
        overwrite = False if averaging.overwrite is None else averaging.overwrite

        def follow(x: tf.Variable, average: tf.Variable, taken: tf.Tensor) -> None:
            old, value = average.read_value(), x.read_value()
            step = (1 - tf.cast(averaging.momentum, old.dtype)) * (tf.cast(value, old.dtype) - old)
            new = tf.where(taken, old + step, old)
            average.assign(new)
            x.assign(tf.where(taken & overwrite, tf.cast(new, value.dtype), value))

        def step(distribution: tf.distribute.Strategy, taken: tf.Tensor) -> None:
            for x, average in others:
                distribution.extended.update(x, follow, args=(average, taken), group=False)

        # a skipped step counts no update
        taken = tf.convert_to_tensor(self.iterations) > updates_before
        tf.__internal__.distribute.interim.maybe_merge_call(
            step, tf.distribute.get_strategy(), taken
        )

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        """Keras's own, also for averages wider than their variables, or absent."""
        for variable in trainable_variables:
            average = self._average_of(self._get_variable_index(variable))
            if average is not None:
                self._distribution_strategy.extended.update(
                    _native(variable),
                    lambda x, value: x.assign(tf.cast(value, x.dtype)),
                    args=(_native(average),),
                )

    def _blocks(self, variables: Sequence[Any]) -> list[distributed_update.BlockVariables]:
        return [
            distributed_update.BlockVariables(
                index=index,
                x=_native(variable),
                m=_native(self._momentums[index]),
                v=_native(self._velocities[index]),
                average=_native(self._average_of(index)),
                constraint=variable.constraint,
                treatment=self._treatments[index],
            )
            for index, variable in zip(self._indices(variables), variables, strict=True)
        ]

    def _trust_ratios(self, settings: LayerAdaptiveHyperparameters) -> dict[str, tf.Tensor]:
        trained = [
            (path, variable)
            for path, variable, moment in zip(
                self._block_paths, self._trainable_variables, self._momentums, strict=True
            )
            if moment is not None
        ]
        blocks = self._blocks([variable for _, variable in trained])
        return distributed_update.trust_ratios(
            settings,
            {path: block for (path, _), block in zip(trained, blocks, strict=True)},
            tf.convert_to_tensor(self.iterations),
        )
