"""What the process that writes a page runs on."""

import os
import platform
from importlib import metadata

_PACKAGES = ("tf-lans", "tensorflow", "keras", "tf_keras", "tf-models-official", "numpy")


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on, by name."""
    return {"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def in_a_line() -> str:
    """The versions, and the processors."""
    found = ", ".join(f"{name} {version}" for name, version in installed().items())
    return f"{found}, {os.cpu_count()} x {platform.machine()}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "from a checkout"
