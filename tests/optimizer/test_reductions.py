"""Knobs turned until a method must equal a known one, and changes that must change nothing."""

from typing import Any

import hypothesis
import keras
import numpy as np
import pytest
import tf_keras
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import reference
from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row
from tests.reference import FLOAT32_TOLERANCE

RATE = float(np.float32(0.01))
START = harness.single_values()
GRADIENTS = harness.gradient_steps(START, 10)
# One step of 0.01 on weights of about 1: storing them rounds by 6e-8, 6e-6 of the step.
ONE_STEP_TOLERANCE = 2e-5
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
few_examples = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 10)


def steps(run: harness.Run, gradients: Any = GRADIENTS) -> list[np.ndarray]:
    for each in gradients:
        run.step(each)
    return run.values()


def normalized(gradient: np.ndarray) -> np.ndarray:
    return gradient / np.linalg.norm(gradient)


@pytest.mark.parametrize(("which", "mode"), [("keras3", "graph"), ("tf_keras", "xla")])
def test_lans_without_its_two_ideas_is_lamb_bit_for_bit(which: str, mode: str) -> None:
    off = {"normalize_gradients": False, "nesterov": False}
    lans = harness.Run(which, "LANS", START, mode, **off)
    harness.assert_equal(steps(lans), steps(harness.Run(which, "LAMB", START, mode)))


@both_kerases
def test_lamb_without_adaptation_is_adamw(which: str) -> None:
    excluded = {"learning_rate": RATE, "exclude_from_layer_adaptation": ["block"]}
    got = steps(harness.Run(which, "LAMB", START, "graph", **excluded))
    expected = reference.Reference("adamw", START)
    for gradients in GRADIENTS:
        expected.step(gradients, RATE)
    assert reference.relative_error(got, expected.values, START) <= FLOAT32_TOLERANCE


@both_kerases
def test_adamw_of_keras_is_met_as_epsilon_vanishes(which: str) -> None:
    """Keras puts epsilon beside sqrt(v), we beside sqrt(v / (1 - beta_2^t)): its is the larger.

    Both decay by eta lambda x, x from before the update.
    """
    adamw = {"keras3": keras.optimizers.AdamW, "tf_keras": tf_keras.optimizers.AdamW}[which]
    errors = []
    for epsilon in (1e-12, 0.1):
        shared = {"learning_rate": RATE, "weight_decay": 0.1, "epsilon": epsilon}
        theirs = steps(harness.Run(which, adamw, START, **shared))
        unit = [[normalized(each) for each in gradients] for gradients in GRADIENTS]
        theirs_unit = steps(harness.Run(which, adamw, START, **shared), unit)
        lamb = harness.Run(
            which, "LAMB", START, jit_compile=False, exclude_from_layer_adaptation=["."],
            **shared,
        )  # fmt: skip
        block = harness.Run(which, "BlockNormalizedAdamW", START, jit_compile=False, **shared)
        errors.append(reference.relative_error(steps(lamb), theirs, START))
        errors.append(reference.relative_error(steps(block), theirs_unit, START))
    assert max(errors[:2]) <= FLOAT32_TOLERANCE
    assert min(errors[2:]) > 100 * FLOAT32_TOLERANCE


def test_lamb_of_keras_is_met_without_decay() -> None:
    """Keras's own decays outside the trust ratio; without decay it is ours."""
    errors = []
    for decay in (0.0, 0.5):
        shared = {"learning_rate": RATE, "weight_decay": decay, "epsilon": 1e-6}
        theirs = steps(harness.Run("keras3", keras.optimizers.Lamb, START, **shared))
        ours = steps(harness.Run("keras3", "LAMB", START, jit_compile=False, **shared))
        errors.append(reference.relative_error(ours, theirs, START))
    assert errors[0] <= FLOAT32_TOLERANCE
    assert errors[1] > 100 * FLOAT32_TOLERANCE


@each_row
def test_the_order_of_blocks_changes_no_bit(which: str, name: str) -> None:
    order = [3, 0, 4, 2, 1]
    shuffled = harness.Run(which, name, [START[index] for index in order], "graph")
    permuted = [[gradients[index] for index in order] for gradients in GRADIENTS]
    straight = steps(harness.Run(which, name, START, "graph"))
    harness.assert_equal(steps(shuffled, permuted), [straight[index] for index in order])


class Restarted:
    """One traced step, taken from any state: thousands of examples, one compilation."""

    def __init__(self, which: str, name: str) -> None:
        self.run = harness.Run(which, name, START, "graph", learning_rate=RATE)

    def step(self, values: Any, gradients: Any, updates_made: int = 0) -> list[np.ndarray]:
        optimizer = self.run.optimizer
        for variable, value in zip(self.run.variables, values, strict=True):
            variable.assign(value)
        for variable in optimizer.variables[-2 * len(START) :]:
            variable.assign(np.zeros(variable.shape))
        optimizer.iterations.assign(updates_made)
        optimizer.skipped_steps.assign(0)
        self.run.step(gradients)
        return self.run.values()


@pytest.fixture(scope="module")
def restarted() -> Any:
    made: dict[tuple[str, str], Restarted] = {}
    return lambda *row: made[row] if row in made else made.setdefault(row, Restarted(*row))


@pytest.mark.parametrize(
    ("which", "name"),
    [(which, name) for which in harness.KERASES for name in ("LANS", "BlockNormalizedAdamW")],
)
@few_examples
@hypothesis.given(data=st.data())
def test_a_scale_on_each_blocks_gradient_changes_nothing(
    which: str, name: str, restarted: Any, data: st.DataObject
) -> None:
    exponents = [data.draw(st.floats(-15, 15)) for _ in START]
    powers = [data.draw(st.integers(-40, 40)) for _ in START]
    gradients = harness.gradient_steps(START, 1, seed=data.draw(st.integers(0, 99)))[0]
    optimizer = restarted(which, name)
    plain = optimizer.step(START, gradients)
    pairs = list(zip(gradients, exponents, strict=True))
    scaled = optimizer.step(START, [(g * 10.0**exponent).astype(g.dtype) for g, exponent in pairs])
    assert reference.relative_error(scaled, plain, START) <= ONE_STEP_TOLERANCE
    pairs = list(zip(gradients, powers, strict=True))
    harness.assert_equal(
        optimizer.step(START, [np.ldexp(g, power).astype(g.dtype) for g, power in pairs]), plain
    )


@each_row
@few_examples
@hypothesis.given(data=st.data())
def test_a_blocks_update_depends_on_that_block_alone(
    which: str, name: str, restarted: Any, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(START) - 1))
    scales = [
        1.0 if each == index else data.draw(st.sampled_from([0.0, 1e-9, 1e9]))
        for each in range(len(START))
    ]
    gradients = harness.gradient_steps(START, 1, seed=data.draw(st.integers(0, 99)))[0]

    def scaled(blocks: list[np.ndarray]) -> list[np.ndarray]:
        pairs = zip(blocks, scales, strict=True)
        return [(block * scale).astype(block.dtype) for block, scale in pairs]

    optimizer = restarted(which, name)
    among_others = optimizer.step(scaled(START), scaled(gradients))[index]
    harness.assert_equal([optimizer.step(START, gradients)[index]], [among_others])
    alone = harness.Run(which, name, [START[index]], learning_rate=RATE)
    harness.assert_equal(steps(alone, [[gradients[index]]]), [among_others])


@each_row
def test_beyond_that_range_a_gradient_is_zero_or_skipped(
    which: str, name: str, restarted: Any
) -> None:
    """Squares below 1e-38 are 0 in float32, above 3e38 infinite: never NaN, never in silence."""
    optimizer = restarted(which, name)
    zeros = [np.zeros_like(value) for value in START]
    tiny, huge = ([np.full_like(value, scale) for value in START] for scale in (1e-25, 1e20))
    at_zero = optimizer.step(START, zeros)
    if name == "LAMB":
        assert np.isfinite(np.concatenate([each.ravel() for each in at_zero])).all()
    else:
        harness.assert_equal(optimizer.step(START, tiny), at_zero)
    harness.assert_equal(optimizer.step(START, huge), START)
    assert harness.number(optimizer.run.optimizer.skipped_steps) == 1
    assert harness.number(optimizer.run.optimizer.iterations) == 0


@both_kerases
@pytest.mark.parametrize("name", ["LANS", "BlockNormalizedAdamW"])
def test_from_where_on_the_norm_is_exact(which: str, name: str) -> None:
    """At a root mean square of 2^-51 the squares that float32 loses change no digit of the norm.

    At worst all but one element are just below 2^-63, whose squares are below 2^-126, and the
    norm loses a part of n 2^-126 / (2 n 2^-102) = 2^-25. A thousandth of it loses 3 % and more.
    """
    elements = 10_000
    gradient = np.full(elements, 0.99 * 2.0**-63, np.float32)
    found = []
    for root_mean_square in (2.0**-51, 2.0**-61):
        gradient[0] = np.sqrt(elements) * root_mean_square
        run = harness.Run(which, name, [np.ones(elements, np.float32)], learning_rate=RATE)
        run.step([gradient])
        moment = next(each for each in run.optimizer.variables if each.shape == (elements,))
        wanted = 0.1 * gradient / np.linalg.norm(gradient.astype(np.float64))
        found.append(np.max(np.abs(moment.numpy() / wanted - 1)))
        assert np.isfinite(run.values()[0]).all()
        # AdamW's elements are at most 1 and the decay's 0.01; LANS's step is the block's norm
        assert np.linalg.norm(run.values()[0] - 1) <= 1.01 * RATE * np.sqrt(elements)
    # besides: a sum, a root, a reciprocal and two products, and 0.1, rounded by 2^-24 each
    assert found[0] <= 2.0**-25 + 6 * 2.0**-24
    assert found[1] > 0.01


@each_row
@few_examples
@hypothesis.given(updates=st.one_of(st.integers(0, 100), st.integers(0, 10**6)))
def test_the_bias_correction_keeps_its_digits(
    which: str, name: str, restarted: Any, updates: int
) -> None:
    got = restarted(which, name).step(START, GRADIENTS[0], updates_made=updates)
    expected = reference.Reference(harness.ALGORITHMS[name], START)
    expected.t = updates
    expected.step(GRADIENTS[0], RATE)
    assert reference.relative_error(got, expected.values, START) <= ONE_STEP_TOLERANCE


@both_kerases
@few_examples
@hypothesis.given(shape=SHAPES, seed=st.integers(0, 99), exponent=st.floats(-15, 15))
def test_any_shape_follows_the_reference(
    which: str, shape: tuple[int, ...], seed: int, exponent: float
) -> None:
    generator = np.random.default_rng(seed)
    start = [np.asarray(generator.normal(size=shape), np.float32)]
    gradients = [
        [np.asarray(10.0**exponent * generator.normal(size=shape), np.float32)] for _ in range(2)
    ]
    run = harness.Run(which, "LANS", start, learning_rate=RATE, jit_compile=False)
    (got,) = steps(run, gradients)
    assert got.shape == shape
    expected = reference.Reference("lans", start)
    for each in gradients:
        expected.step(each, RATE)
    # 1e-4 of a step: the second may undo the first, so the displacement is no measure
    np.testing.assert_allclose(got, expected.values[0], rtol=1e-6, atol=1e-4 * RATE)
