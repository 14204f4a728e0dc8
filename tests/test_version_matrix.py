"""The tests of several versions are run, counted and written into documents."""

import json
import pathlib
import sys

import pytest

from benchmarks import markdown_part, version_matrix
from tfrecords.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SUITE = """
import pytest
def test_that_passes(): pass
def test_that_fails(): assert False
@pytest.fixture
def broken(): raise OSError
def test_that_cannot_start(broken): pass
@pytest.mark.parametrize("number", [1, 2])
def test_that_skips(number): pytest.skip("no corpus")
"""
VERSIONS = {"python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1", "tf_keras": "2.21.0"}
PASSED = {"passed": 1234, "failed": 0, "skipped": {"no corpus": 2}}


def environment(versions: dict, **suites: dict) -> dict:
    return {"date": "2026-11-23T03:00:00+00:00", "versions": versions, "suites": suites}


def test_tests_are_counted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_some.py").write_text(SUITE)
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    found = version_matrix.run_suite(sys.executable, str(tmp_path))
    assert found == {"passed": 1, "failed": 3, "skipped": {"no corpus": 2}}


def test_a_suite_that_cannot_run_is_a_mistake(tmp_path: pathlib.Path) -> None:
    (tmp_path / "conftest.py").write_text("import no_such_module")
    with pytest.raises(UserError, match=f"could not run {tmp_path} with .* exit code 4"):
        version_matrix.run_suite(sys.executable, str(tmp_path))


def test_tensorflow_text_is_for_one_tensorflow() -> None:
    assert version_matrix.text_is_missing(VERSIONS) == "no tensorflow-text for TensorFlow 2.21.0"
    for text, missing in (("2.21.1", False), ("2.20.1", True)):
        found = version_matrix.text_is_missing({**VERSIONS, "tensorflow-text": text})
        assert bool(found) == missing


def test_the_table() -> None:
    failed = {"passed": 8, "failed": 1, "skipped": {}}
    figures = {
        "environments": {
            "pinned": environment(
                {**VERSIONS, "tensorflow-text": "2.21.1"}, tf_lans=PASSED, tfrecords=failed
            ),
            "newest": environment(VERSIONS, tf_lans=PASSED, tfrecords={"not_run": "no text"}),
        }
    }
    lines = version_matrix.table(figures).splitlines()
    assert lines[2] == (
        "| pinned, 2026-11-23 | 3.11.7 | 2.21.0 | 3.15.1 | 2.21.0 | 2.21.1 "
        "| 1,234 passed, 2 skipped | 8 passed, 1 failed |"
    )
    assert lines[3].endswith("| 2.21.0 | none | 1,234 passed, 2 skipped | not run: no text |")
    assert lines[5:] == [
        "- pinned, `tf_lans`: 2 skipped, no corpus",
        "- newest, `tf_lans`: 2 skipped, no corpus",
    ]
    assert version_matrix.failures(figures) == ["tfrecords on pinned"]
    assert version_matrix.table({"environments": {}}) == ""


@pytest.mark.parametrize("named", ["pinned", "=python", "pinned=no/such/python"])
def test_environments_that_are_none(named: str, tmp_path: pathlib.Path, capsys) -> None:
    output = tmp_path / "found.json"
    assert version_matrix.main([f"--environments={named}", f"--output={output}"]) == 2
    assert "expected NAME=PYTHON" in capsys.readouterr().err
    assert not output.exists()


def test_what_is_known_is_written_without_running(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    figures = {"environments": {"pinned": environment(VERSIONS, tf_lans=PASSED, tfrecords=PASSED)}}
    output, document = tmp_path / "found.json", tmp_path / "README.md"
    output.write_text(json.dumps(figures))
    document.write_text("\n".join(["before", *markdown_part.marks(version_matrix.MODULE), "after"]))
    monkeypatch.setattr(version_matrix, "documents", lambda: [document])
    assert version_matrix.main([f"--output={output}"]) == 0
    table = version_matrix.table(figures)
    assert table in capsys.readouterr().out
    assert f"\n\n{table}\n" in document.read_text()
    assert document.read_text().startswith("before\n") and document.read_text().endswith("\nafter")


def test_what_is_recorded_passed() -> None:
    """That the documents say so is held by tests/test_figures.py, as of all generated parts."""
    assert ROOT / "README.md" in version_matrix.documents()
    path = ROOT / version_matrix.RESULTS
    if not path.is_file():
        pytest.skip(f"no {version_matrix.RESULTS}: make test-matrix has not been run to its end")
    figures = version_matrix.recorded(path)
    assert version_matrix.failures(figures) == []
    for found in figures["environments"].values():
        assert set(found["suites"]) == set(version_matrix.SUITES)
