"""One TensorFlow set-up for the whole suite: two logical CPUs, fixed seeds, quiet logs.

Hypothesis draws the same examples in every run; HYPOTHESIS_PROFILE=thorough draws others, and more.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import hypothesis
import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# No deadline: how long an example takes is no property of the code under test.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real corpora beside the checkout; tests that need it skip elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real corpora are absent: no ../shared/data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def example_shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The shards that all tests of the examples read."""
    # Not at the top: it imports what builds shards, which the tests of optimizers can do without.
    from tests import examples

    return examples.make_shards(tmp_path_factory.mktemp("examples"))
