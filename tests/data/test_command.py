"""What all commands share."""

import errno
import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags

from tfrecords import UserError, build, command, files, vocabulary


@pytest.mark.parametrize("module", [build, vocabulary])
def test_help(module: object, capsys: pytest.CaptureFixture) -> None:
    assert module.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "python -m tfrecords." in text
    assert "--input" in text
    assert "--[no]lower_case" in text


def make() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_integer("size", 3, "A size.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("name", None, "A name.", required=True, flag_values=values)
    return values


def test_flags_are_forgotten_between_calls() -> None:
    values = make()
    seen = []
    for argv in (["--name=a", "--size=5"], ["--name=b"]):
        assert command.run(lambda flag: seen.append((flag.name, flag.size)), values, argv) == 0
    assert seen == [("a", 5), ("b", 3)]
    assert command.run(lambda flag: None, values, []) == 2


def test_errors(capsys: pytest.CaptureFixture) -> None:
    def fail(error: BaseException) -> int:
        def body(_: flags.FlagValues) -> None:
            raise error

        return command.run(body, make(), ["--name=a"])

    assert fail(UserError("two\nlines")) == 2
    assert fail(FileNotFoundError(2, "No such file", "/x")) == 2
    assert capsys.readouterr().err == "error: two lines\nerror: [Errno 2] No such file: '/x'\n"
    assert fail(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_progress_in_a_log(capsys: pytest.CaptureFixture) -> None:
    with command.progress(total=3, desc="work", unit="step") as bar:
        for _ in range(3):
            bar.update()
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert "\r" not in captured.out
    assert lines[0].startswith("work:   0%")
    assert lines[-1].startswith("work: 100%")
    assert "3/3" in lines[-1]
    assert len(lines) == 2


def test_as_a_module(tmp_path: pathlib.Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tfrecords.vocabulary", "--input=/nowhere", "--output=x"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith("error: --input '/nowhere' matches no file")
    assert "Traceback" not in finished.stderr


def test_atomic_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "caf\u00e9")
    assert path.read_bytes() == b"caf\xc3\xa9"
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as temporary:
        pathlib.Path(temporary).write_text("half")
        raise ZeroDivisionError
    assert files.read_bytes(path) == b"caf\xc3\xa9"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    (path.parent / f"file.txt{files.PARTIAL}0").write_text("killed")
    files.remove_partial(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    with pytest.raises(FileNotFoundError, match="cannot read"):
        files.read_bytes(tmp_path / "absent")
    with pytest.raises(OSError, match="cannot read") as caught:
        files.read_bytes(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)  # or it would be called missing


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch) -> None:
    """Else a machine that loses its power keeps a name without its content."""
    synced: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(
        files.os,
        "fsync",
        lambda descriptor: synced.append((os.fstat(descriptor).st_size, os.listdir(tmp_path))),
    )
    files.write_bytes(tmp_path / "file", b"whole")
    ((size, names),) = synced
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(files.os, "fsync", mock.Mock(side_effect=full))
    with pytest.raises(OSError, match="cannot write .*/other: No space left"):
        files.write_bytes(tmp_path / "other", b"")
    assert os.listdir(tmp_path) == ["file"]
    assert size == len(b"whole")
    assert len(names) == 1 and names[0].startswith(f"file{files.PARTIAL}")
