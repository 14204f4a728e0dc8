"""One shard: records to a TFRecord file that appears whole or not at all."""

import os
from collections.abc import Iterable

import tensorflow as tf

from tfrecords import files
from tfrecords.manifest import Shard


def write_shard(path: str, blocks: Iterable[list[bytes]]) -> Shard:
    """Writes the records of all blocks, in order.

    Returns:
        What the manifest says of the file.
    """
    examples = 0
    with files.atomic_path(path) as temporary:
        with tf.io.TFRecordWriter(temporary) as writer:
            for block in blocks:
                for record in block:
                    writer.write(record)
                examples += len(block)
        digest = files.sha256(temporary)
        size = tf.io.gfile.stat(temporary).length
    return Shard(file=os.path.basename(path), examples=examples, bytes=size, sha256=digest)


def is_intact(folder: str, shard: Shard) -> bool:
    """Whether the file is there with the size and the hash it should have."""
    path = os.path.join(folder, shard.file)
    return (
        tf.io.gfile.exists(path)
        and tf.io.gfile.stat(path).length == shard.bytes
        and files.sha256(path) == shard.sha256
    )
