"""Intermediate files that hold groups of arrays: what a task leaves for the tasks after it.

Every stage of a build writes one such file a task, grouped by the next stage's task, and the next
stage reads its own group out of every file: a shuffle of any size in little memory.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import tensorflow as tf

from tfrecords import files

_OFFSET = np.dtype("<u8")


def pack(arrays: Sequence[np.ndarray]) -> bytes:
    """One-dimensional arrays as bytes."""
    parts = [struct.pack("<I", len(arrays))]
    for array in arrays:
        parts += [struct.pack("<3sQ", array.dtype.str[1:].encode(), array.size), array.tobytes()]
    return b"".join(parts)


def unpack(content: bytes) -> list[np.ndarray]:
    """The arrays that `pack` was given."""
    (count,) = struct.unpack_from("<I", content)
    at = 4
    arrays = []
    for _ in range(count):
        code, size = struct.unpack_from("<3sQ", content, at)
        at += struct.calcsize("<3sQ")
        arrays.append(np.frombuffer(content, code.rstrip(b"\0").decode(), size, at))
        at += arrays[-1].nbytes
    return arrays


def write(
    path: str | os.PathLike[str], groups: Iterable[bytes], summary: Mapping[str, Any]
) -> None:
    """Writes groups, and a summary that JSON can hold, to `path`, atomically."""
    offsets = [0]
    with files.atomic_path(path) as temporary, tf.io.gfile.GFile(temporary, "wb") as output:
        for group in (*groups, json.dumps(summary).encode()):
            output.write(group)
            offsets.append(offsets[-1] + len(group))
        output.write(np.array([*offsets, len(offsets)], _OFFSET).tobytes())


def read(path: str | os.PathLike[str], group: int) -> bytes:
    """The bytes of one group; -1 is the summary."""
    size = tf.io.gfile.stat(os.fspath(path)).length
    with _open(os.fspath(path)) as stream:
        stream.seek(size - _OFFSET.itemsize)
        (count,) = np.frombuffer(stream.read(_OFFSET.itemsize), _OFFSET).tolist()
        index = group if group >= 0 else count - 1 + group
        stream.seek(size - _OFFSET.itemsize * (1 + count - index))
        begin, end = np.frombuffer(stream.read(2 * _OFFSET.itemsize), _OFFSET).tolist()
        stream.seek(begin)
        return stream.read(end - begin)


def _open(path: str) -> IO[bytes]:
    # TensorFlow's file object reads half a megabyte at a time, of which a group is a small part.
    return tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb", buffering=512)


def summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file's writer had to say."""
    return json.loads(read(path, -1))
