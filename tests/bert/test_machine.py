"""What a machine has: processors, memory, GPUs and TPUs, and those that TensorFlow misses."""

import pathlib
import stat

import pytest

from official_bert.machine import Machine, count_tpus, device_problems, probe, visible_gpus

NO_DEVICES = {"GPU": 0, "TPU": 0, "CPU": 1}


def write(root: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def command(path: pathlib.Path, text: str, code: int = 0) -> str:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_machine_is_read_from_its_files(tmp_path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       24617120 kB\nMemFree: 1 kB\n",
            "proc/cpuinfo": "processor : 0\nflags : fpu avx512_bf16 amx_bf16_not avx2\nflags : fpu",
            "dev/nvidia0": "",
            "dev/nvidia1": "",
            "dev/nvidiactl": "",
        },
    )
    machine = probe(tmp_path, nvidia_smi=str(tmp_path / "absent"))
    assert machine.memory_bytes == 24617120 * 1024
    assert machine.bfloat16 == ("avx512_bf16",)
    assert len(machine.gpus) == 2 and machine.gpu_bytes is None
    bare = probe(tmp_path / "nothing", nvidia_smi=str(tmp_path / "absent"))
    assert (bare.gpus, bare.tpus, bare.memory_bytes, bare.bfloat16) == ((), 0, None, ())


def test_nvidia_smi_is_asked_first(tmp_path) -> None:
    write(tmp_path, {"dev/nvidia0": ""})
    answers = command(tmp_path / "smi", "NVIDIA H200, 143771\nNVIDIA A100, PCIe, 81920")
    machine = probe(tmp_path, nvidia_smi=answers)
    assert machine.gpus == ("NVIDIA H200", "NVIDIA A100, PCIe")
    assert machine.gpu_bytes == 81920 * 2**20
    unknown = probe(tmp_path, nvidia_smi=command(tmp_path / "smi", "NVIDIA GB10, [N/A]"))
    assert unknown.gpus == ("NVIDIA GB10",) and unknown.gpu_bytes is None
    failing = command(tmp_path / "smi", "No devices were found", code=6)
    assert probe(tmp_path, nvidia_smi=failing).gpus == ("GPU",)


def test_tpus_are_told_from_googles_disks_and_network_cards(tmp_path) -> None:
    group = "sys/kernel/iommu_groups/{}/devices/0000:00:0{}.0/{}"
    kinds = {0: "0x088000", 1: "0x020000", 2: "0x010802"}
    for number, kind in kinds.items():
        write(
            tmp_path,
            {
                f"dev/vfio/{number}": "",
                group.format(number, number, "vendor"): "0x1ae0\n",
                group.format(number, number, "class"): f"{kind}\n",
            },
        )
    write(
        tmp_path,
        {
            "dev/vfio/vfio": "",
            "dev/vfio/7": "",
            group.format(7, 7, "vendor"): "0x10de\n",
            group.format(7, 7, "class"): "0x030000\n",
        },
    )
    assert count_tpus(tmp_path) == 1
    write(tmp_path, {f"dev/accel{number}": "" for number in range(4)})
    assert probe(tmp_path, nvidia_smi=str(tmp_path / "absent")).tpus == 4


@pytest.mark.parametrize(
    ("variable", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("0,2", 2), ("1,-1,2", 1), ("0,9,1", 1), ("GPU-1f,GPU-2e", 2)],
)
def test_gpus_that_cuda_hides_are_not_missed(variable, count) -> None:
    assert visible_gpus(4, variable) == count
    machine = Machine(gpus=("GPU",) * 4)
    assert not list(device_problems(machine, NO_DEVICES | {"GPU": count}, variable))
    if count:
        (line,) = device_problems(machine, NO_DEVICES | {"GPU": count - 1}, variable)
        assert f"sees {count - 1} of {count} GPUs" in line


def test_a_tpu_that_tensorflow_does_not_see() -> None:
    (line,) = device_problems(Machine(tpus=4), NO_DEVICES)
    assert "none of 4 TPU chips" in line and "tensorflow-tpu" in line
