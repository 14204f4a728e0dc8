"""The exported SavedModels say what the checkpoint says, wherever they are loaded."""

import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from official.nlp.configs import encoders
from official.nlp.data import question_answering_dataloader
from official.nlp.tasks import question_answering, sentence_prediction
from official.nlp.tools import export_tfhub_lib
from tensorflow.core.protobuf import saved_model_pb2

from official_bert import checkpoints, finetune, starting_point
from official_bert.export import source
from tests.bert.tiny_saved_model import (
    INPUTS,
    LAYERS,
    LENGTH,
    PLACES,
    SENTENCES,
    TOKENS,
    encoder_config,
    make_folder,
    model_gardens_outputs,
    randomize,
    rows,
    sentences,
)
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

# The bound for every output in float32; the weights are such that outputs are of order 1.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_folder(tmp_path_factory.mktemp("saved_model"))


@pytest.fixture(scope="module")
def encoder(root: pathlib.Path) -> Any:
    return hub.load(str(root / "export" / "encoder"))


@pytest.fixture(scope="module")
def inputs(root: pathlib.Path) -> dict[str, np.ndarray]:
    return rows(root)


@pytest.fixture(scope="module")
def expected(root: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return model_gardens_outputs(root, inputs)


def without(inputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: tf.constant(inputs[name]) for name in inputs if name not in names}


def check(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Every output that both have is equal within the tolerance, and of order 1."""
    assert {"sequence_output", "pooled_output"} <= set(actual)
    for name, value in actual.items():
        reference = expected["pooled_output" if name == "default" else name]
        for one, other in zip(tf.nest.flatten(value), tf.nest.flatten(reference), strict=True):
            assert np.std(other) > 0.1
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE, err_msg=name)


def test_encoder_and_masked_lm_head(
    root: pathlib.Path,
    encoder: Any,
    inputs: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
) -> None:
    outputs = encoder(without(inputs, "masked_lm_positions"))
    assert set(outputs) == {"sequence_output", "pooled_output", "default", "encoder_outputs"}
    assert len(outputs["encoder_outputs"]) == LAYERS
    check(outputs, expected)
    filled = encoder.mlm(without(inputs))
    assert filled["mlm_logits"].shape == (SENTENCES, PLACES, len(TOKENS))
    check(filled, expected)
    assert encoder.do_lower_case.numpy()
    vocabulary = pathlib.Path(encoder.vocab_file.asset_path.numpy().decode())
    assert vocabulary.read_bytes() == (root / "run" / "vocab.txt").read_bytes()


def test_signatures(
    encoder: Any, inputs: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> None:
    outputs = encoder.signatures["serving_default"](**without(inputs, "masked_lm_positions"))
    layers = [outputs.pop(f"encoder_outputs_{index}") for index in range(LAYERS)]
    assert set(outputs) == {"sequence_output", "pooled_output"}
    check({**outputs, "encoder_outputs": layers}, expected)
    (logits,) = encoder.signatures["mlm"](**without(inputs)).values()
    np.testing.assert_allclose(logits, expected["mlm_logits"], rtol=0, atol=TOLERANCE)


FRESH = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_text
export, length, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
text = tf.constant(json.load(sys.stdin))
preprocess = tf.saved_model.load(f"{export}/preprocess")
rows = preprocess.bert_pack_inputs([preprocess.tokenize(text)], seq_length=length)
encoded = tf.saved_model.load(f"{export}/encoder")(rows)
served = tf.saved_model.load(f"{export}/serving").signatures["serving_default"](text=text)
assert not [name for name in sys.modules if name.split(".")[0] in ("official", "official_bert")]
layers = encoded.pop("encoder_outputs")
np.savez(output, *layers, **encoded, **{f"served_{name}": served[name] for name in served},
         **{f"row_{name}": rows[name] for name in rows})
"""


def test_from_strings_in_a_fresh_process(
    root: pathlib.Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> None:
    """TensorFlow and TF Text alone: strings to ids to embeddings, step by step and in one."""
    output = root / "fresh.npz"
    command = [sys.executable, "-c", FRESH, str(root / "export"), str(LENGTH), str(output)]
    subprocess.run(command, input=json.dumps(sentences()).encode(), check=True)
    found = dict(np.load(output))
    for name in INPUTS:
        np.testing.assert_array_equal(found[f"row_{name}"], inputs[name])
    layers = [found[f"arr_{index}"] for index in range(LAYERS)]
    names = ("sequence_output", "pooled_output", "default")
    check({**{name: found[name] for name in names}, "encoder_outputs": layers}, expected)
    # Serving cuts at the encoder's length, not at the rows' above: compare what was not cut.
    whole = inputs["input_mask"].sum(axis=1) < LENGTH
    assert whole.sum() > SENTENCES // 8
    mask = found["served_input_mask"]
    np.testing.assert_array_equal(mask[whole, :LENGTH], inputs["input_mask"][whole])
    pooled = found["served_pooled_output"][whole]
    np.testing.assert_allclose(pooled, expected["pooled_output"][whole], rtol=0, atol=TOLERANCE)
    sequence = found["served_sequence_output"]
    kept = inputs["input_mask"].astype(bool) & whole[:, np.newaxis]
    np.testing.assert_allclose(
        sequence[:, :LENGTH][kept], expected["sequence_output"][kept], rtol=0, atol=TOLERANCE
    )
    weights = mask[..., np.newaxis]
    np.testing.assert_allclose(
        found["served_mean_pooled"], (sequence * weights).sum(1) / weights.sum(1), atol=TOLERANCE
    )


def test_serving_fills_masks(root: pathlib.Path, encoder: Any) -> None:
    loaded = tf.saved_model.load(str(root / "export" / "serving"))
    text = ["the [MASK] of [MASK].", "none", "[MASK]"]
    guesses = loaded.signatures["fill_mask"](text=tf.constant(text))
    vocabulary = Vocabulary.load(root / "run" / "vocab.txt")
    ids = vocabulary.ids
    rows = [["[CLS]", "the", "[MASK]", "of", "[MASK]", ".", "[SEP]"], ["[CLS]", "[MASK]", "[SEP]"]]
    places = [[2, 4], [1]]
    for row, tokens, positions in zip((0, 2), rows, places, strict=True):
        words = tf.constant([[ids[token] for token in tokens]])
        columns = (words, tf.ones_like(words), tf.zeros_like(words), tf.constant([positions]))
        named = dict(zip((*INPUTS, "masked_lm_positions"), columns, strict=True))
        expected = tf.nn.softmax(encoder.mlm(named)["mlm_logits"][0]).numpy()
        for place, chances in enumerate(expected):
            best = np.argsort(-chances, kind="stable")[:5]
            found = guesses["tokens"][row, place].numpy()
            assert [each.decode() for each in found] == [TOKENS[index] for index in best]
            np.testing.assert_allclose(
                guesses["probabilities"][row, place], chances[best], atol=TOLERANCE
            )
    assert guesses["tokens"].shape == (3, 2, 5)
    for name in ("fill_mask", "serving_default"):
        empty = loaded.signatures[name](text=tf.constant([], tf.string))
        assert all(len(value) == 0 for value in empty.values())
    filled = np.array([[True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(guesses["probabilities"].numpy()[..., 0] > 0, filled)
    np.testing.assert_array_equal(guesses["tokens"].numpy()[..., 0] != b"", filled)


def test_dropout_is_drawn_anew_in_every_process(root: pathlib.Path) -> None:
    """A seed in the graph would make the masks of every finetuning, and of every step 1, equal."""
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((root / "export" / "encoder" / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    random_nodes = [node for node in nodes if node.op.startswith("Random")]
    assert random_nodes
    for node in random_nodes:
        assert node.attr["seed"].i == node.attr["seed2"].i == 0, node.name


def test_trainable_after_loading(
    encoder: Any, inputs: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> None:
    layer = hub.KerasLayer(encoder, trainable=True)
    features = without(inputs, "masked_lm_positions")
    with tf.GradientTape() as tape:
        outputs = layer(features, training=False)
        loss = tf.reduce_sum(outputs["pooled_output"]) + tf.reduce_sum(outputs["sequence_output"])
    check(outputs, expected)
    assert layer.losses == []
    count = len(encoders.build_encoder(encoder_config()).trainable_variables)
    assert len(layer.trainable_variables) == count
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    # Dropout, which the config has at its default of 0.1, only in training.
    once, again = (layer(features, training=True)["pooled_output"] for _ in range(2))
    assert np.abs(once - again).max() > 1e-2
    frozen = hub.KerasLayer(encoder)
    assert not frozen.trainable_variables
    check(frozen(features, training=True), expected)


@pytest.mark.parametrize("kind", ["question_answering", "sentence_prediction"])
def test_model_gardens_hub_module_url(
    kind: str, root: pathlib.Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> None:
    url = str(root / "export" / "encoder")
    if kind == "question_answering":
        model = question_answering.ModelConfig(encoder=encoder_config())
        task = question_answering.QuestionAnsweringTask(
            question_answering.QuestionAnsweringConfig(
                hub_module_url=url,
                model=model,
                validation_data=question_answering_dataloader.QADataConfig(is_training=False),
            )
        )
    else:
        heads = sentence_prediction.ModelConfig(encoder=encoder_config(), num_classes=2)
        task = sentence_prediction.SentencePredictionTask(
            sentence_prediction.SentencePredictionConfig(hub_module_url=url, model=heads)
        )
    built = task.build_model()
    features = without(inputs, "masked_lm_positions")
    check(built.checkpoint_items["encoder"](features), expected)
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(each) for each in tf.nest.flatten(built(features)))
    gradients = tape.gradient(loss, built.trainable_variables)
    idle = [
        one.name
        for one, got in zip(built.trainable_variables, gradients, strict=True)
        if got is None
    ]
    assert all("pooler" in name for name in idle)


def test_sizes_show_that_no_slots_leak(root: pathlib.Path, encoder: Any) -> None:
    parameters = sum(variable.numpy().nbytes for variable in encoder.mlm.variables)
    run = sum(path.stat().st_size for path in (root / "run").glob("ckpt-7.data*"))
    # Weights and two moments, and two copies of the pooler.
    assert run > 3 * parameters
    for name in ("encoder", "serving"):
        folder = root / "export" / name / "variables"
        (data,) = folder.glob("variables.data*")
        # The object graph: names of some fifty variables.
        assert 0 <= data.stat().st_size - parameters < 16_384, name
        keys = tf.train.load_checkpoint(str(folder / "variables")).get_variable_to_shape_map()
        assert not [key for key in keys if "optimizer" in key or "_m/" in key]


def restored(path: str) -> list[np.ndarray]:
    encoder = encoders.build_encoder(encoder_config())
    randomize(encoder.variables, 2)
    checkpoints.restore_encoder(path, encoder)
    return [variable.numpy() for variable in encoder.variables]


@pytest.mark.parametrize("place", ["export", "export/encoder"])
def test_finetuning_starts_from_an_export(root: pathlib.Path, place: str) -> None:
    """As it would from the run: size, vocabulary, casing, and every weight to the bit."""
    run, start = starting_point.find(str(root / "run")), starting_point.find(str(root / place))
    assert start.encoder.as_dict() == run.encoder.as_dict()
    assert start.vocabulary.content == run.vocabulary.content
    assert start.lower_case is run.lower_case is True
    pairs = zip(restored(start.checkpoint), restored(run.checkpoint), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_a_finetuning_command_takes_an_export(root: pathlib.Path) -> None:
    context = "the lamp is in the box."
    question = {"id": "1", "question": "where?", "answers": [{"text": "box", "answer_start": 19}]}
    article = {"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}
    (root / "squad.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    arguments = [
        "--task=squad", f"--train_file={root / 'squad.json'}", f"--dev_file={root / 'squad.json'}",
        f"--init_checkpoint={root / 'export'}", f"--model_dir={root / 'finetuned'}",
        "--train_steps=1", "--batch_size=2", "--seq_length=72", "--doc_stride=16",
    ]  # fmt: skip
    assert finetune.main(arguments) == 0
    assert (root / "finetuned" / "vocab.txt").read_bytes() == (
        root / "run" / "vocab.txt"
    ).read_bytes()


@pytest.fixture(scope="module")
def foreign(root: pathlib.Path) -> pathlib.Path:
    """The run's weights, exported by Model Garden's own tool."""
    export_tfhub_lib.export_model(
        str(root / "foreign"),
        encoder_config=encoder_config(),
        model_checkpoint_path=tf.train.latest_checkpoint(str(root / "run")),
        with_mlm=True,
        copy_pooler_dense_to_encoder=True,
        vocab_file=str(root / "run" / "vocab.txt"),
        do_lower_case=False,
    )
    return root / "foreign"


def test_model_gardens_own_export_says_the_same(
    encoder: Any, foreign: pathlib.Path, inputs: Mapping[str, np.ndarray]
) -> None:
    ours, theirs = encoder, hub.load(str(foreign))
    features = without(inputs, "masked_lm_positions")
    for one, other in ((ours(features), theirs(features)), (ours.mlm(inputs), theirs.mlm(inputs))):
        assert set(one) == set(other)
        check(one, other)


def test_finetuning_starts_from_a_foreign_encoder(
    root: pathlib.Path, foreign: pathlib.Path
) -> None:
    start = starting_point.find(str(foreign), config_file=str(root / "model.yaml"))
    assert start.vocabulary.content == (root / "run" / "vocab.txt").read_bytes()
    assert start.lower_case is False
    pairs = zip(restored(start.checkpoint), restored(str(root / "run")), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    with pytest.raises(UserError, match="holds no params.yaml.*--config_file"):
        starting_point.find(str(foreign))


def test_what_is_no_encoder_is_refused_by_name(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("serving", "preprocess"):
        path = root / "export" / name
        with pytest.raises(UserError, match=f"{path} is a SavedModel without our signature"):
            starting_point.find(str(path))
    with pytest.raises(UserError, match="is a SavedModel, an export already"):
        source.load(str(root / "export"))
    with pytest.raises(UserError, match="is a SavedModel, which holds no whole pretraining model"):
        checkpoints.restore_model(str(root / "export"), tf_keras.Model())
    damaged = tmp_path / "damaged"
    shutil.copytree(root / "export" / "encoder", damaged)
    (damaged / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match="damaged is damaged"):
        starting_point.find(str(damaged))
    shutil.copy(root / "export" / "encoder" / "saved_model.pb", damaged)
    (data,) = (damaged / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged is damaged"):
        restored(str(damaged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": LAYERS + 1}, "it has no transformer/layer_2/"),
        ({"num_layers": LAYERS - 1}, "it has transformer/layer_1/.*a layer more"),
        ({"intermediate_size": 128}, r"has the shape \(32, 64\), the config's \(32, 128\)"),
    ],
)
def test_another_architecture_is_refused(
    change: Mapping[str, int], message: str, root: pathlib.Path
) -> None:
    config = encoder_config()
    config.bert.override(change)
    encoder = encoders.build_encoder(config)
    before = [variable.numpy() for variable in encoder.variables]
    with pytest.raises(UserError, match=f"(another|than the).*{message}"):
        checkpoints.restore_encoder(str(root / "export"), encoder)
    pairs = zip(before, encoder.variables, strict=True)
    assert all(np.array_equal(old, variable) for old, variable in pairs)
