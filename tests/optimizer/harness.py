"""Runs an optimizer of either Keras over given gradients, in each way a step can be executed."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tf_lans.keras3
import tf_lans.tf_keras
from tests.problems import clipped, gradient_steps, random_values  # noqa: F401 - for the tests

KERASES = ("keras3", "tf_keras")
# The class, and its algorithm in tests/reference.py.
ALGORITHMS = {"LANS": "lans", "LAMB": "lamb", "BlockNormalizedAdamW": "block_normalized_adamw"}
MODES = ("eager", "graph", "xla", "mirrored", "mirrored_eager")
PACKAGES = {"keras3": tf_lans.keras3, "tf_keras": tf_lans.tf_keras}
BASES = {"keras3": keras, "tf_keras": tf_keras}

both_kerases = pytest.mark.parametrize("which", KERASES)
each_row = pytest.mark.parametrize(
    ("which", "name"), [(which, name) for name in ALGORITHMS for which in KERASES]
)
# What only Keras 3 has: accumulation, static loss scaling, overwriting, several optimizers.
keras3_row = pytest.mark.parametrize(("which", "name"), [("keras3", name) for name in ALGORITHMS])


@functools.cache
def two_replicas() -> tf.distribute.MirroredStrategy:
    """One strategy for the whole process: two would mix up their collectives' keys."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def variable(which: str, value: np.ndarray, name: str, constraint: Any = None) -> Any:
    if which == "tf_keras":
        return tf.Variable(value, name=name, constraint=constraint)
    created = keras.Variable(value, dtype=str(value.dtype), name=name)
    created.constraint = constraint
    return created


def make(which: str, name: str = "LANS", **arguments: Any) -> Any:
    return getattr(PACKAGES[which], name)(**arguments)


def number(value: Any) -> int:
    """The value of a scalar variable of either Keras, mirrored or not."""
    return int(value.numpy())


class Run:
    """An optimizer, its variables and a step function in one execution mode.

    `optimizer` is a class's name, or what makes one of the keyword arguments.
    """

    def __init__(
        self,
        which: str,
        optimizer: str | Callable[..., Any],
        values: Sequence[np.ndarray],
        mode: str = "eager",
        constraint: Any = None,
        **arguments: Any,
    ) -> None:
        self.mirrored = mode.startswith("mirrored")
        scope = two_replicas().scope() if self.mirrored else contextlib.nullcontext()
        with scope:
            self.variables = [
                variable(which, np.asarray(value), f"block_{index}", constraint)
                for index, value in enumerate(values)
            ]
            factory = functools.partial(make, which, optimizer)
            self.optimizer = (optimizer if callable(optimizer) else factory)(**arguments)
            self.optimizer.build(self.variables)
        self._take_steps(mode)

    def again(self, variables: Sequence[Any], mode: str) -> Run:
        """The same optimizer on some of its variables."""
        other = copy.copy(self)
        other.variables = list(variables)
        other._take_steps(mode)
        return other

    def _take_steps(self, mode: str) -> None:
        step = self._distributed if self.mirrored else self._apply
        if mode in ("graph", "mirrored"):
            step = tf.function(step)
        elif mode == "xla":
            step = tf.function(step, jit_compile=True)
        self._step = step

    def _apply(self, gradients: Sequence[Any]) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    def _distributed(self, gradients: Sequence[Any], second: Sequence[Any]) -> None:
        def replica_values(context: tf.distribute.ReplicaContext) -> list[Any]:
            return list(gradients if context.replica_id_in_sync_group == 0 else second)

        strategy = two_replicas()
        values = [
            strategy.experimental_distribute_values_from_function(
                lambda context, i=i: replica_values(context)[i]
            )
            for i in range(len(gradients))
        ]
        strategy.run(self._apply, args=(values,))

    def step(self, gradients: Sequence[Any], second: Sequence[Any] | None = None) -> None:
        """One step on the gradient of the global batch.

        Under two replicas its parts are unequal and sum to it; `second` gives the second
        replica's part instead.
        """
        if not self.mirrored:
            total = gradients
            if second is not None:
                total = [one + two for one, two in zip(gradients, second, strict=True)]
            self._step([tf.convert_to_tensor(each) for each in total])
            return
        if second is None:
            second = [-2 * each for each in gradients]
            gradients = [3 * each for each in gradients]
        self._step(
            [tf.convert_to_tensor(each) for each in gradients],
            [tf.convert_to_tensor(each) for each in second],
        )

    def values(self) -> list[np.ndarray]:
        return [np.array(each.numpy()) for each in self.variables]

    def state(self) -> list[np.ndarray]:
        """All variables of model and optimizer but the count of skipped steps."""
        skipped = self.optimizer.skipped_steps
        return self.values() + [
            np.array(each.numpy()) for each in self.optimizer.variables if each is not skipped
        ]

    def replica_values(self) -> list[list[np.ndarray]]:
        """Each replica's own copy of each variable."""
        natives = [
            each.value if isinstance(each, keras.Variable) else each for each in self.variables
        ]
        return [
            [np.array(copy) for copy in two_replicas().experimental_local_results(native)]
            for native in natives
        ]


def single_values(seed: int = 0) -> list[np.ndarray]:
    """`start_values` in float32, whose shapes' programs most tests share."""
    return [value.astype(np.float32) for value in start_values(seed)]


def start_values(
    seed: int = 0, shapes: Sequence[tuple[int, ...]] = ((7, 5), (4,), (), (3, 2, 4), (1, 6))
) -> list[np.ndarray]:
    return random_values(shapes, seed)


def assert_equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> None:
    """Bit-equality, block by block."""
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def data() -> tuple[np.ndarray, np.ndarray]:
    """64 examples of a linear function of five numbers."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 5)).astype(np.float32)
    return inputs, inputs @ generator.normal(size=(5, 1)).astype(np.float32)


def make_model(
    which: str, name: str = "LANS", compile_arguments: dict | None = None, **arguments: Any
) -> Any:
    """A compiled model of two dense layers, always with the same first weights."""
    base, package = BASES[which], PACKAGES[which]
    base.utils.set_random_seed(0)
    model = base.Sequential(
        [base.layers.Input((5,)), base.layers.Dense(8, "tanh"), base.layers.Dense(1)]
    )
    arguments.setdefault("learning_rate", package.WarmupConstantDecay(0.05, 80, 10, 10))
    arguments.setdefault("exclude_from_weight_decay", ["bias"])
    model.compile(make(which, name, **arguments), "mse", **(compile_arguments or {}))
    return model


def fit(model: Any, epochs: int) -> list[float]:
    """The loss of each epoch of four batches."""
    inputs, targets = data()
    history = model.fit(inputs, targets, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"]
