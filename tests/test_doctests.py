"""The examples of tf_lans's docstrings and of the documents, run."""

import doctest
import importlib
import pathlib
import pkgutil

import keras
import numpy
import pytest

import tf_lans

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEFT_OUT = ("jax_program",)  # imports jax, which is not installed beside TensorFlow


def modules() -> list[str]:
    found = [module.name for module in pkgutil.iter_modules(tf_lans.__path__)]
    return [f"tf_lans.{name}" for name in found if name not in LEFT_OUT]


def names() -> dict:
    """What the examples use without importing it."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense")(inputs))
    return {"keras": keras, "numpy": numpy, "tf_lans": tf_lans, "model": model}


def run(test: doctest.DocTest) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


@pytest.mark.parametrize("name", modules())
def test_the_examples_of(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        test.globs.update(names() if test.examples else {})
        run(test)


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_the_examples_of_the_document(path: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / path).read_text()
    run(doctest.DocTestParser().get_doctest(text, {}, path, path, 0))
