"""What the README shows runs as it stands there; what documents name exists."""

import pathlib
import re

import pytest
import tensorflow as tf

import official_bert.configuration

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]


def named(pattern: str) -> list[tuple[str, str]]:
    """What matches in each document, with the document's path."""
    return sorted(
        {
            (str(path.relative_to(ROOT)), found)
            for path in DOCUMENTS
            for found in re.findall(pattern, path.read_text(encoding="utf-8"))
        }
    )


def test_the_keras_example_compiles_a_model_that_learns() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    model, optimizer = names["model"], names["optimizer"]
    inputs, labels = tf.random.normal([8, 4], seed=1), tf.range(8)
    model.fit(inputs, labels, batch_size=8, epochs=2, verbose=0)
    assert model.optimizer is optimizer and int(optimizer.iterations) == 2


@pytest.mark.parametrize("recipe", sorted(set(re.findall(r"=(\w+\.yaml)", README))))
def test_recipes_are_packaged(recipe: str) -> None:
    assert pathlib.Path(official_bert.configuration.find_config(recipe)).is_file()


@pytest.mark.parametrize(("document", "module"), named(r"python -m ([\w.]+)"))
def test_commands_exist(document: str, module: str) -> None:
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
