"""What containers and schedulers allow a process of its machine."""

import os
import pathlib

import pytest

from tfrecords import limits

PRESENT = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GIB = 1 << 30
MEMINFO = {"proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\nMemFree: 1 kB\n"}
UNLIMITED_V1 = "9223372036854771712"


def machine(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def version_1(group: str, folder: str, quota: int) -> dict[str, str]:
    """The files of a group whose own are mounted at a folder; 100,000 us are a core."""
    return {
        "proc/self/cgroup": f"7:cpu,cpuacct:{group}\n1:name=systemd:{group}\n",
        f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, PRESENT, id="no such system"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1,
            id="a container's half a core",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, PRESENT,
            id="no quota",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/slurm/job/step\n",
                "sys/fs/cgroup/slurm/job/step/cpu.max": "max 100000\n",
                "sys/fs/cgroup/slurm/job/cpu.max": "100000 100000\n",
            },
            1,
            id="the quota of a group around it",
        ),
        pytest.param(version_1("/docker/1", "cpu/docker/1", 100_000), 1, id="version 1"),
        pytest.param(version_1("/docker/1", "cpu,cpuacct", 100_000), 1, id="without a link"),
        pytest.param(version_1("/", "cpu", -1), PRESENT, id="version 1, no quota"),
        pytest.param(
            {"proc/self/cgroup": "7:memory:/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
            PRESENT,
            id="a controller of another kind",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000000 100000\n"},
            PRESENT,
            id="more than there are",
        ),
    ],
)  # fmt: skip
def test_cores(tmp_path, files: dict[str, str], expected: int) -> None:
    assert limits.cores(machine(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(250_000, 3), (300_000, 3), (900_000, 4)])
def test_a_part_of_a_core_counts_as_one(tmp_path, monkeypatch, quota: int, expected: int) -> None:
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda process: set(range(4)), False)
    content = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"}
    assert limits.cores(machine(tmp_path, content)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs the system's affinities")
def test_cores_are_those_of_the_affinity(tmp_path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert limits.cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no such system"),
        pytest.param(MEMINFO, 8 * GIB, id="no groups"),
        pytest.param(
            MEMINFO
            | {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
            | {"sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n"},
            2 * GIB,
            id="the limit of a group around it",
        ),
        pytest.param(
            MEMINFO
            | {"proc/self/cgroup": "8:memory:/\n"}
            | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{UNLIMITED_V1}\n"},
            8 * GIB,
            id="version 1, no limit",
        ),
        pytest.param(
            MEMINFO
            | {"proc/self/cgroup": "8:memory:/d/1\n"}
            | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n"},
            3 * GIB,
            id="version 1, a container's own path is not in its file system",
        ),
    ],
)
def test_memory(tmp_path, files: dict[str, str], expected: int | None) -> None:
    assert limits.memory_bytes(machine(tmp_path, files)) == expected
