"""Every optimizer, in both Kerases and every way to run a step, against float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.optimizer import harness
from tests.optimizer.harness import both_kerases
from tests.reference import FLOAT32_TOLERANCE
from tf_lans import compiled_update

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
def test_sixteen_bit_blocks_in_pieces(which: str) -> None:
    """In pieces and whole, x differs by the one rounding of its end, at most 2^-8 of it a step."""
    dtype = tf.bfloat16.as_numpy_dtype
    start = [value.astype(dtype) for value in harness.start_values(shapes=[(3, 16_384)])]
    runs = [
        harness.Run(which, "LANS", start, "graph", learning_rate=0.05, jit_compile=jit)
        for jit in (True, False)
    ]
    for gradients in harness.gradient_steps(start, 2):
        for run in runs:
            run.step(gradients)
    pieces, whole = (run.values()[0].astype(np.float32) for run in runs)
    assert np.mean(pieces != start[0].astype(np.float32)) > 0.5
    assert np.all(np.abs(pieces - whole) <= 2 * 2.0**-8 * np.abs(whole) + 1e-6)
