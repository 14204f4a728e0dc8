"""The results in the tree as one document.

    python -m benchmarks.page
    python -m benchmarks.page --check

Writes docs/benchmarks.md whole, a section for each file in benchmarks/results: where, when and
how it was measured, its ratios, its charts. What was not measured has no section. `--check`
writes nothing, and ends with 2 if the document is not what would be written.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from benchmarks import page_sections, whole_files
from tfrecords import command
from tfrecords.errors import UserError

_HERE = pathlib.Path(__file__).parent
RESULTS = _HERE / "results"
DOCUMENT = _HERE.parent / "docs" / "benchmarks.md"

FLAGS = flags.FlagValues()
flags.DEFINE_string("results", str(RESULTS), "Folder of the JSON files.", flag_values=FLAGS)
flags.DEFINE_string("output", str(DOCUMENT), "The document to write.", flag_values=FLAGS)
flags.DEFINE_bool("check", False, "Only say whether it is up to date.", flag_values=FLAGS)

_HEAD = """# Benchmarks

This page is written by `python -m benchmarks.page` from the files in
[benchmarks/results]({results}); what is changed here by hand is lost. `make benchmarks` measures
again, on a machine that should have nothing else to do, and writes it anew.

Compare ratios, not times: the contenders of a table took turns in one run on one machine, the one
that the section names. Ours are the rows with `tf_lans`, `tf-lans` and `tfrecords`. Targets that
were missed stay in the tables. [How each benchmark works]({read_me}) is a document of its own."""


def page(results: pathlib.Path, document: pathlib.Path) -> str:
    """What the document should hold.

    Args:
        results: the folder of the results.
        document: where it lies, for its links.

    Raises:
        UserError: there are no results, or a file is none.
    """
    paths = [
        path
        for path in results.glob("*.json*")
        if path.suffix in (".json", page_sections.LINES)
        and path.name not in page_sections.ELSEWHERE
    ]
    if not paths:
        raise UserError(f"{results} holds no results; `make benchmarks` makes some")
    ordered = sorted(paths, key=lambda path: (page_sections.section_of(path)[0], path.name))
    folder = os.path.abspath(document.parent)
    read_me = os.path.relpath(_HERE / "README.md", folder)
    head = _HEAD.format(results=os.path.relpath(results, folder), read_me=read_me)
    return (
        "\n\n".join([head, *(page_sections.written(path, folder, read_me) for path in ordered)])
        + "\n"
    )


def body(flag_values: flags.FlagValues) -> None:
    """Writes the document, or compares it."""
    document = pathlib.Path(flag_values.output)
    text = page(pathlib.Path(flag_values.results), document)
    if flag_values.check:
        if not document.exists() or document.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{document} is not what the results say; write it by python -m benchmarks.page"
            )
        print(f"{document} is what the results say")
        return
    whole_files.write_text(document, text)
    print(f"wrote {document}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
