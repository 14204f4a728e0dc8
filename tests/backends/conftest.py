"""One set-up for JAX and PyTorch, where there is no TensorFlow: two JAX devices, fixed seeds.

pytest must not read `tests/conftest.py`, which imports TensorFlow: run the folder with
`--confcutdir=tests/backends`, as `make test-backends` does.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import keras
import pytest

if keras.backend.backend() not in ("jax", "torch"):
    raise pytest.UsageError(
        f"tests/backends got KERAS_BACKEND={keras.backend.backend()}: expected jax or torch; "
        "`make test-backends` runs both"
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)
