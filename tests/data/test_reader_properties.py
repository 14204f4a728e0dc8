"""Section 3.4 of the paper as a property of the reader, over shards, workers, batches and kills."""

import dataclasses
import pathlib
import tempfile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import tfrecords
from tfrecords import encoding, files, manifest, schema, writer
from tfrecords.instances import Pairs
from tfrecords.masking import Masking
from tfrecords.vocabulary import Vocabulary

LENGTH = 16
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FIRST = len(SPECIAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Shards of `counts` examples read by `num_workers`, each killed after the steps `kills`."""

    records: str
    compression: str
    counts: list[int]
    num_workers: int
    batch_size: int
    seed: int
    kills: list[int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_workers = draw(st.integers(1, 3))
    per_worker = draw(st.integers(1, 3))
    counts = draw(
        st.lists(
            st.integers(0, 9), min_size=num_workers * per_worker, max_size=num_workers * per_worker
        )
    )
    for worker in range(num_workers):
        counts[worker] = max(1, counts[worker])
    smallest = min(sum(counts[worker::num_workers]) for worker in range(num_workers))
    return Case(
        records=draw(st.sampled_from(schema.RECORDS)),
        compression=draw(st.sampled_from(["", schema.GZIP])),
        counts=counts,
        num_workers=num_workers,
        batch_size=draw(st.integers(1, smallest)),
        seed=draw(st.integers(0, 2**40)),
        kills=draw(st.lists(st.integers(0, 12), min_size=1, max_size=2)),
    )


def write(folder: pathlib.Path, case: Case) -> None:
    """A folder of shards whose example number n is the row [CLS] n [SEP] n [SEP]."""
    counts = case.counts
    words = tuple(f"w{number}" for number in range(sum(counts)))
    content = "\n".join(SPECIAL + words).encode()
    vocabulary = Vocabulary(tokens=SPECIAL + words, content=content)
    files.write_bytes(folder / schema.VOCABULARY_FILE, content)
    numbers = np.split(np.arange(sum(counts)), np.cumsum(counts))[:-1]
    masking = Masking.of(
        vocabulary, masked_lm_prob=0.15, max_predictions_per_seq=4, whole_word=True
    )
    shards = []
    for index, own in enumerate(numbers):
        pairs = Pairs(
            ids=np.repeat(FIRST + own, 2).astype(np.uint16),
            first_lengths=np.ones(len(own), np.int32),
            second_lengths=np.ones(len(own), np.int32),
            random_next=np.zeros(len(own), np.uint8),
            example_ids=own.astype(np.uint64),
        )
        path = folder / schema.shard_name("train", LENGTH, index, len(counts), case.compression)
        records = (
            encoding.serialize_unmasked(pairs, vocabulary=vocabulary)
            if case.records == schema.DYNAMIC
            else encoding.serialize(
                pairs, seq_length=LENGTH, vocabulary=vocabulary, masking=masking
            )
        )
        shards.append(writer.write_shard(str(path), [records], case.compression))
    manifest.Manifest(
        directory=str(folder),
        format_version=manifest.FORMAT_VERSION,
        records=case.records,
        feature_names=schema.V2,
        compression=case.compression,
        next_sentence=True,
        masked_lm_prob=0.15,
        whole_word_mask=True,
        vocabulary_sha256=vocabulary.sha256,
        vocab_size=len(vocabulary),
        lower_case=True,
        identity={},
        documents={"train": 1},
        duplicate_documents=0,
        one_document_buckets={"train": 0},
        sequences={
            LENGTH: manifest.Sequences(
                max_predictions_per_seq=4,
                splits={"train": manifest.SplitCounts(shards=tuple(shards), random_next=0)},
            )
        },
    ).save()


def read(folder: pathlib.Path, case: Case, worker: int, start: int, steps: int) -> list[dict]:
    dataset = tfrecords.read(
        folder,
        seq_length=LENGTH,
        global_batch_size=case.num_workers * case.batch_size,
        num_workers=case.num_workers,
        worker_index=worker,
        seed=case.seed,
        start_step=start,
    )
    return list(dataset.take(steps).as_numpy_iterator())


def examples(batch: dict) -> list[int]:
    """The numbers of a batch's examples: one of the two equal tokens of a row is unmasked."""
    words = np.where(batch["masked_lm_weights"] > 0, batch["masked_lm_ids"], 0).max(1)
    return (words - FIRST).tolist()


@settings(max_examples=8)
@given(cases())
def test_every_example_once_and_a_killed_reader_goes_on(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(folder, case)
        owned = [sum(case.counts[worker :: case.num_workers]) for worker in range(case.num_workers)]
        steps = max(2 * -(-max(owned) // case.batch_size), sum(case.kills) + 1)
        drawn: list[int] = []
        for worker, size in enumerate(owned):
            whole = read(folder, case, worker, 0, steps)
            for batch in whole:
                assert len(set(examples(batch))) == case.batch_size
            sequence = [example for batch in whole for example in examples(batch)]
            for begin in range(0, len(sequence) - size + 1, size):
                assert sorted(sequence[begin : begin + size]) == sorted(sequence[:size])
            drawn += sequence[:size]

            legs, at = [], 0
            for kill in case.kills:
                legs += read(folder, case, worker, at, kill)
                at += kill
            legs += read(folder, case, worker, at, steps - at)
            for expected, found in zip(whole, legs, strict=True):
                for feature in expected:
                    np.testing.assert_array_equal(found[feature], expected[feature])
        assert sorted(drawn) == list(range(sum(case.counts)))
