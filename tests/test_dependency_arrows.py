"""The three packages depend one way: tf_lans and tfrecords know nothing of official_bert."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What each package may import of ours and of Model Garden.
ALLOWED = {
    "tf_lans": {"tf_lans"},
    "tfrecords": {"tfrecords"},
    "official_bert": {"tf_lans", "tfrecords", "official_bert", "official", "orbit"},
}
WATCHED = {"tf_lans", "tfrecords", "official_bert", "official", "orbit", "tests"}


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows_point_one_way(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        found = imported_packages(module.read_text()) & WATCHED
        assert found <= ALLOWED[package], f"{module.relative_to(ROOT)} imports {sorted(found)}"


def test_the_check_sees_nested_imports() -> None:
    assert imported_packages("def f():\n  from official.core import x") == {"official"}
