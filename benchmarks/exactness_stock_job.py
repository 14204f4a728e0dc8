"""Model Garden's own training program, which can be told to end itself with SIGKILL.

    python -m benchmarks.exactness_stock_job LOOPS FLAGS OF official.nlp.train

It dies when it has trained so many loops, before the save that follows; with 0 it runs to its end.
Seeds and deterministic kernels, which the program has no flags for, are set here, so that two runs
that nothing interrupts can agree.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import orbit
import tensorflow as tf
import tf_keras
from absl import app
from official.common import flags as model_garden_flags
from official.nlp import train

_SEED = 1


def die_after(loops: int) -> None:
    """Lets this process end itself when the trainer has come back so many times."""
    original = orbit.StandardTrainer.train
    done = 0

    def counted(self: Any, steps: tf.Tensor) -> Any:
        nonlocal done
        result = original(self, steps)
        done += 1
        if done == loops:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    orbit.StandardTrainer.train = counted


def main(loops: int, arguments: list[str]) -> None:
    """The program; see the module's docstring."""
    tf_keras.utils.set_random_seed(_SEED)
    tf.config.experimental.enable_op_determinism()
    if loops:
        die_after(loops)
    model_garden_flags.define_flags()
    app.run(train.main, argv=["train", *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
