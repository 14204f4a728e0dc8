"""The docstring corpus: what is read, what is kept of it, and that it is always the same."""

import pathlib
import sys
import textwrap

import pytest

from official_bert import (
    docstring_corpus,
    docstring_sources,
    docstring_text,
    docstrings,
    squad,
)
from tfrecords.errors import UserError

NUMPY_STYLE = """
Clip the values in an array.

Values outside the interval are set to its edges, e.g. a value
of ``12`` becomes 10. See :func:`~shapely.minimum` and [1]_.

.. versionadded:: 1.7

Parameters
----------
a : array_like
    Array containing elements
    to clip.

    A second paragraph.
low, high : float or None, optional
axis : {0, 1}, default 0

Returns
-------
ndarray
    The clipped *copy*.

Examples
--------
>>> clip([1, 2])
array([1, 2])

Notes
-----
For example::

    code that is (not) prose

* the first
  item
* the second

=====  =====
a      b
=====  =====

.. math::

   x = y
"""

GOOGLE_STYLE = """
Sums things.

```python
total(1)
```

Args:
  first: The first
    number. It counts.
  second (`int`, *optional*): The other, see
    [the guide](https://example.org/guide).
    Example: not an entry.
  **kwargs: More.

Returns:
  The sum.

Raises:
  ValueError: If there is nothing.
"""


def _lines(text: str) -> list[docstring_text.Line]:
    return docstring_text.logical_lines(text.strip())


def test_numpy_style_is_joined_and_cleaned() -> None:
    assert [line.text for line in _lines(NUMPY_STYLE)] == [
        "Clip the values in an array.",
        "Values outside the interval are set to its edges, e.g. a value of 12 becomes 10. See "
        "shapely.minimum and.",
        "Parameters",
        "a : array_like",
        "Array containing elements to clip.",
        "A second paragraph.",
        "low, high : float or None, optional",
        "axis : {0, 1}, default 0",
        "Returns",
        "ndarray",
        "The clipped copy.",
        "Notes",
        "For example::",
        "the first item",
        "the second",
        "a b",
    ]


def test_numpy_style_entries() -> None:
    entries = [line for line in _lines(NUMPY_STYLE) if line.name or line.kind]
    assert [(line.section, line.name, line.kind) for line in entries] == [
        ("parameters", "a", "array_like"),
        ("parameters", "low, high", "float or None, optional"),
        ("parameters", "axis", "{0, 1}, default 0"),
        ("returns", "", "ndarray"),
    ]


def test_google_style_entries() -> None:
    lines = _lines(GOOGLE_STYLE)
    assert [(line.section, line.name, line.kind, line.text) for line in lines] == [
        ("", "", "", "Sums things."),
        ("parameters", "", "", "Args:"),
        ("parameters", "first", "", "first: The first number. It counts."),
        (
            "parameters",
            "second",
            "int, optional",
            "second (int, optional): The other, see the guide. Example: not an entry.",
        ),
        ("parameters", "kwargs", "", "**kwargs: More."),
        ("returns", "", "", "Returns:"),
        ("returns", "", "", "The sum."),
        ("raises", "", "", "Raises:"),
        ("raises", "ValueError", "", "ValueError: If there is nothing."),
    ]
    second = lines[3]
    assert second.text[second.body :].startswith("The other")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four.", ["One.", "Two!", "Three?", "Four."]),
        ("As in numpy.dot, e.g. A times B, i.e. Both.", None),
        ("By J. Smith et al. Nature, Fig. 3 and Eq. 4.", None),
        ("It is 0.5. (See below.)", ["It is 0.5.", "(See below.)"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str] | None) -> None:
    assert docstring_text.sentences(text) == ([text] if expected is None else expected)


def test_default_corpus_is_read_without_importing_a_package() -> None:
    before = set(sys.modules)
    names = [
        d.name
        for source in docstring_sources.sources("orbit")
        for d in docstring_sources.read(source)
    ]
    assert "orbit.controller.Controller.train" in names
    assert not {name for name in set(sys.modules) - before if name.startswith("orbit")}


@pytest.fixture
def package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A package `made_up` of four modules, one of them no Python, and a test."""
    folder = tmp_path / "site" / "made_up"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    prose = [
        "The quick brown fox jumps over the lazy dog. It does so every single morning at six.",
        "A compiler turns source text into machine code. Errors are reported with a line number.",
    ]
    module = textwrap.dedent('''
        """{0}"""
        class Thing:
            """{1}

            \t

            A second paragraph, with a blank line of spaces and a tab above.
            """
            if True:
                def method(self):
                    "Too short."
    ''')
    (folder / "__init__.py").write_text('"""Short."""\n')
    (folder / "a.py").write_text(module.format(*prose))
    shouted = prose[0].upper().replace("DOG.", "DOG!")
    (folder / "b.py").write_text(f'def copy():\n    """{shouted}"""\n')
    (folder / "c.py").write_text("this is {no} python\n")
    (folder / "d_test.py").write_text(f'"""{prose[0]} And a test is never read."""\n')
    return folder


def test_corpus_file(package: pathlib.Path, tmp_path: pathlib.Path) -> None:
    summary = docstring_corpus.write_corpus(tmp_path / "out", ["made_up", "no_such_package"])
    assert (tmp_path / "out" / "made_up.txt").read_text() == (
        "The quick brown fox jumps over the lazy dog.\n"
        "It does so every single morning at six.\n"
        "\n"
        "A compiler turns source text into machine code.\n"
        "Errors are reported with a line number.\n"
        "A second paragraph, with a blank line of spaces and a tab above.\n"
    )
    assert summary.docstrings == 5
    assert (summary.documents, summary.copies, summary.short) == (2, 1, 2)
    assert summary.sentences == 5
    assert summary.num_bytes == (tmp_path / "out" / "made_up.txt").stat().st_size
    assert "2 documents, 5 sentences" in str(summary)


def test_real_corpus_is_deterministic_and_whole(tmp_path: pathlib.Path) -> None:
    packages = [docstring_sources.PYTHON_TOPICS, "orbit", "joblib", "keras_hub"]
    first = docstring_corpus.write_corpus(tmp_path / "first", packages)
    second = docstring_corpus.write_corpus(tmp_path / "second", packages)
    assert [pathlib.Path(path).name for path in first.paths] == [
        f"{package}.txt" for package in packages
    ]
    documents = 0
    for one, other in zip(first.paths, second.paths, strict=True):
        content = pathlib.Path(one).read_bytes()
        assert content == pathlib.Path(other).read_bytes()
        blocks = content.decode().removesuffix("\n").split("\n\n")
        documents += len(blocks)
        for block in blocks:
            lines = block.split("\n")
            assert len(lines) >= 2
            assert all(line == " ".join(line.split()) and line for line in lines)
    assert documents == first.documents
    assert first.docstrings == first.documents + first.copies + first.short
    assert first.documents > 500


def test_copied_packages_are_written_once(tmp_path: pathlib.Path) -> None:
    once = docstring_corpus.write_corpus(tmp_path / "once", ["orbit"])
    twice = docstring_corpus.write_corpus(tmp_path / "twice", ["orbit", "orbit"])
    assert twice.documents == once.documents
    assert twice.copies == once.copies + once.documents


def test_no_package_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="none of the packages no_such_package is installed"):
        docstring_corpus.write_corpus(tmp_path / "out", ["no_such_package"])
    assert not (tmp_path / "out").exists()


def test_command_writes_what_the_others_read(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    arguments = [
        f"--output_dir={data}",
        "--packages=orbit,joblib",
        "--train_packages=joblib",
        "--dev_packages=orbit",
    ]
    assert docstrings.main([*arguments, "--max_dev_questions=0"]) == 2
    assert "max_dev_questions is 0; expected at least 1" in capsys.readouterr().err
    assert not data.exists()
    assert docstrings.main([*arguments, "--max_dev_questions=10"]) == 0
    said = capsys.readouterr().out
    assert "10 dev questions on orbit" in said and "documents" in said
    assert sorted(str(path.relative_to(data)) for path in data.rglob("*.*")) == [
        "questions/dev.json",
        "questions/train.json",
        "text/joblib.txt",
        "text/orbit.txt",
    ]
    assert squad.Squad.load(data / "questions" / "dev.json").num_questions == 10
