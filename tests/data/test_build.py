"""The build command: what it writes, that it writes the same bytes however it is run."""

import hashlib
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.data.conftest import NUM_SHARDS, SEQ_LENGTHS, build_arguments
from tfrecords import Manifest, UserError, build, vocabulary
from tfrecords.vocabulary import Vocabulary


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def examples(folder: pathlib.Path, split: str, length: int) -> list[list[dict[str, np.ndarray]]]:
    """The examples of each shard, parsed by TensorFlow's own message classes."""
    shards = []
    for path in sorted(folder.glob(f"{split}-seq{length}-*")):
        rows = []
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            rows.append(
                {
                    name: np.array(value.float_list.value or value.int64_list.value)
                    for name, value in feature.items()
                }
            )
        shards.append(rows)
    return shards


def test_what_lies_on_disk(shards: pathlib.Path, vocab_file: pathlib.Path) -> None:
    names = {
        f"{split}-seq{length}-{number:05d}-of-{NUM_SHARDS:05d}.tfrecord"
        for split in ("train", "eval")
        for length in SEQ_LENGTHS
        for number in range(NUM_SHARDS)
    }
    assert {path.name for path in shards.iterdir()} == names | {"manifest.json", "vocab.txt"}
    assert (shards / "vocab.txt").read_bytes() == vocab_file.read_bytes()
    manifest = Manifest.load(shards)
    assert manifest.seq_lengths == SEQ_LENGTHS
    assert manifest.records == "stored"
    assert manifest.lower_case
    assert manifest.vocab_size == 256
    assert manifest.vocabulary_sha256 == hashlib.sha256(vocab_file.read_bytes()).hexdigest()
    assert manifest.identity["num_buckets"] > 1
    assert manifest.documents["train"] + manifest.documents["eval"] == 120
    assert manifest.num_shards("train") == manifest.num_shards("eval") == NUM_SHARDS
    for length, split in itertools.product(SEQ_LENGTHS, ("train", "eval")):
        counts = [len(rows) for rows in examples(shards, split, length)]
        assert max(counts) - min(counts) <= 1
        assert counts == [shard.examples for shard in manifest.shards(split, length)]
        for shard in manifest.shards(split, length):
            content = (shards / shard.file).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (
                shard.bytes,
                shard.sha256,
            )
    text = (shards / "manifest.json").read_text()
    assert str(shards.parent) not in text
    assert "num_processes" not in text


def test_examples(shards: pathlib.Path, vocab_file: pathlib.Path) -> None:
    tokens = Vocabulary.load(vocab_file).tokens
    documents = {split: set() for split in ("train", "eval")}
    random_next = {True: 0, False: 0}
    for length, split in itertools.product(SEQ_LENGTHS, documents):
        for row in itertools.chain.from_iterable(examples(shards, split, length)):
            ids = row["input_word_ids"].copy()
            count = int(row["masked_lm_weights"].sum())
            ids[row["masked_lm_positions"][:count]] = row["masked_lm_ids"][:count]
            size = int(row["input_mask"].sum())
            separators = np.flatnonzero(ids == tokens.index("[SEP]"))
            assert ids[0] == tokens.index("[CLS]")
            assert len(separators) == 2
            assert separators[1] == size - 1
            assert not ids[size:].any()
            expected = (np.arange(length) > separators[0]) & (np.arange(length) < size)
            np.testing.assert_array_equal(row["input_type_ids"], expected)
            segments = (ids[1 : separators[0]], ids[separators[0] + 1 : size - 1])
            named = [
                {word for word in text.split() if word.startswith("doc")}
                for text in (
                    " ".join(tokens[token] for token in segment).replace(" ##", "")
                    for segment in segments
                )
            ]
            # Truncation may cut a name short, so only names that occur elsewhere count.
            if len(named[0]) == len(named[1]) == 1:
                is_random = bool(row["next_sentence_labels"][0])
                random_next[is_random] += 1
                if not is_random:
                    documents[split].update(named[0])
                elif all(len(next(iter(names))) > 4 for names in named):
                    assert named[0] != named[1]
    assert min(random_next.values()) > 50
    assert documents["eval"]
    assert documents["eval"].isdisjoint(documents["train"])


def letters_of_documents(corpus_dir: pathlib.Path) -> list[str]:
    """Each document without its white space, in the order of the corpus."""
    paths = (corpus_dir / "a" / "one.txt", corpus_dir / "two.txt")
    texts = [path.read_text(encoding="utf-8-sig").split("\n\n") for path in paths]
    return ["".join(text.split()) for text in itertools.chain.from_iterable(texts)]


def letters_of_first_segment(row: dict[str, np.ndarray], tokens: tuple[str, ...]) -> str:
    ids = row["input_word_ids"].copy()
    count = int(row["masked_lm_weights"].sum())
    ids[row["masked_lm_positions"][:count]] = row["masked_lm_ids"][:count]
    end = int((row["input_mask"] - row["input_type_ids"]).sum()) - 1
    return "".join(tokens[token].removeprefix("##") for token in ids[1:end])


def test_shards_are_shuffled_globally(
    corpus_dir: pathlib.Path, shards: pathlib.Path, vocab_file: pathlib.Path
) -> None:
    """Every shard holds rows of nearly all documents, in an order that the corpus does not give.

    Of N rows in a random order the correlation of a row's document with its place, or with the
    next row's document, has a standard deviation of 1 / sqrt(N) or so, whatever the documents are.
    """
    tokens = Vocabulary.load(vocab_file).tokens
    texts = letters_of_documents(corpus_dir)
    found = []
    for rows in examples(shards, "train", SEQ_LENGTHS[0]):
        segments = [letters_of_first_segment(row, tokens) for row in rows]
        # A few letters occur in many documents.
        holders = [[n for n, text in enumerate(texts) if each in text] for each in segments]
        found.append([each[0] for each in holders if len(each) == 1])
        assert all(holders) and len(found[-1]) > 0.8 * len(rows)
    whole = list(itertools.chain.from_iterable(found))
    documents = set(whole)
    assert len(documents) == Manifest.load(shards).documents["train"]
    for numbers in (*found, whole):
        assert len(set(numbers)) > 0.8 * len(documents)
        with_place = np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]
        with_next = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        assert max(abs(with_place), abs(with_next)) < 5 / np.sqrt(len(numbers))


def test_random_next_segments_are_counted(shards: pathlib.Path) -> None:
    for length, split in itertools.product(SEQ_LENGTHS, ("train", "eval")):
        labels = [
            int(row["next_sentence_labels"][0])
            for row in itertools.chain.from_iterable(examples(shards, split, length))
        ]
        counted = Manifest.load(shards).sequences[length].splits[split].random_next
        assert sum(labels) == counted > 0


@pytest.mark.parametrize("num_processes", [2])
def test_bytes_do_not_depend_on_processes(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    num_processes: int,
) -> None:
    arguments = [
        *build_arguments(corpus_dir, vocab_file, tmp_path / "again"),
        f"--num_processes={num_processes}",
    ]
    assert build.main(arguments) == 0
    assert contents(tmp_path / "again") == contents(shards)


def test_bytes_do_not_depend_on_how_the_work_is_cut(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tfrecords.pipeline._TASK_BYTES", 3000)
    monkeypatch.setattr("tfrecords.pipeline._PARTITION_BYTES", 10_000)
    monkeypatch.setattr("tfrecords.stages._BLOCK_ROWS", 30)
    assert build.main(build_arguments(corpus_dir, vocab_file, tmp_path / "again")) == 0
    assert contents(tmp_path / "again") == contents(shards)


def test_what_is_written_below_the_text_is_not_read(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "in")
    folder = tmp_path / "in" / "shards"
    flags = [*build_arguments(corpus_dir, vocab_file, folder), f"--input={tmp_path / 'in'}"]
    assert build.main(flags) == 0
    before = contents(folder)
    assert build.main(flags) == 0
    assert contents(folder) == before


def test_the_vocabulary_beside_the_text_is_no_text(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(corpus_dir, folder)
    shutil.copy(vocab_file, folder / "vocab.txt")
    flags = build_arguments(corpus_dir, folder / "vocab.txt", folder / "shards")
    assert build.main([*flags, f"--input={folder}"]) == 0
    identity = Manifest.load(folder / "shards").identity
    assert identity["input"]["files"] == 2
    before = (folder / "vocab.txt").read_bytes()
    arguments = [f"--input={folder / '*.txt'},{folder / 'a'}", "--vocab_size=250"]
    assert vocabulary.main([*arguments, f"--output={folder / 'vocab.txt'}"]) == 0
    assert (folder / "vocab.txt").read_bytes() == before


def test_manifest_checks(shards: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = Manifest.load(shards)
    manifest.check_vocabulary(Vocabulary.load(shards / "vocab.txt"))
    manifest.check_vocab_size(256)
    with pytest.raises(UserError, match="vocab_size is 30522, but .* a vocabulary of 256"):
        manifest.check_vocab_size(30_522)
    other = tmp_path / "other.txt"
    other.write_text((shards / "vocab.txt").read_text() + "more\n")
    with pytest.raises(UserError, match="is not the vocabulary of"):
        manifest.check_vocabulary(Vocabulary.load(other))
    with pytest.raises(UserError, match="no manifest.json in"):
        Manifest.load(tmp_path)
    stored = json.loads((shards / "manifest.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format version 99; this is version 2"),
        ({"sequences": 3}, "is damaged"),
        ({"vocab_size": None, "surplus": 1}, "is damaged"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**stored, **change}))
        with pytest.raises(UserError, match=message):
            Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Manifest.load(tmp_path)


def test_a_document_a_file(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments = [
        *build_arguments(corpus_dir, vocab_file, tmp_path / "shards"),
        "--document_boundary=file",
        "--eval_fraction=0",
        "--max_predictions_per_seq=3,7",
    ]
    assert build.main(arguments) == 0
    manifest = Manifest.load(tmp_path / "shards")
    assert manifest.documents == {"train": 2, "eval": 0}
    # Two documents in several buckets: either they met in one or each is alone.
    alone = manifest.one_document_buckets["train"]
    random_next = manifest.sequences[64].splits["train"].random_next
    assert (alone, random_next > 0) in ((0, True), (2, False))
    assert manifest.max_predictions_per_seq(64) == 7
    with pytest.raises(UserError, match="no split 'eval'; it has train"):
        manifest.num_shards("eval")
