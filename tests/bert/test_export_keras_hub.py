"""The KerasHub preset: its models and its tokenizer against the checkpoint, and the way back."""

import json
import pathlib
import unicodedata

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import tf_keras
from safetensors import numpy as safetensors_numpy

from official_bert import convert
from official_bert.export import __main__ as export
from official_bert.export import architecture, source
from official_bert.export import keras_hub as presets
from tests.bert import pretrained_runs
from tests.bert.conftest import LONG
from tfrecords.tokenization import Tokenizer


@pytest.fixture(scope="module")
def folder(pretrained_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("keras_hub") / "bert"
    assert not export.main(
        ["--format=keras_hub", f"--model_dir={pretrained_run}", f"--output_dir={output}"]
    )
    return output


@pytest.fixture(scope="module")
def pretrained(pretrained_run: pathlib.Path) -> source.Source:
    return source.load(str(pretrained_run))


@pytest.fixture(scope="module")
def rows(pretrained: source.Source, shards: pathlib.Path) -> pretrained_runs.Rows:
    lines = pretrained_runs.sentences(shards.parent / "text.txt", 64)
    found = pretrained_runs.rows(lines, pretrained.vocabulary, True, LONG)
    assert found.ids.shape == (64, LONG)
    return found


@pytest.fixture(scope="module")
def expected(pretrained: source.Source, rows: pretrained_runs.Rows) -> dict[str, np.ndarray]:
    outputs = pretrained.model(rows.model_garden(), training=False)
    names = ("sequence_output", "pooled_output", "mlm_logits")
    return {name: outputs[name].numpy() for name in names}


def test_the_backbone_agrees(
    folder: pathlib.Path, rows: pretrained_runs.Rows, expected: dict[str, np.ndarray]
) -> None:
    backbone = keras_hub.models.BertBackbone.from_preset(str(folder))
    answers = backbone(rows.keras_hub(), training=False)
    for name in ("sequence_output", "pooled_output"):
        assert np.std(expected[name]) > 0.1
        np.testing.assert_allclose(answers[name], expected[name], rtol=0, atol=1e-5)


def test_the_masked_lm_agrees(
    folder: pathlib.Path, rows: pretrained_runs.Rows, expected: dict[str, np.ndarray]
) -> None:
    """KerasHub's own head has another GELU and epsilon, which `as_pretrained` puts right.

    The two GELUs differ by at most 4.8e-4; the layer norm and the word embeddings, here about 0.2
    in size and 32 wide, may make some 1e-2 of that.
    """
    model = keras_hub.models.BertMaskedLM.from_preset(str(folder))
    inputs = rows.keras_hub() | {"mask_positions": rows.positions}
    stock = keras.ops.convert_to_numpy(model(inputs, training=False))
    assert 1e-5 < np.abs(stock - expected["mlm_logits"]).max() < 1e-2
    exact = presets.as_pretrained(model)(inputs, training=False)
    np.testing.assert_allclose(exact, expected["mlm_logits"], rtol=0, atol=1e-5)


def test_masked_words_are_filled_from_text(folder: pathlib.Path) -> None:
    model = keras_hub.models.BertMaskedLM.from_preset(str(folder))
    features, labels, weights = model.preprocessor(["the value of the expression"] * 2)
    assert labels.shape == weights.shape == features["mask_positions"].shape
    assert features["token_ids"].shape == (2, LONG)
    assert model(features).shape[-1] == model.backbone.vocabulary_size


def test_a_classifier_trains_from_it(folder: pathlib.Path) -> None:
    # KerasHub's default is 512 word pieces, more than this model has positions for.
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        str(folder), sequence_length=LONG
    )
    model = keras_hub.models.BertTextClassifier.from_preset(
        str(folder), num_classes=2, preprocessor=preprocessor
    )
    texts, labels = np.array(["the first statement", "another one"] * 4), np.array([0, 1] * 4)
    history = model.fit(x=texts, y=labels, batch_size=8, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_the_tokenizer_cuts_as_training_did(
    folder: pathlib.Path, pretrained: source.Source, shards: pathlib.Path
) -> None:
    ours = Tokenizer(pretrained.vocabulary, lower_case=True)
    theirs = keras_hub.models.BertTokenizer.from_preset(str(folder))
    text = (shards.parent / "text.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line.strip()][:2000]
    lines += ["Größe, naïve Übung 東京", "[SEP] is a word", "a [MASK] b"]
    differing = [
        line
        for line, ids in zip(lines, theirs(lines), strict=True)
        if list(np.asarray(ids)) != list(ours.encode([line])[0])
    ]
    # KerasHub folds where BERT lower-cases: an ellipsis to three full stops, a sharp s to two.
    for line in differing:
        assert unicodedata.normalize("NFKC", line).casefold() != line.lower(), line
    assert len(differing) < 0.01 * len(lines)


def test_weights_alone_fill_the_files(folder: pathlib.Path, pretrained: source.Source) -> None:
    """Each parameter once, in 4 bytes, and no optimizer slot; HDF5's groups take the rest.

    KerasHub compiles what it loads and misses that optimizer's step and rate where they are not
    saved, so these two numbers are there.
    """
    stored_arrays = datasets(folder / "model.weights.h5") | datasets(folder / "task.weights.h5")
    optimizer = [name for name in stored_arrays if name.startswith("optimizer/")]
    assert optimizer == ["optimizer/vars/0", "optimizer/vars/1"]
    assert all(stored_arrays.pop(name).shape == () for name in optimizer)
    values = list(stored_arrays.values())
    logits = safetensors_numpy.load_file(folder / "next_sentence.safetensors")
    stored = sum(each.size for each in [*values, *logits.values()])
    assert stored == architecture.num_parameters(pretrained.model)
    assert all(each.dtype == np.float32 for each in [*values, *logits.values()])


def datasets(path: pathlib.Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def collect(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def test_there_and_back_every_variable_is_the_same(
    folder: pathlib.Path, pretrained: source.Source, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "back"
    assert not convert.main(["--from=keras_hub", str(folder), f"--output_dir={output}"])
    back = source.load(str(output))
    ours, theirs = architecture.arrays(pretrained.model), architecture.arrays(back.model)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert back.has_next_sentence and back.lower_case is True
    # Shards are held against the vocabulary's checksum, so its very bytes come back.
    assert back.vocabulary.content == pretrained.vocabulary.content
    assert back.config.encoder.as_dict() == pretrained.config.encoder.as_dict()


def test_a_head_that_keras_hub_trained_is_said(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert not presets.read(str(folder)).warnings
    preset = tmp_path / "preset"
    keras_hub.models.BertMaskedLM.from_preset(str(folder)).save_to_preset(str(preset))
    (warning,) = presets.read(str(preset)).warnings
    assert "the exact GELU and an epsilon of 1e-5" in warning


def test_a_published_backbone_has_its_heads_drawn(
    folder: pathlib.Path, pretrained: source.Source, tmp_path: pathlib.Path
) -> None:
    """As KerasHub publishes its BERTs: a backbone and a tokenizer."""
    preset = tmp_path / "preset"
    keras_hub.models.BertBackbone.from_preset(str(folder)).save_to_preset(str(preset))
    keras_hub.models.BertTokenizer.from_preset(str(folder)).save_to_preset(str(preset))
    output = tmp_path / "back"
    arguments = ["--from=keras_hub", str(preset), f"--output_dir={output}", "--seed=3"]
    assert not convert.main(arguments)
    back = architecture.arrays(source.load(str(output)).model)
    for seed in (3, 4):
        tf_keras.utils.set_random_seed(seed)
        drawn = architecture.arrays(architecture.build(pretrained.config.encoder.get()))
        head = "bert/cls/predictions/transform/dense/kernel"
        assert np.array_equal(back[head], drawn[head]) == (seed == 3)
    ours = architecture.arrays(pretrained.model)
    for name in ("word_embeddings/embeddings", "pooler_transform/kernel"):
        np.testing.assert_array_equal(back[name], ours[name])


def test_other_presets_are_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset"
    preset.mkdir()
    config = json.loads((folder / "config.json").read_text())
    broken = folder.parent / "broken"
    broken.mkdir()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "model.weights.h5":
            target = broken / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (broken / "model.weights.h5").write_bytes((folder / "model.weights.h5").read_bytes()[:5000])
    for content, source_folder, words in (
        (config | {"class_name": "RobertaBackbone"}, preset, "names RobertaBackbone, expected"),
        ({"model_type": "bert"}, preset, "names no class, expected BertBackbone"),
        (config, broken, "KerasHub cannot load"),
    ):
        (preset / "config.json").write_text(json.dumps(content))
        arguments = ["--from=keras_hub", str(source_folder), f"--output_dir={tmp_path / 'out'}"]
        assert convert.main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error, error
        assert not list(tmp_path.glob("out*"))
