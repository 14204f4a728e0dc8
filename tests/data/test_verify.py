"""`tfrecords.verify` against shards that were changed in every way a file can be."""

import pathlib
import shutil

import pytest
import tensorflow as tf

from tests.data.conftest import NUM_SHARDS, SEQ_LENGTHS
from tfrecords import verify
from tfrecords.manifest import Manifest


@pytest.fixture
def copy(shards: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    return folder


def run(folder: pathlib.Path, capfd: pytest.CaptureFixture) -> tuple[int, str, str]:
    code = verify.main([f"--input_dir={folder}"])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_sound_shards_are_as_the_manifest_says(shards: pathlib.Path, capfd) -> None:
    code, out, err = run(shards, capfd)
    manifest = Manifest.load(shards)
    examples = sum(manifest.num_examples(s, n) for s in ("train", "eval") for n in SEQ_LENGTHS)
    assert (code, err) == (0, "")
    assert f"{2 * 2 * NUM_SHARDS} shards with {examples:,} examples" in out


def first_shard(folder: pathlib.Path) -> pathlib.Path:
    return folder / f"train-seq32-00000-of-{NUM_SHARDS:05d}.tfrecord"


def flip(path: pathlib.Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_named_with_its_record(copy: pathlib.Path, capfd) -> None:
    path = first_shard(copy)
    sizes = [16 + len(each) for each in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    flip(path, sizes[0] + sizes[1] + 12 + 5)
    code, out, err = run(copy, capfd)
    assert code == 2
    assert f"record 2 at byte offset {sizes[0] + sizes[1]}: its data fails its CRC" in out
    assert "has sha256" in out
    assert err == (
        f"error: 2 problems in {copy}, listed above; build the shards again, or read past damaged "
        "records with on_corrupt='skip'\n"
    )


def test_a_truncated_shard_loses_its_last_record(copy: pathlib.Path, capfd) -> None:
    path = first_shard(copy)
    path.write_bytes(path.read_bytes()[:-3])
    code, out, _ = run(copy, capfd)
    last = Manifest.load(copy).shards("train", 32)[0].examples - 1
    assert code == 2
    assert f"record {last} at byte offset" in out
    assert "the file ends within it" in out


def test_records_beyond_the_count_are_seen(copy: pathlib.Path, capfd) -> None:
    path = first_shard(copy)
    content = path.read_bytes()
    with tf.io.TFRecordWriter(str(copy / "more")) as writer:
        writer.write(b"one more")
    path.write_bytes(content + (copy / "more").read_bytes())
    code, out, _ = run(copy, capfd)
    assert code == 2
    assert "goes on for 24 bytes after its" in out


def test_missing_and_unlisted_files_and_another_vocabulary(copy: pathlib.Path, capfd) -> None:
    path = first_shard(copy)
    path.rename(copy / "stray.tfrecord")
    with (copy / "vocab.txt").open("a") as stream:
        stream.write("more\n")
    code, out, err = run(copy, capfd)
    assert code == 2
    assert f"{path} is missing" in out
    assert f"{copy / 'stray.tfrecord'} is not in the manifest" in out
    assert "is not the vocabulary of" in out
    assert "3 problems" in err


def test_a_folder_without_manifest_is_refused(tmp_path: pathlib.Path, capfd) -> None:
    code, _, err = run(tmp_path, capfd)
    assert code == 2
    assert err.startswith("error: no manifest.json in")
