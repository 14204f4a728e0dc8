"""The family for Keras 3, on any of its backends: an adapter, no arithmetic.

On TensorFlow the update runs through `distributed_update`; on JAX and PyTorch, where TensorFlow is
never imported, through `portable_update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_lans import block_selection, callbacks, diagnostics, family, gradient_checks, schedules

if keras.backend.backend() == "tensorflow":
    from tf_lans.keras3_tensorflow import TensorFlowOptimizer as _Backend
else:
    from tf_lans.portable_update import PortableOptimizer as _Backend  # type: ignore[assignment]

_register = keras.saving.register_keras_serializable(package="tf_lans")


@_register
class WarmupConstantDecay(  # noqa: D101 - documented where it is shared
    schedules.WarmupConstantDecaySchedule, keras.optimizers.schedules.LearningRateSchedule
):
    __doc__ = schedules.WarmupConstantDecaySchedule.__doc__

    def __call__(self, step: Any) -> Any:
        """The learning rate of the update after `step` updates: a float32 scalar."""
        number = ops.cast(step, "float32") + 1.0
        return schedules.learning_rate(ops, number, self.phases)


class Keras3BlockOptimizer(family.BlockOptimizer, _Backend):
    """The part between the family and Keras 3's base class."""

    _schedule_class = keras.optimizers.schedules.LearningRateSchedule
    _keras = "Keras 3"

    def _initialize(self, learning_rate: Any, name: str, base_arguments: dict) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **base_arguments)
        self.skipped_steps = self.add_variable(
            shape=(), dtype="int", aggregation="only_first_replica", name="skipped_steps"
        )

    def _is_built(self) -> bool:
        return self.built

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the moments of each variable and settles each block's flags.

        Args:
            variables: the model's trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["m", "v"])
        paths = [block_selection.block_path(variable) for variable in variables]
        block_selection.warn_of_unmatched(self.hyperparameters, paths)
        block_selection.warn_of_shared(self.hyperparameters, paths)
        self._block_paths = tuple(block_selection.numbered(paths))
        self._treatments = tuple(block_selection.treatments(self.hyperparameters, paths))
        if self.watches_gradients:
            self._record = self._create_record()

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Creates a state variable shaped like a model variable, of the dtype of all state.

        Args:
            reference_variable: the model variable.
            name: what the variable holds: "m", "v", "average" or "gradient_accumulator".
            initializer: a Keras initializer.

        Returns:
            A float32 `keras.Variable`, float64 for a float64 model variable.
        """
        dtype = keras.backend.standardize_dtype(reference_variable.dtype)
        path = block_selection.block_path(reference_variable).replace("/", "_")
        arguments = {
            "initializer": initializer,
            "shape": tuple(reference_variable.shape),
            "dtype": "float64" if dtype == "float64" else "float32",
            "name": f"{path}_{name or 'var'}",
            "layout": getattr(reference_variable, "_layout", None),
        }
        with self._beside(reference_variable):
            if name == "gradient_accumulator":
                return self._add_accumulator(**arguments)
            return self.add_variable(**arguments)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Updates the variables with the gradient of the global batch.

        Args:
            grads: one gradient for each variable; None leaves its variable alone.
            trainable_variables: the variables, in the order of `grads`; by default those the
                optimizer was built with. The first call builds the optimizer.

        Raises:
            ValueError: an unknown variable, no gradient at all, not one gradient (or None) for
                each variable, a gradient of another shape than its variable, or no variables
                before the optimizer was built.
            RuntimeError: on TensorFlow, a cross-replica context, an optimizer created outside the
                scope of the strategy that runs it, or a LossScaleOptimizer under several replicas.
        """
        if len(grads) == 0:
            return
        with keras.name_scope(self.name, caller=self):
            grads, variables = self._known_pairs(grads, trainable_variables)
            grads, variables = self._filter_empty_gradients(grads, variables)
            grads, variables = self._overwrite_variables_directly_with_gradients(grads, variables)
            if not grads:
                self._iterations.assign_add(1)
                return
            if self.loss_scale_factor is not None:
                # Widened first: what the scale has saved would be lost again in float16.
                grads = [
                    ops.cast(self._dense(gradient), self._momentums[index].dtype)
                    / self.loss_scale_factor
                    for gradient, index in zip(grads, self._indices(variables), strict=True)
                ]
            self._update(grads, variables)

    def _known_pairs(
        self, grads: Sequence[Any], variables: Sequence[Any] | None
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        if variables is None:
            if not self.built:
                raise ValueError(
                    f"{type(self).__name__}.apply() got gradients without variables before the "
                    "optimizer was built: call build(trainable_variables) first"
                )
            variables = self._trainable_variables
        else:
            variables = list(variables)
            if not self.built:
                self.build(variables)
            self._check_variables_are_known(variables)
        gradient_checks.check_gradients(f"{type(self).__name__}.apply()", grads, variables)
        return grads, variables

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return rate(self.iterations)  # updates, where Keras gives micro-steps
        return super()._get_current_learning_rate()

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts the averages in the variables' place, as `use_ema` asks, when training ends.

        Averages begin at zero, and the first update is the first to enter them: before it, as where
        every step was skipped, the variables stay.

        Args:
            var_list: the model's trainable variables.
        """
        # Keras's `fit` on JAX also comes here when its first step fails, while the values of all
        # variables are away; an error about them would take the place of the step's.
        if not self.use_ema or self._iterations._value is None:
            return
        if int(diagnostics.plain(self.iterations)) > 0:
            super().finalize_variable_values(var_list)

    def _indices(self, variables: Sequence[Any]) -> list[int]:
        return [self._get_variable_index(variable) for variable in variables]

    def _average_of(self, index: int) -> Any:
        return self._model_variables_moving_average[index] if self.use_ema else None

    def _ema_momentum_now(self) -> Any:
        """Keras's rule: the first update sets the average to the weights."""
        return self.ema_momentum * ops.cast(ops.not_equal(self.iterations, 0), "float32")

    def _ema_overwrites_now(self) -> Any:
        if not self.ema_overwrite_frequency:
            return None
        return (self.iterations + 1) % self.ema_overwrite_frequency == 0


class LargeBatchDiagnostics(  # noqa: D101 - documented where it is shared
    callbacks.DiagnosticsCallback, keras.callbacks.Callback
):
    __doc__ = callbacks.DiagnosticsCallback.__doc__


@_register
class LANS(family.LANS, Keras3BlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LANS.__doc__


@_register
class LAMB(family.LAMB, Keras3BlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.LAMB.__doc__


@_register
class BlockNormalizedAdamW(family.BlockNormalizedAdamW, Keras3BlockOptimizer):  # noqa: D101 - the family documents it
    __doc__ = family.BlockNormalizedAdamW.__doc__
