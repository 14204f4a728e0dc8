"""What `--input` stands for: files, folders, globs and links, each file once."""

import itertools
import os
import pathlib

import pytest
import tensorflow as tf

from tfrecords import UserError, corpus


def test_a_folder_stands_for_the_files_below_it(tmp_path: pathlib.Path) -> None:
    for name in ("b.txt", "deep/er/a.txt", "deep/c.txt", ".hidden", ".git/config", "void/.keep"):
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words\n")
    found = corpus.find(str(tmp_path / "text"))
    assert [file.key for file in found] == ["b.txt", "deep/c.txt", "deep/er/a.txt"]
    assert found == corpus.find(f"{tmp_path}/text/,{tmp_path}/text/b.txt")
    assert corpus.find(f"{tmp_path}/text/[a-z]*") == corpus.find(f"{tmp_path}/text/*") == found
    assert [file.key for file in corpus.find(f"{tmp_path}/text/.h*")] == [".hidden"]
    assert [file.key for file in corpus.find(f"{tmp_path}/text/*/*.txt")] == ["c.txt"]
    with pytest.raises(UserError, match="matches no file"):
        corpus.find(str(tmp_path / "text" / "void"))
    with pytest.raises(UserError, match=r"has \*\*, .* give the folder"):
        corpus.find(f"{tmp_path}/text/**/*.txt")


def test_a_file_that_links_lead_to_is_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text/2024").mkdir(parents=True)
    (tmp_path / "text/2024/a.txt").write_text("words\n")
    alone = corpus.find(str(tmp_path / "text"))
    (tmp_path / "text/0latest").symlink_to(tmp_path / "text/2024")
    (tmp_path / "text/2024/up").symlink_to(tmp_path / "text")
    (tmp_path / "text/2024/b.txt").symlink_to(tmp_path / "text/2024/a.txt")
    for pattern in ("text", "text/*", "text/2024,text/0latest", "text/2024/*.txt"):
        patterns = ",".join(str(tmp_path / part) for part in pattern.split(","))
        (file,) = corpus.find(patterns)
        assert os.path.realpath(file.path) == alone[0].path
    (file,) = corpus.find(str(tmp_path / "text/0latest"))
    assert file.key == "a.txt"


def test_what_is_written_is_no_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real/out").mkdir(parents=True)
    for name in ("a.txt", "vocab.txt", "out/manifest.json", "output.txt"):
        (tmp_path / "real" / name).write_text("words\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for read, written in itertools.product(("real", "link"), repeat=2):
        left_out = [f"{tmp_path}/{written}/{name}" for name in ("out/", "vocab.txt", "none")]
        found = corpus.find(str(tmp_path / read), left_out)
        assert [file.key for file in found] == ["a.txt", "output.txt"]
        with pytest.raises(UserError, match="matches only .*vocab.txt"):
            corpus.find(f"{tmp_path}/{read}/vocab.txt", left_out)


def test_a_name_that_is_no_text_is_told(tmp_path: pathlib.Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "w") as stream:
        stream.write("words\n")
    for pattern in (str(tmp_path), f"{tmp_path}/*.txt"):
        with pytest.raises(UserError, match="a name that is no UTF-8, .*caf.*; rename it"):
            corpus.find(pattern)


def test_keys_do_not_depend_on_the_file_system(tmp_path: pathlib.Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b.txt"):
        for root in (f"ram://keys{tmp_path}", str(tmp_path)):
            tf.io.gfile.makedirs(f"{root}/{name}".rpartition("/")[0])
            with tf.io.gfile.GFile(f"{root}/{name}", "w") as stream:
                stream.write("text")
    local = corpus.find(f"{tmp_path}/a,{tmp_path}/b.txt")
    remote = corpus.find(f"ram://keys{tmp_path}/a,ram://keys{tmp_path}/b.txt")
    assert [file.key for file in remote] == [file.key for file in local]
    assert [file.key for file in local] == ["a/1.txt", "a/2.txt", "b.txt"]
    with pytest.raises(UserError, match="files of 2 file systems"):
        corpus.find(f"{tmp_path}/a,ram://keys{tmp_path}/b.txt")


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
