"""The JSON files of a model's folder."""

import json
from typing import Any

import tensorflow as tf

from tfrecords import files
from tfrecords.errors import UserError


def read(path: str) -> dict[str, Any]:
    """A JSON file's object, without what is null there; empty where there is no such file.

    Args:
        path: the file.

    Raises:
        UserError: the file is no JSON object.

    Example:
        >>> read("bert-base-uncased/config.json")["hidden_size"]
        768
    """
    if not tf.io.gfile.exists(path):
        return {}
    try:
        content = json.loads(files.read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; fetch or write it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, expected a JSON object; fetch or write it "
            "again"
        )
    return {name: value for name, value in content.items() if value is not None}
