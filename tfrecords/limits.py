"""How much of its machine a process may use: containers and schedulers often allow a part of it."""

import math
import os
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path("/")
_KIB = 1 << 10


def cores(root: pathlib.Path = ROOT) -> int:
    """Processors that this process may use at once, at least one.

    The fewest of its affinity and of the quotas of its control groups, a part of one counted as
    one.

    Args:
        root: the folder that holds `proc` and `sys`.

    Example:
        >>> cores() >= 1
        True
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # which macOS has not
    present = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quotas = (math.ceil(quota) for quota in _cpu_quotas(root))
    return max(1, min([present, *quotas]))


def memory_bytes(root: pathlib.Path = ROOT) -> int | None:
    """Main memory that this process may fill; None where the system does not tell.

    The least of the machine's and of the limits of the process's control groups.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    return min([*_total_memory(root), *_memory_limits(root)], default=None)


def text(path: pathlib.Path) -> str:
    """The content of a system file; "" where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _total_memory(root: pathlib.Path) -> Iterator[int]:
    for line in text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * _KIB


def _cpu_quotas(root: pathlib.Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        cells = text(group / "cpu.max").split() or [
            *text(group / "cpu.cfs_quota_us").split(),
            *text(group / "cpu.cfs_period_us").split(),
        ]
        # "max" in version 2 of control groups, -1 in version 1, where there is no quota
        if len(cells) == 2 and cells[0].isdigit():
            yield int(cells[0]) / int(cells[1])


def _memory_limits(root: pathlib.Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = text(group / name).strip()
            if limit.isdigit():
                yield int(limit)


def _groups(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """The folders of a process's control group and of those that it is in, of both versions."""
    mounted = root / "sys/fs/cgroup"
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            # Version 1 has a folder for several controllers, and often a link to it for each.
            for name in {controller, controllers} if controllers else {""}:
                folder = mounted / name / path.lstrip("/")
                # A container sees its own group as the topmost, whatever path the line has.
                above = (folder, *folder.parents)
                yield from (each for each in above if mounted in (each, *each.parents))
