"""A manifest that is written and read again is the same."""

import dataclasses
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrecords import Manifest, schema
from tfrecords.manifest import FORMAT_VERSION, Sequences, Shard, SplitCounts

COUNTS = st.integers(0, 2**50)
HASHES = st.text(string.hexdigits.lower()[:16], min_size=64, max_size=64)
SHARDS = st.builds(
    Shard, file=st.text(min_size=1), examples=COUNTS, bytes=COUNTS, sha256=HASHES,
    head_sha256=HASHES,
)  # fmt: skip
SPLITS = st.builds(SplitCounts, shards=st.lists(SHARDS, max_size=3).map(tuple), random_next=COUNTS)
SEQUENCES = st.builds(
    Sequences,
    max_predictions_per_seq=st.integers(1, 4096),
    splits=st.dictionaries(st.sampled_from(schema.SPLITS), SPLITS),
)
FRACTIONS = st.floats(0, 1)
PLAIN = st.none() | st.booleans() | st.integers() | FRACTIONS | st.text()
OF_SPLITS = st.dictionaries(st.sampled_from(schema.SPLITS), COUNTS)
MANIFESTS = st.builds(
    Manifest,
    directory=st.just(""),
    format_version=st.just(FORMAT_VERSION),
    records=st.sampled_from(schema.RECORDS),
    feature_names=st.sampled_from([schema.V1, schema.V2]),
    compression=st.sampled_from(["", schema.GZIP]),
    next_sentence=st.booleans(),
    masked_lm_prob=FRACTIONS,
    whole_word_mask=st.booleans(),
    vocabulary_sha256=HASHES,
    vocab_size=COUNTS,
    lower_case=st.booleans(),
    identity=st.dictionaries(
        st.text(), PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN)
    ),
    documents=OF_SPLITS,
    duplicate_documents=COUNTS,
    one_document_buckets=OF_SPLITS,
    sequences=st.dictionaries(st.integers(1, 4096), SEQUENCES, max_size=3),
)


@given(manifest=MANIFESTS)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    manifest = dataclasses.replace(manifest, directory=str(folder))
    manifest.save()
    assert Manifest.load(folder) == manifest
    stored = json.loads((folder / schema.MANIFEST_FILE).read_text())
    assert set(stored) == {field.name for field in dataclasses.fields(Manifest)} - {"directory"}
