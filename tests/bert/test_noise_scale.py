"""The noise scale against gradients whose mean and covariance are known."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from official_bert import noise_scale

STEPS, PIECES, PIECE = 4000, 4, 8
BATCH = PIECES * PIECE
# Of one example's gradient: mean and standard deviation in each of three directions.
MEAN, DEVIATION = np.array([0.6, 0.0, -0.3]), np.array([2.0, 1.0, 3.0])
SIGMAS = 5.0


def norms_of(contributions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both norms of each step, from c of shape (steps, pieces, dimension)."""
    pieces = contributions.shape[1]
    sums = np.sum(contributions**2, axis=(1, 2))
    big = np.linalg.norm(contributions.sum(axis=1), axis=1)
    return big, noise_scale.piece_gradient_norm(sums, pieces)


@pytest.fixture(scope="module")
def norms() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    examples = rng.normal(MEAN, DEVIATION, size=(STEPS, PIECES, PIECE, len(MEAN)))
    return norms_of(examples.sum(axis=2) / BATCH)


def spreads() -> tuple[float, float]:
    """Standard deviations of one step's |G|^2 and S, for normal gradients.

    S is the trace of the sample covariance of the pieces times their size, and independent of the
    batch's mean, of which |G|^2 is the squared norm less S / B.
    """
    variances = DEVIATION**2
    of_trace = 2 * np.sum(variances**2) / (PIECES - 1)
    of_norm = 2 * np.sum(variances**2) / BATCH**2 + 4 * np.sum(MEAN**2 * variances) / BATCH
    return float(np.sqrt(of_norm + of_trace / BATCH**2)), float(np.sqrt(of_trace))


def test_the_estimate_finds_the_gradient_and_its_covariance(norms) -> None:
    found = noise_scale.estimate(*norms, big_batch=BATCH, small_batch=PIECE)
    of_gradient, of_trace = (spread / STEPS**0.5 for spread in spreads())
    squared, trace = np.sum(MEAN**2), np.sum(DEVIATION**2)
    assert found.squared_gradient_norm == pytest.approx(squared, abs=SIGMAS * of_gradient)
    assert found.covariance_trace == pytest.approx(trace, abs=SIGMAS * of_trace)
    scale = trace / squared
    relative = np.hypot(of_gradient / squared, of_trace / trace)
    assert found.noise_scale == pytest.approx(scale, rel=SIGMAS * relative)
    # The two means are correlated through S, by its share 1 / B in |G|^2.
    exact = (of_trace**2 + (scale * of_gradient) ** 2 + 2 * scale * of_trace**2 / BATCH) ** 0.5
    assert found.standard_error == pytest.approx(exact / squared, rel=0.2)
    assert found.steps == STEPS


def test_the_mean_of_the_ratios_would_not_do(norms) -> None:
    """Why the averages come before the ratio: single steps have |G|^2 of either sign."""
    squared, trace = noise_scale.estimates(*norms, big_batch=BATCH, small_batch=PIECE)
    assert np.mean(squared < 0) > 0.1
    true = np.sum(DEVIATION**2) / np.sum(MEAN**2)
    assert abs(np.mean(trace / squared) - true) > true / 2


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 4)),
        elements=st.floats(-10, 10),
    ),
    st.integers(1, 64),
)
def test_it_is_the_sample_covariance_of_the_pieces(gradients: np.ndarray, size: int) -> None:
    """x_i = N c_i are N draws with covariance Sigma / size, whose mean is the batch's gradient."""
    pieces = gradients.shape[1]
    batch = size * pieces
    squared, trace = noise_scale.estimates(
        *norms_of(gradients / pieces), big_batch=batch, small_batch=size
    )
    mean = gradients.mean(axis=1)
    expected = size * np.var(gradients, axis=1, ddof=1).sum(axis=1)
    scale = batch * max(1.0, np.sum(gradients**2))
    np.testing.assert_allclose(trace, expected, atol=1e-12 * scale)
    np.testing.assert_allclose(
        squared, (mean**2).sum(axis=1) - expected / batch, atol=1e-12 * scale
    )


def test_pieces_that_count_by_their_words_add_less_than_an_example() -> None:
    """Examples that agree on the gradient, but not in their number of masked words."""
    rng = np.random.default_rng(1)
    words = rng.integers(2, 20, size=(STEPS, PIECES, PIECE))
    shares = words.sum(axis=2) / words.sum(axis=(1, 2))[:, None]
    norms = norms_of(shares[:, :, None] * MEAN)
    found = noise_scale.estimate(*norms, big_batch=BATCH, small_batch=PIECE)
    population = np.arange(2, 20)
    variation = np.var(population) / np.mean(population) ** 2
    # Dividing by the batch's words, not by their expectation, is a matter of 1 / B.
    tolerance = SIGMAS * found.standard_error + 3 * variation / BATCH
    assert found.noise_scale == pytest.approx(variation, abs=tolerance)
    assert found.noise_scale < 1


def test_the_piece_norm_of_tensors() -> None:
    contributions = np.random.default_rng(2).normal(size=(PIECES, 5)).astype(np.float32)

    @tf.function(jit_compile=True)
    def norm(gradients: tf.Tensor) -> tf.Tensor:
        return noise_scale.piece_gradient_norm(tf.reduce_sum(gradients**2), PIECES)

    squares = np.sum((PIECES * contributions.astype(np.float64)) ** 2, axis=1)
    expected = np.sqrt(np.mean(squares))
    assert float(norm(tf.constant(contributions))) == pytest.approx(expected, rel=1e-6)


def row(step: int, big: float | None, small: float | None, skipped: int = 0) -> dict:
    return {
        "step": step,
        noise_scale.BIG: big,
        noise_scale.SMALL: small,
        "skipped_steps": skipped,
    }


# B_big = 64, B_small = 8: |G|^2 = (64 * 9 - 8 * 25) / 56, S = (25 - 9) / (1 / 8 - 1 / 64).
BY_HAND = (16 * 64 / 7) / (376 / 56)


def test_rows_without_norms_and_skipped_steps_do_not_count() -> None:
    rows = [
        {"step": 1, "loss": 1.0, noise_scale.BIG: 100.0},
        row(2, 3.0, 5.0),
        row(3, None, None, skipped=1),
        row(4, 1000.0, 1000.0, skipped=2),
        row(5, 3.0, 5.0, skipped=2),
    ]
    found = noise_scale.from_rows(rows, batch_size=64, pieces=8)
    assert found.noise_scale == pytest.approx(BY_HAND, rel=1e-12)
    assert found.steps == 2 and found.standard_error == pytest.approx(0.0, abs=1e-9)


def test_rows_of_another_cut_do_not_count() -> None:
    """A run may go on with other micro-batches, whose pieces have another norm."""
    before = [{**row(step, 3.0, 9.0), "pieces": 64} for step in range(1, 10)]
    after = [{**row(step, 3.0, 5.0), "pieces": 8} for step in range(10, 14)]
    expected = noise_scale.estimate([3.0] * 4, [5.0] * 4, big_batch=64, small_batch=8)
    assert noise_scale.from_rows(before + after, 64, 8) == expected
    ((last, found),) = noise_scale.over_run(before + after, 64, 8, window=4)
    assert (last, found) == (13, expected)


def test_the_window_is_of_the_last_steps_that_tell() -> None:
    rows = [row(step, 100.0, 100.0) for step in range(1, 50)]
    rows += [row(50, 3.0, 5.0), row(51, 3.0, 5.0), row(52, None, None, skipped=1)]
    found = noise_scale.from_rows(rows, batch_size=64, pieces=8, window=2)
    assert found.noise_scale == pytest.approx(BY_HAND, rel=1e-12)
    assert noise_scale.from_rows(rows[-2:-1], 64, 8).standard_error is None


@pytest.mark.parametrize(
    ("rows", "pieces"),
    [
        ([row(1, 3.0, 5.0)], None),
        ([row(1, 3.0, 5.0)], 1),
        ([], 8),
        ([row(1, 3.0, None)], 8),
        ([row(1, 1.0, 5.0)], 8),  # 64 * 1 < 8 * 25: the noise hides the gradient
    ],
)
def test_what_cannot_be_told_is_none(rows: list, pieces: int | None) -> None:
    assert noise_scale.from_rows(rows, 64, pieces) is None
    assert noise_scale.over_run(rows, 64, pieces, window=1) == []


def test_the_curve_has_a_point_a_window() -> None:
    rows = [row(step, 3.0, 5.0 if step <= 4 else 4.0) for step in range(1, 8)]
    curve = noise_scale.over_run(rows, 64, 8, window=2)
    assert [step for step, _ in curve] == [2, 4, 6]
    assert curve[0][1].noise_scale == curve[1][1].noise_scale == pytest.approx(BY_HAND)
    assert curve[2][1].noise_scale < BY_HAND


def test_batches_that_are_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 < small < big"):
        noise_scale.estimates([1.0], [1.0], big_batch=8, small_batch=8)


def of_scale(scale: float) -> noise_scale.NoiseScale:
    return noise_scale.NoiseScale(
        noise_scale=scale,
        squared_gradient_norm=1.0,
        covariance_trace=scale,
        standard_error=scale / 10,
        steps=10,
    )


@pytest.mark.parametrize(
    ("batch", "answer"),
    [(8, "No:"), (499, "No:"), (501, "It is about right"), (8001, "Yes"), (100_000, "Yes")],
)
def test_the_answer(batch: int, answer: str) -> None:
    found = of_scale(2000.0)
    sentence = found.verdict(batch)
    assert sentence.startswith(answer) and f"{batch:,}" in sentence and "2,000" in sentence
    # A run at batch B takes a number of steps in proportion to 1 + B_simple / B.
    steps, half_as_many = 1 + 2000 / batch, 1 + 2000 / (2 * batch)
    assert found.saved_by_doubling(batch) == pytest.approx(1 - half_as_many / steps)
    assert f"{1 - half_as_many / steps:.0%} of the steps" in sentence


def test_pieces_that_agree_need_no_larger_batch() -> None:
    found = noise_scale.estimate([2.0], [2.0], big_batch=64, small_batch=8)
    assert found.noise_scale == 0.0 and found.verdict(64).startswith("Yes")


def test_figures_are_rounded_to_what_they_are_worth() -> None:
    assert of_scale(12_345.0).rounded == "12,000 +- 1,200"
    assert of_scale(3.21).rounded == "3.2 +- 0.32"
