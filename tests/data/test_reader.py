"""`tfrecords.read` on real shards: order, shapes, padding, damage, Model Garden's own loader."""

import collections
import math
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
import tensorflow as tf

import tfrecords
from tests.data import model_garden
from tests.data.conftest import NUM_SHARDS
from tests.optimizer.harness import two_replicas
from tfrecords import UserError, reader

LENGTH = 32


def fingerprints(batches: Iterable[dict[str, tf.Tensor]]) -> list[bytes]:
    """One per row, so that rows can be told apart and compared."""
    return [
        b"".join(np.asarray(batch[name])[row].tobytes() for name in sorted(batch))
        for batch in batches
        for row in range(len(batch["input_mask"]))
    ]


def stored(folder: pathlib.Path, split: str = "train") -> list[bytes]:
    """The fingerprints of all examples, read without `tfrecords`."""
    most = tfrecords.Manifest.load(folder).max_predictions_per_seq(LENGTH)
    found = []
    for path in sorted(folder.glob(f"{split}-seq{LENGTH}-*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            row = {
                name: np.array(value.float_list.value, np.float32)
                if name == "masked_lm_weights"
                else np.array(value.int64_list.value, np.int32)
                for name, value in feature.items()
            }
            assert row["masked_lm_ids"].shape == (most,)
            found.append(b"".join(row[name].tobytes() for name in sorted(row)))
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_an_epoch_of_all_workers_is_every_example_once(
    shards: pathlib.Path, num_workers: int
) -> None:
    expected = collections.Counter(stored(shards))
    read = collections.Counter()
    for worker in range(num_workers):
        manifest = tfrecords.Manifest.load(shards)
        own = manifest.shards("train", LENGTH)[worker::num_workers]
        # Batches of one example, so that an epoch is a whole number of batches.
        dataset = tfrecords.read(
            shards,
            seq_length=LENGTH,
            global_batch_size=num_workers,
            num_workers=num_workers,
            worker_index=worker,
        )
        read.update(fingerprints(dataset.take(sum(shard.examples for shard in own))))
    assert read == expected


def test_no_batch_holds_an_example_twice_and_restart_continues(shards: pathlib.Path) -> None:
    options = {"seq_length": LENGTH, "global_batch_size": 96, "num_workers": 2, "worker_index": 1}
    steps = 40
    whole = list(tfrecords.read(shards, seed=5, **options).take(steps))
    assert steps * 48 > 2 * len(stored(shards)) / 2
    for batch in whole:
        assert len(set(fingerprints([batch]))) == 48
    for start_step in (1, 17, 38):
        again = tfrecords.read(shards, seed=5, start_step=start_step, **options)
        assert fingerprints(again.take(steps - start_step)) == fingerprints(whole[start_step:])
    assert fingerprints(tfrecords.read(shards, seed=6, **options).take(1)) != fingerprints(
        whole[:1]
    )


def test_another_number_of_workers_begins_a_new_epoch(shards: pathlib.Path) -> None:
    """After seven steps of four workers two go on, with all examples again, in a new order."""
    expected = collections.Counter(stored(shards))
    options = {"seq_length": LENGTH, "num_workers": 2, "seed": 5}
    begin = {"first_step": 7, "first_epoch": 1}
    read = collections.Counter()
    for worker in range(2):
        own = tfrecords.Manifest.load(shards).shards("train", LENGTH)[worker::2]
        size = sum(shard.examples for shard in own)
        one = {**options, "worker_index": worker, "global_batch_size": 2, **begin}
        epoch = fingerprints(tfrecords.read(shards, start_step=7, **one).take(size))
        read.update(epoch)
        # A restart within it goes on in it.
        again = tfrecords.read(shards, start_step=7 + size - 5, **one).take(5)
        assert fingerprints(again) == epoch[-5:]
        before = {**one, "first_step": 0, "first_epoch": 0}
        assert fingerprints(tfrecords.read(shards, **before).take(size)) != epoch
    assert read == expected


def test_shapes_and_types(shards: pathlib.Path) -> None:
    dataset = tfrecords.read(shards, seq_length=64, global_batch_size=8)
    most = tfrecords.Manifest.load(shards).max_predictions_per_seq(64)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert dataset.element_spec == {
        "input_word_ids": tf.TensorSpec((8, 64), tf.int32),
        "input_mask": tf.TensorSpec((8, 64), tf.int32),
        "input_type_ids": tf.TensorSpec((8, 64), tf.int32),
        "masked_lm_positions": tf.TensorSpec((8, most), tf.int32),
        "masked_lm_ids": tf.TensorSpec((8, most), tf.int32),
        "masked_lm_weights": tf.TensorSpec((8, most), tf.float32),
        "next_sentence_labels": tf.TensorSpec((8, 1), tf.int32),
    }


@pytest.mark.parametrize("num_workers", [1, 4])
def test_eval_is_one_pass_with_the_last_batch_filled_up(
    shards: pathlib.Path, num_workers: int
) -> None:
    expected = stored(shards, "eval")
    batches = []
    for worker in range(num_workers):
        dataset = tfrecords.read(
            shards,
            split="eval",
            seq_length=LENGTH,
            global_batch_size=28,
            num_workers=num_workers,
            worker_index=worker,
        )
        batches.append(list(dataset))
        assert len(batches[-1]) == dataset.cardinality().numpy()
    # Every worker takes part in every step of an evaluation.
    assert len({len(steps) for steps in batches}) == 1
    most = math.ceil(len(expected) / num_workers)
    assert len(batches[0]) == math.ceil(most / (28 // num_workers))
    rows = [row for steps in batches for row in fingerprints(steps)]
    zero = bytes(len(rows[0]))
    real = [row for row in rows if row != zero]
    assert sorted(real) == sorted(expected)
    assert len(rows) > len(real)
    if num_workers == 1:
        assert rows[: len(real)] == expected


def test_train_can_be_read_once_too(shards: pathlib.Path) -> None:
    once = tfrecords.read(shards, seq_length=LENGTH, global_batch_size=64, training=False)
    rows = fingerprints(once)
    assert [row for row in rows if any(row)] == stored(shards)


def test_model_garden_reads_the_shards(shards: pathlib.Path) -> None:
    loader = model_garden.module("official.nlp.data.pretrain_dataloader")
    most = tfrecords.Manifest.load(shards).max_predictions_per_seq(LENGTH)
    config = loader.BertPretrainDataConfig(
        input_path=f"{shards}/train-seq{LENGTH}-*",
        global_batch_size=16,
        is_training=False,
        seq_length=LENGTH,
        max_predictions_per_seq=most,
        use_v2_feature_names=True,
        cycle_length=1,
        drop_remainder=True,
    )
    theirs = list(loader.BertPretrainDataLoader(config).load().take(20))
    ours = tfrecords.read(shards, seq_length=LENGTH, global_batch_size=16, training=False)
    for their, our in zip(theirs, ours.take(20), strict=True):
        assert set(their) == set(our)
        for name in their:
            assert their[name].dtype == our[name].dtype
            np.testing.assert_array_equal(their[name], our[name])


def test_input_context(shards: pathlib.Path) -> None:
    context = tf.distribute.InputContext(
        num_input_pipelines=2, input_pipeline_id=1, num_replicas_in_sync=4
    )
    ours = tfrecords.read(shards, seq_length=LENGTH, global_batch_size=8, input_context=context)
    same = tfrecords.read(
        shards, seq_length=LENGTH, global_batch_size=8, num_workers=2, worker_index=1
    )
    assert fingerprints(ours.take(3)) == fingerprints(same.take(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 128}, "no sequence length 128; it has 32, 64"),
        ({"split": "test"}, "no split 'test'; it has eval, train"),
        ({"num_workers": 3}, f"{NUM_SHARDS} shards cannot be dealt out to 3 workers; use 2 or 4"),
        ({"global_batch_size": 9, "num_workers": 2}, "9 is no positive multiple of 2.*8 or 10"),
        ({"global_batch_size": 10**6}, "fewer than its batch of 1000000"),
        ({"features": "roberta"}, "features is 'roberta'; expected 'model_garden'"),
        ({"on_corrupt": "ignore"}, "on_corrupt is 'ignore'; expected 'raise' or 'skip'"),
        ({"start_step": -1}, "start_step is -1"),
        ({"first_epoch": -1}, "first_epoch is -1"),
        ({"seed": 1 << 63}, rf"seed is {1 << 63}; expected a number from -2\^63 to 2\^63 - 1"),
        ({"seed": -(1 << 63) - 1}, f"seed is {-(1 << 63) - 1}; expected a number"),
        ({"start_step": 3, "first_step": 4}, "start_step is 3; expected first_step, 4, or more"),
    ],
)
def test_refusals(shards: pathlib.Path, changes: dict, message: str) -> None:
    options = {"seq_length": LENGTH, "global_batch_size": 8, **changes}
    with pytest.raises(UserError, match=message):
        tfrecords.read(shards, **options)


@pytest.mark.parametrize("seed", [-(1 << 63), (1 << 63) - 1])
def test_the_outermost_seeds_are_taken(shards: pathlib.Path, seed: int) -> None:
    batches = tfrecords.read(shards, seq_length=LENGTH, global_batch_size=8, seed=seed)
    assert len(fingerprints(batches.take(1))) == 8


@pytest.fixture
def copy(shards: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(shards, tmp_path / "copy"))


def first_shard(folder: pathlib.Path) -> pathlib.Path:
    return folder / tfrecords.Manifest.load(folder).shards("train", LENGTH)[0].file


def test_files_are_checked_before_the_first_step(copy: pathlib.Path) -> None:
    path = first_shard(copy)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{path.name} has {len(content) - 1} bytes, the manifest"):
        tfrecords.read(copy, seq_length=LENGTH, global_batch_size=8)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        tfrecords.read(copy, seq_length=LENGTH, global_batch_size=8)
    tfrecords.read(copy, seq_length=64, global_batch_size=8)


def offsets_of(content: bytes) -> list[int]:
    offsets, at = [], 0
    while at < len(content):
        offsets.append(at)
        at += 16 + int.from_bytes(content[at : at + 8], "little")
    return offsets


def damage_record(path: pathlib.Path, record: int, place: int) -> int:
    """Flips a bit `place` bytes into a record; returns the record's offset."""
    content = bytearray(path.read_bytes())
    offset = offsets_of(bytes(content))[record]
    content[offset + place] ^= 4
    path.write_bytes(bytes(content))
    return offset


@pytest.mark.parametrize("place", [0, 9, 40])
def test_damage_is_named(copy: pathlib.Path, place: int) -> None:
    path = first_shard(copy)
    offset = damage_record(path, 17, place)
    dataset = tfrecords.read(copy, seq_length=LENGTH, global_batch_size=8, training=False)
    expected = f"{path.name}: record 17 at byte offset {offset} is damaged"
    with pytest.raises(tf.errors.OpError, match=expected) as raised:
        list(dataset)
    error = reader.user_error(raised.value)
    assert error is not None
    assert expected in str(error)
    assert "\n" not in str(error)


def test_damage_is_skipped_within_the_budget(
    copy: pathlib.Path, shards: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each loss is told once a pass, with what is left of the budget."""

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    path = first_shard(copy)
    for record in (3, 0):
        damage_record(path, record, 50)
    options = {"seq_length": LENGTH, "global_batch_size": 8, "on_corrupt": "skip"}
    once = tfrecords.read(copy, training=False, corrupt_budget=2, **options)
    rows = fingerprints(once)
    first, second = told()
    assert first.startswith(f"{path}: record 0 at byte offset 0 is damaged, ")
    assert first.endswith("; skipped, 1 of at most 2")
    assert second.startswith(f"{path}: record 3 at byte offset ")
    assert second.endswith("; skipped, 2 of at most 2")
    zero = bytes(len(rows[0]))
    expected = stored(shards)
    # Every other example keeps its place.
    for place, row in enumerate(expected):
        assert rows[place] == (zero if place in (0, 3) else row)
    # A second pass meets the same two records, and no more.
    endless = tfrecords.read(copy, corrupt_budget=2, **options)
    assert len(fingerprints(endless.take(len(expected) // 8 * 3))) == len(expected) // 8 * 24
    assert [line.partition("; ")[2] for line in told()] == [
        "skipped, 1 of at most 2", "skipped, 2 of at most 2"
    ]  # fmt: skip
    with pytest.raises(tf.errors.OpError, match="that makes 2, more than the corrupt_budget of 1"):
        list(tfrecords.read(copy, training=False, corrupt_budget=1, **options))


def test_a_lost_length_loses_the_rest_of_the_shard(copy: pathlib.Path) -> None:
    path = first_shard(copy)
    lost = tfrecords.Manifest.load(copy).shards("train", LENGTH)[0].examples - 5
    damage_record(path, 5, 0)
    options = {"seq_length": LENGTH, "global_batch_size": 8, "training": False}
    whole = tfrecords.read(copy, on_corrupt="skip", corrupt_budget=lost, **options)
    rows = fingerprints(whole)
    zero = bytes(len(rows[0]))
    assert all(row == zero for row in rows[5 : 5 + lost])
    assert zero not in [*rows[:5], *rows[5 + lost : 100 + lost]]
    with pytest.raises(tf.errors.OpError, match="more than the corrupt_budget"):
        list(tfrecords.read(copy, on_corrupt="skip", corrupt_budget=lost - 1, **options))


def test_a_process_that_reads_can_exit(shards: pathlib.Path) -> None:
    # Threads that wait for the interpreter would hang here.
    program = (
        "import sys, tfrecords\n"
        f"batches = iter(tfrecords.read({str(shards)!r}, seq_length=32, global_batch_size=8))\n"
        "for _ in range(200): batch = next(batches)\n"
        "print(batch['input_mask'].shape)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout == "(8, 32)\n"


def test_distributed(shards: pathlib.Path) -> None:
    strategy = two_replicas()

    def read(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return tfrecords.read(shards, seq_length=LENGTH, global_batch_size=8, input_context=context)

    batches = iter(strategy.distribute_datasets_from_function(read))
    parts = strategy.experimental_local_results(next(batches)["input_word_ids"])
    assert [part.shape for part in parts] == [(8, LENGTH)] * 2
