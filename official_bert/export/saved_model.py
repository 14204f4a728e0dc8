"""A pretrained BERT as three SavedModels: the encoder, its preprocessing, and both in one."""

import json
import os
import tempfile

import tensorflow as tf
import yaml

from official_bert import configuration
from official_bert.export import encoding, preprocessing, serving
from official_bert.export.source import Source
from official_bert.input import TOKENIZER_CONFIG
from tfrecords import files, schema

ENCODER, PREPROCESS, SERVING = "encoder", "preprocess", "serving"


def export(source: Source, folder: str) -> None:
    """Writes `encoder`, `preprocess` and `serving` below `folder`.

    `encoder` and `preprocess` follow TF Hub's conventions for text encoders: see
    `encoding.hub_module` and `preprocessing.hub_module`. `serving` takes strings: see
    `serving.module`. Each has signatures for TensorFlow Serving. The assets of `encoder` are what
    a finetuning starts from: `vocab.txt`, `tokenizer_config.json` and the model's `params.yaml`.

    Args:
        source: the pretrained model.
        folder: an existing folder to write to.
    """
    positions = source.config.encoder.get().max_position_embeddings
    tokenizer = preprocessing.GraphTokenizer(source.vocabulary, source.lower_case)

    encoder = encoding.hub_module(source.model)
    encoder.do_lower_case = tf.Variable(source.lower_case, trainable=False, name="do_lower_case")
    with tempfile.TemporaryDirectory() as kept:
        encoder.vocab_file, encoder.tokenizer_config, encoder.params_file = _assets(source, kept)
        tf.saved_model.save(encoder, os.path.join(folder, ENCODER), encoding.signatures(encoder))

    preprocess = preprocessing.hub_module(
        tokenizer, source.vocabulary, min(preprocessing.DEFAULT_LENGTH, positions)
    )
    tf.saved_model.save(
        preprocess, os.path.join(folder, PREPROCESS), {"serving_default": preprocess.__call__}
    )

    served = serving.module(encoder, preprocess, source.vocabulary, positions)
    tf.saved_model.save(
        served,
        os.path.join(folder, SERVING),
        {"serving_default": served.embed, "fill_mask": served.fill_mask},
    )


def _assets(source: Source, folder: str) -> list[tf.saved_model.Asset]:
    """What a run keeps beside its checkpoints, under the same names."""
    params = {"task": {"model": source.config.as_dict()}}
    contents = {
        schema.VOCABULARY_FILE: source.vocabulary.content,
        TOKENIZER_CONFIG: json.dumps({"do_lower_case": source.lower_case}).encode(),
        configuration.PARAMS_FILE: yaml.safe_dump(params).encode(),
    }
    assets = []
    for name, content in contents.items():
        path = os.path.join(folder, name)
        files.write_bytes(path, content)
        assets.append(tf.saved_model.Asset(path))
    return assets
