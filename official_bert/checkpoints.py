"""Finding checkpoints and restoring every weight of a model from one, or saying why not."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging
from google.protobuf import text_format
from tensorflow.core.protobuf import trackable_object_graph_pb2
from tensorflow.python.training import checkpoint_state_pb2

from official_bert import saved_encoders
from tfrecords import files
from tfrecords.errors import UserError

_NUMBERED = re.compile(r"(?P<prefix>.*ckpt-(?P<number>\d+))\.index")
_TRAINED_POOLER = "next_sentence.pooler_dense"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"


def latest(path: str) -> str:
    """The checkpoint prefix that `path` names: itself, or the newest of a folder.

    Args:
      path: a model_dir, a checkpoint prefix such as `run/ckpt-500`, or an exported SavedModel.

    Raises:
      UserError: there is no checkpoint, or a SavedModel that is no encoder.
    """
    prefix: str | None = path
    if tf.io.gfile.isdir(path):
        prefix = newest_whole(path) or saved_encoders.prefix(path)
    if prefix is None or not tf.io.gfile.exists(f"{prefix}.index"):
        raise UserError(
            f"no checkpoint at {path}; expected a model_dir with a finished save, a prefix such "
            "as model_dir/ckpt-500, or an exported SavedModel"
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
    """The checkpoints of a folder, oldest first: by its state file, or if that is lost by name.

    They lie in the folder, whatever path the file has: that of a folder that was moved is old.
    """
    try:
        state = tf.train.get_checkpoint_state(folder)
    except (ValueError, UnicodeDecodeError):  # TensorFlow's words for an empty one and for bytes
        state = None
    if state is not None:
        inside = os.path.join(folder, "")
        return [
            path if path.startswith(inside) else os.path.join(folder, os.path.basename(path))
            for path in state.all_model_checkpoint_paths
        ]
    found = [_NUMBERED.fullmatch(path) for path in tf.io.gfile.glob(f"{folder}/ckpt-*.index")]
    numbered = sorted((int(each["number"]), each["prefix"]) for each in found if each)
    if numbered:
        logging.warning(
            "%s/checkpoint, the list of checkpoints, is missing or damaged: taking the %d found",
            folder,
            len(numbered),
        )
    return [prefix for _, prefix in numbered]


def write_list(folder: str, prefixes: Sequence[str]) -> None:
    """Writes a folder's list of checkpoints, by their names alone: the folder may be moved.

    Args:
      folder: where they lie.
      prefixes: the checkpoints, oldest first.
    """
    names = [os.path.basename(prefix) for prefix in prefixes]
    state = checkpoint_state_pb2.CheckpointState(
        model_checkpoint_path=names[-1], all_model_checkpoint_paths=names
    )
    files.write_text(os.path.join(folder, "checkpoint"), text_format.MessageToString(state))


def is_same(first: str, second: str) -> bool:
    """Whether two names are of one checkpoint: one path, or the same content.

    Args:
      first: a folder or a prefix; "" for none.
      second: another.

    Example:
      >>> is_same("run/ckpt-5", "./run/ckpt-5"), is_same("run/ckpt-5", "")
      (True, False)
    """
    if not first or not second:
        return first == second
    if _plain(first) == _plain(second):
        return True
    content = fingerprint(first)
    return content is not None and content == fingerprint(second)


def fingerprint(path: str) -> str | None:
    """A hash of what a checkpoint holds; None where a folder, a prefix or "" names none."""
    if not path:
        return None
    prefix = path
    if tf.io.gfile.isdir(path):
        known = listed(path)
        prefix = (known[-1] if known else saved_encoders.prefix(path)) or path
    # An index has the checksum of every tensor.
    index = f"{prefix}.index"
    return files.sha256(index) if tf.io.gfile.exists(index) else None


def _plain(path: str) -> str:
    return path.rstrip("/") if "://" in path else os.path.abspath(path)


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
    if saved_encoders.folder_of(prefix) is not None:
        raise UserError(
            f"{path} is a SavedModel, which holds no whole pretraining model; give the "
            "--model_dir or the checkpoint that it was exported from"
        )
    items = {"model": model} if "model" in children(prefix) else model.checkpoint_items
    restore_items(prefix, items)
    return prefix


def restore_encoder(path: str, encoder: tf_keras.Model) -> str:
    """Restores the encoder's weights from a pretraining checkpoint or an exported SavedModel.

    The encoder's pooler is filled from the trained pooler of the next-sentence head, the one
    that pretraining moved; where there is no such head, from the pooler that the checkpoint's
    encoder has itself. An exported SavedModel holds the trained one as the encoder's own.

    Args:
      path: a model_dir, a checkpoint prefix or a SavedModel.
      encoder: a Model Garden BERT encoder, its variables created.

    Returns:
      The prefix that was restored.

    Raises:
      UserError: no checkpoint, or one of another architecture.
    """
    prefix = latest(path)
    exported = saved_encoders.folder_of(prefix)
    if exported is not None:
        saved_encoders.restore(exported, encoder)
        return prefix
    roots = children(prefix)
    restore_items(prefix, {"encoder" if "encoder" in roots else "model": encoder})
    if _TRAINED_POOLER in roots:
        restore_items(prefix, {_TRAINED_POOLER: encoder.pooler_layer})
    return prefix


def children(prefix: str, *path: str) -> set[str]:
    """What a checkpoint holds under a path of names; nothing where there is no such path.

    Args:
      prefix: the checkpoint.
      *path: names from the root on, such as `"model"`; none for the root itself.
    """
    graph = _object_graph(prefix)
    node = _node(graph, path) if graph else None
    return set() if node is None else {child.local_name for child in graph.nodes[node].children}


def _object_graph(prefix: str) -> Any:
    """What was saved under which name; None for TensorFlow 1's checkpoints, which do not say.

    The names of tensors follow the shortest path to each variable, so they do not tell.
    """
    reader = tf.train.load_checkpoint(prefix)
    if not reader.has_tensor(_OBJECT_GRAPH):
        return None
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_OBJECT_GRAPH))
    return graph


def _node(graph: Any, path: Iterable[str]) -> int | None:
    """The number of the node that a path of names leads to from the root."""
    node = 0
    for name in path:
        below = {child.local_name: child.node_id for child in graph.nodes[node].children}
        if name not in below:
            return None
        node = below[name]
    return node


def _num_saved(graph: Any, path: Iterable[str]) -> int:
    """The variables that a checkpoint holds below a path of names."""
    start = _node(graph, path)
    seen, waiting = set(), [] if start is None else [start]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(child.node_id for child in graph.nodes[node].children)
    return sum(
        attribute.name == _VALUE for node in seen for attribute in graph.nodes[node].attributes
    )


def _check_depth(graph: Any, name: str, item: Any) -> None:
    """Refuses an encoder deeper than the model's, of which TensorFlow would read the first layers.

    Raises:
        ValueError: the checkpoint's encoder has more variables than the model's.
    """
    encoder = getattr(item, "encoder_network", item)
    if not hasattr(encoder, "transformer_layers"):
        return
    saved = _num_saved(graph, (name,) if encoder is item else (name, "encoder_network"))
    below = tf.train.TrackableView(encoder).descendants()
    own = sum(isinstance(each, tf.Variable) for each in below)
    if saved > own:
        raise ValueError(
            f"its encoder has {saved} variables, the config's {own} with "
            f"{len(encoder.transformer_layers)} layers; give the config it was trained with"
        )


def restore_items(prefix: str, items: Mapping[str, Any]) -> None:
    """Restores every variable of some objects from where a checkpoint keeps them.

    Args:
      prefix: the checkpoint.
      items: objects by the names under which the checkpoint holds them.

    Raises:
      UserError: the checkpoint is damaged, of TensorFlow 1 or of another architecture.
    """
    try:
        graph = _object_graph(prefix)
        if graph is None:
            raise UserError(_of_tensorflow_1(prefix))
        for name, item in items.items():
            _check_depth(graph, name, item)
        status = tf.train.Checkpoint(**items).read(prefix)
        status.assert_existing_objects_matched().expect_partial()
    except tf.errors.OpError as error:
        raise UserError(
            f"{prefix} is damaged: {' '.join(str(error.message).split())[:200]}; give the prefix "
            "of another checkpoint"
        ) from error
    except UserError:
        raise
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{prefix} is a checkpoint of another architecture than the config's: {reason}"
        ) from error


def _of_tensorflow_1(prefix: str) -> str:
    return (
        f"{prefix} is a checkpoint of TensorFlow 1, such as Google's bert_model.ckpt, which names "
        "variables and no objects; turn it into one of Model Garden with python -m "
        "official.nlp.tools.tf2_bert_encoder_checkpoint_converter, or convert the same model from "
        "Hugging Face with official_bert.convert"
    )
