"""The family for tf_keras (Keras 2), which Model Garden uses: an adapter, no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tf_lans import (
    block_selection,
    callbacks,
    compiled_update,
    distributed_update,
    family,
    gradient_checks,
    schedules,
)
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


def _shaped(gradient: Any, variable: tf.Variable) -> Any:
    """The gradient; slices that do not know the shape of the whole learn it from the variable."""
    if isinstance(gradient, tf.IndexedSlices) and gradient.dense_shape is None:
        return tf.IndexedSlices(gradient.values, gradient.indices, tf.shape(variable))
    return gradient


class TFKerasBlockOptimizer(family.BlockOptimizer, tf_keras.optimizers.Optimizer):
    """The part between the family and tf_keras's base class."""

    can_watch_gradients = True
    _schedule_class = tf_keras.optimizers.schedules.LearningRateSchedule
    _keras = "tf_keras"

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
        self.momentums = [self.add_variable_from_reference(each, "m") for each in var_list]
        self.velocities = [self.add_variable_from_reference(each, "v") for each in var_list]
        paths = [block_selection.block_path(variable) for variable in var_list]
        block_selection.warn_of_unmatched(self.hyperparameters, paths)
        block_selection.warn_of_shared(self.hyperparameters, paths)
        self._block_paths = self._no_dependency(block_selection.numbered(paths))
        self._treatments = self._no_dependency(
            block_selection.treatments(self.hyperparameters, paths)
        )
        self._trained_variables = self._no_dependency(list(var_list))
        if self.watches_gradients:
            self._record = self._create_record()
        self._built = True

    def add_variable_from_reference(
        self,
        model_variable: tf.Variable,
        variable_name: str,
        shape: Sequence[int] | None = None,
        initial_value: Any = None,
    ) -> tf.Variable:
        """Creates a state variable beside a model variable, of the dtype of all state.

        Args:
            model_variable: the model variable.
            variable_name: what the variable holds: "m", "v" or "average".
            shape: by default that of the model variable.
            initial_value: zeros by default.

        Returns:
            A float32 `tf.Variable`, float64 for a float64 model variable.
        """
        stored = compiled_update.stored_dtype(model_variable)
        dtype = compiled_update.compute_dtype(stored)
        if dtype == stored:
            return super().add_variable_from_reference(
                model_variable, variable_name, shape, initial_value
            )
        if initial_value is None:
            initial_value = tf.zeros(model_variable.shape if shape is None else shape, dtype)
        with tf.distribute.get_strategy().extended.colocate_vars_with(model_variable):
            state = tf.Variable(
                tf.cast(initial_value, dtype),
                name=f"{variable_name}/{model_variable._shared_name}",
                trainable=False,
            )
        self._variables.append(state)
        return state

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

        Raises:
            ValueError: no gradient at all, or one of another shape than its variable.
            KeyError: a variable that the optimizer was not built with.
            TypeError: an unknown keyword argument.
            RuntimeError: a cross-replica context, or an optimizer created outside the scope of the
                strategy that runs it.
        """
        pairs = list(grads_and_vars)
        if not pairs:
            return self._iterations
        distributed_update.check_replica_context(self)
        gradient_checks.check_shapes(f"{type(self).__name__}.apply_gradients()", pairs)
        aggregate = kwargs.pop("experimental_aggregate_gradients", True)
        if kwargs:
            raise TypeError(f"apply_gradients() got unknown arguments: {', '.join(kwargs)}")
        if aggregate and not skip_gradients_aggregation:
            pairs = self.aggregate_gradients(pairs)
        if all(gradient is None for gradient, _ in pairs):
            raise ValueError(
                f"{type(self).__name__}.apply_gradients() got no gradient for any of "
                f"{len(pairs)} variables, the first {pairs[0][1].name}: does the loss depend on it?"
            )
        self._compute_current_learning_rate()
        with tf.name_scope(name or self.name or "optimizer"):
            with tf.init_scope():
                self.build([variable for _, variable in pairs])
            self._update([(_shaped(*pair), pair[1]) for pair in pairs if pair[0] is not None])
        return self._iterations

    def _update(self, pairs: Sequence[tuple[Any, tf.Variable]]) -> None:
        distributed_update.update_in_replica(
            type(self).rule,
            self.hyperparameters,
            [self._block(variable) for _, variable in pairs],
            [gradient for gradient, _ in pairs],
            learning_rate=self.learning_rate,
            updates_made=self._iterations,
            clipping=distributed_update.GradientClipping(**self._clipping()),
            averaging=self._averaging(),
            counters=distributed_update.Counters(
                iterations=self._iterations, skipped=self.skipped_steps
            ),
            record=self._record,
        )

    def _averaging(self) -> distributed_update.MovingAverage | None:
        if not self.use_ema:
            return None
        overwrite = None
        if self.ema_overwrite_frequency:
            overwrite = (self._iterations + 1) % self.ema_overwrite_frequency == 0
        return distributed_update.MovingAverage(momentum=self.ema_momentum, overwrite=overwrite)

    def _overwrite_model_variables_with_average_value(
        self, var_list: Sequence[tf.Variable]
    ) -> None:
        """tf_keras's own, also for averages wider than their variables."""
        for variable in var_list:
            self._distribution_strategy.extended.update(
                variable,
                lambda x, value: x.assign(tf.cast(value, compiled_update.stored_dtype(x))),
                args=(self._block(variable).average,),
            )

    def _block(self, variable: tf.Variable) -> distributed_update.BlockVariables:
        index = self._index_dict.get(self._var_key(variable))
        if index is None:
            raise KeyError(
                f"{type(self).__name__} was built without the variable {variable.name}: call "
                "build() with all trainable variables before the first step"
            )
        return distributed_update.BlockVariables(
            index=index,
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

    def _coming_learning_rate(self) -> Any:
        rate = self._learning_rate
        schedule = tf_keras.optimizers.schedules.LearningRateSchedule
        return rate(self._iterations) if isinstance(rate, schedule) else self.learning_rate

    def _create_record(self) -> distributed_update.GradientRecord:
        return distributed_update.gradient_record(
            len(self._trained_variables), self._distribution_strategy
        )

    def _last_gradient_norm(self, record: distributed_update.GradientRecord) -> tf.Tensor:
        return distributed_update.last_gradient_norm(record)

    def _squared_weight_norms(self) -> list[tf.Tensor]:
        return distributed_update.squared_weight_norms(self._trained_variables)

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument, those of tf_keras's base optimizer included."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        rate = rate if isinstance(rate, dict) else float(rate)
        return {**super().get_config(), "learning_rate": rate}


class LargeBatchDiagnostics(  # noqa: D101 - documented where it is shared
    callbacks.DiagnosticsCallback, tf_keras.callbacks.Callback
):
    __doc__ = callbacks.DiagnosticsCallback.__doc__


@_register
class LANS(family.LANS, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LANS.__doc__


@_register
class LAMB(family.LAMB, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LAMB.__doc__


@_register
class BlockNormalizedAdamW(family.BlockNormalizedAdamW, TFKerasBlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.BlockNormalizedAdamW.__doc__
