"""From `runtime` fields to a `tf.distribute` strategy, with errors that name the field."""

import contextlib
import dataclasses
from collections.abc import Iterator

import tensorflow as tf
from absl import logging
from official.core import config_definitions
from tensorflow.python.framework import config as tensorflow_config

from official_bert import cluster
from official_bert.global_batch import StepSettings
from official_bert.loss_scaling import LossScale
from tfrecords.errors import UserError

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
_OF_ONE_WORKER = ("one_device", "mirrored")
PRECISIONS = (None, "float32", "bfloat16", "float16")
_COLLECTIVES = {
    None: tf.distribute.experimental.CommunicationImplementation.AUTO,
    "ring": tf.distribute.experimental.CommunicationImplementation.RING,
    "nccl": tf.distribute.experimental.CommunicationImplementation.NCCL,
}


@dataclasses.dataclass
class RuntimeConfig(config_definitions.RuntimeConfig):
    """Model Garden's fields, and four of ours; `loss_scale` is Model Garden's.

    Attributes:
      enable_xla: whether forward and backward of a step are one XLA program; None means where the
        device gains by it, on GPUs and TPUs. The optimizer's update is compiled in any case.
      bytes_per_pack: of the gradients' all-reduce, how many bytes travel together; 0 leaves it to
        TensorFlow.
      deterministic_ops: whether only kernels are used whose result is the same every time, which
        a bit-equal resume needs; None means on CPUs.
      num_workers: recorded by the run: its input pipelines, one a worker, on a TPU one a host.
        The order of pretraining's examples depends on it.
      loss_scale: for float16, "dynamic" or None, or a fixed scale.
    """

    enable_xla: bool | None = None  # type: ignore[assignment]
    bytes_per_pack: int = 0
    deterministic_ops: bool | None = None
    num_workers: int | None = None


def build_strategy(runtime: config_definitions.RuntimeConfig) -> tf.distribute.Strategy:
    """The strategy that `runtime` describes.

    `one_device` is the first GPU, or the CPU where `num_gpus` is 0; `mirrored` is `num_gpus`
    GPUs, or every logical CPU where it is 0; `multi_worker_mirrored` is all GPUs of every worker,
    or its CPU; `tpu` is the TPU at `runtime.tpu`, the local one where that is empty.
    A run on the CPU beside GPUs is warned of.

    TensorFlow wants a strategy over several workers built before anything is computed.

    Raises:
      UserError: an unknown strategy or precision, more GPUs than there are or than the strategy
        takes, no cluster, no TPU.
    """
    if runtime.mixed_precision_dtype not in PRECISIONS:
        raise UserError(
            f"runtime.mixed_precision_dtype is {runtime.mixed_precision_dtype!r}; expected one of "
            f"{', '.join(filter(None, PRECISIONS))}"
        )
    name = runtime.distribution_strategy.lower()
    if name not in STRATEGIES:
        raise UserError(
            f"runtime.distribution_strategy is {runtime.distribution_strategy!r}; expected "
            f"one of {', '.join(STRATEGIES)}"
        )
    problem = unused_gpus(runtime)
    if problem is not None:
        raise UserError(problem)
    if name == "tpu":
        return _tpu_strategy(runtime.tpu)
    if name == "multi_worker_mirrored":
        return _multi_worker_strategy(runtime)
    warning = idle_gpus(runtime, len(tf.config.get_visible_devices("GPU")))
    if warning is not None:
        logging.warning("%s", warning)
    devices = _devices(runtime.num_gpus)
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=_mirrored_reduction(runtime))


def unused_gpus(runtime: config_definitions.RuntimeConfig) -> str | None:
    """Why `num_gpus` cannot be had from `one_device`, as Model Garden refuses it; None if it can.

    Args:
      runtime: `runtime`.
    """
    if runtime.distribution_strategy.lower() != "one_device" or runtime.num_gpus <= 1:
        return None
    return (
        f"runtime.distribution_strategy is one_device, runtime.num_gpus {runtime.num_gpus}; "
        "expected mirrored for several GPUs (official_bert.finetune: --distribution_strategy)"
    )


def idle_gpus(runtime: config_definitions.RuntimeConfig, seen: int) -> str | None:
    """What is said of a run on the CPU of a machine with GPUs; None of any other.

    Args:
      runtime: `runtime`.
      seen: GPUs that TensorFlow sees.
    """
    if not seen or runtime.num_gpus or runtime.distribution_strategy.lower() not in _OF_ONE_WORKER:
        return None
    every = f", or runtime.distribution_strategy=mirrored,runtime.num_gpus={seen} for all"
    return (
        f"runtime.num_gpus is 0: this runs on the CPU, though TensorFlow sees GPUs: {seen}; add "
        f"--params_override=runtime.num_gpus=1{every if seen > 1 else ''} (official_bert.finetune: "
        "--num_gpus), or hide them with CUDA_VISIBLE_DEVICES=-1"
    )


def _multi_worker_strategy(
    runtime: config_definitions.RuntimeConfig,
) -> tf.distribute.MultiWorkerMirroredStrategy:
    if runtime.all_reduce_alg not in _COLLECTIVES:
        raise UserError(
            f"runtime.all_reduce_alg is {runtime.all_reduce_alg!r}; multi_worker_mirrored has ring "
            "and nccl"
        )
    # Physical devices: asking for logical ones would initialise TensorFlow too early.
    seen = len(tf.config.list_physical_devices("GPU"))
    if runtime.num_gpus not in (0, seen):
        raise UserError(
            f"runtime.num_gpus is {runtime.num_gpus}, this worker sees {seen}; "
            "multi_worker_mirrored takes all of them: hide others with CUDA_VISIBLE_DEVICES"
        )
    resolver = cluster.find_resolver(runtime.worker_hosts, runtime.task_index)
    return tf.distribute.MultiWorkerMirroredStrategy(resolver, communication(runtime))


def _mirrored_reduction(
    runtime: config_definitions.RuntimeConfig,
) -> tf.distribute.CrossDeviceOps | None:
    # TensorFlow's collectives on CPUs number themselves over the whole process: a second strategy,
    # as for phase 2, would meet the first one's. Sums on one CPU need none.
    if not runtime.num_gpus:
        return tf.distribute.ReductionToOneDevice()
    choices = {
        None: lambda: None,
        "nccl": lambda: tf.distribute.NcclAllReduce(num_packs=runtime.num_packs),
        "hierarchical_copy": lambda: tf.distribute.HierarchicalCopyAllReduce(
            num_packs=runtime.num_packs
        ),
    }
    if runtime.all_reduce_alg not in choices:
        raise UserError(
            f"runtime.all_reduce_alg is {runtime.all_reduce_alg!r}; mirrored has nccl and "
            "hierarchical_copy"
        )
    return choices[runtime.all_reduce_alg]()


def _tpu_strategy(address: str | None) -> tf.distribute.TPUStrategy:
    address = address or "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"runtime.distribution_strategy is tpu, but no TPU answers at {address!r}: {reason}; "
            "give runtime.tpu, and see docs/tpu.md for an installation that has TPU support"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def communication(
    runtime: config_definitions.RuntimeConfig,
) -> tf.distribute.experimental.CommunicationOptions:
    """How gradients travel between workers."""
    return tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=getattr(runtime, "bytes_per_pack", 0),
        implementation=_COLLECTIVES.get(runtime.all_reduce_alg, _COLLECTIVES[None]),
    )


def step_settings(
    runtime: config_definitions.RuntimeConfig, strategy: tf.distribute.Strategy
) -> StepSettings:
    """How the strategy's replicas carry out a step; called in its scope."""
    loss_scale = None
    if runtime.mixed_precision_dtype == "float16":
        fixed = None if runtime.loss_scale in (None, "dynamic") else runtime.loss_scale
        loss_scale = LossScale(fixed)
    # A TPU's whole step is one program anyway.
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    compiled = getattr(runtime, "enable_xla", None)
    if compiled is None:
        compiled = not on_cpus(strategy)
    return StepSettings(
        compiled=compiled and not on_tpu,
        communication=communication(runtime),
        loss_scale=loss_scale,
    )


def on_cpus(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy's replicas are CPUs."""
    device = strategy.extended.worker_devices[0]
    return tf.DeviceSpec.from_string(device).device_type == "CPU"


@contextlib.contextmanager
def determinism(
    runtime: config_definitions.RuntimeConfig, strategy: tf.distribute.Strategy
) -> Iterator[None]:
    """TensorFlow's op determinism as `runtime.deterministic_ops` wants it, put back afterwards."""
    wanted = getattr(runtime, "deterministic_ops", None)
    if wanted is None:
        wanted = on_cpus(strategy)
    if not wanted or tensorflow_config.is_op_determinism_enabled():
        yield
        return
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        tensorflow_config.disable_op_determinism()


def _devices(num_gpus: int) -> list[str]:
    kind = "GPU" if num_gpus else "CPU"
    found = [device.name for device in tf.config.list_logical_devices(kind)]
    if num_gpus < 0 or num_gpus > len(found):
        raise UserError(
            f"runtime.num_gpus is {num_gpus}, TensorFlow sees {len(found)}; lower it, or "
            "pip install '.[cuda]' in a clone and check nvidia-smi"
        )
    return found[:num_gpus] if num_gpus else found
