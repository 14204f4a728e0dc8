"""Keras 3 on TensorFlow: state on the strategy's devices, updates by `distributed_update`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_lans import distributed_update
from tf_lans.hyperparameters import LayerAdaptiveHyperparameters


def _native(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


class TensorFlowOptimizer(keras.optimizers.Optimizer):
    """The part of a Keras 3 optimizer of the family that TensorFlow decides."""

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
        if not self.gradient_accumulation_steps:
            self._update_summed(grads, variables)
            return
        distributed_update.accumulate_in_replica(
            [_native(self._accumulated_gradients[index]) for index in self._indices(variables)],
            grads,
            micro_steps_made=_native(self._iterations),
            micro_steps=self.gradient_accumulation_steps,
            update=lambda means: self._update_summed(means, variables),
        )

    def _update_summed(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        natives = [_native(variable) for variable in variables]
        reduced = self._all_reduce_sum_gradients(list(zip(grads, natives, strict=True)))
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
            updates_made=tf.convert_to_tensor(self.iterations),
            clipping=distributed_update.GradientClipping(
                clipnorm=self.clipnorm,
                global_clipnorm=self.global_clipnorm,
                clipvalue=self.clipvalue,
            ),
            averaging=averaging,
            counters=distributed_update.Counters(
                iterations=_native(self._iterations),
                skipped=_native(self.skipped_steps),
                stride=self.gradient_accumulation_steps or 1,
            ),
        )

    def _blocks(self, variables: Sequence[Any]) -> list[distributed_update.BlockVariables]:
        return [
            distributed_update.BlockVariables(
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
