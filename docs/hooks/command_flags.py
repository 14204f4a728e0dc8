"""The flags of every command, as its absl definitions have them, as JSON on standard output.

The modules are imported with empty stand-ins for TensorFlow and other large packages, which
definitions of flags do not need, so that this takes a second or two.

    python docs/hooks/command_flags.py tf_lans tfrecords official_bert benchmarks examples
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import pathlib
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
_ABSENT = (
    *("filelock", "jax", "keras", "keras_hub", "matplotlib", "official", "orbit", "safetensors"),
    *("scipy", "sklearn", "tensorflow", "tensorflow_hub", "tensorflow_text", "tf_keras"),
    "tokenizers",
)
_CORES = 99_991  # stands for the cores of whatever machine a command runs on
_SCRIPTS = "examples"  # which is no package
# Commands whose flags another module defines.
_DEFINED_IN = {"tf_lans.schedules": "tf_lans.schedule_plot"}


class _StandInType(type):
    """A class any attribute, index or union of which is `_StandIn` again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn

    def __or__(cls, other: object) -> Any:
        return _StandIn

    __ror__ = __or__

    def __getitem__(cls, key: object) -> Any:
        return _StandIn

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _StandIn(metaclass=_StandInType):
    """Whatever a module's top level may want of an absent package: base, decorator, value."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __call__(self, *args: Any, **kwargs: object) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        return getattr(_StandIn, name)


class _AbsentModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_StandIn, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.split(".")[0] in _ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute."""


def commands(folders: Iterable[str]) -> list[str]:
    """Every module or script of the tree's folders that is a command, by what runs it."""
    paths = [
        path.relative_to(ROOT)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "\nif __name__ == " in path.read_text(encoding="utf-8")
    ]
    return [str(path) if path.parts[0] == _SCRIPTS else _module(path) for path in paths]


def _module(path: pathlib.Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__main__")


def imported(command: str) -> types.ModuleType:
    """The module whose top level defines a command's flags."""
    if command.endswith(".py"):
        spec = importlib.util.spec_from_file_location(pathlib.Path(command).stem, ROOT / command)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # which dataclasses look for
        spec.loader.exec_module(module)
        return module
    path = ROOT / command.replace(".", "/")
    return importlib.import_module(f"{command}.__main__" if path.is_dir() else command)


def defined(command: str) -> list[flags.Flag]:
    """A command's own flags, in the order of their definition."""
    module = imported(_DEFINED_IN.get(command, command))
    values = getattr(module, "FLAGS", None) or getattr(module, "_FLAGS", None)
    if isinstance(values, flags.FlagValues):
        return [values[name] for name in values if values[name].short_name != name]
    found = list(flags.FLAGS.flags_by_module_dict().get(module.__name__, []))
    for flag in found:
        delattr(flags.FLAGS, flag.name)  # which the next command may want for itself
    return found


def described(flag: flags.Flag) -> dict[str, Any]:
    """What a table says of a flag; `default` is as it would be typed, None for none."""
    default = None if flag.default in (None, []) else str(flag.default_as_str).strip("'")
    return {
        "name": flag.name,
        "boolean": bool(flag.boolean),
        "multiple": isinstance(flag, flags.MultiFlag),
        "required": any("must have a value" in check.message for check in flag.validators),
        "default": "all cores" if default == str(_CORES) else default,
        "choices": list(getattr(flag.parser, "enum_values", None) or []),
        "help": " ".join((flag.help or "").split()),
    }


def table(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The docstring and the flags of each command."""
    return {
        name: {
            "doc": inspect.getdoc(imported(name)) or "",
            "flags": [described(flag) for flag in defined(name)],
        }
        for name in names
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, _Finder())
    importlib.import_module("tfrecords.limits").cores = lambda: _CORES
    json.dump(table(commands(sys.argv[1:])), sys.stdout)
