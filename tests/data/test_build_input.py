"""Formats of text, from files to shards: the same documents give the same bytes."""

import gzip
import itertools
import json
import pathlib
import re
import types

import pytest

from tests.data.conftest import build_arguments, write_corpus
from tfrecords import Manifest, build, corpus, stages


def texts_of(corpus_dir: pathlib.Path) -> dict[str, list[list[str]]]:
    """The documents of each file of the made-up corpus."""
    found = {}
    for path in (corpus_dir / "a" / "one.txt", corpus_dir / "two.txt"):
        text = path.read_text(encoding="utf-8-sig")
        found[path.name] = [part.strip().split("\n") for part in re.split(r"\n\n", text)]
    return found


def write(folder: pathlib.Path, texts: dict[str, str]) -> pathlib.Path:
    for name, text in texts.items():
        path = folder / ("a" if name == "one.txt" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def shards_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tfrecord")}


FORMATS = {
    "--document_boundary=doc_tag": lambda documents: "".join(
        f'<doc id="{number}" url="" title="">\n' + "\n\n".join(lines) + "\n\n</doc>\n"
        for number, lines in enumerate(documents)
    ),
    "--text_field=text": lambda documents: "".join(
        json.dumps({"id": number, "text": "\n".join(lines)}) + "\n"
        for number, lines in enumerate(documents)
    ),
    # Sentences of that corpus begin with a small letter, where nothing is split.
    "--split_sentences": lambda documents: "\n\n".join(
        " ".join(line.capitalize() for line in lines) for lines in documents
    ),
}


@pytest.mark.parametrize("flag", FORMATS)
def test_every_format_gives_the_same_shards(
    flag: str,
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("tfrecords.pipeline._TASK_BYTES", 5000)
    texts = {name: FORMATS[flag](documents) for name, documents in texts_of(corpus_dir).items()}
    folder = write(tmp_path / "text", texts)
    output = tmp_path / "shards"
    # The number of buckets is one of the text's size, which tags and braces are part of.
    arguments = [*build_arguments(folder, vocab_file, output), f"--bucket_bytes={1 << 30}"]
    assert build.main([*arguments, flag]) == 0
    plain = [*build_arguments(corpus_dir, vocab_file, tmp_path / "plain"), arguments[-1]]
    assert build.main(plain) == 0
    assert shards_of(output) == shards_of(tmp_path / "plain")
    identity = Manifest.load(output).identity
    assert ("sentence_segmenter" in identity) == (flag == "--split_sentences")
    capsys.readouterr()
    assert build.main(arguments) == 2
    assert "text_format" in capsys.readouterr().err


def test_formats_that_exclude_each_other(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = build_arguments(corpus_dir, vocab_file, tmp_path / "shards")
    for flags, message in (
        (["--text_field=text", "--document_boundary=file"], "exclude each other"),
        (["--text_field=text"], "one.txt line 1 is no JSON (Expecting value)"),
        (["--document_boundary=doc_tag"], "one.txt line 1: text outside <doc ...>"),
    ):
        assert build.main([*arguments, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "shards").exists()


def test_what_is_no_text_is_reported_or_refused(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
) -> None:
    texts = {
        name: FORMATS["--text_field=text"](found) for name, found in texts_of(corpus_dir).items()
    }
    folder = write(tmp_path / "text", texts)
    damaged = folder / "two.txt"
    lines = damaged.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"doc", b"\x00\xffdoc", 1)
    damaged.write_bytes(b"\n".join(lines))
    output = tmp_path / "shards"
    arguments = [*build_arguments(folder, vocab_file, output), "--text_field=text"]
    assert build.main([*arguments, "--strict"]) == 2
    assert f"error: {damaged} line 2 has a NUL character (byte " in capsys.readouterr().err
    assert not output.exists()
    assert build.main(arguments) == 0
    assert capsys.readouterr().out.count(
        "1 NUL characters and 1 invalid UTF-8 sequences were replaced, first in "
        f"{damaged} line 2\n"
    ) == 1  # fmt: skip
    damaged.write_bytes(b"\n".join([*lines[:1], lines[1].replace(b"\x00\xff", b""), *lines[2:]]))
    clean = tmp_path / "clean"
    arguments = [*build_arguments(folder, vocab_file, clean), "--text_field=text", "--strict"]
    assert build.main(arguments) == 0
    assert "were replaced" not in capsys.readouterr().out
    assert shards_of(clean) == shards_of(output)


class Interrupted(Exception):  # noqa: N818
    pass


def test_compressed_files_are_read_once_each(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in (corpus_dir / "two.txt", corpus_dir / "a" / "one.txt"):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    whole, cut = (
        [*build_arguments(corpus_dir, vocab_file, tmp_path / name), f"--input={tmp_path}/*.gz"]
        for name in ("whole", "cut")
    )
    assert build.main(whole) == 0
    monkeypatch.setattr("tfrecords.pipeline._TASK_BYTES", 3000)
    opened: list[str] = []
    tokenized: list[int] = []
    open_file, documents = corpus._open, stages.Tasks._documents

    def opening(path: str) -> object:
        opened.append(path)
        return open_file(path)

    def stopping(self: stages.Tasks, index: int, reader: corpus.Reader) -> object:
        tokenized.append(index)
        if len(tokenized) == 7:
            raise Interrupted
        return documents(self, index, reader)

    monkeypatch.setattr(corpus, "_open", opening)
    monkeypatch.setattr(stages.Tasks, "_documents", stopping)
    with pytest.raises(Interrupted):
        build.main(cut)
    opened.clear()
    assert build.main(cut) == 0
    assert sorted(map(opened.count, set(opened))) == [2, 2]  # the scan and the tokenising
    assert len(tokenized) > 15
    assert tokenized == [*range(7), *range(6, len(tokenized) - 1)]
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole")


def test_text_that_is_compressed_anew_between_a_kill_and_the_next_start_is_the_same_text(
    corpus_dir: pathlib.Path,
    vocab_file: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_corpus(tmp_path / "corpus", 600)
    text = (tmp_path / "corpus" / "two.txt").read_bytes()
    (tmp_path / "text.gz").write_bytes(gzip.compress(text, 9))
    whole, cut = (
        [*build_arguments(corpus_dir, vocab_file, tmp_path / name), f"--input={tmp_path}/text.gz"]
        for name in ("whole", "cut")
    )
    assert build.main(whole) == 0
    # So small that a share of what lies on disk is more.
    monkeypatch.setattr("tfrecords.pipeline._LEAST_TASK_BYTES", 16)
    documents = stages.Tasks._documents

    def stopping(self: stages.Tasks, index: int, reader: corpus.Reader) -> object:
        if index == 7:
            raise Interrupted
        return documents(self, index, reader)

    with monkeypatch.context() as patched:
        patched.setattr(stages.Tasks, "_documents", stopping)
        with pytest.raises(Interrupted):
            build.main(cut)
    half = len(text) // 2
    # Two thirds of its size; tasks, which are cut between documents, would end elsewhere.
    anew = gzip.compress(text[:half], 0) + gzip.compress(text[half:], 9)
    (tmp_path / "text.gz").write_bytes(anew)
    assert build.main(cut) == 0
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole")


def chunks(sizes: dict[str, list[int]]) -> list[corpus.Chunk]:
    return [
        corpus.Chunk(
            file=corpus.TextFile(path=name, key=name), begin=0, end=size, line=1, first_ordinal=0
        )
        for name, of_file in sizes.items()
        for size in of_file
    ]


def test_groups_and_tasks_of_stage_1() -> None:
    found = chunks(
        {
            "a": [3, 3, 9, 2],
            "b.gz": [4],
            "c": [1],
            "d.gz": [10, 10, 1],
            "e.gz": [12, 3],
            "f": [1, 20, 1],
        }
    )
    groups = stages.group_chunks(found, 10)
    assert [[(chunk.file.key, chunk.end) for chunk in group] for group in groups] == [
        [("a", 3), ("a", 3), ("a", 9)],
        [("a", 2), ("b.gz", 4), ("c", 1)],
        [("d.gz", 10)], [("d.gz", 10)], [("d.gz", 1)],
        [("e.gz", 12)], [("e.gz", 3)],
        [("f", 1), ("f", 20)],
        [("f", 1)],
    ]  # fmt: skip
    assert list(itertools.chain(*groups)) == found
    plan = types.SimpleNamespace(chunks=groups)
    assert stages.documents_tasks(plan) == [(0,), (1,), (2, 3, 4), (5, 6), (7,), (8,)]
