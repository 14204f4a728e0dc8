"""A pretraining run over an alphabet of word pieces, its SavedModels, and what they must say."""

import json
import pathlib
import pydoc_data.topics
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory
from official.nlp.configs import bert, encoders
from official.nlp.tasks import masked_lm

from official_bert import configuration, experiments, saved_encoders
from official_bert.export import __main__ as export
from official_bert.trainer import build_trainer
from tests import conftest
from tfrecords import tokenization
from tfrecords.vocabulary import SPECIAL_TOKENS, Vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ("the", "and", "of", "in", "that", "was", "is", "##ing", "##ed")
TOKENS = [*SPECIAL_TOKENS, *LETTERS, *(f"##{each}" for each in LETTERS), *WORDS, *".,'\"-;:()[]"]
POSITIONS, LAYERS, HIDDEN = 72, 2, 32
MODEL = {
    "encoder": {
        "type": "bert",
        "bert": {
            "vocab_size": len(TOKENS),
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": POSITIONS,
        },
    },
    "cls_heads": [
        {"inner_dim": HIDDEN, "num_classes": 2, "dropout_rate": 0.1, "name": "next_sentence"}
    ],
}
LENGTH, PLACES, SENTENCES = 48, 5, 64
INPUTS = saved_encoders.INPUTS


def sentences() -> list[str]:
    """64 sentences of novels and Wikipedia, or of Python's own documentation elsewhere."""
    if conftest.SHARED_DATA.is_dir():
        names = ("novels/*.txt", "wikitext-2/*.sentences.txt")
        files = [path for name in names for path in sorted(conftest.SHARED_DATA.glob(name))]
        texts = [path.read_text("utf-8-sig") for path in files[:: len(files) // 6]]
    else:
        texts = list(pydoc_data.topics.topics.values())
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return random.Random(0).sample([line for line in lines if len(line) > 40], SENTENCES)


def randomize(variables: list[tf.Variable], seed: int) -> None:
    draw = np.random.default_rng(seed)
    for variable in variables:
        base = 1.0 if variable.name.endswith("gamma:0") else 0.0
        variable.assign(base + 0.1 * draw.standard_normal(variable.shape))


def encoder_config() -> encoders.EncoderConfig:
    config = encoders.EncoderConfig()
    config.override(MODEL["encoder"])
    return config


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """A pretraining run with a checkpoint, optimizer slots included, and its export."""
    (folder / "model.yaml").write_text(yaml.safe_dump({"task": {"model": MODEL}}))
    optimizer = {"learning_rate": {"warmup_constant_decay": {"warmup_steps": 1}}}
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"trainer": {"train_steps": 1, "optimizer_config": optimizer}})
    )
    experiments.register()
    files = [str(folder / "model.yaml"), str(folder / "run.yaml")]
    params = configuration.load(experiments.PRETRAINING, files)
    trainer = build_trainer(params, task_factory.get_task(params.task), train=True, evaluate=False)
    randomize(trainer.model.variables, 1)
    trainer.optimizer.build(trainer.model.trainable_variables)
    run = folder / "run"
    run.mkdir()
    configuration.save(params, str(run))
    (run / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    (run / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    tf.train.CheckpointManager(trainer.checkpoint, str(run), max_to_keep=1).save(7)
    arguments = ["--format=saved_model", f"--model_dir={run}", f"--output_dir={folder / 'export'}"]
    assert export.main(arguments) == 0
    return folder


def rows(root: pathlib.Path) -> dict[str, np.ndarray]:
    """The sentences as training's tokenizer cuts them, in rows of one length."""
    vocabulary = Vocabulary.load(root / "run" / "vocab.txt")
    tokenizer = tokenization.Tokenizer(vocabulary, lower_case=True)
    ids = np.zeros((SENTENCES, LENGTH), np.int32)
    mask = np.zeros_like(ids)
    for row, sentence in enumerate(sentences()):
        pieces = tokenizer.encode_exactly(sentence)[: LENGTH - 2]
        cut = [vocabulary.ids["[CLS]"], *pieces, vocabulary.ids["[SEP]"]]
        ids[row, : len(cut)], mask[row, : len(cut)] = cut, 1
    places = np.tile(np.arange(1, PLACES + 1, dtype=np.int32), (SENTENCES, 1))
    columns = (ids, mask, np.zeros_like(ids), places)
    return dict(zip((*INPUTS, "masked_lm_positions"), columns, strict=True))


def model_gardens_outputs(root: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Model Garden's own model with the checkpoint's weights; the pooler by hand."""
    config = bert.PretrainerConfig()
    config.override(MODEL)
    model = bert_pretrainer(config)
    prefix = tf.train.latest_checkpoint(str(root / "run"))
    tf.train.Checkpoint(model=model).read(prefix).assert_existing_objects_matched().expect_partial()
    outputs = tf.nest.map_structure(lambda tensor: tensor.numpy(), model(inputs))
    pooler = model.classification_heads[0].dense
    kernel, bias = (variable.numpy() for variable in (pooler.kernel, pooler.bias))
    outputs["pooled_output"] = np.tanh(outputs["sequence_output"][:, 0] @ kernel + bias)
    return outputs


def bert_pretrainer(config: bert.PretrainerConfig) -> tf_keras.Model:
    return masked_lm.MaskedLMTask(masked_lm.MaskedLMConfig(model=config)).build_model()
