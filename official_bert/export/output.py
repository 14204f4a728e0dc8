"""Output folders that appear whole or not at all, and never over somebody's files."""

import contextlib
import json
import os
import signal
import threading
import types
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from official_bert.export import json_object
from tfrecords import files
from tfrecords.errors import UserError

MARKER = "exported.json"

_CONTENT = "content"


@contextlib.contextmanager
def folder(
    output_dir: str, overwrite: bool = False, about: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yields a new folder beside `output_dir` to write to; on success it becomes `output_dir`.

    If the block raises, or the process is asked to end (SIGTERM), the new folder is removed and
    `output_dir` is as it was. Only a folder that this function made before, and that nobody has
    put anything else into, is ever replaced; `MARKER` shows both.

    Args:
        output_dir: the folder to make; those above it are made too. A link is followed.
        overwrite: whether an earlier export there may be replaced, once the new one is whole.
        about: what `MARKER` says of the content, asked at the end.

    Raises:
        UserError: `output_dir` is a file, or a folder with content that may not be replaced;
            before the block is entered.

    Example:
        >>> with folder("export") as temporary:
        ...     files.write_text(f"{temporary}/vocab.txt", "[PAD]")
    """
    check_free(output_dir, overwrite)
    path = _resolved(output_dir)
    temporary = f"{path}{files.PARTIAL}{uuid.uuid4().hex[:12]}"
    with _ended_in_order():
        try:
            files.make_folder(temporary)
            yield temporary
            said = {**(about or {}), _CONTENT: _files(temporary)}
            files.write_text(os.path.join(temporary, MARKER), json.dumps(said, indent=2))
            _move(temporary, path)
        except tf.errors.OpError as error:
            raise OSError(f"cannot write {path}: {error.message}") from error
        finally:
            _remove(temporary)


def about(path: str) -> dict[str, Any]:
    """What the `MARKER` of a folder says; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    return json_object.read(os.path.join(path, MARKER))


def size(path: str) -> int:
    """The bytes of all files in a folder and those below it."""
    return sum(tf.io.gfile.stat(os.path.join(path, name)).length for name in _files(path))


def check_free(path: str, overwrite: bool = False) -> None:
    """Refuses an `output_dir` that `folder` would refuse, for a look before the slow work.

    Raises:
        UserError: it is a file, a folder with content that may not be replaced, or one that
            cannot be replaced as a whole.
    """
    if not path:
        raise UserError("--output_dir is empty; name the folder to write")
    if not tf.io.gfile.exists(path):
        return
    if not tf.io.gfile.isdir(path):
        raise UserError(f"--output_dir {path} is a file; name a folder that does not exist yet")
    if _is_local(path) and (os.path.ismount(path) or os.path.samefile(path, os.curdir)):
        raise UserError(
            f"--output_dir {path} is the current folder or a mount, which cannot be replaced as a "
            "whole; name a folder in it"
        )
    content = _names(path)
    if not content:
        return
    if not overwrite:
        raise UserError(
            f"--output_dir {path} is not empty (it holds {content[0]}); choose another, or give "
            "--overwrite to replace an earlier export"
        )
    if MARKER not in content:
        raise UserError(
            f"--output_dir {path} holds {content[0]} and no {MARKER}: it is not an earlier export, "
            "so --overwrite does not replace it; choose another folder, or remove it yourself"
        )
    written = {MARKER, *about(path).get(_CONTENT, [])}
    # Exports of earlier versions name the folders in place of what is in them.
    others = [each for each in _files(path) if written.isdisjoint({each, each.split("/")[0]})]
    if others:
        raise UserError(
            f"--output_dir {path} holds {others[0]}, which the export did not write, so "
            "--overwrite does not replace it; choose another folder, or move that away"
        )


def check_apart(path: str, source: str) -> None:
    """Refuses an `output_dir` that is what is read, holds it, or is an old folder in it.

    Args:
        path: the `output_dir`.
        source: the folder that is read, or the prefix of a checkpoint. A new folder may lie in
            it, as in `--model_dir=. --output_dir=export`.

    Raises:
        UserError: the one lies in the other.
    """
    if not source or not _is_local(path) or not _is_local(source):
        return
    is_folder = tf.io.gfile.isdir(source)
    read = _resolved(source if is_folder else os.path.dirname(source))
    written = _resolved(path)
    common = os.path.commonpath([read, written])
    if common == written or (is_folder and common == read and tf.io.gfile.exists(written)):
        raise UserError(
            f"--output_dir {path} and the folder that is read, {read}, lie in one another; name a "
            "folder beside it"
        )


def _names(path: str) -> list[str]:
    # On object stores a folder's name ends in a slash.
    return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(path))


def _files(path: str) -> list[str]:
    """All files in a folder and those below it, as seen from it."""
    return sorted(
        os.path.relpath(os.path.join(directory, name), path)
        for directory, _, names in tf.io.gfile.walk(path)
        for name in names
    )


def _is_local(path: str) -> bool:
    return "://" not in path


def _resolved(path: str) -> str:
    return os.path.realpath(path) if _is_local(path) else path.rstrip("/")


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that what is half written is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # Python allows it only there
        yield
        return

    def end(number: int, frame: types.FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # None: a handler that is not Python's, which cannot be given back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _move(temporary: str, path: str) -> None:
    """Puts `temporary` in the place of `path`, which is given back if that fails."""
    if not tf.io.gfile.exists(path):
        tf.io.gfile.rename(temporary, path)
        return
    old = f"{temporary}-old"
    try:
        tf.io.gfile.rename(path, old)
        tf.io.gfile.rename(temporary, path)
    except BaseException:
        if tf.io.gfile.exists(old) and not tf.io.gfile.exists(path):
            tf.io.gfile.rename(old, path)
        raise
    finally:
        if tf.io.gfile.exists(path):
            _remove(old)


def _remove(path: str) -> None:
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)
