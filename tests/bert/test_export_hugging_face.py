"""The Hugging Face folder: names, shapes, numbers, words, and the way back."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
import yaml
from safetensors import numpy as safetensors_numpy

from official_bert import checkpoints, convert, input, starting_point
from official_bert.export import __main__ as export
from official_bert.export import architecture, hugging_face_tokenizer, source
from tests.bert import numpy_bert, pretrained_runs
from tests.bert.conftest import LONG, VOCAB_SIZE
from tfrecords import tokenization
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import Vocabulary

HIDDEN, INNER, LAYERS, HEADS = 32, 64, 2, 2

# Written from the model that `transformers` builds for these sizes, not from our table.
LAYER_SHAPES = {
    "attention.self.query.weight": (HIDDEN, HIDDEN),
    "attention.self.query.bias": (HIDDEN,),
    "attention.self.key.weight": (HIDDEN, HIDDEN),
    "attention.self.key.bias": (HIDDEN,),
    "attention.self.value.weight": (HIDDEN, HIDDEN),
    "attention.self.value.bias": (HIDDEN,),
    "attention.output.dense.weight": (HIDDEN, HIDDEN),
    "attention.output.dense.bias": (HIDDEN,),
    "attention.output.LayerNorm.weight": (HIDDEN,),
    "attention.output.LayerNorm.bias": (HIDDEN,),
    "intermediate.dense.weight": (INNER, HIDDEN),
    "intermediate.dense.bias": (INNER,),
    "output.dense.weight": (HIDDEN, INNER),
    "output.dense.bias": (HIDDEN,),
    "output.LayerNorm.weight": (HIDDEN,),
    "output.LayerNorm.bias": (HIDDEN,),
}
SHAPES = {
    "bert.embeddings.word_embeddings.weight": (VOCAB_SIZE, HIDDEN),
    "bert.embeddings.position_embeddings.weight": (LONG, HIDDEN),
    "bert.embeddings.token_type_embeddings.weight": (2, HIDDEN),
    "bert.embeddings.LayerNorm.weight": (HIDDEN,),
    "bert.embeddings.LayerNorm.bias": (HIDDEN,),
    "bert.pooler.dense.weight": (HIDDEN, HIDDEN),
    "bert.pooler.dense.bias": (HIDDEN,),
    "cls.predictions.bias": (VOCAB_SIZE,),
    "cls.predictions.transform.dense.weight": (HIDDEN, HIDDEN),
    "cls.predictions.transform.dense.bias": (HIDDEN,),
    "cls.predictions.transform.LayerNorm.weight": (HIDDEN,),
    "cls.predictions.transform.LayerNorm.bias": (HIDDEN,),
    "cls.seq_relationship.weight": (2, HIDDEN),
    "cls.seq_relationship.bias": (2,),
} | {
    f"bert.encoder.layer.{index}.{name}": shape
    for index in range(LAYERS)
    for name, shape in LAYER_SHAPES.items()
}


@pytest.fixture(scope="module")
def folder(pretrained_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("hugging_face") / "bert"
    assert not export.main(
        ["--format=huggingface", f"--model_dir={pretrained_run}", f"--output_dir={output}"]
    )
    return output


@pytest.fixture(scope="module")
def converted(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("converted") / "bert"
    assert not convert.main(["--from=huggingface", str(folder), f"--output_dir={output}"])
    return output


@pytest.fixture(scope="module")
def pretrained(pretrained_run: pathlib.Path) -> source.Source:
    return source.load(str(pretrained_run))


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors_numpy.load_file(folder / "model.safetensors")


def test_names_and_shapes_are_those_of_transformers(folder: pathlib.Path) -> None:
    tensors = tensors_of(folder)
    assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())


def test_a_forward_pass_in_numpy_gives_the_checkpoints_logits(
    folder: pathlib.Path, pretrained: source.Source, shards: pathlib.Path
) -> None:
    """At most 1e-5 on 64 pairs of real sentences; float32's rounding of logits of size 20."""
    lines = pretrained_runs.sentences(shards.parent / "text.txt", 64)
    rows = pretrained_runs.rows(lines, pretrained.vocabulary, True, LONG)
    assert rows.ids.shape == (64, LONG)
    expected = pretrained.model(rows.model_garden(), training=False)
    bert = numpy_bert.NumpyBert(tensors_of(folder), LAYERS, HEADS)
    sequence = bert.sequence_output(rows.ids, rows.mask, rows.types)
    answers = {
        "sequence_output": sequence,
        "pooled_output": bert.pooled_output(sequence),
        "next_sentence": bert.next_sentence_logits(sequence),
        "mlm_logits": bert.masked_lm_logits(sequence, rows.positions),
    }
    for name, answer in answers.items():
        # Of a size at which a wrong GELU or epsilon would show.
        assert np.std(answer) > 0.1
        np.testing.assert_allclose(expected[name], answer, rtol=0, atol=1e-5, err_msg=name)


def test_config_says_what_the_model_is(folder: pathlib.Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert config["model_type"] == "bert" and config["hidden_act"] == "gelu_new"
    assert config["layer_norm_eps"] == 1e-12 and config["pad_token_id"] == 0
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": LONG,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }
    assert {name: config[name] for name in sizes} == sizes


def test_weights_alone_fill_the_file(folder: pathlib.Path, pretrained: source.Source) -> None:
    """4 bytes a parameter and a header of names; no optimizer slot, no second decoder."""
    parameters = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert architecture.num_parameters(pretrained.model) == parameters
    size = (folder / "model.safetensors").stat().st_size
    header = 8 + 200 * len(SHAPES)
    assert 4 * parameters < size < 4 * parameters + header


def test_the_command_says_the_sizes(
    pretrained_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--format=huggingface", f"--model_dir={pretrained_run}"]
    assert not export.main([*arguments, f"--output_dir={tmp_path / 'bert'}"])
    parameters = sum(int(np.prod(shape)) for shape in SHAPES.values())
    size = sum(path.stat().st_size for path in (tmp_path / "bert").iterdir())
    out = capsys.readouterr().out
    assert f"{size / 1e6:.1f} MB" in out
    assert f"{parameters:,} weights of 4 bytes are {4 * parameters / 1e6:.1f} MB" in out


def test_the_tokenizer_cuts_as_training_did(
    folder: pathlib.Path, shards: pathlib.Path, pretrained: source.Source
) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_tokenizer(theirs, pretrained.vocabulary, True, real_lines(shards))


def real_lines(shards: pathlib.Path) -> list[str]:
    lines = (shards.parent / "text.txt").read_text(encoding="utf-8").split("\n")
    hard = ["Größe, naïve Übung: İstanbul 東京", "x" * 150 + " y", "a\u200bb \ufffd c"]
    return [*[line for line in lines if line.strip()][:2000], *hard]


def check_tokenizer(
    theirs: tokenizers.Tokenizer, vocabulary: Vocabulary, lower_case: bool, lines: list[str]
) -> None:
    ours = Tokenizer(vocabulary, lower_case)
    special = vocabulary.ids["[CLS]"], vocabulary.ids["[SEP]"]
    for line in lines:
        if "[" in line and any(token in line for token in vocabulary.tokens[:5]):
            continue
        ids, _ = ours.encode([line])
        assert theirs.encode(line, add_special_tokens=False).ids == list(ids), line
        whole = theirs.encode(line)
        assert whole.ids == [special[0], *ids, special[1]]
    pair = theirs.encode("the first", "and the second")
    first = len(theirs.encode("the first").ids)
    assert pair.type_ids == [0] * first + [1] * (len(pair.ids) - first)
    assert theirs.encode("a [MASK] b").ids.count(vocabulary.ids["[MASK]"]) == 1


def test_known_differences_of_the_tokenizer(shards: pathlib.Path) -> None:
    """What no file can tell Hugging Face's program to do as training did."""
    vocabulary = Vocabulary.load(shards / "vocab.txt")
    theirs = hugging_face_tokenizer.build(vocabulary, lower_case=True)

    def words(text: str) -> list[str]:
        cut = theirs.pre_tokenizer.pre_tokenize_str(theirs.normalizer.normalize_str(text))
        return [word for word, _ in cut]

    assert words("\u039f\u03a3") == ["\u03bf\u03c3"]
    assert tokenization.words("\u039f\u03a3", True) == ["\u03bf\u03c2"]
    assert words("a\ue000b") == ["ab"]
    assert tokenization.words("a\ue000b", True) == ["a\ue000b"]


def test_a_cased_tokenizer_keeps_capitals_and_accents(shards: pathlib.Path) -> None:
    vocabulary = Vocabulary.load(shards / "vocab.txt")
    built = hugging_face_tokenizer.build(vocabulary, lower_case=False)
    theirs = tokenizers.Tokenizer.from_str(built.to_str())
    check_tokenizer(theirs, vocabulary, False, real_lines(shards))


def test_tokenizer_config(folder: pathlib.Path, pretrained_run: pathlib.Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BertTokenizer" and config["do_lower_case"] is True
    assert config["model_max_length"] == LONG
    assert (folder / "vocab.txt").read_bytes() == (pretrained_run / "vocab.txt").read_bytes()


def test_there_and_back_every_variable_is_the_same(
    converted: pathlib.Path, pretrained: source.Source, pretrained_run: pathlib.Path
) -> None:
    back = source.load(str(converted))
    ours, theirs = architecture.arrays(pretrained.model), architecture.arrays(back.model)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert back.has_next_sentence and back.lower_case is True
    assert back.vocabulary.content == pretrained.vocabulary.content
    saved = yaml.safe_load((pretrained_run / "params.yaml").read_text())["task"]["model"]
    again = yaml.safe_load((converted / "params.yaml").read_text())["task"]["model"]
    assert again["encoder"] == saved["encoder"]
    assert again["cls_heads"] == saved["cls_heads"]


def test_back_and_there_every_byte_is_the_same(
    folder: pathlib.Path, converted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "again"
    assert not export.main(
        ["--format=huggingface", f"--model_dir={converted}", f"--output_dir={output}"]
    )
    for path in folder.iterdir():
        if path.name != "exported.json":
            assert (output / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_converted_folder_is_a_starting_point(converted: pathlib.Path) -> None:
    start = starting_point.find(str(converted))
    assert start.encoder.get().hidden_size == HIDDEN and start.lower_case
    assert start.vocabulary.path == str(converted / "vocab.txt")
    assert input.kept_casing(str(converted)) is True
    assert tf.train.latest_checkpoint(converted).endswith("ckpt-0")
    names = [name for name, _ in tf.train.list_variables(checkpoints.latest(str(converted)))]
    assert not any("optimizer" in name for name in names)
