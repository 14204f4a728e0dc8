"""The distributions of this tree, built as `python -m build` does and without the network.

What is built is a copy of the sources: a build in a checkout could take what an earlier one left
there. setuptools, which `pyproject.toml` names, must be installed beside this Python's pip.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tarfile

PACKAGES = ("official_bert", "tf_lans", "tfrecords")
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_FOLDERS = (*PACKAGES, "benchmarks", "docs", "examples", "tests")
_FILES = ("*.md", "*.txt", "*.yml", "*.toml", "*.in", "setup.py", "Makefile", "LICENSE")
_NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.py[cod]", "*.egg-info")


def run(*command: object, cwd: pathlib.Path | None = None) -> None:
    """Runs a command.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    words = [str(part) for part in command]
    completed = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {completed.stderr[-4000:]}")


def copy_sources(folder: pathlib.Path) -> None:
    """Copies the tree, without what a checkout gathers beside it."""
    for name in _FOLDERS:
        shutil.copytree(_ROOT / name, folder / name, ignore=_NOT_SOURCE)
    for path in sorted({path for pattern in _FILES for path in _ROOT.glob(pattern)}):
        shutil.copy(path, folder)


def source_distribution(tree: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Builds the source distribution of a copy of the tree.

    Returns:
        The folder that it unpacks to, below `folder`.
    """
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", program, folder, cwd=tree)
    (built,) = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        archive.extractall(folder, filter="data")
    return folder / built.name.removesuffix(".tar.gz")


def wheel(sources: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Builds the wheel of an unpacked source distribution into an empty folder."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sources)
    (built,) = folder.glob("*.whl")
    return built
