"""From `runtime` fields to a `tf.distribute` strategy, with errors that name the field."""

import tensorflow as tf
from official.core import config_definitions

from tfrecords.errors import UserError

STRATEGIES = ("one_device", "mirrored")
PRECISIONS = (None, "float32", "bfloat16")


def build_strategy(runtime: config_definitions.RuntimeConfig) -> tf.distribute.Strategy:
    """The strategy that `runtime` describes.

    `one_device` is the first GPU, or the CPU where `num_gpus` is 0; `mirrored` is `num_gpus`
    GPUs, or every logical CPU where it is 0.

    Raises:
      UserError: an unknown strategy or precision, or more GPUs than there are.
    """
    if runtime.mixed_precision_dtype not in PRECISIONS:
        raise UserError(
            f"runtime.mixed_precision_dtype is {runtime.mixed_precision_dtype!r}; expected "
            "float32 or bfloat16 (float16 needs loss scaling, which this step does not apply)"
        )
    name = runtime.distribution_strategy.lower()
    if name not in STRATEGIES:
        raise UserError(
            f"runtime.distribution_strategy is {runtime.distribution_strategy!r}; expected "
            f"one of {', '.join(STRATEGIES)}"
        )
    devices = _devices(runtime.num_gpus)
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    # TensorFlow's collectives on CPUs number themselves over the whole process: a second strategy,
    # as for phase 2, would meet the first one's. Sums on one CPU need none.
    reduction = None if runtime.num_gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _devices(num_gpus: int) -> list[str]:
    kind = "GPU" if num_gpus else "CPU"
    found = [device.name for device in tf.config.list_logical_devices(kind)]
    if num_gpus < 0 or num_gpus > len(found):
        raise UserError(
            f"runtime.num_gpus is {num_gpus}, TensorFlow sees {len(found)}; lower it, or "
            "install tf-lans[cuda] and check nvidia-smi"
        )
    return found[:num_gpus] if num_gpus else found
