"""bfloat16 and float16: loss scaling, and an overflow on one replica of two."""

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from official_bert import devices, finetune, global_batch, metrics_log, runner
from official_bert.global_batch import StepSettings
from official_bert.loss_scaling import INITIAL, LossScale
from tests.bert import tiny_squad
from tests.bert.half_precision import assert_same_norms
from tests.optimizer.harness import two_replicas
from tf_lans import tf_keras as tf_lans


def test_the_scale_halves_on_overflow_and_doubles_after_good_steps() -> None:
    scale = LossScale(growth_steps=3)
    seen = []
    for finite in (True, False, True, True, True, True):
        scale.update(tf.constant(finite))
        seen.append(float(scale.value) / INITIAL)
    assert seen == [1, 0.5, 0.5, 0.5, 1, 1]
    fixed = LossScale(8.0)
    fixed.update(tf.constant(False))
    assert float(fixed.value) == 8.0
    with pytest.raises(ValueError, match="positive"):
        LossScale(0.0)


def counts(optimizer) -> tuple[int, int]:
    return int(optimizer.skipped_steps.numpy()), int(optimizer.iterations.numpy())


def test_an_overflow_on_one_replica_skips_the_step_on_both() -> None:
    """Replica 1 alone gets a loss whose scaled gradient is infinite; nothing changes on any."""
    strategy = two_replicas()
    with strategy.scope():
        weight = tf.Variable([1.0, 2.0])
        optimizer = tf_lans.LANS(0.1)
        optimizer.build([weight])
        scale = LossScale()
    settings = StepSettings(loss_scale=scale)

    @tf.function
    def step(slopes):
        def one(slope):
            def share(batch, shared, loss_scale):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(batch["slope"] * weight) * loss_scale
                return [tape.gradient(loss, weight)], [tf.reduce_sum(batch["slope"])]

            found = global_batch.summed(share, {"slope": slope}, {}, [weight], 1, 0, settings)
            global_batch.apply(optimizer, found.gradients, [weight], scale)
            return found.gradients[0]

        return strategy.run(one, args=(slopes,))

    def values(left, right):
        rows = [tf.constant([[left, left]]), tf.constant([[right, right]])]
        return strategy.experimental_distribute_values_from_function(
            lambda context: rows[context.replica_id_in_sync_group]
        )

    huge = float(np.finfo(np.float32).max)  # times 2^15 it overflows float32 itself
    step(values(1.0, huge))
    for copy in strategy.experimental_local_results(weight):
        np.testing.assert_array_equal(copy, [1.0, 2.0])
    assert counts(optimizer) == (1, 0)
    for copy in strategy.experimental_local_results(scale.value):
        assert float(copy) == INITIAL / 2
    gradients = step(values(1.0, 3.0))
    for copy in strategy.experimental_local_results(gradients):
        np.testing.assert_array_equal(copy, [4.0, 4.0])
    first, second = (copy.numpy() for copy in strategy.experimental_local_results(weight))
    np.testing.assert_array_equal(first, second)
    assert np.all(first < [1.0, 2.0])
    assert counts(optimizer) == (1, 1)


@pytest.fixture
def _policy_kept() -> Iterator[None]:
    policy = tf_keras.mixed_precision.global_policy()
    yield
    tf_keras.mixed_precision.set_global_policy(policy)


@pytest.mark.usefixtures("_policy_kept")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_follows_the_full_one(tmp_path, tiny, precision: str) -> None:
    """Losses agree to what 8 (bfloat16) or 11 bits carry; float16's scale is checkpointed."""
    logs = {}
    for name in ("float32", precision):
        params = tiny(
            task__micro_batch_size=8,
            runtime__mixed_precision_dtype=name,
            trainer__optimizer_config__learning_rate__warmup_constant_decay__peak_learning_rate=0.005,
        )
        runner.run(params, str(tmp_path / name), "train")
        logs[name] = metrics_log.read(tmp_path / name / metrics_log.METRICS)
    last, reference = logs[precision][-1], logs["float32"][-1]
    assert last["skipped_steps"] < 3
    assert last["loss"] == pytest.approx(reference["loss"], rel=0.02)
    assert_same_norms(logs[precision][0], logs["float32"][0], precision, "piece_gradient_norm")
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / precision))]
    assert any("loss_scale" in name for name in names) == (precision == "float16")


@pytest.mark.usefixtures("_policy_kept")
def test_float16_scales_the_loss_of_answers(tmp_path) -> None:
    """Of SQuAD, and takes the scale out again."""
    folder = tiny_squad.make_folder(tmp_path)
    rows = []
    for name in ("float32", "float16"):
        arguments = tiny_squad.command_line(
            folder, name, f"--config_file={folder / 'small.yaml'}", "--train_steps=1",
            f"--vocab_file={folder / 'vocab.txt'}", "--micro_batch_size=4",
            f"--mixed_precision_dtype={name}",
        )  # fmt: skip
        assert finetune.main(arguments) == 0
        rows.append(metrics_log.read(folder / name / metrics_log.METRICS)[0])
    assert rows[1]["skipped_steps"] == 0
    assert_same_norms(rows[1], rows[0], "float16")


def test_settings_follow_the_runtime() -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    runtime = devices.RuntimeConfig(mixed_precision_dtype="float16", loss_scale=64.0)
    settings = devices.step_settings(runtime, strategy)
    assert not settings.compiled and float(settings.loss_scale.value) == 64.0
    compiled = devices.step_settings(runtime.replace(enable_xla=True), strategy)
    assert compiled.compiled
    packed = devices.RuntimeConfig(bytes_per_pack=1 << 20, all_reduce_alg="ring")
    options = devices.communication(packed)
    assert options.bytes_per_pack == 1 << 20
    assert options.implementation == tf.distribute.experimental.CommunicationImplementation.RING
    assert devices.step_settings(packed, strategy).loss_scale is None


def test_an_optimizer_of_model_gardens_still_clips() -> None:
    """AdamWeightDecay clips by the global norm only what it sums itself."""

    class Clipping(tf_keras.optimizers.legacy.SGD):
        gradient_clip_norm = 1.0

    weight = tf.Variable([0.0, 0.0])
    global_batch.apply(Clipping(1.0), [tf.constant([30.0, 40.0])], [weight])
    np.testing.assert_allclose(weight, [-0.6, -0.8], rtol=1e-6)
