"""One worker of several processes: `TF_CONFIG=... python -m tests.optimizer.multi_worker OUT`.

Every worker brings its own part of each gradient, trains each case, and writes the weights it
ends with, and its counts, to the file OUT.
"""

import sys
from typing import Any

import numpy as np
import tensorflow as tf

from tests.optimizer import harness

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{which}-{name}": (which, name, {}) for name in harness.ALGORITHMS for which in harness.KERASES
}
CASES["keras3-LAMB-accumulating"] = (
    "keras3", "LAMB", {"gradient_accumulation_steps": 2, "global_clipnorm": 3.0}
)  # fmt: skip
START = harness.single_values()
STEPS = harness.gradient_steps(START, 6)
SHARES = (3.0, -2.0)
# The step at which the last worker's gradient alone is not finite.
POISONED = 3


def part(worker: int, step: int) -> list[np.ndarray]:
    """A worker's gradients; those of all workers sum to the gradients of the global batch."""
    share = SHARES[worker] * (np.nan if (worker, step) == (len(SHARES) - 1, POISONED) else 1.0)
    return [(share * each).astype(each.dtype) for each in STEPS[step]]


def train(
    strategy: tf.distribute.Strategy, worker: int, which: str, name: str, arguments: dict[str, Any]
) -> list[np.ndarray]:
    with strategy.scope():
        variables = [
            harness.variable(which, value, f"block_{index}") for index, value in enumerate(START)
        ]
        optimizer = harness.make(which, name, learning_rate=0.01, **arguments)
        optimizer.build(variables)

    def apply(gradients: list[tf.Tensor]) -> None:
        # A collective asks its inputs for their device, which arguments of a function lack.
        local = [tf.identity(each) for each in gradients]
        optimizer.apply_gradients(zip(local, variables, strict=True))

    step = tf.function(lambda gradients: strategy.run(apply, args=(gradients,)))
    for index in range(len(STEPS)):
        step([tf.constant(each) for each in part(worker, index)])
    counts = (optimizer.iterations, optimizer.skipped_steps)
    return [each.numpy() for each in (*variables, *counts)]


def main(path: str) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    results = {}
    for case, row in CASES.items():
        for index, value in enumerate(train(strategy, worker, *row)):
            results[f"{case}/{index}"] = value
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
