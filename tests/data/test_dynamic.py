"""Dynamic records: the rows of stored ones, masked by the reader, afresh every epoch."""

import collections
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tfrecords
from tests.data.conftest import build_arguments
from tfrecords import UserError, build, decoding, encoding, hashing, masking, schema
from tfrecords.instances import Pairs
from tfrecords.vocabulary import Vocabulary

LENGTH = 32
Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def dynamic(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("dynamic") / "shards"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    assert build.main([*arguments, "--records=dynamic"]) == 0
    return folder


def one_pass(folder: pathlib.Path, **options: object) -> Rows:
    """All training rows in stored order."""
    dataset = tfrecords.read(
        folder, seq_length=LENGTH, global_batch_size=16, training=False, **options
    )
    batches = list(dataset.as_numpy_iterator())
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = rows[schema.INPUT_MASK].any(1)
    return {name: values[real] for name, values in rows.items()}


def unmasked(rows: Rows) -> np.ndarray:
    words = rows[schema.INPUT_WORD_IDS].copy()
    row, slot = np.nonzero(rows[schema.MASKED_LM_WEIGHTS])
    words[row, rows[schema.MASKED_LM_POSITIONS][row, slot]] = rows[schema.MASKED_LM_IDS][row, slot]
    return words


def test_the_rows_are_those_of_stored_records(dynamic: pathlib.Path, shards: pathlib.Path) -> None:
    ours, theirs = one_pass(dynamic), one_pass(shards)
    np.testing.assert_array_equal(unmasked(ours), unmasked(theirs))
    for name in (schema.INPUT_MASK, schema.INPUT_TYPE_IDS, schema.NEXT_SENTENCE_LABELS):
        np.testing.assert_array_equal(ours[name], theirs[name])
    # As many masks a row, in other places.
    counts = [rows[schema.MASKED_LM_WEIGHTS].sum(1) for rows in (ours, theirs)]
    assert abs(counts[0].mean() - counts[1].mean()) < 0.02
    assert (ours[schema.MASKED_LM_POSITIONS] != theirs[schema.MASKED_LM_POSITIONS]).any(
        1
    ).mean() > 0.9
    assert [ours[name].dtype for name in ours] == [theirs[name].dtype for name in ours]
    assert tfrecords.Manifest.load(dynamic).records == "dynamic"
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
        for folder in (dynamic, shards)
    ]
    assert sizes[0] < sizes[1] / 3


def test_masks_are_a_function_of_seed_epoch_and_example(dynamic: pathlib.Path) -> None:
    """Three epochs of one worker against NumPy, by ids parsed from the records here."""
    manifest = tfrecords.Manifest.load(dynamic)
    vocabulary = Vocabulary.load(manifest.vocabulary_file)
    # A short document has the same row in several duplicates, each under an id of its own.
    stored = collections.defaultdict(list)
    for shard in manifest.shards("train", LENGTH):
        for record in tf.data.TFRecordDataset(manifest.path(shard)).as_numpy_iterator():
            words = np.frombuffer(record, "<u2")
            row = np.zeros(LENGTH, np.int32)
            row[: len(words) - 6] = words[6:]
            identity = sum(int(digit) << 16 * place for place, digit in enumerate(words[:4]))
            stored[row.tobytes() + bytes([words[4]])].append(identity)
    how = masking.Masking.of(
        vocabulary,
        masked_lm_prob=0.15,
        max_predictions_per_seq=manifest.max_predictions_per_seq(LENGTH),
        whole_word=True,
    )
    size = manifest.num_examples("train", LENGTH)
    dataset = tfrecords.read(dynamic, seq_length=LENGTH, global_batch_size=1, seed=9)
    seen = []
    for step, batch in enumerate(dataset.take(3 * size).as_numpy_iterator()):
        rows = {name: np.asarray(values) for name, values in batch.items()}
        words = unmasked(rows)
        first = int((rows[schema.INPUT_MASK] - rows[schema.INPUT_TYPE_IDS]).sum()) - 2
        identities = np.array(stored[words[0].tobytes() + bytes([first])], np.uint64)
        num_tokens = rows[schema.INPUT_MASK].sum(1)
        maskable = (words != 2) & (words != 3) & (words != 0)
        effective = hashing.mix(9, step // size, identities, decoding.MASKS)
        alike = [np.repeat(values, len(identities), 0) for values in (words, maskable, num_tokens)]
        expected = masking.mask(how, *alike, effective)
        is_it = (rows[schema.INPUT_WORD_IDS] == expected.input_word_ids).all(1)
        is_it &= (rows[schema.MASKED_LM_POSITIONS] == expected.positions).all(1)
        assert is_it.any()
        identity = int(identities[is_it.argmax()])
        seen.append((identity, rows[schema.MASKED_LM_POSITIONS].tobytes()))
    # The same row has other masks in another epoch.
    assert len(set(seen)) > 2.5 * size
    assert len({identity for identity, _ in seen}) == size == sum(map(len, stored.values()))


def test_a_restart_continues_with_the_same_masks(dynamic: pathlib.Path) -> None:
    options = {"seq_length": LENGTH, "global_batch_size": 96, "num_workers": 2, "worker_index": 1}
    steps = 40
    whole = list(tfrecords.read(dynamic, seed=5, **options).take(steps).as_numpy_iterator())
    assert steps * 48 > tfrecords.Manifest.load(dynamic).num_examples("train", LENGTH)
    for start in (7, 39):
        rest = tfrecords.read(dynamic, seed=5, start_step=start, **options).take(steps - start)
        for expected, found in zip(whole[start:], rest.as_numpy_iterator(), strict=True):
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])


def test_evaluation_masks_stay(dynamic: pathlib.Path) -> None:
    first, second = one_pass(dynamic, split="eval"), one_pass(dynamic, split="eval")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    other = one_pass(dynamic, split="eval", seed=1)
    assert (first[schema.INPUT_WORD_IDS] != other[schema.INPUT_WORD_IDS]).any()


def test_the_reader_chooses_the_masks(dynamic: pathlib.Path) -> None:
    more = one_pass(dynamic, masked_lm_prob=0.4)
    tokens = more[schema.INPUT_MASK].sum(1)
    expected = np.maximum(1, np.rint(0.4 * tokens))
    assert more[schema.MASKED_LM_WEIGHTS].shape[1] == 16
    assert np.abs(more[schema.MASKED_LM_WEIGHTS].sum(1) - expected).mean() < 0.5
    few = one_pass(dynamic, max_predictions_per_seq=2)
    assert few[schema.MASKED_LM_WEIGHTS].sum(1).max() == 2
    whole, pieces = one_pass(dynamic), one_pass(dynamic, whole_word_mask=False)
    assert (whole[schema.MASKED_LM_POSITIONS] != pieces[schema.MASKED_LM_POSITIONS]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masked_lm_prob": 0.3}, "masked_lm_prob is 0.3, but .* stored records.* with 0.15"),
        ({"whole_word_mask": False}, "whole_word_mask is False"),
        ({"max_predictions_per_seq": 3}, "max_predictions_per_seq is 3"),
    ],
)
def test_stored_masks_stay(shards: pathlib.Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        one_pass(shards, **options)


@pytest.mark.parametrize(
    "options", [{"masked_lm_prob": 0.0}, {"masked_lm_prob": 1.5}, {"max_predictions_per_seq": 0}]
)
def test_choices_out_of_range(dynamic: pathlib.Path, options: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is "):
        one_pass(dynamic, **options)


def test_a_damaged_record_is_a_row_of_zeros(dynamic: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(dynamic, tmp_path / "copy")
    path = min((tmp_path / "copy").glob(f"train-seq{LENGTH}-*"))
    content = bytearray(path.read_bytes())
    content[14] ^= 1
    path.write_bytes(content)
    options = {"seq_length": LENGTH, "global_batch_size": 1, "training": False}
    with pytest.raises(UserError, match=f"{path.name}.* record 0 at byte offset 0"):
        tfrecords.read(tmp_path / "copy", **options)
    skipping = tfrecords.read(
        tmp_path / "copy", on_corrupt="skip", corrupt_budget=1, **options
    ).take(3)
    found, expected = list(skipping), list(tfrecords.read(dynamic, **options).take(3))
    assert not any(np.asarray(values).any() for values in found[0].values())
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, "<u2"), (70_000, "<i4")])
def test_the_bytes_of_a_record(vocab_size: int, dtype: str) -> None:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = tuple(f"w{number}" for number in range(vocab_size - len(special)))
    vocabulary = Vocabulary(tokens=special + words, content=b"")
    pairs = Pairs(
        ids=np.array([10, 11, 12, vocab_size - 1, 20, 21], np.int32),
        first_lengths=np.array([1, 3], np.int32),
        second_lengths=np.array([2, 0], np.int32),
        random_next=np.array([1, 0], np.uint8),
        example_ids=np.array([0x0004_0003_0002_FFFF, 7], np.uint64),
    )
    records = encoding.serialize_unmasked(pairs, vocabulary=vocabulary)
    found = [np.frombuffer(record, dtype).tolist() for record in records]
    assert found == [
        [0xFFFF, 2, 3, 4, 1, 1, 2, 10, 3, 11, 12, 3],
        [7, 0, 0, 0, 3, 0, 2, vocab_size - 1, 20, 21, 3],
    ]


def test_rows_of_a_vocabulary_beyond_16_bits_are_read_back(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Words of dynamic records are int32 then; the rows are again those of stored ones."""
    tokens = vocab_file.read_text().splitlines()
    filling = [f"filling{number}" for number in range(1 << 16)]
    large = tmp_path / "vocab.txt"
    large.write_text("\n".join([*tokens[:5], *filling, *tokens[5:]]) + "\n")
    rows = []
    for records in schema.RECORDS:
        arguments = build_arguments(corpus_dir, large, tmp_path / records)
        more = [f"--records={records}", f"--seq_lengths={LENGTH}", "--dupe_factor=1"]
        assert build.main([*arguments, *more]) == 0
        rows.append(one_pass(tmp_path / records))
    words = [unmasked(each) for each in rows]
    np.testing.assert_array_equal(*words)
    assert words[0].max() > 1 << 16
    for name in (schema.INPUT_MASK, schema.INPUT_TYPE_IDS, schema.NEXT_SENTENCE_LABELS):
        np.testing.assert_array_equal(*(each[name] for each in rows))
