"""Every optimizer of the family, without TensorFlow, against float64 NumPy."""

import importlib.util
import subprocess
import sys

import keras
import ml_dtypes
import numpy as np
import pytest

from tests import reference
from tests.backends import harness
from tests.backends.harness import each_class, each_mode
from tests.reference import FLOAT32_TOLERANCE

STEPS = 50
FLOAT64_TOLERANCE = 1e-10


def test_there_is_no_tensorflow() -> None:
    assert "tensorflow" not in sys.modules
    assert "tf_keras" not in sys.modules
    assert importlib.util.find_spec("tensorflow") is None
    other = {"jax": "torch", "torch": "jax"}[harness.BACKEND]
    command = f"import sys, tf_lans; tf_lans.LANS(); assert {other!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


@each_class
@each_mode
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fifty_steps_follow_the_reference(name: str, mode: str, dtype: str) -> None:
    start = [value.astype(dtype) for value in harness.start_values()]
    expected = reference.Reference(harness.ALGORITHMS[name], start)
    with harness.wide_types():
        run = harness.Run(name, start, mode)
        for gradients in harness.gradient_steps(start, STEPS):
            run.step(gradients)
            expected.step(gradients, harness.RATE)
        got = run.values()
        assert [str(value.dtype) for value in got] == [dtype] * len(start)
        moments = [*run.optimizer._momentums, *run.optimizer._velocities]
        assert {str(harness.numpy(each).dtype) for each in moments} == {dtype}
        if name != "BlockNormalizedAdamW":
            ratios = [float(ratio) for ratio in run.optimizer.trust_ratios().values()]
            wanted = [expected.trust_ratio(index) for index in range(len(start))]
            np.testing.assert_allclose(ratios, wanted, rtol=1e-4)
    tolerance = FLOAT32_TOLERANCE if dtype == "float32" else FLOAT64_TOLERANCE
    assert reference.relative_error(got, expected.values, start) <= tolerance
    assert int(run.optimizer.iterations) == STEPS
    if mode == "jit":
        assert run.programs() == 1


@each_mode
def test_patterns_and_bounds_follow_the_reference(mode: str) -> None:
    start = harness.single_values()
    run = harness.Run(
        "LANS",
        start,
        mode,
        weight_decay=0.1,
        exclude_from_weight_decay=["block_[14]$"],
        exclude_from_layer_adaptation=["block_[34]$"],
        weight_norm_bounds=(0.5, 1.0),
    )
    expected = reference.Reference(
        "lans",
        start,
        weight_decay=0.1,
        decays=[index not in (1, 4) for index in range(len(start))],
        adapts=[index not in (3, 4) for index in range(len(start))],
        weight_norm_bounds=(0.5, 1.0),
    )
    for gradients in harness.gradient_steps(start, STEPS):
        run.step(gradients)
        expected.step(gradients, harness.RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE
    assert len(run.optimizer.trust_ratios()) == len(start) - 2


@each_mode
def test_lans_without_its_two_ideas_is_lamb_bit_for_bit(mode: str) -> None:
    start = harness.single_values()
    lans = harness.Run("LANS", start, mode, normalize_gradients=False, nesterov=False)
    lamb = harness.Run("LAMB", start, mode)
    for gradients in harness.gradient_steps(start, 10):
        lans.step(gradients)
        lamb.step(gradients)
    harness.assert_equal(lans.state(), lamb.state())


@each_mode
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_each_idea_can_be_switched_off(mode: str, normalize: bool, nesterov: bool) -> None:
    """The clip halves each gradient, which shows, beside this epsilon, if it is not normalized."""
    start = harness.single_values()
    run = harness.Run(
        "LANS",
        start,
        mode,
        epsilon=0.1,
        global_clipnorm=1.0,
        normalize_gradients=normalize,
        nesterov=nesterov,
    )
    expected = reference.Reference(
        "lans", start, epsilon=0.1, normalize=normalize, nesterov=nesterov
    )
    for gradients in harness.gradient_steps(start, 10):
        norm = np.linalg.norm([np.linalg.norm(each) for each in gradients])
        gradients = [(2.0 / norm * each).astype(np.float32) for each in gradients]
        run.step(gradients)
        expected.step(harness.clipped(gradients, global_clipnorm=1.0), harness.RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@each_class
@each_mode
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_variables_are_rounded_once_an_update(name: str, mode: str, dtype: str) -> None:
    """Each update is computed in float32 from what is stored, and rounded to nearest at its end."""
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    start = [value.astype(narrow) for value in harness.start_values(shapes=((256, 64), (33, 7)))]
    run = harness.Run(name, [value.astype(np.float32) for value in start], mode, dtype=dtype)
    expected = reference.Reference(harness.ALGORITHMS[name], start)
    for gradients in harness.gradient_steps(start, 3):
        before = [value.astype(np.float64) for value in run.values()]
        expected.values = list(before)
        run.step([value.astype(np.float32) for value in gradients])
        expected.step(gradients, harness.RATE)
        for value, wanted, old in zip(run.values(), expected.values, before, strict=True):
            got = value.astype(narrow)
            assert np.mean(got.astype(np.float64) != old) > 0.1
            computing = FLOAT32_TOLERANCE * np.max(np.abs(wanted - old))
            error = np.abs(got.astype(np.float64) - wanted)
            assert np.all(error <= reference.rounding(got) + computing)
    optimizer = run.optimizer
    for moments, wanted in (
        (optimizer._momentums, expected.m),
        (optimizer._velocities, expected.v),
    ):
        got = [harness.numpy(each) for each in moments]
        assert {each.dtype for each in got} == {np.dtype(np.float32)}
        zeros = [np.zeros(each.shape) for each in got]
        assert reference.relative_error(got, wanted, zeros) <= FLOAT32_TOLERANCE


@each_mode
@pytest.mark.parametrize("shape", [(2, 2**21), (2**21, 2), (2**22,)], ids=str)
def test_sums_over_large_blocks_keep_their_digits(mode: str, shape: tuple[int, ...]) -> None:
    """One running float32 sum over 4 million equal terms would be off by percents."""
    generator = np.random.default_rng(0)
    start = [(generator.random(shape) + 0.5).astype(np.float32)]
    run = harness.Run("LANS", start, mode)
    expected = reference.Reference("lans", start)
    for gradients in harness.gradient_steps(start, 2):
        run.step(gradients)
        expected.step(gradients, harness.RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= 2e-5


@harness.only_jax
def test_eager_steps_compile_nothing_anew(caplog: pytest.LogCaptureFixture) -> None:
    import jax

    start = harness.single_values()
    run = harness.Run("LANS", start, gradient_accumulation_steps=2)
    steps = harness.gradient_steps(start, 6)
    for gradients in steps[:4]:
        run.step(gradients)
    with jax.log_compiles():
        for gradients in steps[4:]:
            run.step(gradients)
    assert not [each for each in caplog.messages if "Compiling" in each]
    assert keras.ops.convert_to_numpy(run.optimizer.iterations) == 3
