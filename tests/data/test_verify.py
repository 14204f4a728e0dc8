"""`tfrecords.verify` against shards that were changed in every way a file can be."""

import gzip
import os
import pathlib
import random
import re
import shutil
import zlib

import hypothesis
import pytest
import tensorflow as tf
from hypothesis import strategies

import tfrecords
from tests.data.conftest import NUM_SHARDS, SEQ_LENGTHS, build_arguments
from tfrecords import UserError, adopt, build, damage, reader, verify
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


def assert_no_way_past(folder: pathlib.Path, error: str, reason: str) -> None:
    """The reader refuses the first shard for that reason, and verify does not say otherwise."""
    assert error.count("\n") == 1 and error.endswith("listed above; build the shards again\n")
    for on_corrupt in (reader.RAISE, reader.SKIP):
        with pytest.raises(UserError, match=re.escape(reason)) as refused:
            tfrecords.read(folder, seq_length=32, global_batch_size=8, on_corrupt=on_corrupt)
        assert "\n" not in str(refused.value)


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
        "records with on_corrupt='skip' and a corrupt_budget\n"
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
    code, out, err = run(copy, capfd)
    assert code == 2
    assert "goes on for 24 bytes after its" in out
    assert_no_way_past(copy, err, "; it goes on for 24 bytes after its")


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


@pytest.fixture(scope="module")
def zipped(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("zipped") / "shards"
    arguments = build_arguments(corpus_dir, vocab_file, folder)
    assert build.main([*arguments, "--seq_lengths=32", "--eval_fraction=0", "--gzip"]) == 0
    return folder


@pytest.fixture
def zipped_copy(zipped: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(zipped, tmp_path / "zipped"))


def first_zipped(folder: pathlib.Path) -> pathlib.Path:
    return folder / Manifest.load(folder).shards("train", 32)[0].file


def test_sound_compressed_shards(zipped: pathlib.Path, capfd) -> None:
    assert first_zipped(zipped).read_bytes()[:2] == b"\x1f\x8b"
    code, out, err = run(zipped, capfd)
    assert (code, err) == (0, "")
    assert f"{NUM_SHARDS} shards with" in out


def test_a_compressed_shard_that_ends_early(zipped_copy: pathlib.Path, capfd) -> None:
    path = first_zipped(zipped_copy)
    content = path.read_bytes()
    # Independently of tfrecords: zlib's own count of what the first half holds.
    half = zlib.decompressobj(31).decompress(content[: len(content) // 2])
    path.write_bytes(content[: len(content) // 2])
    code, out, _ = run(zipped_copy, capfd)
    assert code == 2
    assert f"its GZIP stream ends early, after {len(half)} bytes of decompressed content" in out
    assert " of the decompressed content: the file ends within it, and the " in out
    path.write_bytes(content[:-2])
    code, out, _ = run(zipped_copy, capfd)
    assert code == 2
    assert "its GZIP stream ends early" in out
    assert "the file ends within it" not in out


def test_a_compressed_shard_with_other_bytes_around_sound_records(
    zipped_copy: pathlib.Path, capfd
) -> None:
    path = first_zipped(zipped_copy)
    content = path.read_bytes()
    records = gzip.decompress(content)
    for changed, reason in (
        (content + b"0123456789", "; its GZIP stream is corrupted ("),
        (content[:-2], "; its GZIP stream ends early; "),
        (gzip.compress(records + bytes(7)), "; it goes on for 7 bytes of the decompressed content"),
        # The header's time.
        (content[:4] + b"2026" + content[8:], "not these bytes: another build's, or compressed"),
    ):
        path.write_bytes(changed)
        code, _, err = run(zipped_copy, capfd)
        assert code == 2
        assert_no_way_past(zipped_copy, err, reason)


def test_a_compressed_record_with_a_flipped_bit(zipped_copy: pathlib.Path, capfd) -> None:
    path = first_zipped(zipped_copy)
    content = bytearray(gzip.decompress(path.read_bytes()))
    offset = 16 + int.from_bytes(content[:8], "little")
    content[offset + 20] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    code, out, _ = run(zipped_copy, capfd)
    assert code == 2
    expected = f"record 1 at byte offset {offset} of the decompressed content: its data fails"
    assert expected in out


def test_an_unlisted_compressed_shard(zipped_copy: pathlib.Path, capfd) -> None:
    shutil.copy(first_zipped(zipped_copy), zipped_copy / "stray.tfrecord.gz")
    code, out, _ = run(zipped_copy, capfd)
    assert code == 2
    assert "stray.tfrecord.gz is not in the manifest" in out


def test_adopted_shards_lie_elsewhere(
    copy: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path, capfd
) -> None:
    flags = {
        "input": f"{copy}/train-seq32-*",
        "seq_length": 32,
        "vocab_file": vocab_file,
        "output_dir": tmp_path / "adopted",
    }
    assert adopt.main([f"--{name}={value}" for name, value in flags.items()]) == 0
    code, out, err = run(tmp_path / "adopted", capfd)
    assert (code, err) == (0, "")
    assert f"{NUM_SHARDS} shards with" in out
    flip(first_shard(copy), 40)
    code, out, err = run(tmp_path / "adopted", capfd)
    assert code == 2
    assert os.path.basename(first_shard(copy)) + ": record 0 at byte offset 0: its data" in out
    assert "write and adopt the shards again" in err


def is_whole(stream: bytes) -> bool:
    try:
        gzip.decompress(stream)
    except (OSError, EOFError, zlib.error):
        return False
    return True


@hypothesis.example(seed=0, size=0, share=0.625, flipped=True)
@hypothesis.given(
    seed=strategies.integers(0, 1 << 32),
    size=strategies.integers(0, 300_000),
    share=strategies.floats(0, 1),
    flipped=strategies.booleans(),
)
@hypothesis.settings(max_examples=40)
def test_all_before_the_damage_is_decompressed(
    seed: int, size: int, share: float, flipped: bool
) -> None:
    # Bytes that compress, but not to nothing.
    content = bytes(random.Random(seed).choices(b"abcdefgh", k=size))
    stream = bytearray(gzip.compress(content, mtime=0))
    assert damage.inflated(bytes(stream), "GZIP") == (content, None)
    place = int(share * (len(stream) - 1))
    if flipped:
        # Past the header, whose time and system may be anything.
        place = max(place, 10)
        stream[place] ^= 0x10
    else:
        del stream[place:]
    found, problem = damage.inflated(bytes(stream), "GZIP")
    assert found == damage.decompressed(bytes(stream), "GZIP")
    # A bit that only fills up the last byte may be anything.
    assert (problem is None) == is_whole(bytes(stream))
    # What zlib gives for the sound bytes alone.
    sound = zlib.decompressobj(31).decompress(bytes(stream[:place]))
    assert found.startswith(sound)
    if not flipped:
        assert found == sound


def test_compressed_streams_may_follow_one_another() -> None:
    content = gzip.compress(b"one") + gzip.compress(b"two")
    assert damage.inflated(content, "GZIP") == (b"onetwo", None)
    found, problem = damage.inflated(content + b"no stream", "GZIP")
    assert found == b"onetwo"
    assert problem is not None and problem.startswith("its GZIP stream is corrupted")
    assert damage.inflated(content, "") == (content, None)


def test_salvage_without_a_count(tmp_path: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "file")) as writer:
        for text in (b"one", b"three", b""):
            writer.write(text)
    content = (tmp_path / "file").read_bytes()
    assert damage.salvage(content, None) == ([b"one", b"three", b""], [])
    assert damage.salvage(b"", None) == ([], [])
    records, (found,) = damage.salvage(content[:-1], None)
    assert records == [b"one", b"three", None]
    assert (found.record, found.offset) == (2, 16 + 3 + 16 + 5)
