"""What a machine has, read from its system files and `nvidia-smi`, whatever TensorFlow sees of it.

Nothing here imports TensorFlow; what it sees is an argument.
"""

import dataclasses
import pathlib
import subprocess
from collections.abc import Iterator, Mapping

from tfrecords import limits

ROOT = pathlib.Path("/")
NVIDIA_SMI = "nvidia-smi"
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# Google's PCI devices are TPUs but for those that are disks and network cards of its clouds.
_GOOGLE, _DISK_AND_NETWORK = "0x1ae0", ("0x01", "0x02")
_PROBE_SECONDS = 10
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine has.

    Attributes:
        gpus: the name of each GPU.
        gpu_bytes: memory of the smallest GPU; None where nvidia-smi does not tell.
        tpus: how many TPU chips.
        cores: logical processors that this process may use.
        memory_bytes: main memory that it may fill; None where the system does not tell.
        bfloat16: the processor's instructions for bfloat16, by flag.
    """

    gpus: tuple[str, ...] = ()
    gpu_bytes: int | None = None
    tpus: int = 0
    cores: int = 1
    memory_bytes: int | None = None
    bfloat16: tuple[str, ...] = ()


def probe(root: pathlib.Path = ROOT, nvidia_smi: str = NVIDIA_SMI) -> Machine:
    """Looks at a machine through its files and `nvidia-smi`.

    Args:
        root: the folder that holds `dev`, `proc` and `sys`.
        nvidia_smi: the command; one that is missing or fails is no GPU, unless there are files
            `dev/nvidia0`, ... all the same.
    """
    gpus, gpu_bytes = _nvidia_gpus(nvidia_smi)
    return Machine(
        gpus=gpus or tuple("GPU" for _ in root.glob("dev/nvidia[0-9]*")),
        gpu_bytes=gpu_bytes,
        tpus=count_tpus(root),
        cores=limits.cores(root),
        memory_bytes=limits.memory_bytes(root),
        bfloat16=_bfloat16_flags(root),
    )


def count_tpus(root: pathlib.Path = ROOT) -> int:
    """The TPU chips of a machine: `dev/accel0`, ..., or VFIO groups that hold a Google device."""
    accelerators = len(list(root.glob("dev/accel[0-9]*")))
    return accelerators or sum(
        _is_tpu_group(root, path.name) for path in root.glob("dev/vfio/[0-9]*")
    )


def _is_tpu_group(root: pathlib.Path, group: str) -> bool:
    devices = root.glob(f"sys/kernel/iommu_groups/{group}/devices/*")
    return any(_is_tpu(device) for device in devices)


def _is_tpu(device: pathlib.Path) -> bool:
    return limits.text(device / "vendor").strip() == _GOOGLE and not limits.text(
        device / "class"
    ).startswith(_DISK_AND_NETWORK)


def _nvidia_gpus(nvidia_smi: str) -> tuple[tuple[str, ...], int | None]:
    """The names of the GPUs, and the memory of the smallest."""
    query = [nvidia_smi, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            query, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (), None
    cells = [line.rpartition(",") for line in answer.splitlines() if line.strip()]
    sizes = [int(size) for _, _, size in cells if size.strip().isdigit()]
    return tuple(name.strip() for name, _, _ in cells), min(sizes) * _MIB if sizes else None


def _bfloat16_flags(root: pathlib.Path) -> tuple[str, ...]:
    for line in limits.text(root / "proc/cpuinfo").splitlines():
        if line.startswith("flags"):
            return tuple(flag for flag in BFLOAT16_FLAGS if flag in line.split())
    return ()


def visible_gpus(found: int, cuda_visible_devices: str | None) -> int:
    """How many of `found` GPUs a process is meant to see.

    Args:
        found: GPUs of the machine.
        cuda_visible_devices: the environment variable, None where it is unset. CUDA takes its
            entries up to the first that is no GPU.

    Example:
        >>> visible_gpus(8, "0,3"), visible_gpus(8, "-1"), visible_gpus(8, None)
        (2, 0, 8)
    """
    if cuda_visible_devices is None:
        return found
    count = 0
    for name in map(str.strip, cuda_visible_devices.split(",")):
        if not name or name.startswith("-") or (name.isdigit() and int(name) >= found):
            break
        count += 1
    return min(count, found)


def device_problems(
    machine: Machine, seen: Mapping[str, int], cuda_visible_devices: str | None = None
) -> Iterator[str]:
    """Accelerators that are there and that TensorFlow does not see.

    Args:
        machine: what is there.
        seen: what TensorFlow sees, a count by type: "GPU", "TPU".
        cuda_visible_devices: GPUs that it hides are not missed.
    """
    gpus = visible_gpus(len(machine.gpus), cuda_visible_devices)
    if seen["GPU"] < gpus:
        yield (
            f"TensorFlow sees {seen['GPU']} of {gpus} GPUs: pip install '.[cuda]' in a clone "
            "for the CUDA libraries it needs, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1"
        )
    if machine.tpus and not seen["TPU"]:
        yield (
            f"TensorFlow sees none of {machine.tpus} TPU chips: install tensorflow-tpu in place of "
            "tensorflow"
        )
