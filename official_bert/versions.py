"""What the process that writes a page runs on."""

import os
import platform
from importlib import metadata

_PACKAGES = ("tf-lans", "tensorflow", "keras", "tf_keras", "tf-models-official", "numpy")
# The build for TPUs owns the same modules under another name.
_OTHER_NAMES = {"tensorflow": ("tensorflow-tpu",)}


def installed() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on, by name."""
    return {"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def in_a_line() -> str:
    """The versions, and the processors."""
    found = ", ".join(f"{name} {version}" for name, version in installed().items())
    return f"{found}, {os.cpu_count()} x {platform.machine()}"


def _version(name: str) -> str:
    for installed_as in (name, *_OTHER_NAMES.get(name, ())):
        try:
            return metadata.version(installed_as)
        except metadata.PackageNotFoundError:
            continue
    return "from a checkout"
