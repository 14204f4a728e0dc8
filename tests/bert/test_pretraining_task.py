"""The train step: Model Garden's loss on one replica, and the global batch's on any cut."""

import numpy as np
import pytest
import tensorflow as tf
from official.nlp.tasks import masked_lm

from official_bert import devices, optimization, pretraining_task
from official_bert.pretraining_task import LargeBatchPretrainTask

BATCH = 32


@pytest.fixture(scope="module")
def params(tiny):
    return tiny()


@pytest.fixture(scope="module")
def batch(params):
    """A real training batch with uneven mask counts over its rows."""
    task = LargeBatchPretrainTask(params.task)
    return next(iter(task.build_inputs(params.task.train_data)))


def split(batch, replicas: int):
    size = BATCH // replicas
    return [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(replicas)]


def train(params, batches, strategy, micro_batch_size: int, kind: str = "lans", weights=None):
    """Weights by name after one update per batch, from the same start."""
    task_config = params.task.replace(micro_batch_size=micro_batch_size)
    with strategy.scope():
        task = LargeBatchPretrainTask(task_config)
        model = task.build_model()
        model.set_weights(weights)
        schedule = params.trainer.optimizer_config
        config = schedule.replace(optimizer=schedule.optimizer.replace(type=kind))
        optimizer = optimization.build_optimizer(config, len(batches))
        variables = task.trained_variables(model)
        if kind != "adamw":
            optimizer.build(variables)
    replicas = strategy.num_replicas_in_sync

    @tf.function
    def step(values):
        return strategy.run(lambda v: task.train_step(v, model, optimizer), args=(values,))

    logs = []
    for each in batches:
        parts = split(each, replicas)
        values = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        local = step(values)
        logs.append({k: strategy.experimental_local_results(v) for k, v in local.items()})
    return {v.name: v.numpy() for v in variables}, logs, model


@pytest.fixture(scope="module")
def start(params):
    model = LargeBatchPretrainTask(params.task).build_model()
    return model.get_weights(), {v.name: v.numpy() for v in model.trainable_variables}


@pytest.fixture(scope="module")
def batches(params):
    task = LargeBatchPretrainTask(params.task)
    return list(task.build_inputs(params.task.train_data).take(5))


@pytest.fixture(scope="module")
def whole(params, batches, start):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    return train(params, batches, strategy, 0, weights=start[0])


def test_masks_are_uneven(batches) -> None:
    counts = [[float(tf.reduce_sum(p["masked_lm_weights"])) for p in split(b, 2)] for b in batches]
    assert any(left != right for left, right in counts)


@pytest.mark.parametrize(
    ("replicas", "micro_batch_size"), [(1, 8), (1, 2), (2, 0), (2, 4)], ids=str
)
def test_the_step_does_not_depend_on_how_the_batch_was_cut(
    params, batches, start, whole, replicas: int, micro_batch_size: int
) -> None:
    """Displacements of every block agree to 1e-4 after 5 updates.

    Rounding of float32 sums over at most 32 x 32 terms is about 1e-6 of a gradient; LANS divides
    by its norm, so it stays relative, and five updates and the division by sqrt(v) leave room
    for a factor of 100. The key biases are left out: their true gradient is zero, and LANS
    scales what rounding leaves of it to a full step.
    """
    name = "mirrored" if replicas > 1 else "one_device"
    strategy = devices.build_strategy(params.runtime.replace(distribution_strategy=name))
    assert strategy.num_replicas_in_sync == replicas
    weights, logs, _ = train(params, batches, strategy, micro_batch_size, weights=start[0])
    expected, expected_logs, _ = whole
    for name, value in expected.items():
        if name.endswith("key/bias:0"):
            continue
        displacement = np.linalg.norm(value - start[1][name])
        assert displacement > 0, name
        assert np.linalg.norm(weights[name] - value) <= 1e-4 * displacement, name
    for ours, reference in zip(logs, expected_logs, strict=True):
        for name, values in ours.items():
            assert len(values) == replicas
            np.testing.assert_allclose(values, reference[name][0].numpy(), rtol=1e-4, err_msg=name)


def test_one_replica_has_model_gardens_loss_and_accuracy(params, batch, start) -> None:
    stock = masked_lm.MaskedLMTask(
        masked_lm.MaskedLMConfig(model=params.task.model, train_data=params.task.train_data)
    )
    task = LargeBatchPretrainTask(params.task)
    model = task.build_model()
    model.set_weights(start[0])
    outputs = model(batch, training=False)
    metrics = stock.build_metrics()
    loss = stock.build_losses(batch, outputs, metrics)
    stock.process_metrics(metrics, batch, outputs)
    sums = pretraining_task.batch_sums(batch, outputs)
    totals = pretraining_task.batch_denominators(batch)
    logs = pretraining_task.losses_and_accuracies(sums, totals, next_sentence=True)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-6)
    expected = {metric.name: float(metric.result()) for metric in metrics}
    for ours, theirs in {
        "masked_lm_loss": "lm_example_loss",
        "masked_lm_accuracy": "masked_lm_accuracy",
        "next_sentence_loss": "next_sentence_loss",
        "next_sentence_accuracy": "next_sentence_accuracy",
    }.items():
        np.testing.assert_allclose(logs[ours], expected[theirs], rtol=1e-5, err_msg=ours)


def test_padding_rows_count_for_nothing(params, batch, start) -> None:
    task = LargeBatchPretrainTask(params.task)
    model = task.build_model()
    model.set_weights(start[0])
    half = {k: v[: BATCH // 2] for k, v in batch.items()}
    padded = {
        k: tf.concat([v[: BATCH // 2], tf.zeros_like(v[BATCH // 2 :])], 0) for k, v in batch.items()
    }
    results = []
    for values in (half, padded):
        metrics = task.build_metrics(training=False)
        task.validation_step(values, model, metrics)
        results.append([float(metric.result()) for metric in metrics])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_trained_variables_are_those_with_a_gradient(params, batch) -> None:
    task = LargeBatchPretrainTask(params.task)
    model = task.build_model()
    with tf.GradientTape() as tape:
        sums = pretraining_task.batch_sums(batch, model(batch, training=True))
        totals = pretraining_task.batch_denominators(batch)
        loss = pretraining_task.batch_loss(sums, totals)
    gradients = tape.gradient(loss, model.trainable_variables)
    moved = [
        v.name for v, g in zip(model.trainable_variables, gradients, strict=True) if g is not None
    ]
    assert [v.name for v in task.trained_variables(model)] == moved
    assert len(moved) == len(model.trainable_variables) - 2


@pytest.mark.parametrize("kind", ["lamb", "block_normalized_adamw", "adamw"])
def test_the_other_optimizers_train_too(params, batches, start, kind: str) -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    weights, logs, _ = train(params, batches, strategy, 0, kind=kind, weights=start[0])
    assert all(np.isfinite(float(log["loss"][0])) for log in logs)
    assert any(np.any(weights[name] != start[1][name]) for name in weights)
