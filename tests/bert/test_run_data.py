"""Which shards a run reads, and what becomes of an epoch when the number of workers changes."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

import tfrecords
from official_bert import (
    configuration,
    continuation,
    finetune_plan,
    run_data,
    runner,
    squad_task,
)
from official_bert.run_data import Partition
from tests.bert.conftest import SHORT
from tfrecords.errors import UserError


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    num_workers=st.integers(1, 4),
    share=st.integers(1, 5),
    start=st.integers(0, 20),
    steps=st.integers(0, 20),
    epoch=st.integers(0, 3),
)
def test_what_no_one_has_read_is_counted(counts, num_workers, share, start, steps, epoch) -> None:
    """Against workers that read one example after another, from epoch to epoch."""
    assume(len(counts) % num_workers == 0)
    read = []
    for worker in range(num_workers):
        size = sum(counts[worker::num_workers])
        read.append([place // size for place in range(steps * share)])
    begun = 1 + max((numbers[-1] for numbers in read), default=-1) if steps else 0
    unread = begun * sum(counts) - sum(map(len, read))
    last = Partition(step=start, epoch=epoch, num_workers=num_workers)
    found = run_data.following(
        last, start + steps, 7, counts=counts, global_batch_size=share * num_workers
    )
    assert found == (Partition(step=start + steps, epoch=epoch + begun, num_workers=7), unread)
    assert unread >= 0


def test_partitions_follow_each_other(tiny, tmp_path) -> None:
    data = tiny().task.train_data
    shards = tfrecords.Manifest.load(data.input_path).shards("train", SHORT)
    total, batch = sum(shard.examples for shard in shards), data.global_batch_size
    steps = total // batch + 1  # into the second epoch

    def known(step: int, workers: int) -> tuple[tuple[Partition, ...], int | None]:
        found, unread = run_data.partitions(data, str(tmp_path), step, workers)
        data_now = run_data.RunData(manifest_sha256="0", partitions=found)
        run_data.write(str(tmp_path), data_now)
        assert run_data.read(str(tmp_path)) == data_now
        return found, unread

    assert known(0, 2) == ((Partition(num_workers=2),), None)
    assert known(0, 1) == ((Partition(),), None)
    assert known(steps, 1) == ((Partition(),), None)
    second = Partition(step=steps, epoch=2, num_workers=2)
    assert known(steps, 2) == ((Partition(), second), 2 * total - steps * batch)
    # As long as no step is made, it is told again, and who changes his mind loses nothing.
    assert known(steps, 2) == ((Partition(), second), 2 * total - steps * batch)
    assert known(steps, 1) == ((Partition(),), None)
    assert known(steps, 2) == ((Partition(), second), 2 * total - steps * batch)
    assert known(steps + 1, 2) == ((Partition(), second), None)
    third = Partition(step=steps + 1, epoch=3, num_workers=1)
    assert known(steps + 1, 1) == ((Partition(), second, third), total - batch)
    # A damaged checkpoint leads back before both: the steps since are made again, by two.
    early = Partition(step=1, epoch=1, num_workers=2)
    assert known(1, 2) == ((Partition(), early), total - batch)


def test_a_run_of_before_there_were_partitions(tiny, tmp_path) -> None:
    params = tiny()
    data = params.task.train_data
    (tmp_path / run_data.FILE).write_text(
        json.dumps({"manifest_sha256": run_data.manifest_sha256(data)})
    )
    two = params.replace(runtime=params.runtime.replace(num_workers=2))
    configuration.save(two, str(tmp_path))
    found, _ = run_data.partitions(data, str(tmp_path), 1, 1)
    assert found == (Partition(num_workers=2), Partition(step=1, epoch=1, num_workers=1))


@pytest.mark.parametrize(
    "partition", ['{"steps": 1}', '{"step": "3"}', '{"epoch": -1}', '{"num_workers": 0}', "7"]
)
def test_damaged_partitions_are_one_line(tmp_path, partition: str) -> None:
    text = f'{{"manifest_sha256": "0", "partitions": [{partition}]}}'
    (tmp_path / run_data.FILE).write_text(text)
    with pytest.raises(UserError, match="data.json does not say"):
        run_data.read(str(tmp_path))


def test_the_task_reads_from_its_partition(tiny) -> None:
    """In training; an evaluation is of all examples whoever trains."""
    params = tiny()
    task = runner.task_factory.get_task(params.task)
    data, held_out = params.task.train_data, params.task.validation_data
    before = list(task.build_inputs(held_out).take(1))
    task.partition = Partition(step=3, epoch=2)
    expected = tfrecords.read(
        data.input_path,
        seq_length=data.seq_length,
        global_batch_size=data.global_batch_size,
        seed=data.seed,
        start_step=5,
        first_step=3,
        first_epoch=2,
    )
    for ours, same in (
        (task.build_inputs(data, start_step=5).take(2), expected.take(2)),
        (task.build_inputs(held_out).take(1), before),
    ):
        for one, other in zip(ours, same, strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_finetuning_takes_any_number_of_workers(tmp_path) -> None:
    """The order of its rows does not depend on it; the bits of its sums do, so it is noted."""
    params = finetune_plan.experiment(
        finetune_plan.Settings(model_dir=str(tmp_path)), squad_task.SquadConfig(), 10
    )

    def of(workers: int):
        return params.replace(runtime=params.runtime.replace(num_workers=workers))

    configuration.save(of(2), str(tmp_path))
    (change,) = continuation.check(of(1), str(tmp_path), "train")
    assert (change.field, change.was, change.now) == ("runtime.num_workers", 2, 1)
