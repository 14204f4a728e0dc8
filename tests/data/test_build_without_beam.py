"""`tfrecords.build_beam` where Apache Beam is not installed, as in most environments."""

import pathlib
import sys

import pytest

from tests.data.conftest import build_arguments
from tfrecords import build, build_beam


def test_the_extra_is_named(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tfrecords.beam_pipeline", raising=False)
    arguments = build_arguments(corpus_dir, vocab_file, tmp_path / "shards")
    assert build_beam.main([flag for flag in arguments if "num_processes" not in flag]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Apache Beam is not installed; pip install '.[beam]' in a clone")
    assert error.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_its_flags_are_those_of_the_local_build() -> None:
    assert set(build_beam.FLAGS) - {"pipeline_options"} == set(build.FLAGS) - {"num_processes"}
    for name in set(build_beam.FLAGS) & set(build.FLAGS):
        assert build_beam.FLAGS[name].default == build.FLAGS[name].default
        assert build_beam.FLAGS[name].help == build.FLAGS[name].help


def test_required_flags_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_beam.main(["--input=text"]) == 2
    assert "--vocab_file" in capsys.readouterr().err
