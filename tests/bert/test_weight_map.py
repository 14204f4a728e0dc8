"""The table of weights: complete, one to one, and its changes of shape undone exactly."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from official.nlp.configs import encoders

from official_bert import experiments
from official_bert.export import architecture, weight_map
from official_bert.export.keras_hub import build
from tests.bert.conftest import VOCAB_SIZE
from tfrecords.vocabulary import Vocabulary

ENCODER = encoders.BertEncoderConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=24,
    num_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    type_vocab_size=4,
)
SIZES = architecture.sizes(ENCODER)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    experiments.register()
    model = architecture.build(ENCODER)
    return {name: tuple(variable.shape) for name, variable in architecture.variables(model).items()}


def test_every_variable_of_model_garden_is_in_it_once(shapes: dict[str, tuple[int, ...]]) -> None:
    table = weight_map.entries(ENCODER.num_layers)
    names = [entry.model_garden for entry in table]
    assert len(set(names)) == len(names)
    assert set(names) | set(weight_map.POOLER_COPIES) == set(shapes)
    for entry in table:
        assert entry.keras_shape(SIZES) == shapes[entry.model_garden]
    for copy, original in weight_map.POOLER_COPIES.items():
        assert shapes[copy] == shapes[original]


def test_every_weight_of_keras_hub_is_in_it_once(shards) -> None:
    vocabulary = Vocabulary.load(shards / "vocab.txt")
    model = build(ENCODER, vocabulary, lower_case=True)
    theirs = {variable.path: tuple(variable.shape) for variable in model.weights}
    table = [entry for entry in weight_map.entries(ENCODER.num_layers) if entry.keras_hub]
    assert {entry.keras_hub: entry.keras_shape(SIZES) for entry in table} == theirs
    rest = {entry.model_garden for entry in weight_map.entries(1) if not entry.keras_hub}
    assert rest == {"bert/next_sentence/logits/kernel", "bert/next_sentence/logits/bias"}


def test_names_of_hugging_face_are_distinct() -> None:
    names = [entry.hugging_face for entry in weight_map.entries(3)]
    assert len(set(names)) == len(names)
    assert all(weight_map.canonical(name) == name for name in names)
    without = {entry.hugging_face for entry in weight_map.entries(3, next_sentence=False)}
    assert set(names) - without == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}


@given(
    heads=st.integers(1, 4),
    head=st.integers(1, 4),
    inner=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_there_and_back_is_the_identity(heads: int, head: int, inner: int, seed: int) -> None:
    sizes = SIZES | {"heads": heads, "head": head, "hidden": heads * head, "inner": inner}
    draw = np.random.default_rng(seed)
    table = weight_map.entries(1)
    arrays = {
        entry.model_garden: draw.normal(size=entry.keras_shape(sizes)).astype(np.float32)
        for entry in table
    }
    tensors = weight_map.to_hugging_face(arrays, table)
    for entry in table:
        assert tensors[entry.hugging_face].shape == entry.hugging_face_shape(sizes)
    back = weight_map.from_hugging_face(tensors, table, sizes)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_projections_are_the_same_linear_maps() -> None:
    """What a kernel does to a vector is what PyTorch's x W^T + b does with its matrix."""
    draw = np.random.default_rng(0)
    table = {entry.model_garden: entry for entry in weight_map.entries(1)}
    attention = "transformer/layer_0/self_attention"
    x = draw.normal(size=(5, 24))
    query = draw.normal(size=(24, 3, 8))
    bias = draw.normal(size=(3, 8))
    expected = np.einsum("bi,ihd->bhd", x, query) + bias
    matrix = table[f"{attention}/query/kernel"].to_hugging_face(query)
    flat = table[f"{attention}/query/bias"].to_hugging_face(bias)
    np.testing.assert_allclose(x @ matrix.T + flat, expected.reshape(5, 24), atol=1e-12)
    output = draw.normal(size=(3, 8, 24))
    matrix = table[f"{attention}/attention_output/kernel"].to_hugging_face(output)
    expected = np.einsum("bhd,hdo->bo", x.reshape(5, 3, 8), output)
    np.testing.assert_allclose(x @ matrix.T, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("encoder.layer.0.output.LayerNorm.beta", "bert.encoder.layer.0.output.LayerNorm.bias"),
        ("encoder.layer.11.output.dense.bias", "bert.encoder.layer.11.output.dense.bias"),
        ("pooler.dense.weight", "bert.pooler.dense.weight"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("cls.predictions.bias", "cls.predictions.bias"),
    ],
)
def test_old_and_bare_names(spelled: str, expected: str) -> None:
    assert weight_map.canonical(spelled) == expected


def test_a_wrong_shape_is_named() -> None:
    table = weight_map.entries(1)
    tensors = {"bert.pooler.dense.weight": np.zeros((24, 23))}
    with pytest.raises(ValueError, match=re.escape("(24, 23), expected (24, 24)")):
        weight_map.from_hugging_face(tensors, table, SIZES)
