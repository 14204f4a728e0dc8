"""The docstrings of installed packages, read from their source files without importing them.

Every installation carries some thirty megabytes of edited English in this form, which makes the
demonstration's corpus (`docstring_corpus`) and questions (`docstring_questions`) free of any
download.
"""

import ast
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import pydoc_data.topics
import warnings
from collections.abc import Iterator, Sequence

from tfrecords.errors import UserError

PYTHON_TOPICS = "pydoc_data"

# Packages that come with the `bert` extra, in the order in which they are written: of two equal
# docstrings the earlier package keeps its own, so originals stand before their copies.
DEFAULT_PACKAGES = (
    PYTHON_TOPICS,
    "numpy",
    "scipy",
    "pandas",
    "sklearn",
    "matplotlib",
    "mpl_toolkits",
    "tensorflow",
    "keras",
    "tf_keras",
    "keras_hub",
    "tensorflow_datasets",
    "tensorflow_hub",
    "tensorflow_text",
    "tensorflow_model_optimization",
    "tensorboard",
    "tf_slim",
    "official",
    "orbit",
    "huggingface_hub",
    "narwhals",
    "pyarrow",
    "h5py",
    "joblib",
    "optree",
    "PIL",
    "fontTools",
    "absl",
    "etils",
    "sympy",
)

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True, kw_only=True)
class Docstring:
    """One docstring and where it stands.

    Attributes:
        package: the top-level package, such as `numpy`.
        name: the documented object's dotted name, such as `numpy.linalg.norm`.
        text: the docstring with its common indentation removed.
    """

    package: str
    name: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A file to read docstrings from: the package, the dotted module name, the path."""

    package: str
    module: str
    path: str


def installed(packages: Sequence[str] = DEFAULT_PACKAGES) -> list[str]:
    """Those of `packages` that this environment has, in the same order; imports none of them.

    Raises:
        UserError: none of them is installed.

    Example:
        >>> installed(["numpy", "no_such_package"])
        ['numpy']
    """
    found = [package for package in packages if _folders(package)]
    if not found:
        raise UserError(
            f"none of the packages {', '.join(packages)} is installed; expected at least one: "
            "install the `bert` extra, or name packages that are there"
        )
    return found


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of the distribution that provides each package, where known."""
    providers = importlib.metadata.packages_distributions()
    return {
        package: importlib.metadata.version(providers[package][0])
        for package in packages
        if package in providers
    }


def sources(package: str) -> list[Source]:
    """The source files of `package` in a fixed order; `PYTHON_TOPICS` is one source.

    Tests are passed over: they are much to parse and little to read.
    """
    if package == PYTHON_TOPICS:
        return [Source(package=package, module=package, path=pydoc_data.topics.__file__)]
    return [
        Source(
            package=package,
            module=_module_name(package, os.path.relpath(path, folder)),
            path=path,
        )
        for folder in _folders(package)
        for path in _source_files(folder)
    ]


@functools.cache
def read(source: Source) -> tuple[Docstring, ...]:
    """A file's docstrings by line: the module's, its classes' and its functions'.

    They are kept, since parsing takes the time and corpus and questions read the same files.

    A file that is no valid Python, such as a template, has none. Of `PYTHON_TOPICS` it is the
    chapters of the language reference behind `help()`.
    """
    if source.package == PYTHON_TOPICS:
        found = sorted(pydoc_data.topics.topics.items())
        texts = [(topic, inspect.cleandoc(text)) for topic, text in found]
    else:
        nodes = _documented(_parse(source.path), source.module)
        texts = [(name, ast.get_docstring(node) or "") for name, node in nodes]
    return tuple(
        Docstring(package=source.package, name=name, text=text) for name, text in texts if text
    )


def _parse(path: str) -> ast.Module:
    try:
        with open(path, encoding="utf-8") as stream:
            code = stream.read()
        with warnings.catch_warnings():
            # Other people's invalid escapes are none of the user's business.
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _folders(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    return sorted(spec.submodule_search_locations)


def _source_files(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("tests", "__pycache__"))
        for name in sorted(names):
            is_test = name.startswith("test_") or name.endswith("_test.py")
            if name.endswith(".py") and not is_test:
                yield os.path.join(parent, name)


def _module_name(package: str, relative_path: str) -> str:
    parts = [package, *relative_path.removesuffix(".py").split(os.sep)]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, _Documented]]:
    """The node and the definitions below it; expressions, which hold none, are not entered."""
    if isinstance(node, _Documented):
        yield name, node
    for field in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else ():
            own = getattr(child, "name", None) if isinstance(child, _Documented) else None
            yield from _documented(child, name if own is None else f"{name}.{own}")
