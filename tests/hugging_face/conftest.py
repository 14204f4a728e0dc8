"""Folders that the project's own environment exports; this one has PyTorch and no TensorFlow."""

import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("TF_LANS_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


@pytest.fixture(scope="session")
def project() -> Callable[..., None]:
    """Runs `tests.hugging_face.model_garden` where TensorFlow is."""

    def run(*arguments: object) -> None:
        module = "tests.hugging_face.model_garden"
        subprocess.run([PYTHON, "-m", module, *map(str, arguments)], cwd=ROOT, check=True)

    return run


@pytest.fixture(scope="session")
def runs(project: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Runs, their exports and their logits: `<name>/run`, `<name>/export`, `<name>/logits.npz`."""
    folder = tmp_path_factory.mktemp("runs")
    project("export", folder)
    return folder
