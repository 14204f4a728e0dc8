"""CONTRIBUTING.md is short, and what it names is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=\n## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))
RECIPES = {name: text for name, text in SECTIONS.items() if name.startswith("Add ")}
NAMED = re.findall(r"`([^`]+)`", TEXT)
PATHS = sorted({name for name in NAMED if re.fullmatch(r"[\w./-]+/[\w./-]+|[\w-]+\.(md|py)", name)})
# Made by `make`, not part of the tree.
MADE = {".venv/bin/python"}


def test_each_way_to_add_something_is_under_ten_lines() -> None:
    assert set(RECIPES) == {
        "Add an optimizer",
        "Add a schedule",
        "Add a record kind",
        "Add an export format",
    }
    for name, text in RECIPES.items():
        assert 3 <= len(text.strip().splitlines()) < 10, name


@pytest.mark.parametrize("path", sorted(set(PATHS) - MADE))
def test_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([\w-]+)`", TEXT))))
def test_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("section", sorted(RECIPES))
def test_names_are_in_a_file_that_their_section_names(section: str) -> None:
    """Each name in backticks is defined in one of the section's files."""
    named = re.findall(r"`([^`]+)`", RECIPES[section])
    files = [ROOT / name for name in named if name in PATHS and name.endswith(".py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    names = [name for name in named if re.fullmatch(r"\w+", name)]
    assert names
    for name in names:
        defined = rf"^\s*(def|class) {name}\b|^{name}\b.* = |^    {name}\b.*[:=]|def {name}\("
        assert re.search(defined, sources, flags=re.MULTILINE), name
