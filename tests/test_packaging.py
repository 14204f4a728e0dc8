"""What pyproject.toml promises is there, also once it is built and installed."""

import email.message
import email.parser
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

from benchmarks import wheel as wheels
from benchmarks.wheel import PACKAGES

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM = f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}"


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


def files_below(folder: pathlib.Path, *parts: str) -> set[str]:
    """Paths of all files in the named parts of a folder, relative to it."""
    tops = [folder / part for part in parts] if parts else [folder]
    return {
        str(path.relative_to(folder)) for top in tops for path in top.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tree")
    wheels.copy_sources(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tree: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The unpacked source distribution; building it leaves its .egg-info in the tree too."""
    return wheels.source_distribution(tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sources: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return wheels.wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The Python of a new environment that holds the wheel, and sees this one's dependencies.

    A folder named in a .pth file is no site folder: its own .pth files, such as that of an
    editable installation of this tree, are not read.
    """
    environment = tmp_path_factory.mktemp("environment")
    wheels.run(sys.executable, "-m", "venv", "--without-pip", environment)
    found = environment / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-compile"]
    wheels.run(sys.executable, "-m", "pip", "--python", found, "install", *options, wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    paths = sysconfig.get_paths()
    folders = sorted({paths["purelib"], paths["platlib"]})
    (site / "dependencies.pth").write_text("\n".join(folders) + "\n")
    return found


def output_of(*command: object, cwd: pathlib.Path) -> str:
    """What a command prints; a test fails with its errors."""
    completed = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_the_source_distribution_is_the_tree(tree: pathlib.Path, sources: pathlib.Path) -> None:
    expected, found = files_below(tree), files_below(sources)
    assert expected - found == set()
    assert found - expected == {"PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_the_packages_and_nothing_else(
    tree: pathlib.Path, wheel: pathlib.Path
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert wheel.name == f"{STEM}-py3-none-any.whl"
    assert names - information == files_below(tree, *PACKAGES)
    assert f"{STEM}.dist-info/licenses/LICENSE" in information
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def metadata_of(wheel: pathlib.Path) -> email.message.Message:
    content = zipfile.ZipFile(wheel).read(f"{STEM}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(content)


def test_the_wheel_says_what_it_is(wheel: pathlib.Path, sources: pathlib.Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    unconditional = [each for each in metadata.get_all("Requires-Dist") if ";" not in each]
    assert sorted(unconditional) == sorted(PROJECT["dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert (sources / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_version_is_stated_once() -> None:
    stated = re.compile(rf"""__version__|['"]{re.escape(PROJECT["version"])}['"]""")
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert not [path for path in [*paths, ROOT / "setup.py"] if stated.search(path.read_text())]


# One process for all scripts, since TensorFlow and Model Garden take seconds to import. It runs
# the files that pip wrote.
HELP = """
import contextlib, importlib.metadata, io, json, pathlib, runpy, sys
found = {"version": importlib.metadata.version("tf-lans"), "homes": {}, "help": {}}
for name in sys.argv[1].split(","):
    found["homes"][name] = __import__(name).__file__
for name in sys.argv[2].split(","):
    path = str(pathlib.Path(sys.executable).parent / name)
    sys.argv = [path, "--help"]
    output, code = io.StringIO(), None
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code
    found["help"][name] = [code, "--" in output.getvalue()]
print(json.dumps(found))
"""


def test_the_installed_wheel_is_what_runs(python: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`-I`: neither the folder nor the variables of this process are looked at."""
    arguments = ",".join(PACKAGES), ",".join(PROJECT["scripts"])
    output = output_of(python, "-I", "-c", HELP, *arguments, cwd=tmp_path)
    found = json.loads(output.splitlines()[-1])
    assert found["version"] == PROJECT["version"]
    for package, home in found["homes"].items():
        folder = pathlib.Path(home).parent
        assert folder.is_relative_to(python.parents[1]), "the wheel's, not the checkout's"
        assert (folder / "py.typed").is_file(), package
    assert found["help"] == {name: [0, True] for name in PROJECT["scripts"]}


def test_the_schedule_of_the_installed_wheel_is_drawn(
    python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = [python, "-I", "-m", "tf_lans.schedules", "--plot", "schedule.png"]
    assert "0.007" in output_of(*command, cwd=tmp_path)
    assert (tmp_path / "schedule.png").stat().st_size > 5_000
