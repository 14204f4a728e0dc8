"""Files of requests, what the command of predictions prints of them, and how it fails."""

import json
import pathlib
from typing import Any

import pytest

from official_bert import predict


def write_lines(path: pathlib.Path, lines: list[Any]) -> str:
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines)
    path.write_text(text)
    return str(path)


def read_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    """What a command prints, as JSON lines."""
    capsys.readouterr()
    assert predict.main(list(arguments)) == 0
    return read_lines(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command fails with."""
    capsys.readouterr()
    assert predict.main(list(arguments)) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and not said.out
    return errors[0]
