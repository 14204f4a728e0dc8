"""Files that appear whole or not at all, on any file system TensorFlow knows (gs:// included)."""

import contextlib
import errno
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator

import filelock
import tensorflow as tf
from absl import logging

PARTIAL = ".partial-"
_BLOCK = 1 << 20
# What file systems answer that can sync files alone.
_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP)
_FILE_SYSTEM_ERRORS = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.ResourceExhaustedError,
)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields a temporary name beside `path` to write to; on success it becomes `path`.

    If the block raises, the temporary file is removed and `path` is as it was. A process killed
    inside the block leaves a file whose name contains `PARTIAL`, which nothing ever reads. On a
    local file system the content is on the disk before the name is, so that a machine that loses
    its power leaves no `path` cut short. What TensorFlow's file system cannot do raises OSError,
    as Python's own does.

    Example:
        >>> with atomic_path("/tmp/vocab.txt") as name:
        ...     pathlib.Path(name).write_text("[PAD]")
    """
    path = os.fspath(path)
    temporary = f"{path}{PARTIAL}{uuid.uuid4().hex[:12]}"
    try:
        yield temporary
        if os.path.isfile(temporary):
            _to_disk(temporary, path)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except _FILE_SYSTEM_ERRORS as error:
        raise OSError(f"cannot write {path}: {error.message}") from error
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)


def sync(paths: Iterable[str]) -> None:
    """Returns when files and their names are on the disk, where they are local and exist.

    For a machine that may lose its power; object stores have what they have acknowledged.

    Args:
        paths: the files.

    Raises:
        OSError: the file system cannot keep one.
    """
    local = [path for path in paths if os.path.isfile(path)]
    for path in local:
        _to_disk(path, path)
    for folder in sorted({os.path.dirname(path) or "." for path in local}):
        try:
            _to_disk(folder, folder)
        except OSError as error:
            # Network and FUSE file systems among them: the names are theirs to keep.
            if error.errno not in _NO_SYNC_OF_FOLDERS:
                raise


def _to_disk(path: str, named: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # which is where network file systems say that they are full
        failed = OSError(f"cannot write {named}: {error.strerror}")
        failed.errno = error.errno
        raise failed from error


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes a folder and those above it, where they are missing; OSError where it cannot."""
    try:
        tf.io.gfile.makedirs(os.fspath(path))
    except tf.errors.OpError as error:
        raise OSError(f"cannot make the folder {os.fspath(path)}: {error.message}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Makes `path` hold `content`, atomically; the folder is created where it is missing."""
    folder = os.path.dirname(os.fspath(path))
    if folder:
        make_folder(folder)
    with atomic_path(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as output:
        output.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Makes `path` hold `content` as UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of `path`.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is no file, or may not be read.
    """
    try:
        with tf.io.gfile.GFile(os.fspath(path), "rb") as stream:
            return stream.read()
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"cannot read {os.fspath(path)}: {error.message}") from error
    except tf.errors.OpError as error:
        raise OSError(f"cannot read {os.fspath(path)}: {error.message}") from error


def sha256(path: str | os.PathLike[str], num_bytes: int | None = None) -> str:
    """The SHA-256 of a file's content, or of its first `num_bytes`, in hexadecimal."""
    with tf.io.gfile.GFile(os.fspath(path), "rb") as stream:
        if num_bytes is not None:
            return hashlib.sha256(stream.read(num_bytes)).hexdigest()
        digest = hashlib.sha256()
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`, which is gone afterwards; a killed process holds nothing.

    On file systems without locks, object stores among them, this does nothing.

    Args:
        path: the file, in the folder that is locked.
        patience: seconds to wait for another process that holds it.

    Raises:
        TimeoutError: another process still holds it.
    """
    held = None if "://" in path else _acquired(path, patience)
    try:
        yield
    finally:
        if held is not None:
            pathlib.Path(path).unlink(missing_ok=True)
            held.release()


def _acquired(path: str, patience: float) -> filelock.BaseFileLock | None:
    """The lock; None on a file system that has none."""
    # A soft lock, filelock's own way out there, would outlive a process that is killed.
    held = filelock.FileLock(path, fallback_to_soft=False)
    folder = os.path.dirname(path)
    try:
        try:
            return held.acquire(timeout=0).lock
        except filelock.Timeout:
            if patience:
                logging.warning("another process is at work in %s; waiting for it", folder)
            return held.acquire(timeout=patience, poll_interval=0.5).lock
    except filelock.Timeout as error:
        waited = f" after {patience:g} seconds of waiting" if patience else ""
        raise TimeoutError(
            f"another process is at work in {folder}{waited}; wait for it, or end it"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        logging.warning("%s: no locks there; let no two processes work in it at once", folder)
        return None


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left half written in `folder`."""
    for name in tf.io.gfile.listdir(os.fspath(folder)):
        if PARTIAL in name:
            tf.io.gfile.remove(os.path.join(os.fspath(folder), name))
