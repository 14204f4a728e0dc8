"""Dropout as a function of (seed, step, replica, micro-batch, layer)."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from official_bert import dropout, interruption
from official_bert.pretraining_task import LargeBatchPretrainTask
from official_bert.trainer import build_trainer


def mask(rate: float, key, shape=(64, 257), dtype=tf.float32) -> np.ndarray:
    return dropout.dropped(tf.ones(shape, dtype), rate, tf.constant(key), shape).numpy()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_kept(rate: float) -> None:
    """Within five standard deviations of a binomial count."""
    values = mask(rate, [3, 4], (1000, 1000))
    kept = values != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / values.size)
    assert abs(values.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / values.size)
    assert len(np.unique(values)) == 2


def test_both_halves_of_a_word_are_independent() -> None:
    kept = mask(0.5, [1, 2], (1000, 200)) != 0
    low, high = kept[:, :100], kept[:, 100:]
    assert abs((low == high).mean() - 0.5) < 5 * 0.5 / np.sqrt(low.size)


@given(
    shape=st.lists(st.integers(1, 5), max_size=4),
    rate=st.floats(0.0, 0.99),
    key=st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_and_the_same_bits_with_xla(shape, rate, key) -> None:
    inputs = tf.reshape(tf.range(np.prod(shape, dtype=int), dtype=tf.float32) + 1, shape)
    plain = dropout.dropped(inputs, rate, tf.constant(key))
    compiled = tf.function(dropout.dropped, jit_compile=True)(inputs, rate, tf.constant(key))
    np.testing.assert_array_equal(plain, compiled)
    scale = np.float32(2**16 / (2**16 - round(rate * 2**16)))
    expected = np.where(plain.numpy() != 0, inputs * scale, 0)
    np.testing.assert_array_equal(plain, expected)


def test_a_dynamic_shape_is_refused() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def run(inputs):
        return dropout.dropped(inputs, 0.1, tf.constant([1, 2]))

    with pytest.raises(ValueError, match="static shapes"):
        run(tf.ones([3]))


def test_everything_that_tells_a_mask_from_another_does() -> None:
    base = {"seed": 1, "step": 5, "replica": 0, "micro_batch": 0, "layer": 2}

    def bits(seed, step, replica, micro_batch, layer):
        key = dropout.folded(dropout.step_key(seed, tf.constant(step), replica), micro_batch)
        return mask(0.5, dropout.folded(key, layer))

    first = bits(**base)
    np.testing.assert_array_equal(first, bits(**base))
    for name in base:
        other = bits(**{**base, name: base[name] + 1})
        assert 0.4 < (other == first).mean() < 0.6, name


def test_no_two_places_share_a_key() -> None:
    """Neighbours in every direction, whose numbers have equal sums among others."""
    numbers = range(4)
    keys = set()
    for seed, step, replica in itertools.product(numbers, repeat=3):
        first = dropout.step_key(seed, tf.constant(step), replica)
        for micro_batch in numbers:
            second = dropout.folded(first, micro_batch)
            keys |= {tuple(dropout.folded(second, layer).numpy()) for layer in numbers}
    assert len(keys) == len(numbers) ** 5
    largest = dropout.step_key(2**32 - 1, tf.constant(0))
    assert tuple(largest.numpy()) != tuple(dropout.step_key(0, tf.constant(0)).numpy())


def test_layers_without_a_key_draw_as_keras_does() -> None:
    layer = tf_keras.layers.Dropout(0.5)
    model = tf_keras.Sequential([tf_keras.Input([1000]), layer])
    assert dropout.install(model) == 1 == dropout.install(model)
    ones = tf.ones([1, 1000])
    assert (model(ones, training=True) != model(ones, training=True)).numpy().any()
    with dropout.keyed(tf.constant([1, 2])):
        first, again = (model(ones, training=True) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(model(ones, training=False), ones)


def test_a_step_draws_nothing_from_a_stateful_generator(tiny) -> None:
    """Every random operation of the whole loop of steps has its seed as an input."""
    rate = "task__model__encoder__bert__"
    params = tiny(**{f"{rate}dropout_rate": 0.1, f"{rate}attention_dropout_rate": 0.1})
    task = LargeBatchPretrainTask(params.task)
    trainer = build_trainer(params, task, train=True, evaluate=False)
    batch = next(iter(task.build_inputs(params.task.train_data)))
    layers = [layer for layer in trainer.model._flatten_layers() if hasattr(layer, "rate")]
    # embeddings; attention, its output and the block's for each of two blocks; the head's
    assert len([layer for layer in layers if layer.rate]) == 1 + 2 * 3
    step = tf.function(trainer._step_row).get_concrete_function(batch)
    kinds = {
        node.op
        for graph in [step.graph.as_graph_def()]
        for nodes in [graph.node, *(function.node_def for function in graph.library.function)]
        for node in nodes
        if "Random" in node.op
    }
    assert kinds and all(kind.startswith("Stateless") for kind in kinds), kinds
    assert isinstance(trainer._stop, interruption.StopRequest)
