"""Properties of the pure functions, on NumPy itself."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import reference
from tf_lans import update_rules
from tf_lans.hyperparameters import LANSHyperparameters
from tf_lans.update_rules import Block, Step, Treatment, Updated

EVERY = Treatment(decays=True, adapts=True)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def sums(*arrays: np.ndarray) -> tuple:
    return tuple(np.sum(array) for array in arrays)


def take(rule, x, gradients, hyper=None, clip=1.0, dtype=np.float64) -> Updated:
    hyper = hyper or LANSHyperparameters()
    values = Updated(x.astype(dtype), np.zeros(x.shape, dtype), np.zeros(x.shape, dtype))
    for number, gradient in enumerate(gradients, start=1):
        gradient = gradient.astype(dtype)
        step = Step(dtype(0.01), dtype(number), np.sum(np.square(gradient)), dtype(clip))
        values = rule(np, sums, Block(*values, gradient), step, EVERY, hyper)
    return values


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_rules_follow_the_reference_on_every_shape(shape: tuple, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = np.asarray(generator.normal(size=shape))
    gradients = [np.asarray(generator.normal(size=shape)) for _ in range(3)]
    for algorithm in ("lans", "lamb", "block_normalized_adamw"):
        got = take(getattr(update_rules, algorithm), x, gradients)
        expected = reference.Reference(algorithm, [x])
        for gradient in gradients:
            expected.step([gradient], 0.01)
        assert got.x.shape == shape
        np.testing.assert_allclose(got.x, expected.values[0], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(got.m, expected.m[0], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(got.v, expected.v[0], rtol=1e-11, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), exponent=st.floats(-15, 15))
def test_a_scale_on_the_gradient_changes_nothing(seed: int, exponent: float) -> None:
    generator = np.random.default_rng(seed)
    x, gradient = generator.normal(size=(2, 6, 3))
    scaled = gradient * 10.0**exponent
    for rule in (update_rules.lans, update_rules.block_normalized_adamw):
        plain = take(rule, x, [gradient], dtype=np.float32)
        other = take(rule, x, [scaled], dtype=np.float32)
        np.testing.assert_allclose(other.x, plain.x, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), exponent=st.integers(-30, 30))
def test_a_power_of_two_changes_no_bit(seed: int, exponent: int) -> None:
    generator = np.random.default_rng(seed)
    x, gradient = generator.normal(size=(2, 6, 3))
    plain = take(update_rules.lans, x, [gradient], dtype=np.float32)
    other = take(update_rules.lans, x, [gradient * 2.0**exponent], dtype=np.float32)
    np.testing.assert_array_equal(plain.x, other.x)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999))
def test_the_switches_off_make_lamb(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, *gradients = generator.normal(size=(4, 5, 3))
    hyper = LANSHyperparameters(normalize_gradients=False, nesterov=False)
    lans = take(update_rules.lans, x, gradients, hyper, clip=0.5)
    lamb = take(update_rules.lamb, x, gradients, hyper, clip=0.5)
    for one, other in zip(lans, lamb, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=60)
@given(number=st.integers(1, 10**6), beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.99999]))
def test_bias_correction_keeps_its_digits_in_float32(number: int, beta: float) -> None:
    got = update_rules._bias_correction(np, beta, np.float32(number))
    np.testing.assert_allclose(got, 1 - np.longdouble(beta) ** number, rtol=1e-6)


def test_clip_factors() -> None:
    squares = [np.float64(9.0), np.float64(16.0)]
    factors = update_rules.clip_factors(np, squares, clipnorm=3.5, global_clipnorm=None)
    np.testing.assert_allclose(factors, [1.0, 3.5 / 4])
    factors = update_rules.clip_factors(np, squares, clipnorm=None, global_clipnorm=2.5)
    np.testing.assert_allclose(factors, [0.5, 0.5])
    assert update_rules.clip_factors(np, squares, clipnorm=None, global_clipnorm=0.0) == [1, 1]
