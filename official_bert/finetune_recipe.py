"""Finetuning flags from a YAML file, so that a recipe is a file and a command stays short."""

import difflib
import os
from typing import Any

import tensorflow as tf
import yaml
from absl import flags

from official_bert import configuration
from tfrecords import files
from tfrecords.errors import UserError

FOLDER = os.path.join(configuration.CONFIG_FOLDER, "finetune")
FLAG = "recipe"
# Which run it is, is not the recipe's business.
_NEVER = (FLAG, "model_dir")
# Two flags for one thing: of these, too, the command line wins.
_PAIRS = (("seed", "seeds"), ("learning_rate", "learning_rates"), ("epochs", "train_steps"))
_COUNTERPART = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}


def find(name: str) -> str:
    """The path of a recipe, or of the one of that name that comes with the package.

    Raises:
        UserError: there is neither.
    """
    packaged = os.path.join(FOLDER, name)
    if tf.io.gfile.exists(name):
        return name
    if os.path.basename(name) == name and os.path.exists(packaged):
        return packaged
    known = ", ".join(sorted(os.listdir(FOLDER)))
    raise UserError(f"no recipe at {name}; expected a YAML file, or one of {known}")


def apply(name: str, flag_values: flags.FlagValues) -> None:
    """Sets the flags that a recipe names and the command line does not, by this or another name.

    Args:
        name: as in `find`.
        flag_values: parsed.

    Raises:
        UserError: no such file, no flags by name in it, an unknown flag, or a bad value.
    """
    path = find(name)
    given = {flag for flag in flag_values if flag_values[flag].present}
    for key, value in _read(path).items():
        if key not in flag_values or key in _NEVER:
            raise UserError(f"{path}: {key!r} is no flag of a recipe; {_nearest(key, flag_values)}")
        if value is None or not given.isdisjoint((key, _COUNTERPART.get(key))):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            flag_values[key].parse(text)
        except flags.IllegalFlagValueError as error:
            raise UserError(f"{path}: {key}: {error}") from error


def _read(path: str) -> dict[str, Any]:
    try:
        # BaseLoader leaves values as they are written, for the flag to read: 1e-4 is no number
        # in YAML 1.1.
        content = yaml.load(files.read_bytes(path).decode("utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no flag: value pairs; expected such as task: squad")
    return {str(key): value for key, value in content.items()}


def _nearest(key: str, flag_values: flags.FlagValues) -> str:
    names = [name for name in flag_values if name not in _NEVER]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f"did you mean {close[0]}?" if close else "see --help"
