"""Where a measurement was made, for its report."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tfrecords.errors import UserError


def processor() -> str:
    """The processor's name and its number of cores."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def interpreter(python: str, option: str) -> str:
    """The absolute path of a Python that a flag named; contenders run in another folder.

    Raises:
        UserError: there is no such program.
    """
    found = shutil.which(python)
    if found is None:
        raise UserError(
            f"{option} is {python!r}, which cannot be run; expected an environment's Python, such "
            "as .venv/bin/python"
        )
    return os.path.abspath(found)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's version and that of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this package's code, "-dirty" after it where code differs; "" without git."""
    git = ["git", "-C", str(pathlib.Path(__file__).resolve().parents[1])]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "-dirty" * bool(changed.returncode)


def available_bytes() -> int:
    """Memory that new processes may take."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith("MemAvailable"))


def heading(module: str) -> dict[str, str]:
    """The date, the commit and the command of this run of a benchmark module.

    To be taken before anything is measured: the code that runs is that of this moment.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }
