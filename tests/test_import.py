"""What the optimizers bring along: importing them costs little beyond importing TensorFlow.

`python -m benchmarks.import_time` measures it; here is the reason that it holds.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
def packages():
    return {name.split(".")[0] for name in sys.modules}
import tensorflow
before = packages()
import tf_lans
getattr(tf_lans, sys.argv[1])
print(json.dumps(sorted(packages() - before - sys.stdlib_module_names)))
"""


@pytest.mark.parametrize(
    ("name", "legacy", "expected"),
    [("LANS", "0", {"tf_lans"}), ("WarmupConstantDecay", "1", {"tf_lans", "tf_keras"})],
)
def test_beyond_tensorflow_nothing_is_loaded(name: str, legacy: str, expected: set[str]) -> None:
    """Above all no Model Garden, no matplotlib, no JAX, and the other Keras only where asked."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": legacy}
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(completed.stdout.splitlines()[-1])) <= expected
