"""Files to documents: every format, whole, in blocks and in chunks; what is no text."""

import gzip
import json
import pathlib
import re
import sys
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrecords import UserError, corpus, document_formats, text_defects
from tfrecords.corpus import TextFormat

PLAIN = TextFormat()


BY_FILE = TextFormat(document_boundary=document_formats.FILE)


BY_TAG = TextFormat(document_boundary=document_formats.DOC_TAG)


JSON = TextFormat(text_field="text")


def text_file(path: pathlib.Path) -> corpus.TextFile:
    return corpus.TextFile(path=str(path), key=path.name)


def scanned(path: pathlib.Path, text_format: TextFormat = PLAIN, **options: bool) -> corpus.Scan:
    return corpus.scan(text_file(path), text_format, 1 << 20, **options)


def documents(
    path: pathlib.Path, text_format: TextFormat = PLAIN, chunk_bytes: int = 1
) -> list[list[str]]:
    scan = corpus.scan(text_file(path), text_format, chunk_bytes)
    with corpus.Reader(text_format) as reader:
        parts = [reader.documents(chunk) for chunk in scan.chunks]
    assert all(parts)
    ordinals = [chunk.first_ordinal for chunk in scan.chunks]
    assert ordinals == [sum(map(len, parts[:index])) for index in range(len(parts))]
    content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    assert [chunk.line for chunk in scan.chunks] == [
        content.count(b"\n", 0, chunk.begin) + 1 for chunk in scan.chunks
    ]
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
    assert documents(path, BY_FILE) == [[line for text in expected for line in text]]
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert documents(packed) == expected
    assert documents(packed, chunk_bytes=1 << 20) == expected


def test_form_feeds_and_other_white_space(tmp_path: pathlib.Path) -> None:
    # White space at the ends of a line, and a line of it is blank; it ends no line, and inside
    # one it is left to the tokenizer, as in the reference.
    path = tmp_path / "text.txt"
    path.write_text("one\n\fpage\u2028two\x0b\n\f\n\x85three\x1c\n\u3000\nfour\rfive", newline="")
    assert documents(path) == [["one", "page\u2028two"], ["three"], ["four\rfive"]]


WIKI_TEXT = """\ufeff
<doc id="1" url="https://en/wiki?curid=1" title="A > B">
A > B

First line.
<docx> is text, and so is <doc

</doc>
<doc id="2" url="" title="Nothing">

</doc>
  <doc>\r
Last.\r
</doc>\t
"""


def test_wiki_extractor_tags(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(WIKI_TEXT, newline="")
    expected = [["A > B", "First line.", "<docx> is text, and so is <doc"], ["Last."]]
    assert documents(path, BY_TAG) == expected
    assert documents(path, BY_TAG, chunk_bytes=1 << 20) == expected
    path.write_text("<doc>\nno line feed at the end\n</doc>")
    assert documents(path, BY_TAG) == [["no line feed at the end"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<doc id='1'>\na\n<doc>\nb\n</doc>\n", "line 3: <doc> inside the <doc> of line 1"),
        ("\n<doc>\na\n</doc>\n<doc>\nb\n", "line 5: <doc> without </doc> by the end of the file"),
        ("<doc>\na\n</doc>\n\n</doc>\n", "line 5: </doc> without <doc ...> before it"),
        ("<doc>\na\n</doc>\n\n  b\n", "line 5: text outside <doc ...> and </doc>, 'b'"),
        ("words\n", "line 1: text outside <doc ...> and </doc>, 'words'"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 18])
def test_damaged_tags_are_named(
    tmp_path: pathlib.Path, text: str, message: str, block_bytes: int
) -> None:
    path = tmp_path / "wiki_00"
    path.write_text(text)
    with mock.patch.object(corpus, "_BLOCK_BYTES", block_bytes):
        for read in (
            lambda: scanned(path, BY_TAG),
            lambda: list(corpus.lines(text_file(path), BY_TAG)),
        ):
            with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
                read()


def test_json_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "wiki_00.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "7", "text": "Title\\n\\nA \\"line\\".\\r\\n\\fAnother.\\n"}\r\n\r\n'
        b'{"text": " \\n"}\n{"text": "caf\\u00e9 caf\xc3\xa9 \xff \\ud83d\\ude00", "url": null}'
    )
    expected = [
        ["Title", 'A "line".', "Another."],
        ["caf\u00e9 caf\u00e9 \ufffd \U0001f600"],
    ]
    assert documents(path, JSON) == expected
    assert documents(path, JSON, chunk_bytes=1 << 20) == expected
    path.write_text(json.dumps({"body": "b", "text": "t"}) + "\n")
    assert documents(path, TextFormat(text_field="body")) == [["b"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plain text", "line 3 is no JSON (Expecting value): 'plain text'; --text_field=text"),
        ('{"text": "cut', 'line 3 is no JSON (Unterminated string starting at): \'{"text": "cut\''),
        ("[" * 100_000, "line 3 is no JSON ("),
        ('["text"]', "line 3 is no JSON object: '[\"text\"]'; --text_field=text expects"),
        ('{"title": 1, "body": 2}', "line 3 has 'title', 'body', but no 'text'; --text_field=text"),
        ("{}", "line 3 has no field, but no 'text'"),
        ('{"text": ["a"]}', "line 3 has '[\"a\"]' in 'text', which is no string; --text_field"),
    ],
)
def test_what_is_no_json_line_is_named(tmp_path: pathlib.Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")) as caught:
        scanned(path, JSON)
    assert len(str(caught.value)) < len(str(path)) + 250
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
        list(corpus.lines(text_file(path), JSON))


def test_json_lines_have_no_other_boundary() -> None:
    for boundary in (document_formats.FILE, document_formats.DOC_TAG):
        with pytest.raises(UserError, match=f"--text_field text .* {boundary} exclude each other"):
            TextFormat(text_field="text", document_boundary=boundary)


def test_paragraphs_are_split(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Mr. Smith went. He ran!\nAnd\fagain.\n\nOne more.\n")
    assert documents(path, TextFormat(split_sentences=True)) == [
        ["Mr. Smith went.", "He ran!", "And again."],
        ["One more."],
    ]


def test_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text"
    path.write_text(WIKI_TEXT, newline="")
    expected = ["A > B", "First line.", "<docx> is text, and so is <doc", "Last."]
    assert [line for line, _ in corpus.lines(text_file(path), BY_TAG)] == expected
    found = list(corpus.lines(text_file(path)))
    assert [line for line, _ in found if "doc" not in line] == [expected[0], expected[1], "Last."]
    assert sum(num_bytes for _, num_bytes in found) == path.stat().st_size
    path.write_text('{"text": "a\\nb"}\n{"text": "c"}')
    assert list(corpus.lines(text_file(path), JSON)) == [("a", 30), ("b", 0), ("c", 0)]


DAMAGED = (
    b"\xef\xbb\xbffine\ncaf\xe9 \xe2\x82\nan \xef\xbf\xbd is text\n\n\x00\x00 \xe2\x82\x28\x00\n"
)


@pytest.mark.parametrize("block_bytes", [1, 1 << 18])
def test_what_is_no_text_is_counted(tmp_path: pathlib.Path, block_bytes: int) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(DAMAGED)
    with mock.patch.object(corpus, "_BLOCK_BYTES", block_bytes):
        replaced = scanned(path).replaced
        assert (replaced.nuls, replaced.invalid) == (3, 3)
        assert str(replaced) == (
            f"3 NUL characters and 3 invalid UTF-8 sequences were replaced, first in {path} line 2"
        )
        assert documents(path) == [
            ["fine", "caf\ufffd \ufffd", "an \ufffd is text"],
            ["\ufffd\ufffd \ufffd(\ufffd"],
        ]
        with pytest.raises(
            UserError, match=re.escape(f"{path} line 2 has invalid UTF-8 (byte 11 of the file)")
        ):
            scanned(path, strict=True)
        path.write_bytes(b"fine\n\nso\n\x00\xff")
        with pytest.raises(
            UserError, match=re.escape(f"{path} line 4 has a NUL character (byte 9 of the file)")
        ):
            scanned(path, strict=True)
        path.write_bytes("caf\u00e9 \ufffd\n".encode())
        assert not scanned(path, strict=True).replaced


def test_what_escapes_hide_is_counted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(
        b'{"text": "fine"}\n{"text": "a\\u0000b \\ud800 \\udc00\\ud83d\\ude00"}\n'
        b'{"text": "\xff\x00"}'
    )
    replaced = scanned(path, JSON).replaced
    assert (replaced.nuls, replaced.invalid) == (2, 3)
    assert replaced.first == f"{path} line 2"
    assert documents(path, JSON) == [
        ["fine"], ["a\ufffdb \ufffd \ufffd\U0001f600"], ["\ufffd\ufffd"]
    ]  # fmt: skip
    path.write_bytes(b'{"text": "fine"}\n{"text": "\\ud800"}\n')
    with pytest.raises(UserError, match=r"line 2 has half an escaped surrogate pair \(byte 17"):
        scanned(path, JSON, strict=True)


def test_counts_of_files_are_added(tmp_path: pathlib.Path) -> None:
    for name, content in (("a", b"fine"), ("b", b"\xff\n"), ("c", b"\n\x00\n")):
        (tmp_path / name).write_bytes(content)
    replaced = corpus.replaced_in(scanned(tmp_path / name) for name in "abc")
    assert replaced == text_defects.Replaced(nuls=1, invalid=1, first=f"{tmp_path}/b line 1")
    assert not corpus.replaced_in([scanned(tmp_path / "a")])


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from([b"\x00", b"a", b"\n", b"\xc3", b"\xa9", b"\xef\xbf\xbd", b"\xf0\x9f"])
    )
)
def test_counts_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    content = b"".join(pieces)
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_bytes(content)
    with mock.patch.object(corpus, "_BLOCK_BYTES", 3):
        replaced = scanned(path).replaced
    text = content.decode("utf-8", errors="replace")
    assert replaced.nuls == content.count(0)
    assert replaced.invalid == text.count("\ufffd") - content.count(b"\xef\xbf\xbd")


def test_a_damaged_archive_is_named(tmp_path: pathlib.Path) -> None:
    whole = gzip.compress(b"".join(b"%d words\n" % (number**5) for number in range(2000)))
    for name, content in (
        ("cut", whole[:-50]),
        ("none", b"plain text"),
        ("damaged", whole[:500] + bytes(100) + whole[600:]),
    ):
        path = tmp_path / f"{name}.txt.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"cannot read {path} .*; mend it"):
            scanned(path)
        with pytest.raises(UserError, match=f"cannot read {path} .*; mend it"):
            list(corpus.lines(text_file(path)))


def test_white_space_is_that_of_unicode(tmp_path: pathlib.Path) -> None:
    # The scanner has its own table of it, in UTF-8.
    path = tmp_path / "text.txt"
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    others = [chr(code) for code in range(0x250) if not chr(code).isspace()]
    others += ["\u180e", "\u200b", "\u2027", "\u202a", "\u2060", "\u3001", "\ufeff", "\u1681"]
    for middle, count in [(char, 2) for char in spaces] + [(char, 1) for char in others]:
        path.write_text(f"a\n{middle}\nb\n", newline="")
        assert scanned(path).num_documents == count, hex(ord(middle))


# Lines from which each format is made, with what is blank, special or broken in it.
LINES = st.lists(
    st.sampled_from(
        [b"a b", b" x ", b"", b" ", b"\r", b"\xc2\xa0", b"\x1c", b"\xff", b"\x00", b"<doc"]
    )
)


def written(texts: list[list[bytes]], text_format: TextFormat) -> bytes:
    """Documents in a format, by its definition."""
    if text_format.text_field:
        records = [b"\n".join(lines).decode("utf-8", errors="replace") for lines in texts]
        return "\n".join(json.dumps({"text": record}) for record in records).encode()
    if text_format.document_boundary == document_formats.DOC_TAG:
        return b"\n".join(b"\n".join([b"<doc id=1>", *lines, b"</doc>"]) for lines in texts)
    return b"\n\n".join(b"\n".join(lines) for lines in texts)


def expected_documents(texts: list[list[bytes]], text_format: TextFormat) -> list[list[str]]:
    """What was written, by the definition of a line and of a blank one."""
    lines = [
        [line.decode("utf-8", errors="replace").replace("\0", "\ufffd").strip() for line in text]
        for text in texts
    ]
    if text_format == BY_FILE:
        lines = [[line for text in lines for line in text]]
    elif text_format == PLAIN:
        flat = [line for text in lines for line in [*text, ""]]
        lines = [[]]
        for line in flat:
            lines += [[]] if not line else []
            lines[-1] += [line] if line else []
    found = [[line for line in text if line] for text in lines]
    return [text for text in found if text]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("text_format", [PLAIN, BY_FILE, BY_TAG, JSON], ids=str)
@settings(max_examples=60)
@given(st.lists(LINES, max_size=6), st.integers(1, 60), st.integers(1, 60))
def test_documents_do_not_depend_on_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    text_format: TextFormat,
    compressed: bool,
    texts: list[list[bytes]],
    chunk_bytes: int,
    block_bytes: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / ("chunks.txt.gz" if compressed else "chunks.txt")
    content = written(texts, text_format)
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    with mock.patch.object(corpus, "_BLOCK_BYTES", block_bytes):
        found = documents(path, text_format, chunk_bytes)
        lines = [line for line, _ in corpus.lines(text_file(path), text_format)]
    assert found == expected_documents(texts, text_format)
    assert lines == [line for document in found for line in document]


def test_a_compressed_file_is_decompressed_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"".join(b"document %d\n\n" % number for number in range(2000))))
    scan = corpus.scan(text_file(path), PLAIN, 100)
    assert len(scan.chunks) > 100
    decompressed = 0
    read = gzip._GzipReader.read

    def counting(self: object, size: int = -1) -> bytes:
        nonlocal decompressed
        content = read(self, size)
        decompressed += len(content)
        return content

    monkeypatch.setattr(gzip._GzipReader, "read", counting)
    with corpus.Reader(PLAIN) as reader:
        # The first half is there already, as when a build is resumed.
        for chunk in scan.chunks[len(scan.chunks) // 2 :]:
            assert reader.documents(chunk)[0] == [f"document {chunk.first_ordinal}"]
    assert decompressed == scan.num_bytes


@pytest.mark.parametrize("compressed", [False, True])
def test_text_that_shrinks_while_it_is_read_is_told(
    tmp_path: pathlib.Path, compressed: bool
) -> None:
    """Half a chunk would be other documents than those that were counted."""
    path = tmp_path / ("text.gz" if compressed else "text")
    content = b"one\n\ntwo\n\nthree\n"

    def write(text: bytes) -> None:
        path.write_bytes(gzip.compress(text) if compressed else text)

    write(content)
    chunks = corpus.scan(text_file(path), PLAIN, 1).chunks
    assert len(chunks) == 3
    write(content[:-1])
    with corpus.Reader(PLAIN) as reader:
        assert [reader.documents(chunk) for chunk in chunks[:2]] == [[["one"]], [["two"]]]
        with pytest.raises(UserError, match=f"{path} is shorter than it was when it was scanned"):
            reader.documents(chunks[2])
