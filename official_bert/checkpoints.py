"""Finding checkpoints and restoring every weight of a model from one, or saying why not."""

import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfrecords.errors import UserError

_NUMBERED = re.compile(r"(?P<prefix>.*ckpt-(?P<number>\d+))\.index")
_TRAINED_POOLER = "next_sentence.pooler_dense"


def latest(path: str) -> str:
    """The checkpoint prefix that `path` names: itself, or the newest of a folder.

    Args:
      path: a model_dir, or a checkpoint prefix such as `run/ckpt-500`.

    Raises:
      UserError: there is no checkpoint.
    """
    prefix = newest_whole(path) if tf.io.gfile.isdir(path) else path
    if prefix is None or not tf.io.gfile.exists(f"{prefix}.index"):
        raise UserError(
            f"no checkpoint at {path}; expected a model_dir with a finished save, or a prefix "
            "such as model_dir/ckpt-500"
        )
    return prefix


def newest_whole(folder: str) -> str | None:
    """The newest checkpoint of a folder that can be read to its end; None where there is none.

    Every tensor is read, so that its checksum is verified. A checkpoint that is damaged,
    truncated or half-written is named in a warning, and the one before it is tried.
    """
    known = listed(folder)
    for prefix in reversed(known):
        problem = _problem(prefix)
        if problem is None:
            return prefix
        logging.warning("%s is damaged (%s); trying the checkpoint before it", prefix, problem)
    if known:
        raise UserError(
            f"none of the {len(known)} checkpoints in {folder} can be read; restore one from a "
            "copy, or start again in another --model_dir"
        )
    return None


def listed(folder: str) -> list[str]:
    """The checkpoints of a folder, oldest first: by its state file, or if that is lost by name."""
    try:
        state = tf.train.get_checkpoint_state(folder)
    except (ValueError, UnicodeDecodeError):  # TensorFlow's words for an empty one and for bytes
        state = None
    if state is not None:
        return list(state.all_model_checkpoint_paths)
    found = [_NUMBERED.fullmatch(path) for path in tf.io.gfile.glob(f"{folder}/ckpt-*.index")]
    numbered = sorted((int(each["number"]), each["prefix"]) for each in found if each)
    if numbered:
        logging.warning(
            "%s/checkpoint, the list of checkpoints, is missing or damaged: taking the %d found",
            folder,
            len(numbered),
        )
    return [prefix for _, prefix in numbered]


def is_state_readable(folder: str) -> bool:
    """Whether a folder's list of checkpoints is absent or can be read."""
    if not tf.io.gfile.exists(f"{folder}/checkpoint"):
        return True
    try:
        return tf.train.get_checkpoint_state(folder) is not None
    except (ValueError, UnicodeDecodeError):
        return False


def _problem(prefix: str) -> str | None:
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        return " ".join(str(error).split())[:200]
    return None


def exists(model_dir: str) -> bool:
    """Whether a folder holds a checkpoint, whole or not."""
    return tf.io.gfile.isdir(model_dir) and bool(listed(model_dir))


def restore_model(path: str, model: tf_keras.Model) -> str:
    """Restores all weights of a built model, and nothing of an optimizer.

    A checkpoint of a whole run (`model/...`) fills every weight, heads included. One without a
    whole model, as Model Garden publishes encoders, fills what `model.checkpoint_items` names.

    Args:
      path: a model_dir or a checkpoint prefix.
      model: the model, its variables created.

    Returns:
      The prefix that was restored.

    Raises:
      UserError: no checkpoint, or one of another architecture.
    """
    prefix = latest(path)
    items = {"model": model} if "model" in _roots(prefix) else model.checkpoint_items
    _read(prefix, items)
    return prefix


def restore_encoder(path: str, encoder: tf_keras.Model) -> str:
    """Restores the encoder's weights from a pretraining checkpoint.

    The encoder's pooler is filled from the trained pooler of the next-sentence head, the one
    that pretraining moved; where there is no such head it stays as it was initialised.

    Args:
      path: a model_dir or a checkpoint prefix.
      encoder: a Model Garden BERT encoder, its variables created.

    Returns:
      The prefix that was restored.

    Raises:
      UserError: no checkpoint, or one of another architecture.
    """
    prefix = latest(path)
    roots = _roots(prefix)
    _read(prefix, {"encoder" if "encoder" in roots else "model": encoder})
    if _TRAINED_POOLER in roots:
        _read(prefix, {_TRAINED_POOLER: encoder.pooler_layer})
    return prefix


def _roots(prefix: str) -> set[str]:
    # The names of tensors follow the shortest path to each variable, so they do not tell what
    # was saved under which name; the object graph does.
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    reader = tf.train.load_checkpoint(prefix)
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return {child.local_name for child in graph.nodes[0].children}


def _read(prefix: str, items: Mapping[str, Any]) -> None:
    try:
        status = tf.train.Checkpoint(**items).read(prefix)
        status.assert_existing_objects_matched().expect_partial()
    except tf.errors.OpError as error:
        raise UserError(
            f"{prefix} is damaged: {' '.join(str(error.message).split())[:200]}; give the prefix "
            "of another checkpoint"
        ) from error
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{prefix} is a checkpoint of another architecture than the config's: {reason}"
        ) from error
