"""Published peak rates and bandwidths of devices, one frozen row each, with their source.

A device is what TensorFlow counts as a replica: a GPU; a TPU v3 core, two of which share a chip;
a TPU v4, v5e or v5p chip; a CPU socket. Bandwidths are one way, since a ring sends and receives
at the same time; where a source gives both directions together it is halved. The GB of a memory's
size is 2^30 bytes, which is what its makers mean by it whether they write GB or GiB; the GB/s of a
bandwidth is 10^9 bytes.
"""

import dataclasses

from tfrecords.errors import UserError

GPU, TPU, CPU = "gpu", "tpu", "cpu"
_GB, _GIB, _GBIT = 1e9, 2.0**30, 1e9 / 8
_GOOGLE = "Google Cloud, TPU documentation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What is published of a device and of the machine that it usually sits in.

    Attributes:
        name: what `--device` takes.
        title: the full name.
        platform: "gpu", "tpu" or "cpu".
        precision: the type that `peak_flops` is for, as `runtime.mixed_precision_dtype` names it.
        peak_flops: floating-point operations a second, dense, a multiply-add being two.
        memory_bytes: memory of the device.
        memory_bandwidth: bytes a second between the device and its memory.
        devices_per_worker: devices of one machine, which is one input pipeline.
        link_bandwidth: bytes a second that a device can send to others over all its links.
        network_bandwidth: bytes a second that a machine can send to others; None where the
            devices' own links go on from machine to machine, as a TPU's do.
        source: where the numbers are published.
    """

    name: str
    title: str
    platform: str
    precision: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    devices_per_worker: int
    link_bandwidth: float
    network_bandwidth: float | None
    source: str


_ROWS = (
    Device(
        name="v100",
        title="NVIDIA V100 SXM2 32 GB",
        platform=GPU,
        precision="float16",
        peak_flops=125e12,
        memory_bytes=32 * _GIB,
        memory_bandwidth=900 * _GB,
        devices_per_worker=8,
        link_bandwidth=300 * _GB / 2,
        network_bandwidth=100 * _GBIT,
        source="NVIDIA V100 datasheet; Amazon EC2 P3 page for the machine, p3dn.24xlarge",
    ),
    Device(
        name="a100",
        title="NVIDIA A100 SXM4 80 GB",
        platform=GPU,
        precision="bfloat16",
        peak_flops=312e12,
        memory_bytes=80 * _GIB,
        memory_bandwidth=2039 * _GB,
        devices_per_worker=8,
        link_bandwidth=600 * _GB / 2,
        network_bandwidth=8 * 200 * _GBIT,
        source="NVIDIA A100 datasheet; NVIDIA DGX A100 datasheet for the machine",
    ),
    Device(
        name="h100",
        title="NVIDIA H100 SXM5 80 GB",
        platform=GPU,
        precision="bfloat16",
        peak_flops=989e12,
        memory_bytes=80 * _GIB,
        memory_bandwidth=3350 * _GB,
        devices_per_worker=8,
        link_bandwidth=900 * _GB / 2,
        network_bandwidth=8 * 400 * _GBIT,
        source="NVIDIA H100 datasheet, half of the rate with sparsity; DGX H100 datasheet",
    ),
    Device(
        name="h200",
        title="NVIDIA H200 SXM5 141 GB",
        platform=GPU,
        precision="bfloat16",
        peak_flops=989e12,
        memory_bytes=141 * _GIB,
        memory_bandwidth=4800 * _GB,
        devices_per_worker=8,
        link_bandwidth=900 * _GB / 2,
        network_bandwidth=8 * 400 * _GBIT,
        source="NVIDIA H200 datasheet, half of the rate with sparsity; DGX H200 datasheet",
    ),
    Device(
        name="tpu-v3",
        title="Google TPU v3, one core",
        platform=TPU,
        precision="bfloat16",
        peak_flops=123e12 / 2,
        memory_bytes=32 * _GIB / 2,
        memory_bandwidth=900 * _GB / 2,
        devices_per_worker=8,
        link_bandwidth=340e12 / 1024 / 2,
        network_bandwidth=None,
        source=f"{_GOOGLE}, v3: half a chip; links from a pod's all-reduce bandwidth",
    ),
    Device(
        name="tpu-v4",
        title="Google TPU v4",
        platform=TPU,
        precision="bfloat16",
        peak_flops=275e12,
        memory_bytes=32 * _GIB,
        memory_bandwidth=1200 * _GB,
        devices_per_worker=4,
        link_bandwidth=1.1e15 / 4096,
        network_bandwidth=None,
        source=f"{_GOOGLE}, v4; links from a pod's all-reduce bandwidth",
    ),
    Device(
        name="tpu-v5e",
        title="Google TPU v5e",
        platform=TPU,
        precision="bfloat16",
        peak_flops=197e12,
        memory_bytes=16 * _GIB,
        memory_bandwidth=819 * _GB,
        devices_per_worker=8,
        link_bandwidth=400 * _GB / 2,
        network_bandwidth=None,
        source=f"{_GOOGLE}, v5e",
    ),
    Device(
        name="tpu-v5p",
        title="Google TPU v5p",
        platform=TPU,
        precision="bfloat16",
        peak_flops=459e12,
        memory_bytes=95 * _GIB,
        memory_bandwidth=2765 * _GB,
        devices_per_worker=4,
        link_bandwidth=1200 * _GB / 2,
        network_bandwidth=None,
        source=f"{_GOOGLE}, v5p",
    ),
    Device(
        name="cpu",
        title="Intel Xeon Platinum 8380",
        platform=CPU,
        precision="float32",
        # 40 cores at 2.3 GHz, two units that multiply and add 16 numbers each.
        peak_flops=40 * 2.3e9 * 2 * 2 * 16,
        memory_bytes=256 * _GIB,
        # Eight channels of 8 bytes at 3200 MHz.
        memory_bandwidth=8 * 8 * 3.2e9,
        devices_per_worker=1,
        link_bandwidth=25 * _GBIT,
        network_bandwidth=25 * _GBIT,
        source="Intel ARK for the processor; its 256 GiB and 25 Gb/s are assumed",
    ),
)
DEVICES = {row.name: row for row in _ROWS}


def find(name: str) -> Device:
    """The row of a name, in any case.

    Raises:
        UserError: there is none; names those there are.

    Example:
        >>> find("V100").peak_flops
        125000000000000.0
    """
    if name.lower() not in DEVICES:
        raise UserError(
            f"--device is {name!r}; expected one of {', '.join(DEVICES)}: for another, take the "
            "nearest and give --examples_per_second as measured on yours"
        )
    return DEVICES[name.lower()]


def markdown() -> str:
    """The table, as Markdown."""
    lines = [
        "| `--device` | what | TFLOP/s | in | memory | GB/s to it | a machine has | "
        "links of a device | its network | source |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in DEVICES.values():
        network = "the links"
        if row.network_bandwidth is not None:
            network = f"{row.network_bandwidth / _GBIT:,.0f} Gb/s"
        lines.append(
            f"| `{row.name}` | {row.title} | {row.peak_flops / 1e12:.4g} | {row.precision} | "
            f"{row.memory_bytes / _GIB:.0f} GiB | {row.memory_bandwidth / _GB:,.0f} | "
            f"{row.devices_per_worker} | {row.link_bandwidth / _GB:.4g} GB/s | {network} | "
            f"{row.source} |"
        )
    return "\n".join(lines)
