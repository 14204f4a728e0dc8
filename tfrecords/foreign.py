"""Shards that other scripts wrote: what their records look like, and whether every one is sound."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message

from tfrecords import damage, files, schema, writer
from tfrecords.errors import UserError
from tfrecords.manifest import Shard
from tfrecords.vocabulary import CLS, Vocabulary

_BATCH = 2048
_BLOCK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_SCRIPTS = "create_pretraining_data.py of Model Garden, google-research/bert or NVIDIA"
_WAY_OUT = "write it again or leave it out of --input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the records of a file are laid out.

    Attributes:
        feature_names: "v2" or "v1", see `schema.V1_NAMES`.
        seq_length: tokens in a row.
        max_predictions_per_seq: masked positions in a row.
    """

    feature_names: str
    seq_length: int
    max_predictions_per_seq: int

    def stored_name(self, name: str) -> str:
        """What the file calls the feature `name` of the schema."""
        return schema.V1_NAMES.get(name, name) if self.feature_names == schema.V1 else name

    @property
    def features(self) -> dict[str, schema.Feature]:
        """The features of a record by the names they have in the file."""
        expected = schema.features(self.seq_length, self.max_predictions_per_seq)
        return {self.stored_name(feature.name): feature for feature in expected}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What the beginning of a file tells.

    Attributes:
        path: of the file.
        compression: "" or "GZIP"; None where the file has no byte.
        layout: of its first record; None where it has none.
    """

    path: str
    compression: str | None
    layout: Layout | None


def head(path: str) -> Head:
    """Reads the beginning of a file.

    Raises:
        UserError: it is no TFRecord file, or its first record is no pretraining example.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as stream:
            begin = stream.read(len(_GZIP_MAGIC))
    except tf.errors.OpError as error:
        raise UserError(f"cannot read {path}: {error.message}; mend its access") from error
    if not begin:
        return Head(path=path, compression=None, layout=None)
    compression = schema.GZIP if begin == _GZIP_MAGIC else ""
    dataset = tf.data.TFRecordDataset(path, compression).take(1)
    try:
        records = list(dataset.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise _damaged(path, compression, error) from error
    layout = layout_of(path, records[0]) if records else None
    return Head(path=path, compression=compression, layout=layout)


def layout_of(path: str, record: bytes) -> Layout:
    """The layout of a file whose first record is `record`.

    Raises:
        UserError: it is no pretraining example, or lacks a feature of one.
    """
    found = _features_of(record)
    if not found:
        raise UserError(f"{path}: record 0 is no tf.train.Example; expected those of {_SCRIPTS}")
    is_v1 = schema.INPUT_WORD_IDS not in found and schema.V1_NAMES[schema.INPUT_WORD_IDS] in found

    def size(name: str) -> int:
        return len(found[name].int64_list.value) if name in found else 0

    guess = Layout(
        feature_names=schema.V1 if is_v1 else schema.V2,
        seq_length=size(schema.V1_NAMES[schema.INPUT_WORD_IDS] if is_v1 else schema.INPUT_WORD_IDS),
        max_predictions_per_seq=size(schema.MASKED_LM_POSITIONS),
    )
    problem = _problem(found, guess)
    if problem is not None:
        raise UserError(f"{path}: record 0 {problem}; expected the examples of {_SCRIPTS}")
    return guess


def _features_of(record: bytes) -> Mapping[str, Any]:
    try:
        return dict(tf.train.Example.FromString(record).features.feature)
    except message.DecodeError:
        return {}


def _problem(found: Mapping[str, Any], layout: Layout) -> str | None:
    """What keeps the features of a record from having a layout."""
    expected = layout.features
    missing = [name for name in expected if name not in found]
    if missing:
        there = ", ".join(sorted(found)) or "none"
        return f"has no feature {', '.join(missing)} (it has {there})"
    for name, feature in expected.items():
        kind = "float_list" if feature.dtype == "float32" else "int64_list"
        came = found[name].WhichOneof("kind")
        if came not in (kind, None):
            return f"has {name} of type {came}; expected {kind}"
        size = len(getattr(found[name], kind).value)
        if size != feature.size or not size:
            return f"has {size} values in {name}; expected {feature.size or 'some'}"
    return None


def _damaged(path: str, compression: str, error: tf.errors.OpError) -> UserError:
    """Names the first damage of a file that TensorFlow could not read."""
    content, problem = damage.inflated(files.read_bytes(path), compression)
    _, found = damage.salvage(content, None)
    if not found:
        return UserError(f"{path} cannot be read: {problem or error.message}; {_WAY_OUT}")
    first = found[0]
    within = " of its decompressed content" if compression else ""
    reason = f"{first.reason} and {problem}" if problem else first.reason
    doubt = "" if first.record else "; is it a TFRecord file?"
    return UserError(
        f"{path}: record {first.record} at byte offset {first.offset}{within} is damaged: "
        f"{reason}; {_WAY_OUT}{doubt}"
    )


def common(heads: Sequence[Head], seq_length: int) -> tuple[Layout, str]:
    """The layout and the compression that all files share.

    Raises:
        UserError: two files differ, the rows have another length or there is no record at all.
    """
    with_records = [each for each in heads if each.layout is not None]
    if not with_records:
        raise UserError(f"the {len(heads)} files of --input hold no record; write them again")
    first = with_records[0]
    for other in heads:
        if other.compression not in (None, first.compression):
            words = [each.compression or "none" for each in (first, other)]
            raise _mixed("compression", first.path, words[0], other.path, words[1])
    for other in with_records[1:]:
        for field in dataclasses.fields(Layout):
            values = [getattr(each.layout, field.name) for each in (first, other)]
            if values[0] != values[1]:
                raise _mixed(field.name, first.path, values[0], other.path, values[1])
    assert first.layout is not None
    if first.layout.seq_length != seq_length:
        raise UserError(
            f"--seq_length is {seq_length}, but the rows of {first.path} have "
            f"{first.layout.seq_length} tokens; give --seq_length {first.layout.seq_length}"
        )
    return first.layout, first.compression or ""


def _mixed(what: str, first: str, value: Any, other: str, other_value: Any) -> UserError:
    return UserError(
        f"{first} has {what} {value} and {other} {other_value}; adopt each kind into a folder of "
        "its own"
    )


def indexed(
    path: str, *, name: str, layout: Layout, compression: str, vocabulary: Vocabulary, bar: Any
) -> tuple[Shard, int]:
    """Reads and checks every record of a file.

    Args:
        path: where it lies.
        name: what the manifest is to call it.
        layout: of its records.
        compression: "" or "GZIP".
        vocabulary: which its ids must fit.
        bar: the progress bar, told the bytes done.

    Returns:
        What the manifest says of it, and how many examples are random pairs.

    Raises:
        UserError: it is damaged, or holds a record that is no such example.
    """
    size = tf.io.gfile.stat(path).length
    examples = random_next = done = 0
    for records in _batches(path, compression):
        rows = _rows(path, examples, records, layout)
        problem = _row_problem(rows, layout, vocabulary)
        if problem is not None:
            number, words = problem
            raise UserError(f"{path}: record {examples + number} {words}")
        examples += len(records)
        random_next += int(rows[schema.NEXT_SENTENCE_LABELS].sum())
        if not compression:
            read = int(tf.reduce_sum(tf.strings.length(records) + damage.RECORD_OVERHEAD))
            bar.update(read)
            done += read
    if compression:
        _check_stream(path)
    bar.update(size - done)
    return writer.fingerprint(path, name, examples), random_next


def _batches(path: str, compression: str) -> Iterator[tf.Tensor]:
    """The records of a file, some at a time, as string tensors."""
    iterator = iter(tf.data.TFRecordDataset(path, compression).batch(_BATCH).prefetch(1))
    while True:
        try:
            records = next(iterator, None)
        except tf.errors.OpError as error:
            raise _damaged(path, compression, error) from error
        if records is None:
            return
        yield records


def _check_stream(path: str) -> None:
    """Checks what TensorFlow does not: that the stream ends where its file does."""
    inflater = damage.Inflater()
    with tf.io.gfile.GFile(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            inflater.feed(block)
    problem = inflater.problem()
    if problem is not None:
        raise UserError(
            f"{path}: {problem}, after {inflater.num_bytes} bytes of decompressed content; "
            f"{_WAY_OUT}"
        )


def _rows(path: str, first: int, records: tf.Tensor, layout: Layout) -> dict[str, np.ndarray]:
    """The values of records by the names of the schema."""
    spec = {
        name: tf.io.FixedLenFeature(
            (feature.size,), tf.float32 if feature.dtype == "float32" else tf.int64
        )
        for name, feature in layout.features.items()
    }
    try:
        parsed = tf.io.parse_example(records, spec)
    except tf.errors.OpError as error:
        for number, record in enumerate(records.numpy()):
            problem = _problem(_features_of(record), layout)
            if problem is not None:
                raise UserError(
                    f"{path}: record {first + number} {problem}, as in record 0; {_WAY_OUT}"
                ) from error
        raise
    return {feature.name: parsed[name].numpy() for name, feature in layout.features.items()}


def _row_problem(
    rows: Mapping[str, np.ndarray], layout: Layout, vocabulary: Vocabulary
) -> tuple[int, str] | None:
    """The first row that cannot be trained on, and what is wrong with it."""
    other = f"give the vocabulary it was written with, not {vocabulary.path}"
    limits = {
        schema.INPUT_WORD_IDS: len(vocabulary),
        schema.MASKED_LM_IDS: len(vocabulary),
        schema.MASKED_LM_POSITIONS: layout.seq_length,
        schema.INPUT_MASK: 2,
        schema.INPUT_TYPE_IDS: 2,
        schema.NEXT_SENTENCE_LABELS: 2,
    }
    for name, limit in limits.items():
        outside = (rows[name] < 0) | (rows[name] >= limit)
        if outside.any():
            number = int(np.argmax(outside.any(axis=1)))
            value = int(rows[name][number][outside[number]][0])
            is_id = name in (schema.INPUT_WORD_IDS, schema.MASKED_LM_IDS)
            way_out = f"; {other} with its {limit} entries" if is_id else ""
            stored = layout.stored_name(name)
            return number, f"has {value} in {stored}; expected 0 to {limit - 1}{way_out}"
    begins = rows[schema.INPUT_WORD_IDS][:, 0]
    wrong = begins != vocabulary.ids[CLS]
    if wrong.any():
        number = int(np.argmax(wrong))
        came = int(begins[number])
        return number, (
            f"begins with id {came}, which is {vocabulary.tokens[came]!r}; expected {CLS}, "
            f"{vocabulary.ids[CLS]}; {other}"
        )
    return None
