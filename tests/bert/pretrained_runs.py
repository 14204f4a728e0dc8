"""Pretraining runs on disk without the training, and real sentences to hold models against."""

import dataclasses
import json
import pathlib

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory

from official_bert import configuration
from official_bert.trainer import build_trainer
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import CLS, MASK, SEP, Vocabulary

STEP = 7


def write(
    params: config_definitions.ExperimentConfig, vocabulary: pathlib.Path, folder: pathlib.Path
) -> None:
    """Saves what a run of `params` would leave, its optimizer's slots included.

    New weights are so small that GELU and layer norms are all but linear; noise of the size of
    trained weights, 0.04 at a hidden size of 768, makes a wrong GELU or epsilon show.

    Args:
        params: the experiment.
        vocabulary: a folder with a `vocab.txt`.
        folder: the `model_dir`.
    """
    tf_keras.utils.set_random_seed(3)
    task = task_factory.get_task(params.task)
    trainer = build_trainer(params, task, train=True, evaluate=False)
    noise = np.random.default_rng(5)
    size = 0.04 * (768 / params.task.model.encoder.get().hidden_size) ** 0.5
    for variable in trainer.model.variables:
        variable.assign_add(noise.normal(0, size, variable.shape))
    trainer.optimizer.build(task.trained_variables(trainer.model))
    folder.mkdir(parents=True)
    configuration.save(params, str(folder))
    (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    manager = tf.train.CheckpointManager(trainer.checkpoint, str(folder), max_to_keep=1)
    manager.save(checkpoint_number=STEP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Pairs of real sentences, a few words of each masked.

    Attributes:
        ids: int32 (rows, length).
        mask: 1 for tokens, 0 for padding.
        types: 0 for the first sentence, 1 for the second.
        positions: int32 (rows, predictions): the masked places.
    """

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray
    positions: np.ndarray

    def model_garden(self) -> dict[str, np.ndarray]:
        return {
            "input_word_ids": self.ids,
            "input_mask": self.mask,
            "input_type_ids": self.types,
            "masked_lm_positions": self.positions,
        }

    def keras_hub(self) -> dict[str, np.ndarray]:
        return {"token_ids": self.ids, "padding_mask": self.mask, "segment_ids": self.types}


def sentences(text: pathlib.Path, count: int) -> list[str]:
    """Lines of prose: long enough to be one, short enough for a row."""
    lines = (line.strip() for line in text.read_text(encoding="utf-8").split("\n"))
    prose = [line for line in lines if 30 <= len(line) <= 90 and " " in line]
    return prose[:: max(1, len(prose) // count)][:count]


def rows(
    lines: list[str], vocabulary: Vocabulary, lower_case: bool, length: int, predictions: int = 4
) -> Rows:
    """Each line with the next one, cut to `length`."""
    tokenizer = Tokenizer(vocabulary, lower_case)
    ids, mask, types = (np.zeros((len(lines), length), np.int32) for _ in range(3))
    positions = np.zeros((len(lines), predictions), np.int32)
    draw = np.random.default_rng(0)
    for row, pair in enumerate(zip(lines, lines[1:] + lines[:1], strict=True)):
        first, second = (list(tokenizer.encode([line])[0])[: (length - 3) // 2] for line in pair)
        tokens = [CLS, SEP, SEP]
        cls, sep, _ = (vocabulary.ids[token] for token in tokens)
        whole = [cls, *first, sep, *second, sep]
        ids[row, : len(whole)] = whole
        mask[row, : len(whole)] = 1
        types[row, len(first) + 2 : len(whole)] = 1
        places = draw.choice(np.arange(1, len(first) + 1), predictions, replace=False)
        positions[row] = np.sort(places)
        ids[row, positions[row]] = vocabulary.ids[MASK]
    return Rows(ids=ids, mask=mask, types=types, positions=positions)
