"""A pretrained BERT as a KerasHub preset, and such a preset read back.

KerasHub runs on Keras 3, Model Garden on tf_keras; the two live in one process without touching.
"""

import functools
import os

import keras
import keras_hub
import numpy as np
import safetensors
from absl import logging
from official.nlp.configs import encoders
from safetensors import numpy as safetensors_numpy

from official_bert.export import architecture, incoming, json_object, output, weight_map
from official_bert.export.source import Source
from tfrecords import files
from tfrecords.errors import UserError
from tfrecords.vocabulary import UNKNOWN, Vocabulary

# KerasHub has no place for the two logits of the next-sentence head.
NEXT_SENTENCE = "next_sentence.safetensors"

_CONFIG = "config.json"
_TASK = "task.json"
_VOCABULARY = ("assets", "tokenizer", "vocabulary.txt")
_PREPROCESSOR_LENGTH = 512
_LAYER_NORM_EPSILON = 1e-12


def export(source: Source, folder: str) -> None:
    """Writes a preset for `keras_hub.models.BertMaskedLM.from_preset(folder)` and its relatives.

    `BertBackbone`, `BertTextClassifier` and `BertTokenizer` load from it too. The logits of the
    next-sentence head lie beside it in `NEXT_SENTENCE`.

    Args:
        source: the pretrained model.
        folder: an existing local folder to write to.

    Raises:
        UserError: a model that KerasHub has no BERT for, or a folder that is not local.
    """
    if "://" in folder:
        raise UserError(
            f"--format keras_hub writes to local folders only, not to {folder}; export to one and "
            "copy it"
        )
    encoder = architecture.plain_bert(source.config, "keras_hub")
    if encoder.attention_dropout_rate != encoder.dropout_rate:
        logging.warning(
            "KerasHub's BERT has one dropout rate: it keeps dropout_rate %s, and "
            "attention_dropout_rate %s is lost",
            encoder.dropout_rate,
            encoder.attention_dropout_rate,
        )
    arrays = architecture.arrays(source.model)
    table = weight_map.entries(encoder.num_layers, source.has_next_sentence)
    model = build(encoder, source.vocabulary, source.lower_case)
    known = {variable.path: variable for variable in model.weights}
    for entry in table:
        if entry.keras_hub:
            known[entry.keras_hub].assign(arrays[entry.model_garden])
    model.save_to_preset(folder)
    rest = {
        entry.model_garden: arrays[entry.model_garden] for entry in table if not entry.keras_hub
    }
    if rest:
        files.write_bytes(os.path.join(folder, NEXT_SENTENCE), safetensors_numpy.save(rest))


def build(
    encoder: encoders.BertEncoderConfig, vocabulary: Vocabulary, lower_case: bool
) -> keras_hub.models.BertMaskedLM:
    """KerasHub's masked-LM model of the encoder's size, with new weights.

    Args:
        encoder: the size.
        vocabulary: the word pieces.
        lower_case: whether text is lower-cased, and loses its accents.
    """
    tokenizer = keras_hub.models.BertTokenizer(
        vocabulary=list(vocabulary.tokens),
        lowercase=lower_case,
        strip_accents=lower_case,
        oov_token=UNKNOWN,
    )
    length = min(encoder.max_position_embeddings, _PREPROCESSOR_LENGTH)
    preprocessor = keras_hub.models.BertMaskedLMPreprocessor(tokenizer, sequence_length=length)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=encoder.vocab_size,
        num_layers=encoder.num_layers,
        num_heads=encoder.num_attention_heads,
        hidden_dim=encoder.hidden_size,
        intermediate_dim=encoder.intermediate_size,
        dropout=encoder.dropout_rate,
        max_sequence_length=encoder.max_position_embeddings,
        num_segments=encoder.type_vocab_size,
        dtype="float32",
    )
    return keras_hub.models.BertMaskedLM(backbone, preprocessor=preprocessor)


def as_pretrained(model: keras_hub.models.BertMaskedLM) -> keras_hub.models.BertMaskedLM:
    """Makes KerasHub's masked-LM head compute what BERT's does, to the last decimals.

    KerasHub's own head takes the exact GELU and a layer norm with epsilon 1e-5; BERT's, like its
    encoder, takes the tanh approximation and 1e-12. Neither is part of a preset.

    Args:
        model: a loaded model; changed in place, before it is compiled.

    Returns:
        The model.

    Example:
        >>> as_pretrained(keras_hub.models.BertMaskedLM.from_preset("export"))
    """
    head = model.masked_lm_head
    head._intermediate_dense.activation = functools.partial(
        keras.activations.gelu, approximate=True
    )
    head._intermediate_layer_norm.epsilon = _LAYER_NORM_EPSILON
    return model


def read(folder: str, vocab_file: str = "", lower_case: bool | None = None) -> incoming.Incoming:
    """Reads a KerasHub preset of a BERT.

    Args:
        folder: a local folder that `save_to_preset` wrote, with or without a masked-LM head.
        vocab_file: the vocabulary; empty: the folder's own.
        lower_case: the casing; None: the folder's own.

    Raises:
        UserError: no preset, one of another model, weights that are missing or damaged.
    """
    config = json_object.read(os.path.join(folder, _CONFIG))
    if config.get("class_name") != "BertBackbone":
        raise UserError(
            f"{folder} is no KerasHub preset of a BERT: its {_CONFIG} names "
            f"{config.get('class_name', 'no class')}, expected BertBackbone"
        )
    try:
        model = keras_hub.models.BertMaskedLM.from_preset(
            folder, preprocessor=None, dtype="float32"
        )
        tokenizer = keras_hub.models.BertTokenizer.from_preset(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"KerasHub cannot load {folder}: {reason}; write it again") from error
    encoder = _encoder(model.backbone)
    warnings = []
    if tokenizer.strip_accents != tokenizer.lowercase:
        warnings.append(
            f"its tokenizer has strip_accents {tokenizer.strip_accents} with lowercase "
            f"{tokenizer.lowercase}; here accents go with capitals, so text with accents is cut "
            "otherwise"
        )
    if _has_head(folder) and not _is_ours(folder):
        warnings.append(
            "its masked-LM head was trained by KerasHub, with the exact GELU and an epsilon of "
            f"1e-5; Model Garden has the tanh approximation and {_LAYER_NORM_EPSILON}, so logits "
            "differ slightly"
        )
    vocabulary = Vocabulary.load(vocab_file or os.path.join(folder, *_VOCABULARY))
    return incoming.complete(
        encoder=encoder,
        arrays=_arrays(folder, model, encoder),
        vocabulary=vocabulary,
        lower_case=tokenizer.lowercase if lower_case is None else lower_case,
        warnings=warnings,
    )


def _has_head(folder: str) -> bool:
    task = json_object.read(os.path.join(folder, _TASK))
    return task.get("class_name") == "BertMaskedLM"


def _is_ours(folder: str) -> bool:
    """Whether `export` wrote the preset, so that its head was trained as BERT's is."""
    return output.about(folder).get("format") == "keras_hub"


def _encoder(backbone: keras_hub.models.BertBackbone) -> encoders.BertEncoderConfig:
    return encoders.BertEncoderConfig(
        vocab_size=backbone.vocabulary_size,
        hidden_size=backbone.hidden_dim,
        num_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_dim,
        max_position_embeddings=backbone.max_sequence_length,
        type_vocab_size=backbone.num_segments,
        dropout_rate=backbone.dropout,
        attention_dropout_rate=backbone.dropout,
    )


def _arrays(
    folder: str, model: keras_hub.models.BertMaskedLM, encoder: encoders.BertEncoderConfig
) -> dict[str, np.ndarray]:
    """The weights by Model Garden's names; a head that KerasHub drew anew is not among them."""
    has_head = _has_head(folder)
    known = {variable.path: variable for variable in model.weights}
    arrays = {
        entry.model_garden: keras.ops.convert_to_numpy(known[entry.keras_hub])
        for entry in weight_map.entries(encoder.num_layers)
        if entry.keras_hub and (has_head or not entry.keras_hub.startswith("mlm_head/"))
    }
    path = os.path.join(folder, NEXT_SENTENCE)
    if not os.path.exists(path):
        return arrays
    try:
        return arrays | safetensors_numpy.load(files.read_bytes(path))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); export again") from error
