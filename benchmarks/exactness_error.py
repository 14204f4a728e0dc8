"""Optimizers in float32 against their published algorithm in float64.

The reference is the tests' own NumPy, written from the paper: Algorithm 2 for LANS, Algorithm 1
for LAMB, weight decay inside the trust ratio. All take the same float32 gradients from the same
float32 weights with the same settings. The blocks are those of BERT-tiny with fewer words.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import bert_shapes
from tests.reference import Reference

VOCAB_SIZE = 1024
STEPS = 100
# Exact in float32, which Keras stores rates in.
RATE = 2.0**-7
DECAY = 0.01
_SETTINGS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-6}
_SEED = 0

LANS, LAMB = "lans", "lamb"
_FORMULAS = {LANS: "Algorithm 2", LAMB: "Algorithm 1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """An optimizer and the formula that it is held against.

    Attributes:
        name: as the report has it.
        algorithm: of the reference, `LANS` or `LAMB`.
        module: where its class is.
        class_name: the class.
        decay_argument: what its constructor calls weight decay.
        weight_decay: its strength.
        remark: what else than rounding makes it differ.
    """

    name: str
    algorithm: str
    module: str
    class_name: str
    decay_argument: str = "weight_decay"
    weight_decay: float = DECAY
    remark: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it is of this tree."""
        return self.module.startswith("tf_lans")


_KERAS = {"module": "keras.optimizers", "class_name": "Lamb", "algorithm": LAMB}
METHODS = (
    *(
        Method(
            name=f"tf-lans {algorithm.upper()}, {title}",
            algorithm=algorithm,
            module=f"tf_lans.{module}",
            class_name=algorithm.upper(),
        )
        for algorithm in (LANS, LAMB)
        for title, module in (("Keras 3", "keras3"), ("tf_keras", "tf_keras"))
    ),
    Method(
        name="Model Garden LAMB",
        algorithm=LAMB,
        module="official.modeling.optimization.lamb",
        class_name="LAMB",
        decay_argument="weight_decay_rate",
    ),
    Method(
        name="Keras Lamb",
        remark="decays outside the trust ratio, which Algorithm 1 does not",
        **_KERAS,
    ),
    Method(name="Keras Lamb, no weight decay", weight_decay=0.0, **_KERAS),
)


def shapes(vocab_size: int = VOCAB_SIZE) -> list[tuple[int, ...]]:
    """The blocks of BERT-tiny with an embedding table of so many rows."""
    found = bert_shapes.block_shapes("bert_tiny")
    words = found[0][0]
    return [tuple(vocab_size if size == words else size for size in shape) for shape in found]


def start(blocks: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """float32 weights, normal, of a standard deviation of 0.02."""
    random = np.random.default_rng(_SEED)
    return [np.float32(0.02) * random.standard_normal(each, np.float32) for each in blocks]


def gradients(blocks: Sequence[tuple[int, ...]], steps: int) -> Iterator[list[np.ndarray]]:
    """float32 gradients: noise about a direction that stays, each block at a scale of its own."""
    random = np.random.default_rng(_SEED + 1)
    scales = [np.float32(10.0 ** random.uniform(-4, 0)) for _ in blocks]
    directions = [random.standard_normal(each, np.float32) for each in blocks]
    for _ in range(steps):
        yield [
            scale * (direction + random.standard_normal(direction.shape, np.float32))
            for scale, direction in zip(scales, directions, strict=True)
        ]


def in_float64(
    algorithm: str, weight_decay: float, blocks: Sequence[tuple[int, ...]], steps: int
) -> list[np.ndarray]:
    """The reference's weights after so many steps."""
    values = [each.astype(np.float64) for each in start(blocks)]
    reference = Reference(algorithm, values, weight_decay=weight_decay, **_SETTINGS)
    for each in gradients(blocks, steps):
        reference.step(each, RATE)
    return reference.values


def in_float32(method: Method, blocks: Sequence[tuple[int, ...]], steps: int) -> list[np.ndarray]:
    """An optimizer's weights after so many steps."""
    arguments = {**_SETTINGS, method.decay_argument: method.weight_decay}
    optimizer = getattr(importlib.import_module(method.module), method.class_name)(
        learning_rate=RATE, **arguments
    )
    of_keras3 = isinstance(optimizer, keras.optimizers.Optimizer)
    variable = keras.Variable if of_keras3 else tf.Variable
    variables = [variable(each) for each in start(blocks)]
    # Model Garden's are legacy optimizers, which create their slots by another name.
    getattr(optimizer, "_create_all_weights", getattr(optimizer, "build", None))(variables)

    @tf.function
    def update(values: list[tf.Tensor]) -> None:
        optimizer.apply_gradients(zip(values, variables, strict=True))

    for each in gradients(blocks, steps):
        update([tf.constant(part) for part in each])
    return [each.numpy() for each in variables]


def norm(parts: Sequence[np.ndarray]) -> float:
    """The L2 norm of all blocks together."""
    return float(np.sqrt(sum(np.square(each, dtype=np.float64).sum() for each in parts)))


def relative_error(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], begin: Sequence[np.ndarray]
) -> float:
    """||found - expected|| / ||expected - begin||, over all blocks, in float64."""
    error = norm(
        [np.subtract(a, b, dtype=np.float64) for a, b in zip(found, expected, strict=True)]
    )
    way = norm([np.subtract(a, b, dtype=np.float64) for a, b in zip(expected, begin, strict=True)])
    return error / way


def measure(steps: int = STEPS, vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """The whole part: for each method its error, over what the reference moved."""
    blocks = shapes(vocab_size)
    references: dict[tuple[str, float], list[np.ndarray]] = {}
    rows = []
    for method in METHODS:
        key = (method.algorithm, method.weight_decay)
        if key not in references:
            references[key] = in_float64(*key, blocks, steps)
        found = in_float32(method, blocks, steps)
        rows.append(
            {
                "method": method.name,
                "is_ours": method.is_ours,
                "formula": _FORMULAS[method.algorithm],
                "weight_decay": method.weight_decay,
                "relative_l2_error": relative_error(found, references[key], start(blocks)),
                "remark": method.remark,
            }
        )
    return {
        "steps": steps,
        "learning_rate": RATE,
        **_SETTINGS,
        "blocks": len(blocks),
        "parameters": bert_shapes.parameters(blocks),
        "methods": rows,
    }
