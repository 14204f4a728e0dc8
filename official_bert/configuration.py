"""Experiment configs from files and flags, with every field's type checked.

Model Garden's own parsing is strict about names but not about values: `beta_1: abc` passes and
fails an hour later. Here each value is held against its field's annotation first.
"""

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf
import yaml
from absl import flags
from official.core import config_definitions, exp_factory
from official.modeling.hyperparams import base_config, oneof, params_dict

from tfrecords import files
from tfrecords.errors import UserError

CONFIG_FOLDER = os.path.join(os.path.dirname(__file__), "configs")
PARAMS_FILE = "params.yaml"


def define_flags(flag_values: flags.FlagValues, experiment: str) -> None:
    """Defines Model Garden's flags of a config: `--experiment --config_file --params_override`.

    Args:
      flag_values: a command's flags.
      experiment: the default of `--experiment`.
    """
    flags.DEFINE_string("experiment", experiment, "Registered experiment.", flag_values=flag_values)
    flags.DEFINE_multi_string(
        "config_file", [], "YAML file, or the name of a packaged recipe; later ones win.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string(
        "params_override", "", "YAML, JSON, a file, or a.b=1,c.d=x; wins over the files.",
        flag_values=flag_values,
    )  # fmt: skip


def load(
    experiment: str, config_files: Sequence[str] = (), params_override: str = ""
) -> config_definitions.ExperimentConfig:
    """The experiment's config after its files and overrides, checked and locked.

    Args:
      experiment: a registered name, such as `bert/large_batch_pretraining`.
      config_files: YAML files, later ones winning; a bare name such as
        `bert_tiny_phase1.yaml` is looked up among the recipes that come with the package when
        no such file exists here.
      params_override: YAML or JSON text, a YAML file, or `a.b=1,c.d=x`; wins over the files.

    Raises:
      UserError: an unknown experiment or field, a value of the wrong type, a file that is
        missing or not YAML.

    Example:
      >>> load("bert/large_batch_pretraining", ["bert_tiny_phase1.yaml"],
      ...      "trainer.train_steps=10").trainer.train_steps
      10
    """
    try:
        params = exp_factory.get_exp_config(experiment)
    except LookupError as error:
        raise UserError(
            f"--experiment is {experiment!r}, which is not registered; "
            "pretraining is bert/large_batch_pretraining"
        ) from error
    for name in config_files:
        _override(params, _read_yaml(find_config(name)), source=name)
    if params_override:
        _override(params, _parse_override(params_override), source="--params_override")
    params.lock()
    return params


def find_config(name: str) -> str:
    """The path of a config file, or of the packaged recipe of that name."""
    packaged = os.path.join(CONFIG_FOLDER, name)
    if not tf.io.gfile.exists(name) and os.path.basename(name) == name and os.path.exists(packaged):
        return packaged
    return name


def save(params: base_config.Config, model_dir: str) -> str:
    """Writes `model_dir/params.yaml`, which `load_saved` reads back."""
    path = os.path.join(model_dir, PARAMS_FILE)
    files.write_text(path, yaml.safe_dump(_plain(params.as_dict()), sort_keys=True))
    return path


def read_saved(model_dir: str) -> dict[str, Any]:
    """The `params.yaml` of a run as nested dictionaries.

    Raises:
      UserError: `model_dir` holds none.
    """
    path = os.path.join(model_dir, PARAMS_FILE)
    if not tf.io.gfile.exists(path):
        raise UserError(
            f"{model_dir} holds no {PARAMS_FILE}; expected the --model_dir of a finished or "
            "running official_bert command"
        )
    return _read_yaml(path)


def check_same_run(
    params: base_config.Config,
    model_dir: str,
    sections: Sequence[str],
    but: Collection[str] = (),
) -> None:
    """Refuses a `model_dir` that was begun with another model, data set or optimizer.

    Args:
      params: the config of the run about to start.
      model_dir: its folder; nothing is checked where it holds no `params.yaml` yet.
      sections: dotted names of the parts that must be the same.
      but: dotted names of fields in them that may change.

    Raises:
      UserError: naming the first field that differs, and both values.
    """
    for name, was, wanted in differences(params, model_dir, sections):
        if name not in but:
            raise UserError(
                f"{model_dir} holds a different experiment: {name} was {was!r}, now {wanted!r}; "
                "choose another --model_dir, or restore the old value to continue that run"
            )


def differences(
    params: base_config.Config, model_dir: str, sections: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    """The fields in which a config differs from that of the run in `model_dir`.

    Args:
      params: the config of the run about to start.
      model_dir: its folder; nothing differs where it holds no `params.yaml` yet.
      sections: dotted names of the parts to compare.

    Returns:
      (dotted name, value there, value in `params`) of each.
    """
    if not tf.io.gfile.exists(os.path.join(model_dir, PARAMS_FILE)):
        return []
    before, now = read_saved(model_dir), _plain(params.as_dict())
    return [
        difference
        for section in sections
        for difference in _differences(_at(before, section), _at(now, section), section)
    ]


def _override(params: base_config.Config, values: Any, source: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{source} holds {type(values).__name__}; expected field: value pairs")
    _check_names(params, values, source)
    params.override(values, is_strict=True)
    for name, problem in type_errors(params):
        raise UserError(f"{source}: {name} {problem}")


def _check_names(params: base_config.Config, values: dict[str, Any], source: str) -> None:
    def walk(config: Any, given: dict[str, Any], path: str) -> None:
        fields = set(vars(config)) - set(config.RESERVED_ATTR)
        for key, value in given.items():
            if key not in fields:
                raise UserError(
                    f"{source}: unknown field {path}{key}; expected one of "
                    f"{', '.join(sorted(fields))}"
                )
            below = getattr(config, key)
            if isinstance(value, dict) and isinstance(below, params_dict.ParamsDict):
                walk(below, value, f"{path}{key}.")
            part = _part_of_list(type(config), key)
            if part is None or not isinstance(value, list):
                continue
            for index, each in enumerate(value):
                if not isinstance(each, dict):
                    raise UserError(
                        f"{source}: {path}{key}[{index}] is {each!r}; expected field: value pairs"
                    )
                walk(part(), each, f"{path}{key}[{index}].")

    walk(params, values, "")


def _part_of_list(kind: type[Any], field: str) -> type[Any] | None:
    """The config that a field is a list of; None for any other field."""
    annotation = typing.get_type_hints(kind).get(field)
    choices = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        choices = list(typing.get_args(annotation))
    for choice in choices:
        parts = typing.get_args(choice) if typing.get_origin(choice) is list else ()
        if parts and isinstance(parts[0], type) and issubclass(parts[0], base_config.Config):
            return parts[0]
    return None


def type_errors(config: base_config.Config, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (field, what is wrong) for every value that its annotation does not allow."""
    annotations = typing.get_type_hints(type(config))
    if isinstance(config, oneof.OneOfConfig) and config.type is not None:
        choices = [field.name for field in dataclasses.fields(config) if field.name != "type"]
        if config.type not in choices:
            yield f"{path}type", f"is {config.type!r}; expected one of {', '.join(choices)}"
    for field in dataclasses.fields(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        annotation = annotations[field.name]
        if isinstance(value, base_config.Config):
            yield from type_errors(value, f"{name}.")
        elif isinstance(value, list) and _part_of_list(type(config), field.name):
            for index, part in enumerate(value):
                yield from type_errors(part, f"{name}[{index}].")
        elif not _matches(value, annotation):
            yield name, f"is {value!r}; expected {_describe(annotation)}"


def _matches(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, choice) for choice in arguments)
    if origin is not None:
        sequence = isinstance(value, list | tuple)
        return sequence and all(_matches(item, arguments[0]) for item in value)
    if annotation is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(annotation, type) and issubclass(annotation, params_dict.ParamsDict):
        return isinstance(value, params_dict.ParamsDict)
    return isinstance(value, annotation)


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is not None:
        return f"a list of {_describe(typing.get_args(annotation)[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _read_yaml(path: str) -> Any:
    try:
        return params_dict.read_yaml_to_params_dict(path).as_dict()
    except (tf.errors.OpError, OSError) as error:
        reason = "it does not exist"
        if tf.io.gfile.exists(path):
            reason = " ".join(str(getattr(error, "message", error)).split())
        raise UserError(f"cannot read the config file {path}: {reason}") from error
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a YAML file of field: value pairs: {error}") from error


def _parse_override(text: str) -> Any:
    if tf.io.gfile.exists(text):
        return _read_yaml(text)
    # Model Garden's a.b=c form is tried first; it raises on what is YAML or JSON already.
    with contextlib.suppress(ValueError):
        text = params_dict.nested_csv_str_to_json_str(text)
    try:
        return yaml.load(text, Loader=params_dict._LOADER)
    except yaml.YAMLError as error:
        raise UserError(f"--params_override is not YAML or a.b=value pairs: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _at(values: Any, section: str) -> Any:
    for key in section.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path, old, new
