"""What `tfrecords.adopt` refuses: one line that names it, and nothing is written."""

import pathlib

import pytest
import tensorflow as tf

from tests.data.hand_made import (
    LENGTH,
    PREDICTIONS,
    TOKENS,
    add,
    compress,
    row,
    rows,
    run_in,
    serialized,
    state,
    write,
)
from tfrecords import schema


def rename(values: dict[str, list]) -> dict[str, list]:
    return {schema.V1_NAMES.get(name, name): value for name, value in values.items()}


def without(name: str) -> dict[str, list]:
    return {key: value for key, value in row().items() if key != name}


def flip(place: pathlib.Path, at: int) -> None:
    path = place / "in" / "1.tfrecord"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def cut(place: pathlib.Path, count: int) -> None:
    path = place / "in" / "1.tfrecord"
    path.write_bytes(path.read_bytes()[:-count])


def cut_compressed(place: pathlib.Path, count: int) -> None:
    compress(place)
    cut(place, count)


RECORD = 16 + len(serialized(row()))


# What is done to the folder, further arguments, and what the one line of the error says.
REFUSALS = {
    "another length": (
        lambda _: None,
        ("--seq_length=64",),
        "have 32 tokens; give --seq_length 32",
    ),
    "no input": (lambda _: None, ("--input=/nowhere/*",), "--input '/nowhere/*' matches no file"),
    "no eval": (lambda _: None, ("--eval_input=/no/*",), "--eval_input '/no/*' matches no file"),
    "no vocabulary": (lambda _: None, ("--vocab_file=/none",), "no vocabulary at /none"),
    "a share": (lambda _: None, ("--masked_lm_prob=nan",), "--masked_lm_prob is nan"),
    "missing feature": (
        lambda place: add(place, without("next_sentence_labels")),
        (),
        "2.tfrecord: record 0 has no feature next_sentence_labels (it has input_mask, ",
    ),
    "missing v1 feature": (
        lambda place: add(place, rename(without("input_type_ids"))),
        (),
        "2.tfrecord: record 0 has no feature segment_ids (it has input_ids, ",
    ),
    "another type": (
        lambda place: add(place, {**row(), "masked_lm_weights": [1] * PREDICTIONS}),
        (),
        "record 0 has masked_lm_weights of type int64_list; expected float_list",
    ),
    "sizes that do not match": (
        lambda place: add(place, {**row(), "masked_lm_ids": [1] * 3}),
        (),
        "record 0 has 3 values in masked_lm_ids; expected 8",
    ),
    "mixed names": (lambda place: add(place, rename(row())), (), "0.tfrecord has feature_names v2"),
    "mixed predictions": (
        lambda place: add(
            place,
            {name: values[:7] if "masked_lm" in name else values for name, values in row().items()},
        ),
        (),
        "max_predictions_per_seq 8 and",
    ),
    "mixed lengths": (
        lambda place: add(
            place,
            {name: values[:16] if "input" in name else values for name, values in row().items()},
        ),
        (),
        "0.tfrecord has seq_length 32 and",
    ),
    "mixed compression": (
        lambda place: write(place / "in" / "2.tfrecord", rows(2), "GZIP"),
        (),
        "2.tfrecord GZIP; adopt each kind into a folder of its own",
    ),
    "a later record of another shape": (
        lambda place: write(
            place / "in" / "2.tfrecord", [*rows(3), {**row(), "input_mask": [1] * 5}]
        ),
        (),
        "2.tfrecord: record 3 has 5 values in input_mask; expected 32, as in record 0",
    ),
    "an id beyond the vocabulary": (
        lambda place: write(
            place / "in" / "2.tfrecord", [*rows(3), {**row(), "masked_lm_ids": [10] * PREDICTIONS}]
        ),
        (),
        "2.tfrecord: record 3 has 10 in masked_lm_ids; expected 0 to 9; give the vocabulary it",
    ),
    "a position beyond the row": (
        lambda place: add(place, {**row(), "masked_lm_positions": [LENGTH] * PREDICTIONS}),
        (),
        "record 0 has 32 in masked_lm_positions; expected 0 to 31",
    ),
    "a third segment": (
        lambda place: write(
            place / "in" / "2.tfrecord", [row(), {**row(), "input_type_ids": [2] * LENGTH}]
        ),
        (),
        "record 1 has 2 in input_type_ids; expected 0 to 1",
    ),
    "another vocabulary": (
        lambda place: (place / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "a", "[CLS]", *TOKENS[3:5], *TOKENS[6:], "more"])
        ),
        (),
        "0.tfrecord: record 0 begins with id 2, which is 'a'; expected [CLS], 3; give the",
    ),
    "a flipped bit": (
        lambda place: flip(place, 3 * RECORD + 40),
        (),
        f"1.tfrecord: record 3 at byte offset {3 * RECORD} is damaged: its data fails its CRC",
    ),
    "a flipped length": (
        lambda place: flip(place, 4 * RECORD + 8),
        (),
        f"1.tfrecord: record 4 at byte offset {4 * RECORD} is damaged: its length fails its CRC",
    ),
    "a truncated file": (
        lambda place: cut(place, 7),
        (),
        f"1.tfrecord: record 9 at byte offset {9 * RECORD} is damaged: the file ends within it",
    ),
    "a truncated GZIP file": (
        lambda place: cut_compressed(place, 40),
        (),
        "of its decompressed content is damaged: the file ends within it and its GZIP stream ends",
    ),
    "a GZIP file without its end": (
        lambda place: cut_compressed(place, 6),
        (),
        f"its GZIP stream ends early, after {10 * RECORD} bytes of decompressed content",
    ),
    "no TFRecord file": (
        lambda place: (place / "in" / "0.txt").write_text("some text, more than a header takes"),
        (),
        "0.txt: record 0 at byte offset 0 is damaged: its length fails its CRC; write it again or "
        "leave it out of --input; is it a TFRecord file?",
    ),
    "no example": (
        lambda place: tf.io.TFRecordWriter(str(place / "in" / "2.tfrecord")).write(b"\xff\xff"),
        (),
        "2.tfrecord: record 0 is no tf.train.Example",
    ),
    "no record": (
        lambda place: [write(place / "in" / f"{number}.tfrecord", []) for number in range(2)],
        (),
        "the 2 files of --input hold no record",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(place: pathlib.Path, capsys: pytest.CaptureFixture, name: str) -> None:
    change, arguments, message = REFUSALS[name]
    change(place)
    before = state(place)
    assert run_in(place, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert state(place) == before
    assert not (place / "d").exists()


def test_a_file_in_both_splits_is_refused(place: pathlib.Path, capsys) -> None:
    assert run_in(place, f"--eval_input={place}/in/1.tfrecord") == 2
    assert "in/1.tfrecord is in --input and in --eval_input" in capsys.readouterr().err
    assert not (place / "d").exists()
