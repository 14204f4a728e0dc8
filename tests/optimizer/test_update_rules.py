"""Properties of the pure functions, on NumPy itself."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import reference
from tf_lans import update_rules
from tf_lans.hyperparameters import LANSHyperparameters
from tf_lans.update_rules import Block, Step, Treatment, Updated

RATE = 0.01
EVERY = Treatment(decays=True, adapts=True)
# Half of them without a side of 0: nothing shows on an empty block.
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5) | hnp.array_shapes(
    min_dims=1, max_dims=4, min_side=0, max_side=5
)
# Three rules, the first with its two switches: normalize_gradients and nesterov.
SWITCHED = [("lans", *switches) for switches in itertools.product((True, False), repeat=2)]
RULES = [*SWITCHED, ("lamb", True, True), ("block_normalized_adamw", True, True)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)
BOUNDS = (None, (0.0, 0.01), (0.5, 2.0), (1e3, 1e4))


def sums(*arrays: np.ndarray) -> tuple:
    return tuple(np.sum(array) for array in arrays)


def trajectory(
    rule: Callable[..., Updated],
    x: np.ndarray,
    gradients: Sequence[np.ndarray],
    hyper: LANSHyperparameters | None = None,
    clip: float = 1.0,
    treatment: Treatment = EVERY,
    dtype: type = np.float64,
) -> list[Updated]:
    """The values before the first update and after each."""
    hyper = hyper or LANSHyperparameters()
    values = [Updated(x.astype(dtype), np.zeros(x.shape, dtype), np.zeros(x.shape, dtype))]
    for number, each in enumerate(gradients, start=1):
        gradient = each.astype(dtype)
        step = Step(dtype(RATE), dtype(number), np.sum(np.square(gradient)), dtype(clip))
        values.append(rule(np, sums, Block(*values[-1], gradient), step, treatment, hyper))
    return values


def take(*arguments, **keywords) -> Updated:
    return trajectory(*arguments, **keywords)[-1]


@dataclasses.dataclass(frozen=True)
class Case:
    """One block's updates under drawn settings."""

    algorithm: str
    hyper: LANSHyperparameters
    treatment: Treatment
    clip: float
    x: np.ndarray
    gradients: list[np.ndarray]

    def trajectory(self, sign: float = 1.0) -> list[Updated]:
        rule = getattr(update_rules, self.algorithm)
        gradients = [sign * gradient for gradient in self.gradients]
        return trajectory(rule, sign * self.x, gradients, self.hyper, self.clip, self.treatment)

    def reference(self) -> reference.Reference:
        return reference.Reference(
            self.algorithm,
            [self.x],
            beta_1=self.hyper.beta_1,
            decays=[self.treatment.decays],
            adapts=[self.treatment.adapts],
            weight_norm_bounds=self.hyper.weight_norm_bounds,
            normalize=self.hyper.normalize_gradients,
            nesterov=self.hyper.nesterov,
        )


@st.composite
def cases(draw: st.DrawFn, rule: tuple[str, bool, bool], adapts: bool | None = None) -> Case:
    algorithm, normalizes, nesterov = rule
    shape = draw(SHAPES)
    generator = np.random.default_rng(draw(st.integers(0, 999)))

    def block(scales: Sequence[float]) -> np.ndarray:
        return np.asarray(draw(st.sampled_from(scales)) * generator.normal(size=shape))

    hyper = LANSHyperparameters(
        beta_1=draw(st.sampled_from([0.9, 0.0])),
        weight_norm_bounds=draw(st.sampled_from(BOUNDS)),
        normalize_gradients=normalizes,
        nesterov=nesterov,
    )
    adapts = draw(st.booleans()) if adapts is None else adapts
    return Case(
        algorithm=algorithm,
        hyper=hyper,
        treatment=Treatment(decays=draw(st.booleans()), adapts=adapts),
        clip=draw(st.sampled_from([1.0, 0.5])),
        x=block([1.0, 0.0, 1e-3, 1e3]),
        # 1e-6 is epsilon, beside which LAMB feels the clip
        gradients=[block([1.0, 0.0, 1e-6, 1e6]) for _ in range(3)],
    )


@each_rule
@given(data=st.data())
def test_rules_follow_the_reference(rule: tuple[str, bool, bool], data: st.DataObject) -> None:
    case = data.draw(cases(rule))
    expected = case.reference()
    path = 0.0
    for got, gradient in zip(case.trajectory()[1:], case.gradients, strict=True):
        before = expected.values[0]
        # a factor on what is normalized changes nothing, so this is right for every algorithm
        expected.step([case.clip * gradient], RATE)
        path += np.max(np.abs(expected.values[0] - before), initial=0.0)
        assert got.x.shape == case.x.shape
        # The reference's 1 - 0.999^1 has 13 digits, the sum of r and lambda x may lose some more;
        # x itself is rounded by 1.1e-16 in each of three steps, here and there.
        size = np.max(np.abs(expected.values[0]), initial=0.0)
        atol = 1e-11 * path + 1e-15 * size
        np.testing.assert_allclose(got.x, expected.values[0], rtol=0, atol=atol)
        for moment, wanted in ((got.m, expected.m[0]), (got.v, expected.v[0])):
            atol = 1e-12 * np.max(np.abs(wanted), initial=0.0)
            np.testing.assert_allclose(moment, wanted, rtol=0, atol=atol)


@each_rule
@given(data=st.data())
def test_another_sign_of_x_and_g_is_another_sign_of_x_and_m(
    rule: tuple[str, bool, bool], data: st.DataObject
) -> None:
    case = data.draw(cases(rule))
    for got, mirrored in zip(case.trajectory(), case.trajectory(sign=-1.0), strict=True):
        np.testing.assert_array_equal(mirrored.x, -got.x)
        np.testing.assert_array_equal(mirrored.m, -got.m)
        np.testing.assert_array_equal(mirrored.v, got.v)


@pytest.mark.parametrize("rule", RULES[:-1], ids=str)
@given(data=st.data())
def test_an_adapting_block_moves_by_phi_at_most(
    rule: tuple[str, bool, bool], data: st.DataObject
) -> None:
    case = data.draw(cases(rule, adapts=True))
    for before, after in itertools.pairwise(case.trajectory()):
        norm = np.linalg.norm(before.x)
        if norm == 0:
            continue
        lower, upper = case.hyper.weight_norm_bounds or (0.0, np.inf)
        moved = np.linalg.norm(after.x - before.x)
        # the subtractions round each element of both by 1.1e-16 of it
        rounding = 1e-15 * (norm + np.linalg.norm(after.x))
        assert moved <= RATE * np.clip(norm, lower, upper) * (1 + 1e-12) + rounding


@given(seed=st.integers(0, 999), exponent=st.floats(-15, 15))
def test_a_scale_on_the_gradient_changes_nothing(seed: int, exponent: float) -> None:
    generator = np.random.default_rng(seed)
    x, gradient = generator.normal(size=(2, 6, 3))
    scaled = gradient * 10.0**exponent
    for rule in (update_rules.lans, update_rules.block_normalized_adamw):
        plain = take(rule, x, [gradient], dtype=np.float32)
        other = take(rule, x, [scaled], dtype=np.float32)
        np.testing.assert_allclose(other.x, plain.x, rtol=0, atol=2e-6)


@given(seed=st.integers(0, 999), exponent=st.integers(-30, 30))
def test_a_power_of_two_changes_no_bit(seed: int, exponent: int) -> None:
    generator = np.random.default_rng(seed)
    x, gradient = generator.normal(size=(2, 6, 3))
    plain = take(update_rules.lans, x, [gradient], dtype=np.float32)
    other = take(update_rules.lans, x, [gradient * 2.0**exponent], dtype=np.float32)
    np.testing.assert_array_equal(plain.x, other.x)


@given(seed=st.integers(0, 999))
def test_the_switches_off_make_lamb(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, *gradients = generator.normal(size=(4, 5, 3))
    hyper = LANSHyperparameters(normalize_gradients=False, nesterov=False)
    lans = take(update_rules.lans, x, gradients, hyper, clip=0.5)
    lamb = take(update_rules.lamb, x, gradients, hyper, clip=0.5)
    for one, other in zip(lans, lamb, strict=True):
        np.testing.assert_array_equal(one, other)


@given(number=st.integers(1, 10**6), beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.99999]))
def test_bias_correction_keeps_its_digits_in_float32(number: int, beta: float) -> None:
    got = update_rules._bias_correction(np, beta, np.float32(number))
    np.testing.assert_allclose(got, 1 - np.longdouble(beta) ** number, rtol=1e-6)


NORMS = st.just(0.0) | st.floats(1e-6, 1e6)
LARGEST_NORMS = st.floats(1e-6, 1e6)
# Squares, a sum of at most six, roots and quotients: each rounds by 1.1e-16.
CLIPPING_RTOL = 1e-14


def clip_factors(norms: Sequence[float], **bounds: float | None) -> np.ndarray:
    squares = [np.square(np.float64(norm)) for norm in norms]
    return np.array(update_rules.clip_factors(np, squares, **bounds))


@given(norms=st.lists(NORMS, min_size=1, max_size=6), largest=LARGEST_NORMS)
def test_clipnorm_shortens_each_long_gradient(norms: list[float], largest: float) -> None:
    for other in (None, largest / 2):  # clipnorm wins
        factors = clip_factors(norms, clipnorm=largest, global_clipnorm=other)
        assert ((factors > 0) & (factors <= 1)).all()
        clipped = factors * norms
        np.testing.assert_allclose(clipped, np.minimum(norms, largest), rtol=CLIPPING_RTOL)
        again = clip_factors(clipped, clipnorm=largest, global_clipnorm=other)
        np.testing.assert_allclose(again, 1.0, rtol=CLIPPING_RTOL)


@given(norms=st.lists(NORMS, min_size=1, max_size=6), largest=LARGEST_NORMS)
def test_global_clipnorm_shortens_all_gradients_alike(norms: list[float], largest: float) -> None:
    bounds = {"clipnorm": None, "global_clipnorm": largest}
    factors = clip_factors(norms, **bounds)
    assert len(factors) == len(norms)
    assert len(set(factors)) == 1
    assert 0 < factors[0] <= 1
    clipped = factors * norms
    norm = np.linalg.norm(norms)
    np.testing.assert_allclose(np.linalg.norm(clipped), min(norm, largest), rtol=CLIPPING_RTOL)
    np.testing.assert_allclose(clip_factors(clipped, **bounds), 1.0, rtol=CLIPPING_RTOL)


@given(norms=st.lists(NORMS, min_size=1, max_size=6), off=st.sampled_from([None, 0.0]))
def test_without_a_bound_nothing_is_clipped(norms: list[float], off: float | None) -> None:
    factors = clip_factors(norms, clipnorm=off, global_clipnorm=off)
    np.testing.assert_array_equal(factors, np.ones(len(norms)))
