"""A pretrained BERT as a folder for `transformers`, and such a folder read back; no PyTorch."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import tensorflow as tf
from official.nlp.configs import encoders
from safetensors import numpy as safetensors_numpy

from official_bert.export import (
    architecture,
    hugging_face_tokenizer,
    incoming,
    json_object,
    weight_map,
)
from official_bert.export.source import Source
from tfrecords import files
from tfrecords.errors import UserError
from tfrecords.vocabulary import PAD, Vocabulary

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_INDEX = "model.safetensors.index.json"
_BIN = "pytorch_model.bin"
_LAYER_NORM_EPSILON = 1e-12
# Tied tensors share memory, which safetensors refuses, so each is copied.
_TO_SAFETENSORS = (
    "import torch; from safetensors.torch import save_file; "
    f'save_file({{name: tensor.clone().contiguous() for name, tensor in torch.load("{_BIN}", '
    f'weights_only=True).items()}}, "{WEIGHTS}")'
)
# Model Garden's fields and Hugging Face's.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
}
_RATES = {
    "dropout_rate": ("hidden_dropout_prob", 0.1),
    "attention_dropout_rate": ("attention_probs_dropout_prob", 0.1),
    "initializer_range": ("initializer_range", 0.02),
}
# Of checkpoints, tensors that say nothing new: positions, and the decoder, which is tied.
_LAYER = "bert.encoder.layer."
_DECODER = "cls.predictions.decoder.weight"
_REDUNDANT = {"bert.embeddings.position_ids", _DECODER, "cls.predictions.decoder.bias"}


def export(source: Source, folder: str) -> None:
    """Writes `config.json`, `model.safetensors`, `vocab.txt` and the tokenizer's files.

    `transformers.BertForPreTraining.from_pretrained(folder)` computes what the checkpoint does.
    The decoder's matrix is the word embeddings', so it is not stored again. Without a trained
    next-sentence head the folder is one for `BertForMaskedLM`.

    Args:
        source: the pretrained model.
        folder: an existing folder to write to.

    Raises:
        UserError: a model that `transformers` has no BERT for.
    """
    encoder = architecture.plain_bert(source.config, "huggingface")
    table = weight_map.entries(encoder.num_layers, source.has_next_sentence)
    tensors = weight_map.to_hugging_face(architecture.arrays(source.model), table)
    config = config_of(encoder, source.vocabulary, source.has_next_sentence)
    files.write_text(os.path.join(folder, CONFIG), json.dumps(config, indent=2) + "\n")
    hugging_face_tokenizer.write(
        source.vocabulary, source.lower_case, encoder.max_position_embeddings, folder
    )
    # Readers go by this word alone: it says which library's layout the matrices have.
    content = safetensors_numpy.save(tensors, metadata={"format": "pt"})
    files.write_bytes(os.path.join(folder, WEIGHTS), content)


def config_of(
    encoder: encoders.BertEncoderConfig, vocabulary: Vocabulary, next_sentence: bool
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        encoder: the size.
        vocabulary: the word pieces.
        next_sentence: whether there is a trained next-sentence head.
    """
    return {
        "architectures": ["BertForPreTraining" if next_sentence else "BertForMaskedLM"],
        "model_type": "bert",
        **{theirs: getattr(encoder, ours) for ours, theirs in _SIZES.items()},
        **{theirs: getattr(encoder, ours) for ours, (theirs, _) in _RATES.items()},
        "hidden_act": "gelu_new",
        "layer_norm_eps": _LAYER_NORM_EPSILON,
        "position_embedding_type": "absolute",
        "pad_token_id": vocabulary.ids[PAD],
        "tie_word_embeddings": True,
    }


def read(folder: str, vocab_file: str = "", lower_case: bool | None = None) -> incoming.Incoming:
    """Reads a BERT that Hugging Face's programs saved.

    Args:
        folder: holds `config.json`, `model.safetensors` (in one piece or several) and a
            vocabulary; tensors may lack the `bert.` in front and may say `gamma` and `beta`.
        vocab_file: the vocabulary; empty: the folder's own.
        lower_case: the casing; None: the folder's own.

    Raises:
        UserError: no such folder, a model that is no BERT or one that Model Garden cannot
            compute, weights that are missing, damaged or of other shapes than the config's.
    """
    config = json_object.read(os.path.join(folder, CONFIG))
    if not config:
        raise UserError(
            f"{folder} holds no {CONFIG}; expected a folder that Hugging Face's save_pretrained "
            "wrote, or a downloaded model repository"
        )
    warnings = list(_differences(folder, config))
    encoder = _encoder(folder, config)
    arrays, ignored = _arrays(folder, encoder)
    if ignored:
        warnings.append(f"ignored, since a pretrained BERT has no place for it: {ignored}")
    vocabulary, kept, more = hugging_face_tokenizer.read(folder, vocab_file)
    return incoming.complete(
        encoder=encoder,
        arrays=arrays,
        vocabulary=vocabulary,
        lower_case=kept if lower_case is None else lower_case,
        warnings=(*warnings, *more),
    )


def _differences(folder: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Refuses what Model Garden cannot compute; yields what it computes a little otherwise."""
    expected = {
        "model_type": ("bert",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    }
    for name, allowed in expected.items():
        value = config.get(name, allowed[-1])
        if value not in allowed:
            raise UserError(
                f"{folder}/{CONFIG} has {name} {value!r}; expected {' or '.join(map(str, allowed))}"
                ": Model Garden's BERT computes nothing else; choose another model"
            )
    if config.get("hidden_act", "gelu") == "gelu":
        yield (
            "it was trained with the exact GELU (hidden_act gelu); Model Garden computes the tanh "
            "approximation of the original BERT, so outputs differ slightly"
        )
    epsilon = config.get("layer_norm_eps", _LAYER_NORM_EPSILON)
    if epsilon != _LAYER_NORM_EPSILON:
        yield (
            f"it was trained with layer_norm_eps {epsilon}; Model Garden has "
            f"{_LAYER_NORM_EPSILON}, so outputs differ slightly"
        )


def _encoder(folder: str, config: Mapping[str, Any]) -> encoders.BertEncoderConfig:
    missing = [
        theirs for ours, theirs in _SIZES.items()
        if ours != "type_vocab_size" and not isinstance(config.get(theirs), int)
    ]  # fmt: skip
    if missing:
        raise UserError(f"{folder}/{CONFIG} says no {', '.join(missing)}; is it a BERT's?")
    sizes = {ours: config.get(theirs, 2) for ours, theirs in _SIZES.items()}
    rates = {ours: config.get(theirs, default) for ours, (theirs, default) in _RATES.items()}
    return encoders.BertEncoderConfig(**sizes, **rates)


def _arrays(folder: str, encoder: encoders.BertEncoderConfig) -> tuple[dict[str, np.ndarray], str]:
    """The weights by Model Garden's names, and the names of tensors that have no place there."""
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(folder):
        tensors[weight_map.canonical(name)] = tensor
    table = weight_map.entries(encoder.num_layers)
    decoder, words = tensors.get(_DECODER), tensors.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and words is not None and not np.array_equal(decoder, words):
        raise UserError(
            f"{folder} has a decoder ({_DECODER}) of its own; Model Garden's BERT decodes with its "
            "word embeddings; choose another model"
        )
    if "cls.predictions.bias" not in tensors and "cls.predictions.decoder.bias" in tensors:
        tensors["cls.predictions.bias"] = tensors["cls.predictions.decoder.bias"]
    try:
        arrays = weight_map.from_hugging_face(tensors, table, architecture.sizes(encoder))
    except ValueError as error:
        raise UserError(
            f"{folder}/{WEIGHTS} is of another size than its {CONFIG}: {error}; fetch both again"
        ) from error
    known = {entry.hugging_face for entry in table} | _REDUNDANT
    strangers = sorted(set(tensors) - known)
    deeper = [name for name in strangers if name.startswith(_LAYER)]
    if deeper:
        raise UserError(
            f"{folder}/{WEIGHTS} is of another size than its {CONFIG}: {deeper[0]} is no weight of "
            f"the {encoder.num_layers} layers that num_hidden_layers says; fetch both again"
        )
    shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
    return arrays, shown


def _tensors(folder: str) -> Iterator[tuple[str, np.ndarray]]:
    index = json_object.read(os.path.join(folder, _INDEX))
    names = sorted(set(index.get("weight_map", {}).values())) or [WEIGHTS]
    for name in names:
        path = os.path.join(folder, name)
        if not tf.io.gfile.exists(path):
            raise UserError(_no_weights(folder, path))
        try:
            stored = safetensors.deserialize(files.read_bytes(path))
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again") from error
        for tensor, content in stored:
            yield tensor, _array(path, tensor, content)


def _array(path: str, name: str, content: Mapping[str, Any]) -> np.ndarray:
    types = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
    }
    if content["dtype"] not in types:
        raise UserError(
            f"{path}: {name} is {content['dtype']}; expected floating-point weights; choose a "
            "model that is not quantised"
        )
    flat = np.frombuffer(content["data"], types[content["dtype"]])
    return flat.reshape(content["shape"]).astype(np.float32)


def _no_weights(folder: str, path: str) -> str:
    if tf.io.gfile.exists(os.path.join(folder, _BIN)):
        return (
            f"{folder} holds {_BIN}, which only PyTorch can read, and no {WEIGHTS}; make "
            f"that in the folder, where there is PyTorch: python -c '{_TO_SAFETENSORS}'"
        )
    return f"there is no {path}; expected the weights in {WEIGHTS}"
