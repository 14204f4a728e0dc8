"""The family for tf_keras (Keras 2), which Model Garden uses: an adapter, no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tf_lans import block_selection, compiled_update, distributed_update, family, schedules
from tf_lans.hyperparameters import LayerAdaptiveHyperparameters

_register = tf_keras.utils.register_keras_serializable(package="tf_lans")


@_register
class WarmupConstantDecay(  # noqa: D101 - documented where it is shared
    schedules.WarmupConstantDecaySchedule, tf_keras.optimizers.schedules.LearningRateSchedule
):
    __doc__ = schedules.WarmupConstantDecaySchedule.__doc__

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate of the update after `step` updates: a float32 scalar."""
        number = tf.cast(step, tf.float32) + 1.0
        return schedules.learning_rate(compiled_update.NAMESPACE, number, self.phases)


class TFKerasBlockOptimizer(family.BlockOptimizer, tf_keras.optimizers.Optimizer):
    """The part between the family and tf_keras's base class."""

    def _initialize(self, learning_rate: Any, name: str, base_arguments: dict) -> None:
        if base_arguments.get("mesh") is not None:
            raise ValueError(
                f"{type(self).__name__} got mesh=...: DTensor is not supported, use tf.distribute"
            )
        super().__init__(name=name, weight_decay=None, **base_arguments)
        self._learning_rate = self._build_learning_rate(learning_rate)
        with tf.init_scope():
            self.skipped_steps = tf.Variable(
                0, name="skipped_steps", dtype=tf.int64, trainable=False
            )
        self._variables.append(self.skipped_steps)
        self._built = False

    def _is_built(self) -> bool:
        return self._built

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the moments of each variable and settles each block's flags.

        Args:
            var_list: the model's trainable variables.
        """
        super().build(var_list)
        if self._built:
            return
        self.momentums = [self._add_moment(variable, "m") for variable in var_list]
        self.velocities = [self._add_moment(variable, "v") for variable in var_list]
        paths = [block_selection.block_path(variable) for variable in var_list]
        block_selection.warn_of_unmatched(self.hyperparameters, paths)
        self._block_paths = self._no_dependency(paths)
        self._treatments = self._no_dependency(
            block_selection.treatments(self.hyperparameters, paths)
        )
        self._trained_variables = self._no_dependency(list(var_list))
        self._built = True

    def _add_moment(self, variable: tf.Variable, name: str) -> tf.Variable:
        stored = compiled_update.stored_dtype(variable)
        dtype = compiled_update.compute_dtype(stored)
        if dtype == stored:
            return self.add_variable_from_reference(variable, name)
        with tf.distribute.get_strategy().extended.colocate_vars_with(variable):
            moment = tf.Variable(
                tf.zeros(variable.shape, dtype),
                name=f"{name}/{variable._shared_name}",
                trainable=False,
            )
        self._variables.append(moment)
        return moment

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, tf.Variable]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        **kwargs: Any,
    ) -> tf.Variable:
        """Updates the variables with the gradient of the global batch.

        Args:
            grads_and_vars: (gradient, variable) pairs; a pair without gradient is left alone.
            name: a name scope, the optimizer's name by default.
            skip_gradients_aggregation: True where the gradients are summed over replicas already.
            **kwargs: experimental_aggregate_gradients, the older form of the same.

        Returns:
            `iterations`.
        """
        pairs = list(grads_and_vars)
        if not pairs:
            return self._iterations
        distributed_update.check_replica_context(self)
        aggregate = kwargs.pop("experimental_aggregate_gradients", True)
        if kwargs:
            raise TypeError(f"apply_gradients() got unknown arguments: {', '.join(kwargs)}")
        if aggregate and not skip_gradients_aggregation:
            pairs = self.aggregate_gradients(pairs)
        self._compute_current_learning_rate()
        with tf.name_scope(name or self.name):
            with tf.init_scope():
                self.build([variable for _, variable in pairs])
            self._update([pair for pair in pairs if pair[0] is not None])
        return self._iterations

    def _update(self, pairs: Sequence[tuple[Any, tf.Variable]]) -> None:
        if not pairs:
            return
        distributed_update.update_in_replica(
            type(self).rule,
            self.hyperparameters,
            [self._block(variable) for _, variable in pairs],
            [gradient for gradient, _ in pairs],
            learning_rate=self.learning_rate,
            updates_made=self._iterations,
            clipping=distributed_update.GradientClipping(
                clipnorm=self.clipnorm,
                global_clipnorm=self.global_clipnorm,
                clipvalue=self.clipvalue,
            ),
            averaging=self._averaging(),
            counters=distributed_update.Counters(
                iterations=self._iterations, skipped=self.skipped_steps
            ),
        )

    def _averaging(self) -> distributed_update.MovingAverage | None:
        if not self.use_ema:
            return None
        overwrite = None
        if self.ema_overwrite_frequency:
            overwrite = (self._iterations + 1) % self.ema_overwrite_frequency == 0
        return distributed_update.MovingAverage(momentum=self.ema_momentum, overwrite=overwrite)

    def _block(self, variable: tf.Variable) -> distributed_update.BlockVariables:
        index = self._index_dict.get(self._var_key(variable))
        if index is None:
            raise KeyError(
                f"{type(self).__name__} was built without the variable {variable.name}: call "
                "build() with all trainable variables before the first step"
            )
        return distributed_update.BlockVariables(
            x=variable,
            m=self.momentums[index],
            v=self.velocities[index],
            average=self._model_variables_moving_average[index] if self.use_ema else None,
            constraint=variable.constraint,
            treatment=self._treatments[index],
        )

    def _trust_ratios(self, settings: LayerAdaptiveHyperparameters) -> dict[str, tf.Tensor]:
        blocks = {
            path: self._block(variable)
            for path, variable in zip(self._block_paths, self._trained_variables, strict=True)
        }
        return distributed_update.trust_ratios(settings, blocks, self._iterations)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument, those of tf_keras's base optimizer included."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        rate = rate if isinstance(rate, dict) else float(rate)
        return {**super().get_config(), "learning_rate": rate}


@_register
class LANS(family.LANS, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LANS.__doc__


@_register
class LAMB(family.LAMB, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LAMB.__doc__


@_register
class BlockNormalizedAdamW(family.BlockNormalizedAdamW, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.BlockNormalizedAdamW.__doc__
