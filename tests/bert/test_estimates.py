"""Estimates: weights, memory and checkpoints, batches and rates, from a recipe and its shards."""

import dataclasses
import json
import math

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from official.core import task_factory

import tfrecords
from official_bert import configuration, estimates, experiments, optimization
from official_bert.pretraining_task import LargeBatchPretrainTask
from tests.bert.conftest import SHORT
from tests.bert.recipes import load
from tfrecords import schema

OTHER_SHAPE = """
task:
  model:
    encoder:
      bert: {vocab_size: 97, hidden_size: 24, num_layers: 3, num_attention_heads: 3,
             intermediate_size: 40, max_position_embeddings: 33, type_vocab_size: 3,
             embedding_size: 10}
    cls_heads:
      - {inner_dim: 24, num_classes: 2, name: next_sentence}
      - {inner_dim: 5, num_classes: 4, name: other}
"""


def built(params) -> tuple[int, int, tf.keras.Model]:
    task = task_factory.get_task(params.task)
    assert isinstance(task, LargeBatchPretrainTask)
    model = task.build_model()
    trained = task.trained_variables(model)
    return (
        sum(math.prod(variable.shape) for variable in model.variables),
        sum(math.prod(variable.shape) for variable in trained),
        model,
    )


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", ["", OTHER_SHAPE], ids=["tiny", "other"])
def test_the_formula_counts_the_weights_of_the_built_model(shape, labels, tiny, tmp_path) -> None:
    params = tiny(task__train_data__use_next_sentence_label=labels)
    if shape:
        (tmp_path / "shape.yaml").write_text(shape)
        override = f"task.train_data.use_next_sentence_label={labels}"
        params = configuration.load(
            experiments.PRETRAINING, [str(tmp_path / "shape.yaml")], override
        )
    every, trained, _ = built(params)
    count = estimates.parameters(params.task.model, labels)
    assert (count.model, count.trained) == (every, trained)


def test_bert_large_has_as_many_weights_as_published() -> None:
    """335,141,888 in the encoder with its pooler: `BertModel` of Hugging Face's large model."""
    params = load(recipe="bert_large_phase1.yaml")
    bare = params.task.model.replace(cls_heads=[])
    encoder = params.task.model.encoder.get()
    masked_lm = encoder.hidden_size**2 + 3 * encoder.hidden_size + encoder.vocab_size
    assert estimates.parameters(bare).model - masked_lm == 335_141_888


def test_a_checkpoint_on_disk_is_as_large_as_estimated(tiny, tmp_path) -> None:
    params = tiny()
    every, trained, model = built(params)
    optimizer = optimization.build_optimizer(params.trainer.optimizer_config, 6)
    optimizer.build(task_factory.get_task(params.task).trained_variables(model))
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "c"))
    size = sum(path.stat().st_size for path in tmp_path.glob("c*"))
    count = estimates.Parameters(model=every, trained=trained)
    estimate = estimates.checkpoint_bytes(count, estimates.slots(params.trainer.optimizer_config))
    assert estimate <= size <= estimate + 200_000
    assert estimates.checkpoint_bytes(count, 2, ema=True) == estimate + 4 * every


@given(
    hidden=st.sampled_from([64, 768, 1024]),
    heads=st.sampled_from([2, 16]),
    rows=st.integers(1, 64),
    length=st.sampled_from([128, 512]),
)
def test_activations_are_those_of_the_cited_formula(hidden, heads, rows, length) -> None:
    encoder = experiments.encoders.BertEncoderConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=heads
    )
    published = length * rows * hidden * (34 + 5 * heads * length / hidden)
    assert estimates.layer_activation_bytes(encoder, rows, length, 2) == pytest.approx(published)
    # In float32 all but the dropout masks, a byte each, is twice as large.
    masks = rows * (2 * length * hidden + heads * length**2)
    in_float32 = estimates.layer_activation_bytes(encoder, rows, length, 4)
    assert in_float32 == pytest.approx(2 * (published - masks) + masks)
    calm = encoder.replace(dropout_rate=0.0, attention_dropout_rate=0.0)
    without = length * rows * hidden * 32 + 2 * rows * heads * length**2
    assert estimates.layer_activation_bytes(calm, rows, length, 2) == without


def test_memory_by_hand(tiny) -> None:
    params = tiny(runtime__mixed_precision_dtype="bfloat16")
    count = estimates.parameters(params.task.model)
    encoder = params.task.model.encoder.get()
    found = estimates.memory(params, examples=8, micro_batches=4, predictions=5)
    assert found.weights == 6 * count.model
    assert found.optimizer == 8 * count.trained
    assert found.gradients == 8 * count.trained
    assert found.activations == 2 * estimates.layer_activation_bytes(encoder, 8, SHORT, 2)
    assert found.logits == 3 * 4 * 8 * 5 * encoder.vocab_size
    assert found.total == sum(vars(found).values())
    whole = estimates.memory(tiny(), examples=8, micro_batches=1, predictions=5)
    assert whole.weights == 4 * count.model and whole.gradients == 4 * count.trained
    assert whole.activations == 2 * estimates.layer_activation_bytes(encoder, 8, SHORT, 4)


@given(
    workers=st.sampled_from([1, 2, 4]),
    per_worker=st.sampled_from([1, 3]),
    micro_batches=st.integers(1, 6),
    micro=st.integers(1, 9),
    steps=st.integers(1, 99),
)
def test_batches_add_up(workers, per_worker, micro_batches, micro, steps) -> None:
    replicas = workers * per_worker
    cut = estimates.Batches(
        steps=steps,
        global_batch=replicas * micro_batches * micro,
        per_worker=per_worker * micro_batches * micro,
        per_replica=micro_batches * micro,
        per_micro_batch=micro,
        seq_length=7,
        split_examples=11,
    )
    assert cut.micro_batches == micro_batches
    assert cut.pieces == replicas * micro_batches
    assert cut.per_worker * workers == cut.per_replica * replicas == cut.global_batch
    assert cut.tokens_per_step == 7 * cut.global_batch
    assert cut.epochs == pytest.approx(steps * cut.global_batch / 11)
    assert dataclasses.replace(cut, split_examples=None).epochs is None


def test_batches_of_a_recipe(tiny, shards) -> None:
    params = tiny(task__micro_batch_size=4)
    cut = estimates.batches(params, workers=2, replicas=4, split_examples=100)
    assert (cut.per_worker, cut.per_replica, cut.per_micro_batch) == (16, 8, 4)
    assert (cut.micro_batches, cut.pieces, cut.examples, cut.epochs) == (2, 8, 192, 1.92)
    assert estimates.batches(tiny(), workers=1, replicas=2).per_micro_batch == 16


def test_rates_of_the_papers_phase_1() -> None:
    params = load(recipe="bert_large_phase1.yaml")
    found = estimates.learning_rates(params.trainer.optimizer_config, params.trainer.train_steps)
    assert [rate.step for rate in found] == [1, 1500, 2463, 2991, 3519]
    peak = 0.00675
    half = peak * (3519 - 2991) / (3519 - 2463)
    expected = [peak / 1500, peak, peak, half, 0.0]
    assert [rate.rate for rate in found] == pytest.approx(expected, rel=1e-6)
    assert found[3].rate == pytest.approx(peak / 2, rel=1e-3)


def test_rates_of_runs_without_some_phases() -> None:
    def rates(override: str, steps: int = 8) -> list[tuple[str, int, float]]:
        params = load(override)
        found = estimates.learning_rates(params.trainer.optimizer_config, steps)
        return [(rate.name, rate.step, round(rate.rate, 6)) for rate in found]

    schedule = "trainer.optimizer_config.learning_rate"
    fields = {"warmup_ratio": None, "constant_ratio": None, "peak_learning_rate": 1.0}

    def with_fields(**more: int) -> str:
        return json.dumps(
            {
                "trainer": {
                    "optimizer_config": {"learning_rate": {"warmup_constant_decay": fields | more}}
                }
            }
        )

    assert rates(with_fields(warmup_steps=2)) == [
        ("first step", 1, 0.5),
        ("end of warmup", 2, 1.0),
        ("half way down", 5, 0.5),
        ("last step", 8, 0.0),
    ]
    # A run that ends on the plateau of a longer schedule.
    assert rates(with_fields(warmup_steps=2, constant_steps=10, total_steps=20)) == [
        ("first step", 1, 0.5),
        ("end of warmup", 2, 1.0),
        ("last step", 8, 1.0),
    ]
    constant = f"{schedule}.type=constant,{schedule}.constant.learning_rate=0.25"
    assert [step for _, step, _ in rates(constant)] == [1, 2, 4, 6, 8]
    assert {rate for *_, rate in rates(constant)} == {0.25}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_sizes_in_words(size, words) -> None:
    assert estimates.in_words(size) == words


def test_masked_positions_come_from_the_shards(tiny, shards) -> None:
    manifest = tfrecords.Manifest.load(shards)
    data = tiny().task.train_data
    assert estimates.predictions(data, manifest) == manifest.max_predictions_per_seq(SHORT)
    assert estimates.predictions(data) == schema.default_max_predictions(SHORT, 0.15)
    assert estimates.predictions(data.replace(masked_lm_prob=0.5)) == (
        schema.default_max_predictions(SHORT, 0.5)
    )
    for shards_there in (None, manifest):
        assert estimates.predictions(data.replace(max_predictions_per_seq=3), shards_there) == 3
