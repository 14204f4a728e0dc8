"""The made-up corpus of the data tests, and builds of it."""

import pathlib

import pytest

from tests.data.conftest import build_arguments, corpus_dir, vocab_file
from tfrecords import build

__all__ = ["corpus_dir", "vocab_file"]

# With the second option the DirectRunner works in this process; without it, it first tries to
# download another runner, Prism.
DIRECT = ["--", "--runner=DirectRunner", "--allow_unsafe_triggers"]


def arguments(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, output_dir: pathlib.Path
) -> list[str]:
    """The flags that both builds have."""
    return [
        flag
        for flag in build_arguments(corpus_dir, vocab_file, output_dir)
        if not flag.startswith("--num_processes")
    ]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def local(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What the local build writes."""
    folder = tmp_path_factory.mktemp("local") / "shards"
    assert build.main([*arguments(corpus_dir, vocab_file, folder), "--num_processes=1"]) == 0
    return contents(folder)
