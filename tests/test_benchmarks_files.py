"""What benchmarks write appears whole or not at all."""

import json
import pathlib

import pytest

from benchmarks import markdown_part, whole_files
from tfrecords.errors import UserError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "figures.json"
    whole_files.write_json(path, {"a": 1})

    def fails() -> None:
        with whole_files.whole(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    pytest.raises(KeyboardInterrupt, fails)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffix_by_which_formats_are_told() -> None:
    with pytest.raises(FileNotFoundError), whole_files.whole("no/chart.png") as partial:
        assert partial.suffix == ".png" and partial.parent == pathlib.Path("no")


@pytest.mark.parametrize("content", [None, b"no marks", b"\xff"])
def test_a_document_that_cannot_take_a_part_is_named(tmp_path, content) -> None:
    document = tmp_path / "document.md"
    if content is not None:
        document.write_bytes(content)
    with pytest.raises(UserError, match=f"{document} cannot take the table"):
        markdown_part.check(str(document), "a.module")


def test_a_part_is_written_in_its_place(tmp_path) -> None:
    begin, end = markdown_part.marks("a.module")
    document = tmp_path / "document.md"
    document.write_text(f"é\n{begin}\nold\n{end}\nb\n", encoding="utf-8")
    markdown_part.check(str(document), "a.module")
    markdown_part.write(document, "a.module", "new")
    assert document.read_text(encoding="utf-8") == f"é\n{begin}\n\nnew\n{end}\nb\n"
