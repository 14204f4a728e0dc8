"""What the design decides where the paper is silent, without TensorFlow."""

import copy

import keras
import numpy as np
import pytest

import tf_lans.keras3
from tests import reference
from tests.backends import harness
from tests.backends.harness import RATE, each_class, each_mode
from tests.reference import FLOAT32_TOLERANCE

# On the summed or last gradient each of these would clip otherwise than on the mean of four.
CLIPPINGS = [{"clipnorm": 2.0}, {"global_clipnorm": 3.0}, {"clipvalue": 0.5}]


@each_class
@each_mode
def test_zero_gradients_and_zero_variables(name: str, mode: str) -> None:
    start = [np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32), np.float32(0)]
    run = harness.Run(name, start, mode, weight_decay=0.0)
    run.step([np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32), np.float32(0)])
    learned, kept, scalar = run.values()
    assert (learned < 0).all()
    np.testing.assert_array_equal(kept, start[1])
    np.testing.assert_array_equal(scalar, start[2])
    assert all(np.isfinite(each).all() for each in run.state())


@each_class
@each_mode
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_gradient_changes_nothing_but_its_count(
    name: str, mode: str, bad: float
) -> None:
    start = harness.single_values()
    run = harness.Run(name, start, mode, use_ema=True)
    steps = harness.gradient_steps(start, 2)
    run.step(steps[0])
    before = run.state()
    poisoned = [value.copy() for value in steps[1]]
    poisoned[3][1, 0, 2] = bad
    run.step(poisoned)
    assert int(run.optimizer.skipped_steps) == 1
    run.optimizer.skipped_steps.assign(0)
    harness.assert_equal(run.state(), before)
    assert int(run.optimizer.iterations) == 1


@each_mode
def test_nonfinite_gradients_pass_where_skipping_is_off(mode: str) -> None:
    run = harness.Run("LANS", harness.single_values(), mode, skip_nonfinite=False)
    run.step([np.full_like(value, np.nan) for value in harness.single_values()])
    assert np.isnan(run.values()[0]).all()
    assert int(run.optimizer.skipped_steps) == 0
    assert int(run.optimizer.iterations) == 1


@each_class
@each_mode
@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize("micro_steps", [None, 4])
def test_clipping_acts_once_on_the_mean_gradient(
    name: str, mode: str, clipping: dict, micro_steps: int | None
) -> None:
    start = harness.single_values()
    # A large epsilon, or LAMB would undo a scale on the gradient.
    run = harness.Run(
        name, start, mode, epsilon=0.1, gradient_accumulation_steps=micro_steps, **clipping
    )
    expected = reference.Reference(harness.ALGORITHMS[name], start, epsilon=0.1)
    window = micro_steps or 1
    steps = harness.gradient_steps(start, 6 * window)
    for update in range(6):
        given = steps[update * window : (update + 1) * window]
        for gradients in given:
            assert int(run.optimizer.iterations) == update
            run.step(gradients)
        mean = [np.mean(each, axis=0, dtype=np.float64) for each in zip(*given, strict=True)]
        expected.step(harness.clipped(mean, **clipping), RATE)
    assert int(run.optimizer.iterations) == 6
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@each_mode
@pytest.mark.parametrize("name", ["LANS", "BlockNormalizedAdamW"])
@pytest.mark.parametrize("clipping", CLIPPINGS[:2], ids=str)
def test_a_bound_on_norms_changes_no_bit_where_gradients_are_normalized(
    mode: str, name: str, clipping: dict
) -> None:
    start = harness.single_values()
    runs = [harness.Run(name, start, mode, **arguments) for arguments in ({}, clipping)]
    for gradients in harness.gradient_steps(start, 5):
        for run in runs:
            run.step(gradients)
    harness.assert_equal(runs[0].state(), runs[1].state())


@each_mode
@pytest.mark.parametrize("micro_steps", [None, 4])
def test_schedules_count_updates(mode: str, micro_steps: int | None) -> None:
    schedule = tf_lans.keras3.WarmupConstantDecay(0.02, 8, 3, 2)
    start = harness.single_values()
    run = harness.Run(
        "LANS", start, mode, learning_rate=schedule, gradient_accumulation_steps=micro_steps
    )
    expected = reference.Reference("lans", start)
    for update, gradients in enumerate(harness.gradient_steps(start, 8)):
        run.step([np.full_like(value, np.nan) for value in gradients])
        for _ in range((micro_steps or 1) - 1):
            run.step(gradients)
        for _ in range(micro_steps or 1):
            run.step(gradients)
        expected.step(gradients, float(schedule(update)))
    assert int(run.optimizer.skipped_steps) == 8
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@each_mode
def test_a_nonfinite_micro_step_discards_its_window(mode: str) -> None:
    start = harness.single_values()
    runs = [harness.Run("LANS", start, mode, gradient_accumulation_steps=2) for _ in range(2)]
    steps = harness.gradient_steps(start, 6)
    poisoned = [value.copy() for value in steps[2]]
    poisoned[0][0, 0] = np.inf
    for gradients in (steps[0], steps[1], poisoned, steps[3], steps[4], steps[5]):
        runs[0].step(gradients)
    for gradients in (steps[0], steps[1], steps[4], steps[5]):
        runs[1].step(gradients)
    assert int(runs[0].optimizer.skipped_steps) == 1
    runs[0].optimizer.skipped_steps.assign(0)
    harness.assert_equal(runs[0].state(), runs[1].state())
    assert int(runs[0].optimizer.iterations) == 2


@each_mode
def test_a_nonfinite_micro_step_enters_the_mean_where_skipping_is_off(mode: str) -> None:
    start = harness.single_values()
    run = harness.Run("LANS", start, mode, gradient_accumulation_steps=2, skip_nonfinite=False)
    first, second = harness.gradient_steps(start, 2)
    expected = reference.Reference("lans", start)
    expected.step([(one + two) / 2 for one, two in zip(first, second, strict=True)], RATE)
    first[0][0, 0] = np.nan
    run.step(first)
    harness.assert_equal(run.values(), start)
    run.step(second)
    assert np.isnan(run.values()[0]).all()
    rest = run.values()[1:], expected.values[1:], start[1:]
    assert reference.relative_error(*rest) <= FLOAT32_TOLERANCE
    assert int(run.optimizer.skipped_steps) == 0
    assert int(run.optimizer.iterations) == 1


@each_mode
def test_micro_steps_change_only_the_accumulators(mode: str) -> None:
    start = harness.single_values()
    run = harness.Run("LANS", start, mode, gradient_accumulation_steps=4)
    for gradients in harness.gradient_steps(start, 3):
        run.step(gradients)
        harness.assert_equal(run.values(), start)
    accumulators = [harness.numpy(each) for each in run.optimizer._accumulated_gradients]
    sums = [np.sum(each, axis=0) for each in zip(*harness.gradient_steps(start, 3), strict=True)]
    for total, wanted in zip(accumulators, sums, strict=True):
        np.testing.assert_allclose(total, wanted, rtol=1e-5, atol=1e-6)
    assert not any(np.any(harness.numpy(each)) for each in run.optimizer._momentums)


@each_mode
@pytest.mark.parametrize("micro_steps", [None, 4])
def test_moving_average_and_overwriting(mode: str, micro_steps: int | None) -> None:
    start = harness.single_values()
    averaging = {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3}
    run = harness.Run("LANS", start, mode, gradient_accumulation_steps=micro_steps, **averaging)
    expected = reference.Reference("lans", start)
    average = None
    for number, gradients in enumerate(harness.gradient_steps(start, 7), start=1):
        for _ in range(micro_steps or 1):
            run.step(gradients)
        expected.step(gradients, RATE)
        if average is None:
            average = list(expected.values)
        else:
            pairs = zip(average, expected.values, strict=True)
            average = [0.8 * old + 0.2 * new for old, new in pairs]
        if number % 3 == 0:
            expected.values = list(average)
    got = [harness.numpy(each) for each in run.optimizer._model_variables_moving_average]
    assert reference.relative_error(got, average, start) <= FLOAT32_TOLERANCE
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE
    run.optimizer.finalize_variable_values(run.variables)
    harness.assert_equal(run.values(), got)


@each_mode
def test_averages_go_on_without_gradients_unless_the_step_is_skipped(mode: str) -> None:
    start = [np.ones(3, np.float32), np.ones(3, np.float32)]
    run = harness.Run(
        "LANS", start, mode, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    )
    run.step([np.ones(3, np.float32), None])
    average = run.optimizer._model_variables_moving_average[1]
    np.testing.assert_array_equal(harness.numpy(average), start[1])
    run.variables[1].assign(start[1] + 1)
    run.step([np.full(3, np.nan, np.float32), None])
    np.testing.assert_array_equal(harness.numpy(average), start[1])
    run.step([np.ones(3, np.float32), None])
    np.testing.assert_array_equal(harness.numpy(average), start[1] + 0.5)
    np.testing.assert_array_equal(run.values()[1], start[1] + 1)
    run.step([np.ones(3, np.float32), None])
    np.testing.assert_array_equal(run.values()[1], start[1] + 0.75)


@each_class
@each_mode
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_variables_keep_moving(name: str, mode: str, dtype: str) -> None:
    """Moments of 16 bits would stand still: 0.999 rounds to 1."""
    start = [np.ones((4, 4), np.float32)]
    run = harness.Run(name, start, mode, dtype=dtype)
    for _ in range(20):
        run.step([np.ones((4, 4), np.float32)])
    state = [*run.optimizer._momentums, *run.optimizer._velocities]
    assert {keras.backend.standardize_dtype(each.dtype) for each in state} == {"float32"}
    assert keras.backend.standardize_dtype(run.variables[0].dtype) == dtype
    # Each update moves a value by about the rate; bfloat16 keeps 1/256 of 1.
    assert (run.values()[0].astype(np.float32) < 1 - 10 * RATE).all()


@each_mode
def test_constraints_hold_and_a_skipped_step_leaves_them_alone(mode: str) -> None:
    start = [np.array([-1.0, 1.0, 2.0], np.float32)]
    run = harness.Run("LANS", start, mode, constraint=keras.constraints.NonNeg())
    run.step([np.array([np.nan, 1, 1], np.float32)])
    harness.assert_equal(run.values(), start)
    run.step([np.ones(3, np.float32)])
    assert run.values()[0][0] == 0.0
    assert (run.values()[0][1:] > 0).all()


@each_mode
def test_the_learning_rate_can_be_set(mode: str) -> None:
    start = harness.single_values()
    run = harness.Run("LANS", start, mode)
    expected = reference.Reference("lans", start)
    for number, gradients in enumerate(harness.gradient_steps(start, 4), start=1):
        run.optimizer.learning_rate = 0.5**number
        run.step(gradients)
        expected.step(gradients, 0.5**number)
    assert reference.relative_error(run.values(), expected.values, start) <= FLOAT32_TOLERANCE


@each_class
def test_the_configuration_makes_the_same_optimizer(name: str) -> None:
    optimizer = getattr(tf_lans.keras3, name)(
        tf_lans.keras3.WarmupConstantDecay(0.02, 8, 3, 2),
        beta_2=0.98,
        exclude_from_weight_decay=["bias"],
        skip_nonfinite=False,
        global_clipnorm=1.0,
        gradient_accumulation_steps=4,
        use_ema=True,
    )
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(copy.deepcopy(config))
    assert type(again) is type(optimizer)
    assert again.hyperparameters == optimizer.hyperparameters
    assert keras.saving.serialize_keras_object(again) == config
    assert type(optimizer).from_config(optimizer.get_config()).get_config().keys() == (
        optimizer.get_config().keys()
    )


def test_what_a_block_gathered_ends_with_its_window() -> None:
    """A block without gradient in a window's last micro-step takes nothing into the next.

    Eagerly only: which gradients are missing is fixed when a step is compiled.
    """
    start = harness.single_values()
    run = harness.Run("LANS", start, gradient_accumulation_steps=2)
    first, second = harness.gradient_steps(start, 2)
    run.step(first)
    variables = run.variables
    run.optimizer.apply([keras.ops.convert_to_tensor(second[0])], variables[:1])
    np.testing.assert_array_equal(run.values()[1], start[1])
    for accumulator in run.optimizer._accumulated_gradients:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(accumulator), 0.0)
