"""The lock on a folder: it is waited for, falls with its holder, and is not held for good."""

import errno
import fcntl
import pathlib
import subprocess
import sys

import pytest

from tfrecords import files

HOLDER = (
    "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: pathlib.Path):
    """Another process that holds `.lock` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path, holder, monkeypatch) -> None:
    said = []

    def warning(text: str, *values: object) -> None:
        said.append(text % values)
        holder.stdin.close()

    monkeypatch.setattr(files.logging, "warning", warning)
    with files.lock(str(tmp_path / ".lock"), patience=60.0):
        assert said == [f"another process is at work in {tmp_path}; waiting for it"]
        assert holder.wait() == 0
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("patience", "words"), [(0.0, "another process is at work in"), (0.1, "after 0.1 seconds")]
)
def test_patience_ends(tmp_path, holder, patience: float, words: str) -> None:
    with (
        pytest.raises(TimeoutError, match=words),
        files.lock(str(tmp_path / ".lock"), patience),
    ):
        raise AssertionError("nobody else may hold it")
    assert (tmp_path / ".lock").exists() and holder.poll() is None


def test_a_file_system_without_locks_is_not_locked_for_good(tmp_path, monkeypatch) -> None:
    """A lock by a file's mere existence would outlive the process that a kill takes."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    said = []
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files.logging, "warning", lambda text, *values: said.append(text % values))
    path = str(tmp_path / ".lock")
    with files.lock(path), files.lock(path):
        assert said == [f"{tmp_path}: no locks there; let no two processes work in it at once"] * 2


def test_object_stores_have_no_locks() -> None:
    with files.lock("gs://bucket/.lock"), files.lock("gs://bucket/.lock"):
        pass
