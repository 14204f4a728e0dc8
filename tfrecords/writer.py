"""One shard: records to a TFRecord file that appears whole or not at all."""

import os
from collections.abc import Iterable

import tensorflow as tf

from tfrecords import files
from tfrecords.manifest import HEAD_BYTES, Shard


def write_shard(path: str, blocks: Iterable[list[bytes]], compression: str = "") -> Shard:
    """Writes the records of all blocks, in order.

    Args:
        path: the file.
        blocks: records, some at a time.
        compression: "" or "GZIP".

    Returns:
        What the manifest says of the file.
    """
    examples = 0
    with files.atomic_path(path) as temporary:
        with tf.io.TFRecordWriter(temporary, compression) as writer:
            for block in blocks:
                for record in block:
                    writer.write(record)
                examples += len(block)
        return fingerprint(temporary, os.path.basename(path), examples)


def fingerprint(path: str, file: str, examples: int) -> Shard:
    """What a manifest says of the file at `path`, which it calls `file`."""
    return Shard(
        file=file,
        examples=examples,
        bytes=tf.io.gfile.stat(path).length,
        sha256=files.sha256(path),
        head_sha256=files.sha256(path, HEAD_BYTES),
    )


def is_intact(folder: str, shard: Shard) -> bool:
    """Whether the file is there with the size and the hash it should have."""
    path = os.path.join(folder, shard.file)
    return (
        tf.io.gfile.exists(path)
        and tf.io.gfile.stat(path).length == shard.bytes
        and files.sha256(path) == shard.sha256
    )
