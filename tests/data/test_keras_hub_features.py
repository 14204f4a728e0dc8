"""`features="keras_hub"`: Model Garden's features under KerasHub's names, and its own types."""

import pathlib

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import tfrecords
from tests.data.conftest import build_arguments
from tfrecords import UserError, build

LENGTH, ROWS = 32, 16


@pytest.fixture(scope="module", params=["stored", "dynamic"])
def folder(
    request: pytest.FixtureRequest,
    shards: pathlib.Path,
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    if request.param == "stored":
        return shards
    path = tmp_path_factory.mktemp("dynamic") / "shards"
    arguments = build_arguments(corpus_dir, vocab_file, path)
    assert build.main([*arguments, "--records=dynamic"]) == 0
    return path


def read(folder: pathlib.Path, **options: object) -> tf.data.Dataset:
    return tfrecords.read(folder, seq_length=LENGTH, global_batch_size=ROWS, **options)


def kerashub_spec(folder: pathlib.Path) -> tuple:
    """Shapes and types of what KerasHub's own preprocessor gives for as many rows."""
    manifest = tfrecords.Manifest.load(folder)
    preprocessor = keras_hub.models.BertMaskedLMPreprocessor(
        keras_hub.tokenizers.BertTokenizer(vocabulary=manifest.vocabulary_file, lowercase=True),
        sequence_length=LENGTH,
        mask_selection_length=manifest.max_predictions_per_seq(LENGTH),
    )
    segments = (tf.constant(["kalomi nesta"] * ROWS), tf.constant(["pi qua"] * ROWS))
    return tf.nest.map_structure(tf.TensorSpec.from_tensor, preprocessor(segments))


def test_structure_shapes_and_types_are_those_of_kerashubs_preprocessor(
    folder: pathlib.Path,
) -> None:
    expected = kerashub_spec(folder)
    for split in ("train", "eval"):
        spec = read(folder, features="keras_hub", split=split).element_spec
        tf.nest.assert_same_structure(spec, expected)
        for one, other in zip(tf.nest.flatten(spec), tf.nest.flatten(expected), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert one.shape.is_fully_defined()


def test_values_are_those_of_model_garden(folder: pathlib.Path) -> None:
    started = read(folder, features="keras_hub", start_step=2)
    filled_up = 0
    for old, new in tf.data.Dataset.zip(read(folder).skip(2), started).take(20).as_numpy_iterator():
        x, y, sample_weight = new
        np.testing.assert_array_equal(x["token_ids"], old["input_word_ids"])
        np.testing.assert_array_equal(x["segment_ids"], old["input_type_ids"])
        np.testing.assert_array_equal(x["padding_mask"], old["input_mask"] == 1)
        np.testing.assert_array_equal(x["padding_mask"], x["token_ids"] != 0)
        np.testing.assert_array_equal(x["mask_positions"], old["masked_lm_positions"])
        np.testing.assert_array_equal(y, old["masked_lm_ids"])
        np.testing.assert_array_equal(sample_weight, old["masked_lm_weights"])
        filled_up += (sample_weight == 0).sum()
    assert filled_up


def test_rows_that_are_no_examples_weigh_nothing(shards: pathlib.Path) -> None:
    examples = tfrecords.Manifest.load(shards).num_examples("eval", LENGTH)
    options = {"split": "eval", "features": "keras_hub", "global_batch_size": examples + 3}
    ((x, _, sample_weight),) = tfrecords.read(shards, seq_length=LENGTH, **options)
    filling = ~x["padding_mask"].numpy().any(axis=1)
    assert filling.sum() == 3 and not sample_weight.numpy()[filling].any()


def test_none_is_the_default(folder: pathlib.Path) -> None:
    assert read(folder, features=None).element_spec == read(folder).element_spec


def test_an_unknown_name_is_refused_with_the_choices(shards: pathlib.Path) -> None:
    with pytest.raises(UserError, match="'hub'; expected 'model_garden' or 'keras_hub'$"):
        read(shards, features="hub")


@pytest.mark.parametrize("name", ["BertMaskedLM", "RoformerV2MaskedLM"])
def test_the_models_have_inputs_for_it(shards: pathlib.Path, name: str) -> None:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    vocabulary_size = tfrecords.Manifest.load(shards).vocab_size
    model_class = getattr(keras_hub.models, name)
    if name == "RoformerV2MaskedLM":
        sizes["head_size"] = 4
    model = model_class(model_class.backbone_cls(vocabulary_size=vocabulary_size, **sizes))
    x, y, _ = next(iter(read(shards, features="keras_hub")))
    # RoFormer tells padding by its id.
    assert set(x) - set(model.input) == ({"padding_mask"} if "head_size" in sizes else set())
    logits = model({name: x[name] for name in model.input})
    assert logits.shape == (*y.shape, vocabulary_size)
