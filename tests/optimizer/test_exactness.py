"""Every optimizer, in both Kerases and every way to run a step, against float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.optimizer import harness
from tests.optimizer.harness import both_kerases
from tests.reference import FLOAT32_TOLERANCE
from tf_lans import compiled_update, update_rules

STEPS = 50
FLOAT64_TOLERANCE = 1e-10
LEARNING_RATE = float(np.float32(0.01))  # Keras stores the rate in float32

CASES = [("LANS", mode) for mode in harness.MODES]
# test_distribution has these two under several replicas
CASES += [("LAMB", "graph"), ("BlockNormalizedAdamW", "graph")]


@both_kerases
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_fifty_steps_follow_the_reference(which: str, name: str, mode: str) -> None:
    doubles = harness.start_values()
    singles = [value.astype(np.float32) for value in doubles]
    start = singles + doubles
    run = harness.Run(which, name, start, mode, learning_rate=0.01)
    expected = reference.Reference(harness.ALGORITHMS[name], start)
    for gradients in harness.gradient_steps(start, STEPS):
        run.step(gradients)
        expected.step(gradients, LEARNING_RATE)

    got, half = run.values(), len(singles)
    assert [value.dtype for value in got] == [value.dtype for value in start]
    error = reference.relative_error(got[:half], expected.values[:half], start[:half])
    assert error <= FLOAT32_TOLERANCE
    error = reference.relative_error(got[half:], expected.values[half:], start[half:])
    assert error <= FLOAT64_TOLERANCE
    assert harness.number(run.optimizer.iterations) == STEPS
    if name != "BlockNormalizedAdamW":
        ratios = [float(ratio) for ratio in run.optimizer.trust_ratios().values()]
        assert len(ratios) == len(start)
        wanted = [expected.trust_ratio(index) for index in range(len(start))]
        np.testing.assert_allclose(ratios, wanted, rtol=1e-4)
        if not run.mirrored:
            in_graph = tf.function(run.optimizer.trust_ratios)()
            np.testing.assert_allclose(list(in_graph.values()), ratios, rtol=1e-5)


@both_kerases
@pytest.mark.parametrize("mode", ["graph", "mirrored"])
def test_optimizers_share_programs_but_no_state(which: str, mode: str) -> None:
    start = harness.single_values()
    for steps in (1, 5):  # the second takes other steps through the first's programs
        run = harness.Run(which, "LAMB", start, mode, learning_rate=0.01)
        expected = reference.Reference("lamb", start)
        for gradients in harness.gradient_steps(start, steps):
            run.step(gradients)
            expected.step(gradients, LEARNING_RATE)
        ratios = [float(ratio) for ratio in run.optimizer.trust_ratios().values()]
        wanted = [expected.trust_ratio(index) for index in range(len(start))]
        np.testing.assert_allclose(ratios, wanted, rtol=1e-4)


@both_kerases
def test_patterns_and_bounds_follow_the_reference(which: str) -> None:
    start = harness.single_values()
    run = harness.Run(
        which,
        "LANS",
        start,
        "graph",
        learning_rate=0.01,
        weight_decay=0.1,
        exclude_from_weight_decay=["block_[14]$"],
        exclude_from_layer_adaptation=["block_[34]$"],
        weight_norm_bounds=(0.5, 1.0),
    )
    expected = reference.Reference(
        "lans",
        start,
        weight_decay=0.1,
        decays=[True, False, True, True, False],
        adapts=[True, True, True, False, False],
        weight_norm_bounds=(0.5, 1.0),
    )
    for gradients in harness.gradient_steps(start, STEPS):
        run.step(gradients)
        expected.step(gradients, LEARNING_RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE
    assert len(run.optimizer.trust_ratios()) == 3


@both_kerases
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_each_idea_can_be_switched_off(which: str, normalize: bool, nesterov: bool) -> None:
    """The clip halves each gradient, which shows, beside this epsilon, if it is not normalized."""
    start = harness.single_values()
    run = harness.Run(
        which,
        "LANS",
        start,
        "graph",
        learning_rate=0.01,
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
        expected.step(harness.clipped(gradients, global_clipnorm=1.0), LEARNING_RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize(("which", "mode"), [("keras3", "xla"), ("tf_keras", "graph")])
def test_without_xla_programs_the_numbers_are_the_same(which: str, mode: str) -> None:
    start = harness.single_values()
    runs = [
        harness.Run(which, "LANS", start, mode, learning_rate=0.01, jit_compile=jit)
        for jit in (True, False)
    ]
    for gradients in harness.gradient_steps(start, 10):
        for run in runs:
            run.step(gradients)
    assert reference.relative_error(runs[0].values(), runs[1].values(), start) <= FLOAT32_TOLERANCE


def test_a_large_block_keeps_its_digits() -> None:
    """A running float32 sum over 4 million equal squares would be off by far more than 1e-5."""
    start = [np.full((4096, 1024), 0.01, np.float32)]
    gradients = [np.ones((4096, 1024), np.float32)]
    run = harness.Run("tf_keras", "LANS", start, "graph", learning_rate=0.01, weight_decay=0.0)
    expected = reference.Reference("lans", start, weight_decay=0.0)
    run.step(gradients)
    expected.step(gradients, LEARNING_RATE)
    ratio = float(next(iter(run.optimizer.trust_ratios().values())))
    np.testing.assert_allclose(ratio, expected.trust_ratio(0), rtol=1e-5)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("elements", [update_rules.LONGEST_ROW + 2, 2**20])
def test_a_long_row_keeps_its_digits(elements: int) -> None:
    """In one running float32 sum a row of 2^20 would be off by 3e-4.

    Cut into 1024 rows of 1024, it is off by 9e-7 even where each is added up one by one.
    """
    row = np.full(elements, 0.3, np.float32)
    sums = tf.function(compiled_update.single_pass_sums, jit_compile=True)
    wanted = np.sum(row, dtype=np.float64)
    for found in sums(tf.constant(row), tf.constant(-row)):
        np.testing.assert_allclose(abs(found), wanted, rtol=2e-6)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize(
    "shape", [(30_522, 768), (2**16,), (2**24,), (2**21, 2), (2**20, 2, 8), (7,), ()]
)
def test_a_squared_norm_keeps_its_digits(shape: tuple[int, ...], jit_compile: bool) -> None:
    """Also in a program that XLA compiles, where one running sum could be off by 2e-4.

    One running sum over a row of 1024 equal terms is off by 1.2e-5: the tolerance is twice that.
    """
    array = np.full(shape, 0.3, np.float32)
    norms = tf.function(compiled_update.squared_norms, jit_compile=jit_compile)
    wanted = np.sum(np.square(array, dtype=np.float64))
    for found in norms([tf.constant(array), tf.constant(-array)]):
        np.testing.assert_allclose(found, wanted, rtol=2.4e-5)


@both_kerases
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize(
    ("shape", "piece"), [((3, 16_384), 16_384), ((2, 15_261), 15_261), ((16_411,), None)]
)
def test_blocks_in_pieces_follow_the_reference(
    which: str, mode: str, shape: tuple[int, ...], piece: int | None
) -> None:
    """Blocks above the size of a piece: divisible, with a smaller piece, and prime."""
    assert compiled_update.piece_elements(int(np.prod(shape))) == piece
    start = [value.astype(np.float32) for value in harness.start_values(shapes=[shape])]
    run = harness.Run(which, "LANS", start, mode, learning_rate=0.01)
    expected = reference.Reference("lans", start)
    good = harness.gradient_steps(start, 3)
    for gradients in (good[0], [np.full(shape, np.nan, np.float32)], *good[1:]):
        run.step(gradients)
    for gradients in good:
        expected.step(gradients, LEARNING_RATE)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE
    assert harness.number(run.optimizer.skipped_steps) == 1


@both_kerases
@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=str)
def test_sixteen_bit_variables_are_rounded_once_an_update(
    which: str, jit_compile: bool, dtype: tf.DType
) -> None:
    """Each update is computed in float32 from what is stored, and rounded to nearest at its end.

    One block is updated in pieces, one whole.
    """
    start = [
        value.astype(dtype.as_numpy_dtype)
        for value in harness.start_values(shapes=[(3, 16_384), (33, 7)])
    ]
    run = harness.Run(which, "LANS", start, "graph", learning_rate=0.01, jit_compile=jit_compile)
    expected = reference.Reference("lans", start)
    for gradients in harness.gradient_steps(start, 3):
        before = [value.astype(np.float64) for value in run.values()]
        expected.values = list(before)
        run.step(gradients)
        expected.step(gradients, LEARNING_RATE)
        for got, wanted, old in zip(run.values(), expected.values, before, strict=True):
            assert got.dtype == dtype.as_numpy_dtype
            assert np.mean(got.astype(np.float64) != old) > 0.1
            computing = FLOAT32_TOLERANCE * np.max(np.abs(wanted - old))
            error = np.abs(got.astype(np.float64) - wanted)
            assert np.all(error <= reference.rounding(got) + computing)
    state = [each.numpy() for each in run.optimizer.variables]
    for wanted in (*expected.m, *expected.v):
        moments = [each for each in state if each.shape == wanted.shape]
        assert [each.dtype for each in moments] == [np.float32] * 2
        errors = [np.max(np.abs(each - wanted)) / np.max(np.abs(wanted)) for each in moments]
        assert min(errors) <= FLOAT32_TOLERANCE
