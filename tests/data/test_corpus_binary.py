"""Files in the place of text that are none: one line that says what they are."""

import bz2
import gzip
import lzma
import pathlib
import tarfile

import pytest

from tests.data.test_corpus import PLAIN, text_file
from tfrecords import corpus
from tfrecords.errors import UserError


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("Zstandard", lambda text: b"\x28\xb5\x2f\xfd" + text),
        ("gzip", gzip.compress),
        ("LZ4", lambda text: b"\x04\x22\x4d\x18" + text),
        ("compress", lambda text: b"\x1f\x9d\x90" + text),
        ("7-Zip", lambda text: b"7z\xbc\xaf\x27\x1c" + text),
    ],
)
def test_other_compressions_are_named(name, compress, tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(compress(b"One sentence.\n\nAnother one.\n"))
    (file,) = corpus.find(str(path))
    for read in (lambda: corpus.scan(file, corpus.TextFormat(), 1), lambda: [*corpus.lines(file)]):
        with pytest.raises(UserError, match=f"text.txt is compressed with {name}; expected text"):
            read()
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("one.txt"))
    with pytest.raises(UserError, match="text.txt is an archive of tar; expected text"):
        corpus.scan(file, corpus.TextFormat(), 1)
    path.write_text("BZh is how bzip2 begins.\n")
    assert corpus.scan(file, corpus.TextFormat(), 1).num_documents == 1


@pytest.mark.parametrize(
    ("beginning", "kind", "remedy"),
    [
        (b"PAR1\x15\x04", "a Parquet file", "JSON lines, and give --text_field"),
        (b"ARROW1\0\0\xff\xff\xff\xff", "an Arrow file", "JSON lines, and give --text_field"),
        (b"\xff\xff\xff\xff\x10\x02\0\0", "an Arrow file", "JSON lines, and give --text_field"),
        (b"%PDF-1.7\n", "a PDF file", "with pdftotext"),
    ],
)
def test_files_that_are_no_text_are_named(
    tmp_path: pathlib.Path, beginning: bytes, kind: str, remedy: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(beginning + b"\nmore\n")
    with pytest.raises(UserError, match=f"text.txt is {kind}; expected text: .*{remedy}"):
        corpus.scan(text_file(path), PLAIN, 1)


@pytest.mark.parametrize("text", ["PAR1 is a name.", "%PDF-files are what this is about."])
def test_text_that_begins_as_other_files_do_is_read(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(f"{text}\n")
    with corpus.Reader(PLAIN) as reader:
        (chunk,) = corpus.scan(text_file(path), PLAIN, 1).chunks
        assert reader.documents(chunk) == [[text]]
