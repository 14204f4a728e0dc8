"""Which shards a run reads, and what becomes of an epoch when the number of workers changes."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tfrecords
from official_bert import configuration, run_data
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

    assert known(0, 1) == ((Partition(),), None)
    assert known(steps, 1) == ((Partition(),), None)
    second = Partition(step=steps, epoch=2, num_workers=2)
    assert known(steps, 2) == ((Partition(), second), 2 * total - steps * batch)
    # Whoever starts again there, or later, has nothing to change.
    assert known(steps, 2) == ((Partition(), second), None)
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
    (tmp_path / run_data.FILE).write_text('{"manifest_sha256": "0", "partitions": [{"steps": 1}]}')
    with pytest.raises(UserError, match="data.json does not say"):
        run_data.read(str(tmp_path))
