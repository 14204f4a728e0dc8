"""BERT encoders that lie in SavedModels: ours, and others with the same variables."""

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from tfrecords import files, schema
from tfrecords.errors import UserError

ENCODER = "encoder"
INPUTS = (schema.INPUT_WORD_IDS, schema.INPUT_MASK, schema.INPUT_TYPE_IDS)

_PROTO = "saved_model.pb"
_VARIABLES = os.path.join("variables", "variables")
_EXPECTED = "expected the encoder folder that official_bert.export --format=saved_model writes"


def prefix(path: str) -> str | None:
    """The checkpoint inside a SavedModel, or inside the `encoder` that an export's folder holds.

    Args:
        path: a SavedModel, a folder with `encoder` below it, or anything else.

    Returns:
        The prefix of its variables; None where `path` is no such folder.

    Raises:
        UserError: a SavedModel that is damaged, or that does not take an encoder's inputs.

    Example:
        >>> prefix("export")
        'export/encoder/variables/variables'
    """
    for folder in (path, os.path.join(path, ENCODER)):
        if tf.io.gfile.exists(os.path.join(folder, _PROTO)):
            _check_signature(folder)
            return os.path.join(folder, _VARIABLES)
    return None


def folder_of(checkpoint: str) -> str | None:
    """The SavedModel whose variables a checkpoint prefix names; None for other checkpoints."""
    folder = checkpoint.removesuffix(os.sep + _VARIABLES)
    if folder == checkpoint or not tf.io.gfile.exists(os.path.join(folder, _PROTO)):
        return None
    return folder


def assets(folder: str) -> str:
    """Where a SavedModel keeps its vocabulary, and ours the encoder's config and the casing."""
    return os.path.join(folder, "assets")


def lower_case(folder: str) -> bool | None:
    """The casing that TF Hub's encoders keep as a variable; None where there is none."""
    key = "do_lower_case/.ATTRIBUTES/VARIABLE_VALUE"
    with _reading(folder) as reader:
        return bool(reader.get_tensor(key)) if reader.has_tensor(key) else None


def restore(folder: str, encoder: tf_keras.Model) -> None:
    """Fills an encoder, its pooler included, with the SavedModel's variables of the same names.

    Args:
        folder: a SavedModel.
        encoder: a Model Garden BERT encoder, its variables created.

    Raises:
        UserError: it is damaged, or does not have the encoder's variables; nothing is assigned
            then.
    """
    with _reading(folder) as reader:
        saved = {name: reader.get_tensor(key) for name, key in _keys(reader).items()}
    _check_names(folder, encoder, saved)
    values = [saved[_name(variable)] for variable in encoder.variables]
    for variable, value in zip(encoder.variables, values, strict=True):
        if value.shape != tuple(variable.shape):
            raise UserError(
                f"{folder} is a SavedModel of another architecture than the config's: its "
                f"{_name(variable)} has the shape {value.shape}, the config's {variable.shape}"
            )
    for variable, value in zip(encoder.variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def _reading(folder: str) -> Iterator[Any]:
    """A reader of the SavedModel's variables; its errors become the user's."""
    try:
        yield tf.train.load_checkpoint(os.path.join(folder, _VARIABLES))
    # The types that TensorFlow's reader is known to raise for truncated and damaged files.
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise _damaged(folder, str(error)) from error


def _keys(reader: Any) -> dict[str, str]:
    """The key in the checkpoint of each variable, by its name in the program that saved it."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    saved = [attribute for node in graph.nodes for attribute in node.attributes]
    return {attribute.full_name: attribute.checkpoint_key for attribute in saved}


def _name(variable: tf.Variable) -> str:
    return variable.name.removesuffix(":0")


def _check_names(folder: str, encoder: tf_keras.Model, saved: Collection[str]) -> None:
    missing = [name for name in map(_name, encoder.variables) if name not in saved]
    depth = len(encoder.transformer_layers)
    deeper = [name for name in saved if name.startswith(f"transformer/layer_{depth}/")]
    if missing:
        problem = f"no {missing[0]}, which is one of {len(missing)} of the config's missing there"
    elif deeper:
        problem = f"{deeper[0]}, a layer more than the config's {depth}"
    else:
        return
    raise UserError(
        f"{folder} is a SavedModel of another architecture than the config's: it has {problem}; "
        f"{_EXPECTED}, or one with Model Garden's names"
    )


def _check_signature(folder: str) -> None:
    """Looks at the names of what the SavedModel takes, without loading it."""
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(files.read_bytes(os.path.join(folder, _PROTO)))
        signatures = proto.meta_graphs[0].signature_def
    except (DecodeError, IndexError) as error:
        raise _damaged(folder, str(error)) from error
    taken = sorted(signatures["serving_default"].inputs) if "serving_default" in signatures else []
    if not set(INPUTS).issubset(taken):
        takes = ", ".join(taken) or "no named inputs"
        raise UserError(
            f"{folder} is a SavedModel without our signature: its serving_default takes {takes}, "
            f"not {', '.join(INPUTS)}; {_EXPECTED}"
        )


def _damaged(folder: str, reason: str) -> UserError:
    return UserError(f"{folder} is damaged: {' '.join(reason.split())[:200]}; export it again")
