"""`tfrecords.adopt`: shards of Model Garden's own script, and of hands, in every state."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import tfrecords
from tests.data import model_garden
from tests.data.hand_made import (
    LENGTH,
    PREDICTIONS,
    TOKENS,
    add,
    compress,
    once,
    row,
    rows,
    run,
    run_in,
    state,
    write,
)
from tests.data.test_reader import fingerprints
from tfrecords import adopt, inspect, schema, verify
from tfrecords.manifest import Manifest, Shard

FILES = 4


KINDS = ("v1", "v2", "v1-GZIP", "v2-GZIP")


# One process for all kinds, since it takes seconds to import; the functions are those that the
# script's own main calls.
PROGRAM = """
import random, sys
from official.nlp.data import create_pretraining_data as script
from official.nlp.tools import tokenization
text, vocab_file, folder, length, predictions, files = sys.argv[1:]
tokenizer = tokenization.FullTokenizer(vocab_file=vocab_file, do_lower_case=True)
def line_of(line):
    return tokenization.convert_to_unicode(line).strip()
instances = script.create_training_instances(
    [text], tokenizer, line_of, int(length), 2, 0.1, 0.15, int(predictions), random.Random(5))
for kind in ("v1", "v2", "v1-GZIP", "v2-GZIP"):
    names = [f"{folder}/{kind}/data-{number}.tfrecord" for number in range(int(files))]
    script.write_instance_to_example_files(
        instances, tokenizer, int(length), int(predictions), names, "GZIP" in kind, "v2" in kind)
"""


@pytest.fixture(scope="module")
def theirs(
    corpus_dir: pathlib.Path, vocab_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A folder with a folder of shards of each kind, which Model Garden's script wrote."""
    model_garden.module("official")
    folder = tmp_path_factory.mktemp("theirs")
    for kind in KINDS:
        (folder / kind).mkdir()
    arguments = [corpus_dir / "a" / "one.txt", vocab_file, folder, LENGTH, PREDICTIONS, FILES]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return folder


def loaded(folder: pathlib.Path, is_v2: bool) -> list[bytes]:
    """What Model Garden's own loader reads, a file at a time: it has its own order of files."""
    loader = model_garden.module("official.nlp.data.pretrain_dataloader")
    found = []
    for path in sorted(folder.iterdir()):
        config = loader.BertPretrainDataConfig(
            input_path=str(path),
            global_batch_size=1,
            is_training=False,
            seq_length=LENGTH,
            max_predictions_per_seq=PREDICTIONS,
            use_v2_feature_names=is_v2,
        )
        found += fingerprints(loader.BertPretrainDataLoader(config).load())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_model_garden_wrote_reads_as_its_own_loader_reads_it(
    theirs: pathlib.Path, vocab_file: pathlib.Path, tmp_path: pathlib.Path, kind: str, capsys
) -> None:
    before = state(theirs)
    assert run(theirs / kind / "*.tfrecord", vocab_file, tmp_path / "d") == 0
    assert state(theirs) == before
    names, _, compression = kind.partition("-")
    # Their loader takes no GZIP; the plain files of the same run hold the same examples.
    expected = loaded(theirs / names, names == "v2")
    assert f"{len(expected):,} examples in {FILES} shards" in capsys.readouterr().out

    ours = tfrecords.read(tmp_path / "d", seq_length=LENGTH, global_batch_size=16, training=False)
    rows = [row for row in fingerprints(ours) if any(row)]
    assert rows == expected

    manifest = Manifest.load(tmp_path / "d")
    assert (manifest.feature_names, manifest.compression) == (names, compression)
    assert (manifest.records, manifest.next_sentence) == (schema.STORED, True)
    assert manifest.max_predictions_per_seq(LENGTH) == PREDICTIONS
    labels = sum(int(row[-4:] != bytes(4)) for row in expected)
    assert 0 < labels < len(expected)
    assert manifest.sequences[LENGTH].splits["train"].random_next == labels
    assert str(tmp_path) not in (tmp_path / "d" / "manifest.json").read_text()
    assert str(theirs.parent) not in (tmp_path / "d" / "manifest.json").read_text()

    assert verify.main([f"--input_dir={tmp_path / 'd'}"]) == 0
    assert inspect.main([f"--input_dir={tmp_path / 'd'}"]) == 0
    assert f"{len(expected):,} rows of {LENGTH} tokens" in capsys.readouterr().out


def test_two_splits(place: pathlib.Path, capsys) -> None:
    write(place / "held-out.tfrecord", rows(3))
    assert run_in(place, f"--eval_input={place}/held-out.tfrecord", "--nolower_case") == 0
    manifest = Manifest.load(place / "d")
    assert not manifest.lower_case
    assert manifest.num_examples("train", LENGTH) == 20
    assert [shard.file for shard in manifest.shards("eval", LENGTH)] == ["../held-out.tfrecord"]
    assert manifest.sequences[LENGTH].splits["eval"].random_next == 1
    assert manifest.identity["adopted"]["input"] == "../in/*"
    assert manifest.identity["adopted"]["eval_input"] == "../held-out.tfrecord"
    out = capsys.readouterr().out
    assert "train: 2 shards can be dealt out to 1 or 2 workers; for more" in out
    assert "eval: 1 shard can be dealt out to 1 worker; for more" in out
    assert "warning: train" not in out and "warning: eval" not in out


def test_paths_hold_from_any_folder_and_when_all_moves_together(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory
) -> None:
    monkeypatch.chdir(place)
    assert run("in/*", "vocab.txt", "d") == 0
    expected = once(place / "d")
    assert len(expected) == 20
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(place, moved)
    monkeypatch.chdir(moved.parent)
    assert once(moved / "d") == expected


def test_a_link_as_output_folder(place: pathlib.Path) -> None:
    (place / "far" / "away").mkdir(parents=True)
    (place / "link").symlink_to(place / "far" / "away")
    assert run(place / "in" / "*", place / "vocab.txt", place / "link") == 0
    assert len(once(place / "far" / "away")) == 20
    assert len(once(place / "link")) == 20


def test_remote_shards_are_named_by_their_address(place: pathlib.Path) -> None:
    remote = f"ram://{place.name}/in"
    write(f"{remote}/0.tfrecord", rows(6))
    patterns = f"{remote}/*,{place}/in/1.tfrecord"
    assert run(patterns, place / "vocab.txt", place / "d") == 0
    manifest = Manifest.load(place / "d")
    shards = manifest.shards("train", LENGTH)
    assert [shard.file for shard in shards] == ["../in/1.tfrecord", f"{remote}/0.tfrecord"]
    assert manifest.identity["adopted"]["input"] == f"{remote}/*,../in/1.tfrecord"
    assert len(once(place / "d")) == 16


def test_a_remote_folder_names_local_shards_in_full(place: pathlib.Path) -> None:
    remote = f"ram://{place.name}/d"
    assert run(place / "in" / "*", place / "vocab.txt", remote) == 0
    manifest = Manifest.load(remote)
    assert manifest.shards("train", LENGTH)[0].file == str(place / "in" / "0.tfrecord")
    assert len(once(remote)) == 20
    assert run(place / "in" / "*", place / "vocab.txt", remote) == 0


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_empty_shards_are_pointed_out(place: pathlib.Path, capsys, compression: str) -> None:
    if compression:
        compress(place)
    write(place / "in" / "2.tfrecord", [], compression)
    (place / "in" / "3.tfrecord").write_bytes(b"")
    assert run_in(place) == 0
    assert "2 of 4 shards hold no example, the first ../in/2.tfrecord" in capsys.readouterr().out
    assert len(once(place / "d")) == 20
    assert verify.main([f"--input_dir={place / 'd'}"]) == 0


def test_the_same_again_does_nothing(place: pathlib.Path, capsys) -> None:
    assert run_in(place) == 0
    before = state(place)
    capsys.readouterr()
    assert run_in(place) == 0
    assert capsys.readouterr().out == f"{place / 'd'} already holds this adoption; nothing to do\n"
    assert state(place) == before


def test_what_a_killed_adoption_leaves_is_no_obstacle(place: pathlib.Path) -> None:
    (place / "d").mkdir()
    shutil.copy(place / "vocab.txt", place / "d" / "vocab.txt")
    (place / "d" / "manifest.json.partial-0123").write_text("{")
    assert run_in(place) == 0
    assert sorted(os.listdir(place / "d")) == ["manifest.json", "vocab.txt"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda _: None, ("--masked_lm_prob=0.2",), "another adoption (different: masked_lm_prob)"),
        (lambda place: add(place, row()), (), "another adoption (different: the files found)"),
        (
            lambda place: write(place / "in" / "1.tfrecord", rows(11)),
            (),
            "in/1.tfrecord has changed since",
        ),
        (
            lambda place: (place / "vocab.txt").write_text("\n".join([*TOKENS, "more"])),
            (),
            "another adoption (different: vocab_file)",
        ),
    ],
)
def test_another_adoption_is_kept(
    place: pathlib.Path, capsys, change, arguments: tuple[str, ...], message: str
) -> None:
    assert run_in(place) == 0
    change(place)
    before = state(place)
    assert run_in(place, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert state(place) == before


def test_other_folders_are_kept(place: pathlib.Path, shards: pathlib.Path, capsys) -> None:
    before = state(shards)
    assert run(place / "in" / "*", place / "vocab.txt", shards) == 2
    assert "holds shards that tfrecords.build wrote" in capsys.readouterr().err
    assert state(shards) == before
    before_in = {path.name for path in (place / "in").iterdir()}
    assert run(place / "in" / "*", place / "vocab.txt", place / "in") == 2
    assert "and what is written a folder of its own" in capsys.readouterr().err
    assert {path.name for path in (place / "in").iterdir()} == before_in
    assert run(place / "in" / "*", place / "vocab.txt", place / "vocab.txt") == 2
    assert "vocab.txt is a file" in capsys.readouterr().err


def test_an_adoption_below_its_shards_can_be_run_again(place: pathlib.Path) -> None:
    folder = place / "in" / "adopted"
    for _ in range(2):
        assert run(place / "in", place / "vocab.txt", folder) == 0
    assert len(once(folder)) == 20


def test_a_cased_vocabulary_is_pointed_out(place: pathlib.Path, capsys) -> None:
    (place / "vocab.txt").write_text("\n".join([*TOKENS, "Fox"]))
    assert run_in(place) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "warning: " in each]
    assert line.startswith(f"warning: {place / 'vocab.txt'} has word pieces with capitals, such as")


def sized(*counts: int) -> list[Shard]:
    return [
        Shard(file=f"{number}", examples=count, bytes=0, sha256="", head_sha256="")
        for number, count in enumerate(counts)
    ]


def test_advice() -> None:
    even = adopt.advice("train", sized(*[100, 101] * 4))
    assert even == [
        "train: 8 shards can be dealt out to 1, 2, 4 or 8 workers; for more, write the data again "
        "with at least as many shards as workers"
    ]
    _, uneven = adopt.advice("train", sized(100, 97))
    assert uneven.startswith("warning: train: shards hold from 97 to 100 examples")
    assert len(adopt.advice("eval", sized(100, 97))) == 1
    _, empty = adopt.advice("eval", sized(1, 0, 1, 0))
    assert empty.startswith("warning: eval: 2 of 4 shards hold no example, the first 1;")


def test_every_option_is_remembered(place: pathlib.Path) -> None:
    assert run_in(place) == 0
    stored = json.loads((place / "d" / "manifest.json").read_text())["identity"]["adopted"]
    assert set(stored) == {
        "input", "eval_input", "seq_length", "lower_case", "masked_lm_prob", "whole_word_mask",
    }  # fmt: skip
