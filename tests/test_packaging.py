"""What pyproject.toml promises is there."""

import importlib
import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"].items()), ids=lambda pair: pair[0])
def test_console_scripts_explain_themselves(
    script: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = script[1].split(":")
    assert getattr(importlib.import_module(module), function)(["--help"]) == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("constraints", "extras"),
    [("constraints.txt", ("data", "bert", "dev")), ("constraints-beam.txt", ("data", "beam"))],
)
def test_every_requirement_is_pinned(constraints: str, extras: tuple[str, ...]) -> None:
    lines = (ROOT / constraints).read_text().splitlines()
    pins = {re.split("==", line)[0].lower().replace("_", "-") for line in lines if "==" in line}
    requirements = PROJECT["dependencies"] + [
        requirement for extra in extras for requirement in PROJECT["optional-dependencies"][extra]
    ]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in requirements}
    missing = {name.replace("_", "-") for name in names} - pins - {"tf-lans"}
    assert not missing
