"""The train step: Model Garden's loss on one replica, and the global batch's on any cut."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.nlp.tasks import masked_lm

from official_bert import devices, pretraining_task
from official_bert.pretraining_task import LargeBatchPretrainTask
from official_bert.trainer import build_trainer
from tests.bert import cut_batches
from tests.bert.cut_batches import STEPS, split, train
from tests.bert.workers import run_workers

BATCH = 32


@pytest.fixture(scope="module")
def params(tiny):
    return tiny(task__train_data__global_batch_size=BATCH, trainer__train_steps=STEPS)


@pytest.fixture(scope="module")
def batches(params):
    """Real training batches with uneven mask counts over their rows."""
    data = params.task.train_data.replace(global_batch_size=cut_batches.BATCH)
    dataset = LargeBatchPretrainTask(params.task).build_inputs(data).take(STEPS)
    return list(dataset.as_numpy_iterator())


@pytest.fixture(scope="module")
def batch(batches):
    return {k: tf.constant(v[:BATCH]) for k, v in batches[0].items()}


@pytest.fixture(scope="module")
def start(params):
    tf_keras.utils.set_random_seed(0)
    model = LargeBatchPretrainTask(params.task).build_model()
    return model.get_weights(), {v.name: v.numpy() for v in model.trainable_variables}


@pytest.fixture(scope="module")
def whole(params, batches, start):
    """The same batches on one replica, whole."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    return train(params, batches, strategy, 1, start[0])


def test_masks_are_uneven(batches) -> None:
    counts = [[part["masked_lm_weights"].sum() for part in split(each, 2)] for each in batches]
    assert any(left != right for left, right in counts)


def assert_same_training(found, whole, start) -> None:
    """The weights agree to 1e-5 of their displacement, those of every block to 2e-5, in L2 norms.

    Rounding of float32 sums over a batch is about 1e-7 of a gradient; LANS divides by its norm,
    so it stays relative, and twenty updates and the division by sqrt(v), which magnifies what is
    small in a block, leave room for a factor of 100, and in the worst of all blocks for twice that.
    The key biases are left out: their true
    gradient is zero, and LANS scales what rounding leaves of it to a full step.
    """
    names = [name for name in whole if not name.endswith("key/bias:0")]
    assert len(names) == len(whole) - 2
    differences, displacements = (
        np.array([np.linalg.norm(there[name] - whole[name]) for name in names])
        for there in (found, start)
    )
    assert (displacements > 0).all()
    assert np.linalg.norm(differences) <= 1e-5 * np.linalg.norm(displacements)
    assert (differences <= 2e-5 * displacements).all(), names[
        np.argmax(differences / displacements)
    ]


def logits(params, weights, names, values, batch):
    model = LargeBatchPretrainTask(params.task).build_model()
    model.set_weights(weights)
    for variable in model.trainable_variables:
        if variable.name in names:
            variable.assign(values[variable.name])
    return model(batch, training=False)["mlm_logits"].numpy()


@pytest.mark.parametrize(
    ("replicas", "micro_batches", "compiled"),
    [(1, 4, False), (1, 16, False), (2, 1, False), (2, 4, False), (2, 16, False), (2, 4, True)],
    ids=str,
)
def test_the_step_does_not_depend_on_how_the_batch_was_cut(
    params, batches, batch, start, whole, replicas: int, micro_batches: int, compiled: bool
) -> None:
    """Nor on whether forward and backward are one XLA program."""
    name = "mirrored" if replicas > 1 else "one_device"
    strategy = devices.build_strategy(params.runtime.replace(distribution_strategy=name))
    assert strategy.num_replicas_in_sync == replicas
    weights, logs, _ = train(params, batches, strategy, micro_batches, start[0], compiled=compiled)
    expected, expected_logs, _ = whole
    assert_same_training(weights, expected, start[1])
    for ours, reference in zip(logs, expected_logs, strict=True):
        # Its value has a test of its own below; the whole batch has none.
        assert len(ours.pop("piece_gradient_norm")) == replicas
        for name, values in ours.items():
            assert len(values) == replicas
            np.testing.assert_allclose(values, reference[name][0].numpy(), rtol=1e-4, err_msg=name)
    # The outputs, which the key biases' noise must not reach.
    ours, reference = (logits(params, start[0], v, v, batch) for v in (weights, expected))
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


def test_two_workers_train_what_one_does(params, tiny_arguments, batches, start, whole, tmp_path):
    """Two processes under MultiWorkerMirroredStrategy, with 1, 4 and 16 micro-batches."""
    cut_batches.save(tmp_path, tiny_arguments, batches, start[0])
    run_workers([sys.executable, "-m", "tests.bert.cut_batches", str(tmp_path)], 2)
    for micro_batches in cut_batches.MICRO_BATCHES:
        found = dict(np.load(tmp_path / f"result{micro_batches}.npz"))
        logs = {name: found.pop(name) for name in list(found) if name.startswith("log/")}
        assert_same_training(found, whole[0], start[1])
        loss = whole[1][-1]["loss"][0].numpy()
        np.testing.assert_allclose(logs["log/loss"], loss, rtol=1e-5)


def test_key_biases_have_no_gradient(params, batch, start) -> None:
    """Softmax ignores them: what is left is rounding, below 1e-5 of the query bias's gradient."""
    task = LargeBatchPretrainTask(params.task)
    model = task.build_model()
    model.set_weights(start[0])
    with tf.GradientTape() as tape:
        sums = pretraining_task.batch_sums(batch, model(batch, training=True))
        loss = pretraining_task.batch_loss(sums, pretraining_task.batch_denominators(batch))
    variables = {variable.name: variable for variable in model.trainable_variables}
    keys = [name for name in variables if name.endswith("key/bias:0")]
    queries = [name.replace("key", "query") for name in keys]
    gradients = tape.gradient(loss, [variables[name] for name in keys + queries])
    norms = [float(tf.norm(gradient)) for gradient in gradients]
    for key, query in zip(norms[: len(keys)], norms[len(keys) :], strict=True):
        assert key < 1e-5 * query


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


def share_of_loss(model, piece, batch) -> tf.Tensor:
    """What a piece adds to the mean cross entropies of a batch, written anew."""
    outputs = model(piece, training=True)
    words = tf.keras.losses.sparse_categorical_crossentropy(
        piece["masked_lm_ids"], outputs["mlm_logits"], from_logits=True
    )
    pairs = tf.keras.losses.sparse_categorical_crossentropy(
        piece["next_sentence_labels"][:, 0], outputs["next_sentence"], from_logits=True
    )
    weights = piece["masked_lm_weights"]
    return tf.reduce_sum(weights * words) / tf.reduce_sum(batch["masked_lm_weights"]) + (
        tf.reduce_sum(pairs) / len(batch["next_sentence_labels"])
    )


def shares_of_gradient(task, weights, batch, pieces: int) -> np.ndarray:
    """Shape (pieces, numbers): the gradient of each consecutive piece's share of the loss."""
    model = task.build_model()
    model.set_weights(weights)
    found = []
    for piece in split(batch, pieces):
        with tf.GradientTape() as tape:
            loss = share_of_loss(model, piece, batch)
        gradients = tape.gradient(loss, task.trained_variables(model))
        flat = [tf.reshape(tf.convert_to_tensor(each), [-1]) for each in gradients]
        found.append(tf.concat(flat, 0).numpy().astype(np.float64))
    return np.stack(found)


@pytest.mark.parametrize(
    ("distribution", "micro_batch_size", "pieces"),
    [("one_device", 8, 4), ("mirrored", 0, 2), ("mirrored", 4, 8)],
)
def test_the_logged_norms_are_those_of_the_shares(
    tiny, distribution: str, micro_batch_size: int, pieces: int
) -> None:
    """|sum c_i| and sqrt(N sum |c_i|^2), by a tape of the test's own over each of the N pieces.

    Both are norms of sums of float32 numbers: 1e-4 is a hundred times their rounding.
    """
    params = tiny(
        task__train_data__global_batch_size=BATCH,
        task__micro_batch_size=micro_batch_size,
        runtime__distribution_strategy=distribution,
    )
    strategy = devices.build_strategy(params.runtime)
    assert strategy.num_replicas_in_sync == (2 if distribution == "mirrored" else 1)
    with strategy.scope():
        task = LargeBatchPretrainTask(params.task)
        trainer = build_trainer(params, task, train=True, evaluate=False)
    first = next(iter(task.build_inputs(params.task.train_data)))
    whole = {name: tensor.numpy() for name, tensor in first.items()}
    shares = shares_of_gradient(task, trainer.model.get_weights(), whole, pieces)
    with strategy.scope():
        trainer.train(tf.constant(1))
    (row,) = trainer.step_rows
    assert row["pieces"] == pieces
    expected = float(np.sqrt(pieces * np.square(shares).sum()))
    assert row["piece_gradient_norm"] == pytest.approx(expected, rel=1e-4)
    assert row["gradient_norm"] == pytest.approx(np.linalg.norm(shares.sum(0)), rel=1e-4)
    assert expected > 1.01 * row["gradient_norm"]  # they are told from one another


@pytest.mark.parametrize("kind", ["lamb", "block_normalized_adamw", "adamw"])
def test_the_other_optimizers_do_not_depend_on_the_cut_either(
    params, batches, start, kind: str
) -> None:
    """Within the same bounds: they divide by sqrt(v) as LANS does, over fewer updates."""
    one, two = (
        devices.build_strategy(params.runtime.replace(distribution_strategy=name))
        for name in ("one_device", "mirrored")
    )
    expected, *_ = train(params, batches[:5], one, 1, start[0], kind)
    found, *_ = train(params, batches[:5], two, 4, start[0], kind)
    assert_same_training(found, expected, start[1])
