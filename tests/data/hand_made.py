"""Shards made by hand, in a folder to adopt them in, and how they are adopted and read."""

import hashlib
import pathlib
from collections.abc import Iterable

import tensorflow as tf

import tfrecords
from tests.data.test_reader import fingerprints
from tfrecords import adopt, schema

LENGTH, PREDICTIONS = 32, 8


def run(
    pattern: object, vocab_file: pathlib.Path, output_dir: object, *more: str, length: int = LENGTH
) -> int:
    return adopt.main(
        [
            f"--input={pattern}",
            f"--seq_length={length}",
            f"--vocab_file={vocab_file}",
            f"--output_dir={output_dir}",
            *more,
        ]
    )


def state(folder: pathlib.Path) -> dict[str, tuple[str, int]]:
    """Every file below `folder` with its hash and the time it was last written."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "runs", "dog", ".")


def row(number: int = 0) -> dict[str, list]:
    """An example in Model Garden's v2 names; rows of different numbers differ."""
    words = [2, 5, 4, 3, 5 + number % 4, 3]
    pad = [0] * (LENGTH - len(words))
    return {
        schema.INPUT_WORD_IDS: words + pad,
        schema.INPUT_MASK: [1] * len(words) + pad,
        schema.INPUT_TYPE_IDS: [0] * 4 + [1] * 2 + pad,
        schema.MASKED_LM_POSITIONS: [2] + [0] * (PREDICTIONS - 1),
        schema.MASKED_LM_IDS: [6] + [0] * (PREDICTIONS - 1),
        schema.MASKED_LM_WEIGHTS: [1.0] + [0.0] * (PREDICTIONS - 1),
        schema.NEXT_SENTENCE_LABELS: [number % 2],
    }


def serialized(values: dict[str, list]) -> bytes:
    def feature(value: list) -> tf.train.Feature:
        if value and isinstance(value[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=value))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

    features = {name: feature(value) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def write(path: object, rows: Iterable[dict[str, list]], compression: str = "") -> None:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for values in rows:
            writer.write(serialized(values))


def rows(count: int) -> list[dict[str, list]]:
    return [row(number) for number in range(count)]


def fill(folder: pathlib.Path) -> None:
    """Puts two shards into `in`, and a vocabulary beside it."""
    (folder / "in").mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    for number in range(2):
        write(folder / "in" / f"{number}.tfrecord", rows(10))


def run_in(place: pathlib.Path, *more: str) -> int:
    return run(place / "in" / "*", place / "vocab.txt", place / "d", *more)


def add(place: pathlib.Path, values: dict[str, list]) -> None:
    write(place / "in" / "2.tfrecord", [values])


def compress(place: pathlib.Path) -> None:
    for number in range(2):
        write(place / "in" / f"{number}.tfrecord", rows(10), "GZIP")


def once(folder: pathlib.Path | str) -> list[bytes]:
    dataset = tfrecords.read(folder, seq_length=LENGTH, global_batch_size=4, training=False)
    return [each for each in fingerprints(dataset) if any(each)]
