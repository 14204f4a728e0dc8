"""Files to documents, whole and in chunks."""

import gzip
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import UserError, corpus


def documents(path: pathlib.Path, boundary: str = corpus.BLANK_LINE, chunk_bytes: int = 1) -> list:
    scan = corpus.scan(corpus.TextFile(path=str(path), key=path.name), boundary, chunk_bytes)
    parts = [corpus.documents(chunk) for chunk in scan.chunks]
    ordinals = [chunk.first_ordinal for chunk in scan.chunks]
    assert ordinals == [sum(map(len, parts[:index])) for index in range(len(parts))]
    found = [document for part in parts for document in part]
    assert len(found) == scan.num_documents
    return found


def test_literal(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(
        b"\xef\xbb\xbf\r\n first line\r\nsecond  \r\n\r\n \t\r\n\xc2\xa0\n"
        b"caf\xc3\xa9\n\xff broken\n\n\n"
    )
    expected = [["first line", "second"], ["caf\u00e9", "\ufffd broken"]]
    assert documents(path) == expected
    assert documents(path, chunk_bytes=1 << 20) == expected
    assert documents(path, corpus.FILE) == [[line for text in expected for line in text]]
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert documents(packed) == expected


def test_a_folder_stands_for_the_files_below_it(tmp_path: pathlib.Path) -> None:
    for name in ("b.txt", "deep/er/a.txt", "deep/c.txt", ".hidden", ".git/config", "void/.keep"):
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words\n")
    found = corpus.find(str(tmp_path / "text"))
    assert [file.key for file in found] == ["b.txt", "deep/c.txt", "deep/er/a.txt"]
    assert found == corpus.find(f"{tmp_path}/text/,{tmp_path}/text/b.txt")
    assert [file.key for file in corpus.find(f"{tmp_path}/text/[a-z]*")] == ["b.txt"]
    with pytest.raises(UserError, match="matches no file"):
        corpus.find(str(tmp_path / "text" / "void"))


def test_a_damaged_archive_is_named(tmp_path: pathlib.Path) -> None:
    whole = gzip.compress(b"".join(b"%d words\n" % (number**5) for number in range(2000)))
    for name, content in (
        ("cut", whole[:-50]),
        ("none", b"plain text"),
        ("damaged", whole[:500] + bytes(100) + whole[600:]),
    ):
        path = tmp_path / f"{name}.txt.gz"
        path.write_bytes(content)
        file = corpus.TextFile(path=str(path), key=path.name)
        with pytest.raises(UserError, match=f"cannot read {path} .*; mend it"):
            corpus.scan(file, corpus.BLANK_LINE, 100)
        with pytest.raises(UserError, match=f"cannot read {path} .*; mend it"):
            list(corpus.lines(file))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"a b", b" x ", b"", b" ", b"\r", b"\xc2\xa0", b"\x1c", b"\xff"])),
    st.integers(1, 30),
)
def test_chunks_cut_between_documents(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks.txt"
    path.write_bytes(b"\n".join(lines))
    expected: list[list[str]] = [[]]
    for line in lines:
        text = line.decode("utf-8", errors="replace").strip()
        if text:
            expected[-1].append(text)
        else:
            expected.append([])
    assert documents(path, chunk_bytes=chunk_bytes) == [text for text in expected if text]


def test_find(tmp_path: pathlib.Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = corpus.find(f"{tmp_path}/b.txt, {tmp_path}/a/*.txt,{tmp_path}/a/1.txt")
    assert [file.key for file in found] == ["a/1.txt", "a/2.txt", "b.txt"]
    assert [file.key for file in corpus.find(f"{tmp_path}/b.txt")] == ["b.txt"]
    for pattern, message in (
        (f"{tmp_path}/b.txt,{tmp_path}/c*.txt", r"c\*.txt' matches no file"),
        (f"{tmp_path}/nowhere", "matches no file"),
        (" , ", "--input is empty"),
    ):
        with pytest.raises(UserError, match=message):
            corpus.find(pattern)
