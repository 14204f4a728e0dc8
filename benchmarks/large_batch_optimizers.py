"""A run's optimizer in Keras, and the weights it evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks import large_batch_methods
from benchmarks.large_batch_methods import CLIPNORM, METHODS, SHARED
from benchmarks.large_batch_settings import Run
from tf_lans import keras3

UNDECAYED = ["bias", "gamma", "beta"]
# A compiled update is faster, but not worth compiling for fewer steps.
_COMPILED_FROM = 200


class ScheduleFreeAdamW(keras.optimizers.ScheduleFreeAdamW):
    """Keras's own, with z as it was before the step where the method asks for that.

    On TensorFlow, Keras 3.15's holds the variable itself for that value, and reads it only when
    it has changed; on JAX it is as here.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates z and v as Keras does, then y from x and z."""
        z = self._momentums[self._get_variable_index(variable)]
        old_z = ops.convert_to_tensor(z) + 0.0
        old_y = ops.convert_to_tensor(variable) + 0.0
        super().update_step(gradient, variable, learning_rate)
        old_x = (old_y - (1.0 - self.beta_1) * old_z) / self.beta_1
        weight = 1.0 / (ops.cast(self.iterations, old_x.dtype) + 1.0)
        new_z = ops.convert_to_tensor(z)
        new_x = (1.0 - weight) * old_x + weight * new_z
        self.assign(variable, (1.0 - self.beta_1) * new_z + self.beta_1 * new_x)


def create(run: Run, steps: int, variables: Sequence[Any]) -> keras.optimizers.Optimizer:
    """The run's optimizer with its schedule, built.

    Args:
        run: the settings.
        steps: of the whole run.
        variables: the model's.
    """
    method = METHODS[run.method]
    warmup, constant = large_batch_methods.phases(method, steps, run.warmup_ratio)
    rate = keras3.WarmupConstantDecay(run.learning_rate, steps, warmup, constant)
    ours = {"LANS": _lans, "LAMB": _lamb, "BlockNormalizedAdamW": _block_normalized}
    create_one = ours.get(method.optimizer, _of_keras)
    optimizer = create_one(run, rate, warmup, jit_compile=steps >= _COMPILED_FROM)
    optimizer.build(variables)
    return optimizer


def _lans(run: Run, rate: Any, warmup: int, jit_compile: bool) -> keras.optimizers.Optimizer:
    method = METHODS[run.method]
    switches = dict(method.switches)
    excluded = None if method.every_block else UNDECAYED
    return keras3.LANS(
        rate,
        beta_2=run.beta_2,
        jit_compile=jit_compile,
        global_clipnorm=None if switches.get("normalize_gradients", True) else CLIPNORM,
        exclude_from_weight_decay=excluded,
        exclude_from_layer_adaptation=excluded,
        **SHARED,
        **switches,
    )


def _lamb(run: Run, rate: Any, warmup: int, jit_compile: bool) -> keras.optimizers.Optimizer:
    return keras3.LAMB(
        rate,
        beta_2=run.beta_2,
        jit_compile=jit_compile,
        global_clipnorm=CLIPNORM,
        exclude_from_weight_decay=UNDECAYED,
        exclude_from_layer_adaptation=UNDECAYED,
        **SHARED,
    )


def _block_normalized(
    run: Run, rate: Any, warmup: int, jit_compile: bool
) -> keras.optimizers.Optimizer:
    return keras3.BlockNormalizedAdamW(
        rate,
        beta_2=run.beta_2,
        jit_compile=jit_compile,
        exclude_from_weight_decay=UNDECAYED,
        **SHARED,
    )


def _of_keras(run: Run, rate: Any, warmup: int, jit_compile: bool) -> keras.optimizers.Optimizer:
    kind = METHODS[run.method].optimizer
    arguments: dict[str, Any] = {"global_clipnorm": CLIPNORM, **SHARED}
    if kind == "Muon":
        arguments |= {"adam_beta_2": run.beta_2, "adam_weight_decay": SHARED["weight_decay"]}
    else:
        arguments["beta_2"] = run.beta_2
    classes = {"ScheduleFreeAdamW": ScheduleFreeAdamW}
    if kind in classes:
        rate, arguments["warmup_steps"] = run.learning_rate, warmup
    optimizer = classes.get(kind, getattr(keras.optimizers, kind))(rate, **arguments)
    optimizer.exclude_from_weight_decay(var_names=UNDECAYED)
    return optimizer


def averages(run: Run) -> bool:
    """Whether the run's method evaluates `averaged_weights` in place of those it trains."""
    return METHODS[run.method].optimizer == "ScheduleFreeAdamW"


def averaged_weights(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]
) -> list[np.ndarray]:
    """What a method without a schedule evaluates.

    ScheduleFreeAdamW trains y = (1 - beta_1) z + beta_1 x and keeps z as its momentum; Keras
    has no call for x.

    Args:
        optimizer: with its state in its own variables.
        variables: the model's.

    Returns:
        x of each variable.
    """
    beta_1 = optimizer.beta_1
    return [
        (_array(y) - (1.0 - beta_1) * _array(z)) / beta_1
        for y, z in zip(variables, optimizer._momentums, strict=True)
    ]


def _array(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable)
