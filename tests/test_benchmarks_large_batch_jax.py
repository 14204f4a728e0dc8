"""The study's training step on JAX against the one on TensorFlow, from the same weights."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import large_batch_step

pytest.importorskip("jax")

ROOT = pathlib.Path(__file__).resolve().parents[1]
Found = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def here() -> Found:
    return large_batch_step.computed()


@pytest.fixture(scope="module")
def jax(tmp_path_factory: pytest.TempPathFactory) -> Found:
    output = tmp_path_factory.mktemp("jax") / "computed.npz"
    completed = subprocess.run(
        [sys.executable, "-m", "tests.large_batch_step", str(output)],
        cwd=ROOT,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # or compiling takes most of the time
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    with np.load(output) as stored:
        return dict(stored)


def of(found: Found, kind: str) -> Found:
    """The arrays by variable."""
    prefix = f"{kind}/"
    return {key.removeprefix(prefix): each for key, each in found.items() if key.startswith(prefix)}


def test_gradients_of_micro_batches_agree(here: Found, jax: Found) -> None:
    assert set(here) == set(jax)
    gradients = of(here, "gradient")
    assert len(gradients) > 20
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(of(here, "start")[path], of(jax, "start")[path])
        # Sums of 16 rows' float32 gradients in two orders; key biases' true gradient is zero.
        other = of(jax, "gradient")[path]
        np.testing.assert_allclose(other, gradient, rtol=1e-4, atol=1e-6, err_msg=path)
    assert jax["evaluated"] == pytest.approx(here["evaluated"], rel=1e-6)


@pytest.mark.parametrize("name", large_batch_step.TRAINED)
def test_steps_agree(name: str, here: Found, jax: Found) -> None:
    # The loss of the first step is one of equal weights, the others follow updates of size 0.01.
    np.testing.assert_allclose(jax[f"{name}/losses"], here[f"{name}/losses"], rtol=1e-5)
    assert here[f"{name}/losses"][0] == pytest.approx(here["evaluated"], rel=1e-6)
    assert jax[f"{name}/evaluated"] == pytest.approx(here[f"{name}/evaluated"], rel=1e-5)
    for path, begun in of(here, "start").items():
        if "key_bias" in path:
            continue  # rounding noise, which a normalized update makes a full step of
        trained = here[f"{name}/trained/{path}"]
        moved = np.linalg.norm(trained - begun)
        apart = np.linalg.norm(jax[f"{name}/trained/{path}"] - trained)
        # Gradients that agree to 1e-4, and elements where m / sqrt(v) has little but rounding.
        assert moved > 0 and apart <= 1e-3 * moved, path


def test_a_run_on_jax_repeats_after_another(jax: Found) -> None:
    first = of(jax, large_batch_step.TRAINED[0])
    for key, again in of(jax, "again").items():
        np.testing.assert_array_equal(again, first[key], err_msg=key)
    assert first["losses"][0] != first["losses"][-1]
