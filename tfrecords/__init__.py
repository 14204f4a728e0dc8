"""BERT pretraining data: raw text to TFRecord shards, and shards to batches.

    python -m tfrecords.vocabulary --input 'text/*.txt' --vocab_size 8192 --output vocab.txt
    python -m tfrecords.build --input 'text/*.txt' --vocab_file vocab.txt --output_dir shards

    dataset = tfrecords.read("shards", seq_length=128, global_batch_size=512)

What lies on disk is described by `tfrecords.schema` and `tfrecords.manifest`.
"""

from typing import TYPE_CHECKING, Any

from tfrecords.errors import UserError

if TYPE_CHECKING:
    from tfrecords.manifest import Manifest
    from tfrecords.reader import read

__all__ = ["Manifest", "UserError", "read"]


def __getattr__(name: str) -> Any:
    # TensorFlow takes seconds to import, and who only catches UserError does not need it.
    if name == "read":
        from tfrecords import reader

        return reader.read
    if name == "Manifest":
        from tfrecords import manifest

        return manifest.Manifest
    raise AttributeError(f"module 'tfrecords' has no attribute {name!r}")
