"""What holds on any hardware: epochs, optimizers and cuts of the real code, on little text."""

import collections
import pydoc_data.topics

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import exactness_coverage, exactness_cuts, exactness_data, exactness_error
from benchmarks.exactness_coverage import Case
from benchmarks.exactness_cuts import Cut
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    topics = "\n".join(each for _, each in sorted(pydoc_data.topics.topics.items()))
    (folder / "topics.txt").write_text(topics, encoding="utf-8")
    return exactness_data.prepare(str(folder / "topics.txt"), folder / "made", 2e5, seq_length=32)


@pytest.fixture(scope="module")
def manifests(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {count: exactness_data.shards(text, folder / str(count), count) for count in (8, 10)}


def test_our_epoch_is_whole_and_stocks_is_not(manifests) -> None:
    row = exactness_coverage.measure_case(
        manifests[8], Case(files=8, workers=4, seeded=False), trials=2
    )
    assert row["examples"] == manifests[8].num_examples("train", 32) > 1000
    assert row["ours"]["each_exactly_once"] and row["ours"]["lowest_share"] == 1.0
    # Four workers that take two of eight files each, unknown to each other: for them to share the
    # files out has a probability of 0.4 %, and their seeds are fixed.
    assert not row["stock"]["each_exactly_once"]
    assert 0.25 <= row["stock"]["lowest_share"] <= row["stock"]["highest_share"] < 0.99


def test_files_that_do_not_divide_are_refused_by_us_and_missed_by_stock(manifests) -> None:
    row = exactness_coverage.measure_case(
        manifests[10], Case(files=10, workers=4, seeded=True), trials=1
    )
    assert "10" in row["ours"]["refused"] and "8" in row["ours"]["refused"]
    # Two workers own three files and draw no more than those with two.
    assert row["stock"]["mean_share"] < 0.95


def test_examples_of_one_content_count_each() -> None:
    stored = collections.Counter({b"a": 2, b"b": 1, b"c": 1})
    assert exactness_coverage.share_drawn(stored, stored) == 1.0
    assert exactness_coverage.share_drawn(collections.Counter({b"a": 4}), stored) == 0.5
    assert exactness_coverage.share_drawn(collections.Counter(b"a"), stored) == 0.0


def test_rows_are_counted_by_all_their_features_up_to_a_number() -> None:
    words = np.array([[1, 2], [1, 2], [1, 2], [3, 4]])
    labels = np.array([[0], [0], [1], [1]])
    batches = [{"words": words, "labels": labels}] * 2
    assert sorted(exactness_coverage.counts(batches, 4).values()) == [1, 1, 2]
    assert exactness_coverage.counts(batches, 8).total() == 8
    assert exactness_coverage.counts(batches, 1).total() == 1


@pytest.mark.parametrize("method", exactness_error.METHODS, ids=lambda each: each.name)
def test_only_another_formula_is_far_from_the_reference(method) -> None:
    """Each of n = 20 updates rounds a weight x by at most 2^-24 |x| and moves it by RATE |x|.

    Where roundings add up the error is 2^-24 / RATE = 8e-6 of the way; as much again is left for
    those within an update.
    """
    blocks, steps = [(24, 16), (16,)], 20
    expected = exactness_error.in_float64(method.algorithm, method.weight_decay, blocks, steps)
    found = exactness_error.in_float32(method, blocks, steps)
    error = exactness_error.relative_error(found, expected, exactness_error.start(blocks))
    if method.remark:
        assert error > 1e-3
    else:
        assert error < 1.6e-5


def test_the_blocks_are_those_of_a_bert_with_fewer_words() -> None:
    shapes = exactness_error.shapes(64)
    assert shapes[0] == (64, 128) and shapes.count((64,)) == 1
    assert len(shapes) == len(exactness_error.bert_shapes.block_shapes("bert_tiny"))


def test_our_weights_do_not_depend_on_replicas_and_stocks_do(manifests, monkeypatch) -> None:
    """Ours to rounding, which test_pretraining_task.py derives; stock by orders of magnitude."""
    monkeypatch.setattr(exactness_cuts, "LAYERS", 1)
    batches = exactness_cuts.read_batches(manifests[8], 4)
    assert exactness_cuts.masked_share(batches, 2) > 0.5
    differences = {}
    for system in (exactness_cuts.SYSTEMS[0], exactness_cuts.SYSTEMS[-1]):
        cuts = [Cut(replicas=2)]
        (row,) = exactness_cuts.measure_system(system, manifests[8], batches, cuts)
        differences[system.is_ours] = row["relative_l2_difference"]
    assert differences[True] < 1e-5
    assert differences[False] > 1e-3


def test_cuts_are_named() -> None:
    titles = [cut.title for cut in (Cut(), Cut(replicas=2), Cut(replicas=2, micro_batches=4))]
    assert titles == ["whole", "2 replicas", "2 replicas of 4 micro-batches"]


def test_too_few_devices_are_refused() -> None:
    assert tf.config.list_logical_devices("CPU")  # it runs from here on
    exactness_cuts.prepare_devices(2)
    with pytest.raises(UserError, match="logical CPUs, 64 are needed"):
        exactness_cuts.prepare_devices(64)
