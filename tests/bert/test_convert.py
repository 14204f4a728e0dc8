"""Published BERTs in all their spellings, and what is refused of them."""

import json
import pathlib
import re
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from official.core import task_factory
from safetensors import numpy as safetensors_numpy

from official_bert import convert
from official_bert.export import __main__ as export
from official_bert.export import architecture, hugging_face, source, weight_map
from tests.bert.conftest import VOCAB_SIZE

Tensors = dict[str, np.ndarray]


@pytest.fixture
def published(published_bert: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Makes one like `published_bert`: other tensors, another config, without some files."""

    def make(
        change: Callable[[Tensors], Tensors] = dict,
        config: Mapping[str, Any] | None = None,
        without: tuple[str, ...] = (),
    ) -> pathlib.Path:
        copy = tmp_path / "published"
        shutil.copytree(published_bert, copy, dirs_exist_ok=True)
        tensors = change(safetensors_numpy.load_file(published_bert / "model.safetensors"))
        safetensors_numpy.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        described = json.loads((published_bert / "config.json").read_text()) | dict(config or {})
        kept = {name: value for name, value in described.items() if value is not None}
        (copy / "config.json").write_text(json.dumps(kept))
        for name in without:
            (copy / name).unlink()
        return copy

    return make


def arrays(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
    return hugging_face.read(str(folder)).arrays


def assert_same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def old_spelling(tensors: Tensors) -> Tensors:
    def spelled(name: str) -> str:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    return {spelled(name): tensor for name, tensor in tensors.items()}


def tied(tensors: Tensors) -> Tensors:
    words = tensors["bert.embeddings.word_embeddings.weight"]
    return tensors | {
        "cls.predictions.decoder.weight": words.copy(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy(),
        "bert.embeddings.position_ids": np.arange(64)[None],
    }


@pytest.mark.parametrize("change", [old_spelling, tied])
def test_other_spellings_hold_the_same_weights(
    change: Callable[[Tensors], Tensors], published: Callable[..., pathlib.Path], published_bert
) -> None:
    read = hugging_face.read(str(published(change)))
    assert_same(read.arrays, arrays(published_bert))
    assert not read.warnings


def test_a_bare_encoder_says_what_it_lacks(
    published: Callable[..., pathlib.Path],
    published_bert,
    tmp_path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As sentence encoders are published: no `bert.` in front, no heads, no pooler."""

    def bare(tensors: Tensors) -> Tensors:
        return {
            name.removeprefix("bert."): tensor
            for name, tensor in tensors.items()
            if not name.startswith(("cls.", "bert.pooler."))
        }

    output = tmp_path / "out"
    arguments = ["--from=huggingface", str(published(bare)), f"--output_dir={output}"]
    assert not convert.main(arguments)
    assert "no pooler, no masked-LM head, no next-sentence head" in caplog.text
    back = source.load(str(output))
    # Exported again, it has no next-sentence head either; pretraining can start from the drawn one.
    assert not back.has_next_sentence and len(back.config.cls_heads) == 1
    marker = json.loads((output / "exported.json").read_text())
    assert marker["untrained"] == ["pooler", "masked-LM head", "next-sentence head"]
    ours = architecture.arrays(back.model)
    for name, array in arrays(published_bert).items():
        if not name.startswith(weight_map.HEADS):
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    # A run with a next-sentence head starts from it all the same.
    config = architecture.pretrainer_config(back.config.encoder.get())
    task = task_factory.get_task(
        source.LargeBatchPretrainConfig(model=config, init_checkpoint=str(output))
    )
    task.initialize(task.build_model())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_read(
    dtype, published: Callable[..., pathlib.Path], published_bert
) -> None:
    def cast(tensors: Tensors) -> Tensors:
        return {name: tensor.astype(dtype) for name, tensor in tensors.items()}

    theirs = hugging_face.read(str(_with_raw(published(), cast))).arrays
    for name, array in arrays(published_bert).items():
        assert theirs[name].dtype == np.float32
        np.testing.assert_array_equal(theirs[name], array.astype(dtype).astype(np.float32))


def _with_raw(folder: pathlib.Path, change: Callable[[Tensors], Tensors]) -> pathlib.Path:
    """Rewrites the weights with types that safetensors' own NumPy functions may not know."""
    names = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    tensors = change(safetensors_numpy.load_file(folder / "model.safetensors"))
    header, body = {}, b""
    for name, tensor in tensors.items():
        content = tensor.tobytes()
        header[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": tensor.shape,
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    described = json.dumps(header).encode()
    whole = len(described).to_bytes(8, "little") + described + body
    (folder / "model.safetensors").write_bytes(whole)
    return folder


def test_weights_in_pieces_are_read(published: Callable[..., pathlib.Path], published_bert) -> None:
    copy = published()
    tensors = safetensors_numpy.load_file(copy / "model.safetensors")
    names = sorted(tensors)
    pieces = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for piece, own in pieces.items():
        safetensors_numpy.save_file({name: tensors[name] for name in own}, copy / piece)
    index = {name: piece for piece, own in pieces.items() for name in own}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (copy / "model.safetensors").unlink()
    assert_same(arrays(copy), arrays(published_bert))


def test_a_vocabulary_can_come_from_tokenizer_json(
    published: Callable[..., pathlib.Path], published_bert
) -> None:
    copy = published(without=("vocab.txt", "tokenizer_config.json"))
    read, whole = hugging_face.read(str(copy)), hugging_face.read(str(published_bert))
    assert read.vocabulary.tokens == whole.vocabulary.tokens
    assert read.lower_case and not hugging_face.read(str(copy), lower_case=False).lower_case
    given = hugging_face.read(str(copy), str(published_bert / "vocab.txt"))
    assert given.lower_case is True and given.vocabulary.path == str(published_bert / "vocab.txt")


def test_more_embedding_rows_than_words_are_filled_up(
    published: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    def padded(tensors: Tensors) -> Tensors:
        words = tensors["bert.embeddings.word_embeddings.weight"]
        bias = tensors["cls.predictions.bias"]
        return tensors | {
            "bert.embeddings.word_embeddings.weight": np.pad(words, ((0, 6), (0, 0))),
            "cls.predictions.bias": np.pad(bias, (0, 6)),
        }

    read = hugging_face.read(str(published(padded, {"vocab_size": VOCAB_SIZE + 6})))
    assert len(read.vocabulary) == VOCAB_SIZE + 6
    assert all(token.startswith("[unused") for token in read.vocabulary.tokens[-6:])
    assert "[unused*] entries fill it up" in read.warnings[0]


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"hidden_act": "gelu"}, "tanh approximation of the original BERT"),
        ({"hidden_act": None}, "tanh approximation of the original BERT"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05; Model Garden has 1e-12"),
    ],
)
def test_small_differences_are_said(
    config: Mapping[str, Any], warning: str, published: Callable[..., pathlib.Path]
) -> None:
    warnings = hugging_face.read(str(published(config=config))).warnings
    assert len(warnings) == 1 and warning in warnings[0]


def test_null_is_absent(published: Callable[..., pathlib.Path], published_bert) -> None:
    copy = published()
    described = json.loads((copy / "config.json").read_text())
    names = ("type_vocab_size", "hidden_dropout_prob", "layer_norm_eps", "is_decoder")
    (copy / "config.json").write_text(json.dumps(described | dict.fromkeys(names)))
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": None}))
    read = hugging_face.read(str(copy))
    assert read.encoder.type_vocab_size == 2 and read.encoder.dropout_rate == 0.1
    assert not read.warnings


@pytest.mark.parametrize("name", ["BertTokenizerFast", "TokenizersBackend"])
def test_tokenizers_of_word_pieces_are_read(
    name: str, published: Callable[..., pathlib.Path], tmp_path: pathlib.Path, capsys
) -> None:
    copy = published()
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert not hugging_face.read(str(copy)).warnings
    more = {"tokenizer_class": name, "tokenize_chinese_chars": False}
    (copy / "tokenizer_config.json").write_text(json.dumps(more))
    (warning,) = hugging_face.read(str(copy)).warnings
    assert "tokenize_chinese_chars False" in warning
    foreign = json.dumps({"tokenizer_class": "BertJapaneseTokenizer"})
    (copy / "tokenizer_config.json").write_text(foreign)
    line = failure([str(copy)], tmp_path, capsys)
    assert "tokenizer_class BertJapaneseTokenizer; expected BertTokenizer" in line
    # Published Japanese models name it where transformers also looks.
    (copy / "tokenizer_config.json").write_text("{}")
    described = json.loads((copy / "config.json").read_text())
    other = described | {"tokenizer_class": "BertJapaneseTokenizer"}
    (copy / "config.json").write_text(json.dumps(other))
    line = failure([str(copy)], tmp_path, capsys)
    assert "config.json has tokenizer_class BertJapaneseTokenizer; expected BertTok" in line


def test_a_blank_of_unicode_is_a_word_piece(
    published: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """bert-base-chinese has U+2028 in the middle of its vocabulary."""
    copy = published()
    tokens = (copy / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens[100] = "\u2028"
    (copy / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    base, again = tmp_path / "base", tmp_path / "again"
    assert not convert.main(["--from=huggingface", str(copy), f"--output_dir={base}"])
    arguments = ["--format=huggingface", f"--model_dir={base}", f"--output_dir={again}"]
    assert not export.main(arguments)
    assert (again / "vocab.txt").read_bytes() == (copy / "vocab.txt").read_bytes()
    kept = json.loads((again / "tokenizer.json").read_text())["model"]["vocab"]
    assert kept == {token: index for index, token in enumerate(tokens[:-1])}
    assert kept["\u2028"] == 100


def test_tensors_without_a_place_are_named(published: Callable[..., pathlib.Path]) -> None:
    read = hugging_face.read(
        str(published(lambda tensors: tensors | {"classifier.weight": np.zeros((2, 32))}))
    )
    assert "ignored" in read.warnings[0] and "classifier.weight" in read.warnings[0]


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: each for name, each in tensors.items() if name not in names}


def untied(tensors: Tensors) -> Tensors:
    decoder = tied(tensors)["cls.predictions.decoder.weight"] + 1
    return tensors | {"cls.predictions.decoder.weight": decoder}


@pytest.mark.parametrize(
    ("change", "config", "removed", "words"),
    [
        (dict, {"model_type": "roberta"}, (), "model_type 'roberta'; expected bert"),
        (dict, {"hidden_act": "relu"}, (), "hidden_act 'relu'; expected gelu_new"),
        (dict, {"position_embedding_type": "relative_key"}, (), "expected absolute"),
        (dict, {"is_decoder": True}, (), "is_decoder True"),
        (dict, {"hidden_size": None}, (), "says no hidden_size; is it a BERT's?"),
        (dict, {"num_hidden_layers": 3}, (), "of the encoder's weights are missing"),
        (dict, {"num_hidden_layers": 1}, (), "bert.encoder.layer.1.attention.output.LayerNorm.bia"),
        (dict, {"intermediate_size": 65}, (), "of another size than its config.json"),
        (dict, {"vocab_size": VOCAB_SIZE - 1}, (), "of another size than its config.json"),
        (untied, {}, (), "has a decoder"),
        (without("bert.embeddings.LayerNorm.bias"), {}, (), "1 of the encoder's weights"),
        (dict, {}, ("config.json",), "holds no config.json"),
        (dict, {}, ("model.safetensors",), "expected the weights in model.safetensors"),
        (dict, {}, ("vocab.txt", "tokenizer.json"), "neither vocab.txt nor tokenizer.json"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    change: Callable[[Tensors], Tensors], config: Mapping[str, Any], removed: tuple[str, ...],
    words: str, published: Callable[..., pathlib.Path], tmp_path: pathlib.Path, capsys,
) -> None:  # fmt: skip
    copy = published(change, config, removed)
    assert words in failure([str(copy)], tmp_path, capsys)


def failure(arguments: list[str], tmp_path: pathlib.Path, capsys, *more: str) -> str:
    """The one line of a conversion that is refused and leaves nothing."""
    capsys.readouterr()
    output = tmp_path / "refused"
    arguments = ["--from=huggingface", *arguments, f"--output_dir={output}", *more]
    assert convert.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert not list(tmp_path.glob("refused*"))
    return errors[0]


def rewritten(program: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """What a line of Python saves by its own calls of PyTorch, which is not installed here."""
    saved = {}

    class Tensor:
        def clone(self) -> "Tensor":
            return self

        def contiguous(self) -> str:
            return "copied"

    def load(name: str, weights_only: bool) -> dict[str, Tensor]:
        assert name == "pytorch_model.bin" and weights_only
        return {"a": Tensor()}

    torch, of_torch = types.ModuleType("torch"), types.ModuleType("safetensors.torch")
    torch.load = load
    of_torch.save_file = lambda tensors, name: saved.update({name: tensors})
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "safetensors.torch", of_torch)
    exec(program, {})
    return saved


def test_damaged_and_foreign_files_are_refused(
    published: Callable[..., pathlib.Path], tmp_path: pathlib.Path, capsys, monkeypatch
) -> None:
    copy = published()
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors is damaged" in failure([str(copy)], tmp_path, capsys)
    weights.rename(copy / "pytorch_model.bin")
    line = failure([str(copy)], tmp_path, capsys)
    assert "which only PyTorch can read" in line
    program = re.search("python -c '(.*)'", line)
    assert program and rewritten(program[1], monkeypatch) == {"model.safetensors": {"a": "copied"}}
    (copy / "config.json").write_text("{")
    assert "is no JSON" in failure([str(copy)], tmp_path, capsys)
    long = tmp_path / "long.txt"
    long.write_text((copy / "vocab.txt").read_text() + "zzzz\n")
    copy = published()
    line = failure([str(copy)], tmp_path, capsys, f"--vocab_file={long}")
    assert f"has {VOCAB_SIZE + 1} entries, the model {VOCAB_SIZE} embedding rows" in line


def test_the_command_line_is_checked(
    published_bert: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    assert "0 folders given; expected one" in failure([], tmp_path, capsys)
    assert "2 folders given" in failure([str(published_bert)] * 2, tmp_path, capsys)
    assert "none is not a folder" in failure([str(tmp_path / "none")], tmp_path, capsys)
    assert convert.main([str(published_bert), f"--output_dir={tmp_path / 'o'}", "--from=onnx"]) == 2
    assert "onnx" in capsys.readouterr().err
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("")
    arguments = ["--from=huggingface", str(published_bert), f"--output_dir={full}"]
    assert convert.main(arguments) == 2
    assert "is not empty (it holds precious)" in capsys.readouterr().err
    assert convert.main([*arguments, "--overwrite"]) == 2
    assert "is not an earlier export" in capsys.readouterr().err
    assert [path.name for path in full.iterdir()] == ["precious"]
