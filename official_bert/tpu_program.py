"""The program that one TPU core gets of a recipe's step, made where there is no TPU.

A TPU runs a whole step as one XLA program: forward, backward, the loop over micro-batches, the
all-reduce, the guard, the update and what is logged. TensorFlow makes such a program for any
device; what is made here has the cores' shapes, their collectives and their form of the update.
Nothing in it is TPU code yet: that is the compiler's work (`tpu_compile`).
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory
from official.modeling import performance
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import distribute_lib, one_device_strategy
from tensorflow.python.tpu import device_assignment, topology, tpu_system_metadata

from official_bert import estimates
from official_bert.trainer import Trainer, build_trainer
from tf_lans import compiled_update
from tfrecords import schema
from tfrecords.errors import UserError

Batch = Mapping[str, Any]
# A block whose true gradient is zero follows rounding noise: softmax ignores the key's bias.
WITHOUT_GRADIENT = "self_attention/key/bias"


class OneOfMany(tf.distribute.Strategy):
    """Traces what one of many replicas does; sums over replicas become collectives of XLA.

    Args:
      replicas: how many there are; for one there is nothing to sum.
      device: where the variables live.
    """

    def __init__(self, replicas: int, device: str = "CPU:0") -> None:
        super().__init__(_OneOfManyExtended(self, device, replicas))


class _OneOfManyExtended(one_device_strategy.OneDeviceExtended):
    def __init__(self, container: tf.distribute.Strategy, device: str, replicas: int) -> None:
        super().__init__(container, device)
        self.replicas = replicas

    @property
    def _num_replicas_in_sync(self) -> int:
        return self.replicas

    def _call_for_each_replica(self, fn: Any, args: Any, kwargs: Any) -> Any:
        number = gen_xla_ops.xla_replica_id() if self.replicas > 1 else 0
        strategy = self._container_strategy()
        with distribute_lib.ReplicaContext(strategy, replica_id_in_sync_group=number):
            return fn(*args, **kwargs)

    def _batch_reduce_to(self, reduce_op: Any, pairs: Any, options: Any = None) -> list[tf.Tensor]:
        del options
        everyone = [list(range(self.replicas))]
        mean = reduce_op == tf.distribute.ReduceOp.MEAN
        reduced = []
        for value, _ in pairs:
            total = tf.convert_to_tensor(value)
            if self.replicas > 1:
                total = gen_xla_ops.xla_all_reduce(total, everyone, "Add", "CrossReplica")
            reduced.append(total / self.replicas if mean else total)
        return reduced


def share_of(params: config_definitions.ExperimentConfig, replicas: int) -> int:
    """The examples of a step that one core gets.

    Raises:
      UserError: the batch or the micro-batch does not divide.
    """
    total, micro = params.task.train_data.global_batch_size, params.task.micro_batch_size
    if total % replicas or (micro and total // replicas % micro):
        raise UserError(
            f"task.train_data.global_batch_size is {total} and task.micro_batch_size {micro}; "
            f"expected a multiple of {replicas} cores, and a share of each that micro-batches "
            "divide; choose another --num_replicas or micro_batch_size"
        )
    return total // replicas


def predictions_of(params: config_definitions.ExperimentConfig) -> int:
    """The masked positions of a row, where shards were built with the default number."""
    return estimates.predictions(params.task.train_data)


def batch_specs(params: config_definitions.ExperimentConfig, replicas: int) -> Batch:
    """The shapes and dtypes of one core's share of a batch."""
    rows = share_of(params, replicas)
    features = schema.features(params.task.train_data.seq_length, predictions_of(params))
    return {each.name: tf.TensorSpec([rows, each.size], each.dtype) for each in features}


def random_batch(
    params: config_definitions.ExperimentConfig, replicas: int, seed: int
) -> dict[str, tf.Tensor]:
    """A share of a batch of random words, with full rows."""
    generator = np.random.default_rng(seed)
    data, words = params.task.train_data, params.task.model.encoder.get().vocab_size
    bounds = {
        schema.INPUT_WORD_IDS: words,
        schema.INPUT_TYPE_IDS: 2,
        schema.MASKED_LM_POSITIONS: data.seq_length,
        schema.MASKED_LM_IDS: words,
        schema.NEXT_SENTENCE_LABELS: 2,
    }
    return {
        name: tf.cast(generator.integers(bounds[name], size=spec.shape), spec.dtype)
        if name in bounds
        else tf.ones(spec.shape, spec.dtype)
        for name, spec in batch_specs(params, replicas).items()
    }


@contextlib.contextmanager
def trainer_of(
    params: config_definitions.ExperimentConfig, strategy: tf.distribute.Strategy
) -> Iterator[Trainer]:
    """A recipe's model, optimizer and step under a strategy, in the recipe's precision."""
    before = tf_keras.mixed_precision.global_policy().name
    performance.set_mixed_precision_policy(params.runtime.mixed_precision_dtype or "float32")
    try:
        with strategy.scope(), compiled_update.whole_blocks():
            task = task_factory.get_task(params.task)
            yield build_trainer(params, task, train=True, evaluate=False)
    finally:
        performance.set_mixed_precision_policy(before)


def lower(
    params: config_definitions.ExperimentConfig,
    replicas: int,
    stages: Sequence[str] = ("hlo",),
) -> list[Any]:
    """The program of one step of one of many cores, in XLA's terms.

    Args:
      params: a pretraining config.
      replicas: the cores.
      stages: `hlo` for text, `hlo_serialized` for what a compiler takes.

    Returns:
      One program for each stage.

    Raises:
      ValueError, tf.errors.OpError: something in the step has no form in XLA; the message names
        the operation.
    """
    with trainer_of(params, OneOfMany(replicas)) as trainer:
        step = tf.function(trainer._step_row, jit_compile=True, autograph=False)
        batch = tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), batch_specs(params, replicas)
        )
        compiler_ir = step.experimental_get_compiler_ir(batch)
        return [compiler_ir(stage=stage) for stage in stages]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters:
    """What `tf.distribute.TPUStrategy` makes of a step.

    Attributes:
      programs: how many programs a core is given for a step.
      inside: the operations in them by type, those of functions that they call left out.
      host: the operations outside by type: they run on the host.
    """

    programs: int
    inside: collections.Counter[str]
    host: collections.Counter[str]


def traced_by_tpu_strategy(
    params: config_definitions.ExperimentConfig, replicas: int = 2
) -> Clusters:
    """Traces a step under the real `TPUStrategy`, whose cores are CPUs by another name.

    Nothing runs: without a TPU there is nothing that could carry the program out.

    Args:
      params: a pretraining config.
      replicas: cores; TensorFlow needs as many logical CPUs.
    """
    with trainer_of(params, _tpu_strategy(replicas)) as trainer:
        step = tf.function(trainer._step_row, autograph=False)
        graph = step.get_concrete_function(batch_specs(params, replicas)).graph.as_graph_def()
    inside, host = collections.Counter[str](), collections.Counter[str]()
    for node in graph.node:
        (inside if "_tpu_replicate" in node.attr else host)[node.op] += 1
    names = {node.attr["_tpu_replicate"].s for node in graph.node if "_tpu_replicate" in node.attr}
    return Clusters(programs=len(names), inside=inside, host=host)


def _tpu_strategy(replicas: int) -> tf.distribute.TPUStrategy:
    coordinates = np.array([[number, 0, 0, 0] for number in range(replicas)], np.int32)
    shape = topology.Topology(
        mesh_shape=[replicas, 1, 1, 1], device_coordinates=coordinates[np.newaxis]
    )
    return tf.distribute.TPUStrategy(
        _Resolver(shape, replicas), _CpuAssignment(shape, coordinates[:, np.newaxis])
    )


class _CpuAssignment(device_assignment.DeviceAssignment):
    """Says that the cores are logical CPUs."""

    def tpu_device(self, replica: int = 0, logical_core: int = 0, job: Any = None) -> str:
        del logical_core, job
        return f"/job:localhost/replica:0/task:0/device:CPU:{replica}"

    def host_device(self, replica: int = 0, logical_core: int = 0, job: Any = None) -> str:
        del replica, logical_core, job
        return "/job:localhost/replica:0/task:0/device:CPU:0"


@dataclasses.dataclass(frozen=True)
class _Device:
    name: str


class _Resolver(tf.distribute.cluster_resolver.SimpleClusterResolver):
    """Knows a TPU system that is not there."""

    tpu_hardware_feature = None

    def __init__(self, shape: topology.Topology, replicas: int) -> None:
        super().__init__(tf.train.ClusterSpec({}))
        self._metadata = tpu_system_metadata.TPUSystemMetadata(
            num_cores=replicas,
            num_hosts=1,
            num_of_cores_per_host=replicas,
            topology=shape,
            devices=[
                _Device(f"/job:localhost/replica:0/task:0/device:TPU:{number}")
                for number in range(replicas)
            ],
        )

    def get_tpu_system_metadata(self) -> tpu_system_metadata.TPUSystemMetadata:
        return self._metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two ways to carry out the same steps came apart.

    Attributes:
      logs: the largest difference of a logged scalar, relative to 1 + its size.
      weights: of the blocks, the largest ||x - x'|| / ||x - x_0||, the blocks of
        `WITHOUT_GRADIENT` left out.
      block: the block of that.
    """

    logs: float
    weights: float
    block: str


def compiled_against_plain(
    params: config_definitions.ExperimentConfig, steps: int = 2
) -> Difference:
    """Runs steps as one XLA program and again operation by operation, from the same weights.

    Args:
      params: a small pretraining config; its batch is not cut over cores.
      steps: how many.
    """
    compiled = _run(params, steps, compiled=True)
    plain = _run(_not_compiled(params), steps, compiled=False, start=compiled.start)
    logs = np.max(np.abs(compiled.rows - plain.rows) / (1 + np.abs(plain.rows)))
    apart: dict[str, float] = {}
    for name, begun in plain.start.items():
        moved = float(np.linalg.norm(plain.end[name] - begun))
        if name in plain.trained and WITHOUT_GRADIENT not in name:
            distance = float(np.linalg.norm(compiled.end[name] - plain.end[name]))
            apart[name] = distance / max(moved, 1e-30)
    block = max(apart, key=lambda name: apart[name])
    return Difference(logs=float(logs), weights=float(apart[block]), block=block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    rows: np.ndarray
    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    trained: set[str]


def _run(
    params: config_definitions.ExperimentConfig,
    steps: int,
    *,
    compiled: bool,
    start: Mapping[str, np.ndarray] | None = None,
) -> _Run:
    with trainer_of(params, OneOfMany(1)) as trainer:
        variables = {variable.name: variable for variable in trainer.model.variables}
        for name, value in (start or {}).items():
            variables[name].assign(value)
        begun = {name: variable.numpy() for name, variable in variables.items()}
        step = tf.function(trainer._step_row, jit_compile=compiled or None, autograph=False)
        rows = [step(random_batch(params, 1, number))[0].numpy() for number in range(steps)]
        return _Run(
            rows=np.stack(rows),
            start=begun,
            end={name: variable.numpy() for name, variable in variables.items()},
            trained={each.name for each in trainer.task.trained_variables(trainer.model)},
        )


def _not_compiled(
    params: config_definitions.ExperimentConfig,
) -> config_definitions.ExperimentConfig:
    """The config whose optimizer's update is no XLA program of its own."""
    config = params.trainer.optimizer_config
    kind = config.optimizer.type
    plain = config.optimizer.get().replace(jit_compile=False)
    config = config.replace(optimizer=config.optimizer.replace(**{kind: plain}))
    return params.replace(trainer=params.trainer.replace(optimizer_config=config))
