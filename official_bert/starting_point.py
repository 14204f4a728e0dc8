"""What a finetuning run inherits: weights, the encoder's size, the vocabulary and its casing."""

import dataclasses
import os
from typing import Any

import tensorflow as tf
from absl import logging
from official.nlp.configs import encoders

import tfrecords
from official_bert import checkpoints, configuration, experiments, input, saved_encoders
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

VOCABULARY = "vocab.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """Where a finetuning run starts.

    Attributes:
        checkpoint: the prefix to restore the encoder from, inside a SavedModel where it is one;
            empty for random weights.
        encoder: the encoder's config.
        vocabulary: the word pieces that the encoder's embedding rows stand for.
        lower_case: whether text is lower-cased before it is cut into them.
    """

    checkpoint: str
    encoder: encoders.EncoderConfig
    vocabulary: Vocabulary
    lower_case: bool


def find(
    init_checkpoint: str = "",
    config_file: str = "",
    vocab_file: str = "",
    lower_case: bool | None = None,
) -> StartingPoint:
    """Gathers what a pretraining run says of itself; what is given explicitly wins.

    The vocabulary is that of the run's folder; where there is none it is looked for in its shards'
    folder, whose it must be, and in the folder above. The casing is looked for in the run's folder,
    in the config of a finetuned run, in the shards' manifest, else in the vocabulary: one with
    capitals is cased. An exported SavedModel has all three in its assets.

    Args:
        init_checkpoint: a pretraining `model_dir`, a checkpoint in one, a folder that
            `official_bert.export --format=saved_model` wrote or its `encoder`, or empty.
        config_file: a recipe or `params.yaml` that says the encoder's size.
        vocab_file: the vocabulary.
        lower_case: the casing.

    Raises:
        UserError: no checkpoint, no encoder config or no vocabulary to be found, a vocabulary
            that is not the encoder's, or a SavedModel that is no encoder.

    Example:
        >>> find("run/phase2").encoder.get().num_layers
        12
    """
    checkpoint = checkpoints.latest(init_checkpoint) if init_checkpoint else ""
    exported = saved_encoders.folder_of(checkpoint) if checkpoint else None
    run = saved_encoders.assets(exported) if exported else os.path.dirname(checkpoint)
    saved = _saved_task(run)
    encoder = _encoder(saved, config_file, run)
    kept = _kept_vocabulary(run)
    # Shards may have been built anew since a run that kept its vocabulary.
    manifest = None if kept else _manifest(saved)
    vocabulary = Vocabulary.load(vocab_file or kept or _find_vocabulary(run, manifest))
    if manifest is not None:
        manifest.check_vocabulary(vocabulary)
    _check_size(vocabulary, encoder)
    if vocab_file and kept:
        _warn_of_others(vocabulary, Vocabulary.load(kept))
    if lower_case is None:
        lower_case = input.kept_casing(run)
    if lower_case is None and exported:
        lower_case = saved_encoders.lower_case(exported)
    if lower_case is None:  # a finetuned run's
        lower_case = (saved.get("train_data") or {}).get("do_lower_case")
    if lower_case is None:
        lower_case = manifest.lower_case if manifest else not vocabulary.capitalized
    return StartingPoint(
        checkpoint=checkpoint, encoder=encoder, vocabulary=vocabulary, lower_case=lower_case
    )


def _saved_task(run: str) -> dict[str, Any]:
    if not run or not tf.io.gfile.exists(os.path.join(run, configuration.PARAMS_FILE)):
        return {}
    return configuration.read_saved(run).get("task", {})


def _encoder(saved: dict[str, Any], config_file: str, run: str) -> encoders.EncoderConfig:
    if config_file:
        return configuration.load(experiments.PRETRAINING, [config_file]).task.model.encoder
    if "encoder" not in saved.get("model", {}):
        missing = (
            f"{run} holds no {configuration.PARAMS_FILE} with task.model.encoder"
            if run
            else "--init_checkpoint is empty"
        )
        raise UserError(
            f"{missing}, so the encoder's size is unknown; give --config_file, a recipe or "
            f"{configuration.PARAMS_FILE} that says it"
        )
    encoder = encoders.EncoderConfig()
    encoder.override(saved["model"]["encoder"], is_strict=True)
    return encoder


def _manifest(saved: dict[str, Any]) -> tfrecords.Manifest | None:
    """The manifest of the run's shards, where they are still there."""
    shards = saved.get("train_data", {}).get("input_path", "")
    if not shards or not tf.io.gfile.exists(os.path.join(shards, "manifest.json")):
        return None
    return tfrecords.Manifest.load(shards)


def _kept_vocabulary(run: str) -> str:
    """The vocabulary that a run left in its folder; empty where it left none."""
    path = os.path.join(run, VOCABULARY)
    return path if run and tf.io.gfile.exists(path) else ""


def _find_vocabulary(run: str, manifest: tfrecords.Manifest | None) -> str:
    folders = [*([manifest.directory] if manifest else []), os.path.dirname(run)]
    for folder in folders if run else []:
        path = os.path.join(folder, VOCABULARY)
        if tf.io.gfile.exists(path):
            return path
    looked = (
        f"there is no {VOCABULARY} in {', '.join([run, *folders])}" if run else "there is no run"
    )
    raise UserError(f"{looked} to take the vocabulary from; give --vocab_file")


def _check_size(vocabulary: Vocabulary, encoder: encoders.EncoderConfig) -> None:
    rows = encoder.get().vocab_size
    if len(vocabulary) != rows:
        raise UserError(
            f"{vocabulary.path} has {len(vocabulary)} entries, the encoder {rows} embedding "
            "rows; expected the vocabulary of its pretraining: give that as --vocab_file"
        )


def _warn_of_others(given: Vocabulary, kept: Vocabulary) -> None:
    """Says how many rows of the embeddings stand for other word pieces than were trained."""
    pairs = zip(given.tokens, kept.tokens, strict=False)
    if count := sum(one != other for one, other in pairs):
        logging.warning(
            "%s differs from the run's own %s in %d of %d entries, whose embeddings are of other "
            "word pieces; leave --vocab_file out unless that is meant",
            given.path,
            kept.path,
            count,
            len(kept),
        )
