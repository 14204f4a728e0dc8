"""What can be refused before anything is built: fields, data, schedule, batches, disk.

A check is a generator of problems, one line each: a run stops at the first, `doctor` prints all.
"""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import tensorflow as tf
from absl import logging
from official.core import config_definitions
from official.modeling import tf_utils

import tfrecords
from official_bert import (
    checkpoints,
    devices,
    disk_space,
    inherited_size,
    optimization,
    ranges,
)
from official_bert.input import PretrainDataConfig, check_shards
from official_bert.pretraining_task import LargeBatchPretrainConfig, with_heads_of_data
from tfrecords import schema, sharding
from tfrecords.errors import UserError
from tfrecords.order import Order

Problems = Iterator[str]
# Others lack the layers that the task trains or leaves out, or have losses that it would drop.
_ENCODER = "bert"


class NoShards(str):
    """The problem of a data config that names no folder, which a recipe may leave to its run."""

    __slots__ = ()


def check(
    params: config_definitions.ExperimentConfig,
    mode: str,
    model_dir: str = "",
    *,
    workers: int = 1,
    replicas: int = 1,
) -> None:
    """Checks a whole config; a run that passes does not fail on its settings later.

    What may go wrong without being wrong, such as a disk that will fill, is logged as a warning.

    Args:
      params: the config, names and types checked.
      mode: `train`, `eval` or `train_and_eval`: data of a split that is not used may be absent.
      model_dir: folder of the run, whose disk is looked at; "" for none.
      workers: input pipelines that share the shards and the batch.
      replicas: of all workers.

    Raises:
      UserError: the first thing that does not fit, by field name.
    """
    for problem in problems(params, mode, model_dir, workers=workers, replicas=replicas):
        raise UserError(problem)
    for warning in warnings(params, mode, model_dir):
        logging.warning("%s", warning)


def problems(
    params: config_definitions.ExperimentConfig,
    mode: str,
    model_dir: str = "",
    *,
    workers: int = 1,
    replicas: int = 1,
) -> Problems:
    """Everything that a run would stumble over, in the order of the config's parts.

    The arguments are those of `check`. A value out of its range is told once; checks that would
    compute with it leave it alone.
    """
    out_of_range = ranges.problems(params, mode)
    yield from out_of_range.values()
    yield from ranges.unread(params, mode)
    yield from interval_problems(params.trainer)
    if "eval" in mode:
        yield from _evaluation_problems(params.trainer)
    if "train" in mode and params.trainer.train_steps > 0:
        yield from _optimizer_problems(params)
    yield from _runtime_problems(params.runtime)
    yield from _loss_scaling_problems(params, mode)
    if isinstance(params.task, LargeBatchPretrainConfig):
        yield from _pretraining_problems(params, mode, model_dir, workers, out_of_range)
    yield from batch_problems(params, mode, workers=workers, replicas=replicas)
    if model_dir and "train" in mode and not disk_space.is_finished(params, model_dir):
        found = disk_space.problem(model_dir, *disk_space.numbers(params, model_dir))
        yield from filter(None, [found])


def warnings(
    params: config_definitions.ExperimentConfig, mode: str, model_dir: str = ""
) -> Problems:
    """What is worth knowing about a config that `problems` finds nothing wrong with.

    Args:
      params: the config.
      mode: as in `check`.
      model_dir: folder of the run; "" for none.
    """
    trainer = params.trainer
    if trainer.checkpoint_interval < min(trainer.steps_per_loop, trainer.train_steps):
        yield (
            f"trainer.checkpoint_interval is {trainer.checkpoint_interval}, but checkpoints are "
            f"saved between loops of trainer.steps_per_loop {trainer.steps_per_loop} steps: lower "
            "steps_per_loop to save more often"
        )
    if model_dir and "train" in mode:
        numbers = disk_space.numbers(params, model_dir)
        warning = disk_space.warning(model_dir, *numbers, max_to_keep=trainer.max_to_keep)
        yield from filter(None, [warning])


def interval_problems(trainer: config_definitions.TrainerConfig) -> Problems:
    """A summary interval that loops of steps do not end on: summaries are written between them."""
    loop, interval = trainer.steps_per_loop, trainer.summary_interval
    if loop > 0 and interval > 0 and interval % loop:
        yield (
            f"trainer.summary_interval is {interval}; expected a multiple of "
            f"trainer.steps_per_loop {loop}, since summaries are written between loops: set it to "
            f"{_near_multiple(interval, loop)}, or steps_per_loop to {math.gcd(interval, loop)}"
        )


def _evaluation_problems(trainer: config_definitions.TrainerConfig) -> Problems:
    """A loop of evaluation steps inside of TensorFlow that orbit cannot make."""
    if not trainer.eval_tf_while_loop:
        return
    way_out = "leave trainer.eval_tf_while_loop out"
    if not trainer.eval_tf_function:
        yield (
            "trainer.eval_tf_function is False and trainer.eval_tf_while_loop True; expected the "
            f"loop in a function only: {way_out}"
        )
    elif trainer.validation_steps == -1:
        yield (
            "trainer.validation_steps is -1 and trainer.eval_tf_while_loop True; expected at least "
            f"1, since such a loop does not end with the split: {way_out}"
        )


def batch_problems(
    params: config_definitions.ExperimentConfig, mode: str, *, workers: int, replicas: int
) -> Problems:
    """Batches that cannot be cut: into workers, their replicas, and those into micro-batches.

    Args:
      params: the config, of any task.
      mode: as in `check`.
      workers: input pipelines.
      replicas: of all workers, a multiple of them.
    """
    for name, data in _parts(params.task, mode):
        size = data.global_batch_size
        if size < 1:
            continue
        found = list(_refusals(sharding.check_batch, size, workers))
        yield from (f"task.{name}: {words}" for words in found)
        if not found and size % replicas:
            yield (
                f"task.{name}.global_batch_size is {size}; expected a positive multiple of the "
                f"{replicas} replicas, such as {_near_multiple(size, replicas)}"
            )
    micro = getattr(params.task, "micro_batch_size", 0)
    share, rest = divmod(params.task.train_data.global_batch_size, replicas)
    if "train" in mode and micro > 0 and share > 0 and not rest and share % micro:
        yield (
            f"task.micro_batch_size is {micro}; expected 0 or a divisor of the {share} examples "
            "of each replica"
        )


def check_batches(
    params: config_definitions.ExperimentConfig, mode: str, *, workers: int, replicas: int
) -> None:
    """Refuses batches and shards that these workers and replicas cannot divide.

    Args:
      params: the config, of any task.
      mode: as in `check`.
      workers: input pipelines.
      replicas: of all workers.

    Raises:
      UserError: the first thing found.
    """
    for problem in batch_problems(params, mode, workers=workers, replicas=replicas):
        raise UserError(problem)
    for _, data in _parts(params.task, mode):
        if isinstance(data, PretrainDataConfig) and data.input_path:
            manifest = tfrecords.Manifest.load(data.input_path)
            for problem in shard_problems(manifest, data, workers):
                raise UserError(problem)


def shard_problems(
    manifest: tfrecords.Manifest, data: PretrainDataConfig, workers: int
) -> Problems:
    """Shards that cannot be dealt out, in the words of `tfrecords.read`, which deals them out.

    Args:
      manifest: of the folder.
      data: the data config that reads it.
      workers: input pipelines.
    """
    split = schema.TRAIN if data.is_training else schema.EVAL
    shards = manifest.shards(split, data.seq_length)
    refused = list(_refusals(sharding.check_workers, len(shards), workers, 0))
    yield from refused
    if refused or not data.is_training or data.global_batch_size % workers:
        return
    for worker in range(workers):
        owned = sharding.worker_shards(len(shards), workers, worker)
        counts = [shards[number].examples for number in owned if shards[number].examples]
        yield from _refusals(
            Order,
            shards=range(len(counts)),
            counts=counts,
            worker_index=worker,
            batch_size=data.global_batch_size // workers,
            seed=data.seed,
        )


def _optimizer_problems(params: config_definitions.ExperimentConfig) -> Problems:
    config = params.trainer.optimizer_config
    if config.learning_rate.type is None:
        yield (
            "trainer.optimizer_config.learning_rate.type is None; expected warmup_constant_decay "
            "or a schedule of Model Garden's: set it in the config file"
        )
        return
    try:
        # In a graph of its own: a strategy over several workers must be built before TensorFlow
        # computes anything.
        with tf.Graph().as_default():
            optimization.build_optimizer(config, params.trainer.train_steps)
    except UserError as error:
        yield str(error)
    except (TypeError, ValueError) as error:  # Model Garden's and Keras's own words
        yield f"trainer.optimizer_config: {' '.join(str(error).split())}"


def _runtime_problems(runtime: config_definitions.RuntimeConfig) -> Problems:
    name, chosen = runtime.distribution_strategy.lower(), runtime.all_reduce_alg
    choices = ranges.ALL_REDUCE.get(name, ())
    if chosen is not None and name in devices.STRATEGIES and chosen not in choices:
        expected = " or ".join(choices) or "null"
        yield (
            f"runtime.all_reduce_alg is {chosen!r}; with distribution_strategy {name} expected "
            f"{expected}: leave it out"
        )
    if runtime.loss_scale not in (None, "dynamic") and runtime.mixed_precision_dtype != "float16":
        yield (
            f"runtime.loss_scale is {runtime.loss_scale!r}, but runtime.mixed_precision_dtype is "
            f"{runtime.mixed_precision_dtype or 'float32'}; expected it with float16 only: leave "
            "it out"
        )


def _loss_scaling_problems(params: config_definitions.ExperimentConfig, mode: str) -> Problems:
    """float16 overflows now and then: the optimizer must be one that skips such a step."""
    if params.runtime.mixed_precision_dtype != "float16" or "train" not in mode:
        return
    chosen = params.trainer.optimizer_config.optimizer
    if chosen.type not in (None, *optimization.OPTIMIZERS):
        yield (
            f"runtime.mixed_precision_dtype is float16, and optimizer.type {chosen.type} does not "
            "skip a step whose scaled loss overflows; expected one of "
            f"{', '.join(optimization.OPTIMIZERS)}: change it, or take bfloat16"
        )
    elif chosen.type is not None and not chosen.get().skip_nonfinite:
        yield (
            f"optimizer.{chosen.type}.skip_nonfinite is False, and "
            "runtime.mixed_precision_dtype is float16, whose scaled loss overflows now and then; "
            "expected True: leave it out, or take bfloat16"
        )


def _pretraining_problems(
    params: config_definitions.ExperimentConfig,
    mode: str,
    model_dir: str,
    workers: int,
    out_of_range: Collection[str],
) -> Problems:
    task = params.task
    # A run that has checkpoints of its own starts from those.
    begun = bool(model_dir) and checkpoints.exists(model_dir)
    if "train" in mode and not begun:
        yield from inherited_size.problems(params, model_dir)
    if task.model.encoder.type != _ENCODER:
        yield (
            f"task.model.encoder.type is {task.model.encoder.type!r}; expected {_ENCODER}, the "
            "only encoder that this task trains: set it in the config file"
        )
        return
    yield from _model_problems(task)
    if not task.train_data.is_training:
        yield "task.train_data.is_training is False; expected True: leave it out"
    if task.validation_data.is_training and params.trainer.validation_steps == -1:
        yield (
            "task.validation_data.is_training is True, which reads without end; expected False, "
            "or trainer.validation_steps of at least 1"
        )
    readable = True
    for name, data in _parts(task, mode):
        if any(field.startswith(f"task.{name}.") for field in out_of_range):
            readable = False
            continue
        found = list(_data_problems(name, data, task, workers))
        readable = readable and not found
        yield from found
    if readable:
        yield from _refusals(with_heads_of_data, params, mode)
        if "eval" in mode:
            yield from _split_problems(params, workers)


def _split_problems(params: config_definitions.ExperimentConfig, workers: int) -> Problems:
    """A loop of evaluation steps inside of TensorFlow that the split ends before it does."""
    trainer, data = params.trainer, params.task.validation_data
    if not trainer.eval_tf_while_loop or data.is_training or data.global_batch_size % workers:
        return
    shards = tfrecords.Manifest.load(data.input_path).shards(schema.EVAL, data.seq_length)
    share = data.global_batch_size // workers
    counts = [
        sum(shards[number].examples for number in owned)
        for owned in (sharding.worker_shards(len(shards), workers, each) for each in range(workers))
    ]
    steps = math.ceil(max(counts) / share)
    if trainer.validation_steps > steps:
        yield (
            f"trainer.validation_steps is {trainer.validation_steps}, and with "
            f"eval_tf_while_loop the split must last so long; expected at most {steps}: lower it, "
            "or leave trainer.eval_tf_while_loop out"
        )


def _model_problems(task: LargeBatchPretrainConfig) -> Problems:
    encoder = task.model.encoder.get()
    where = f"task.model.encoder.{task.model.encoder.type}"
    hidden = getattr(encoder, "hidden_size", 0)
    attention_heads = getattr(encoder, "num_attention_heads", 0)
    if hidden > 0 and attention_heads > 0 and hidden % attention_heads:
        yield (
            f"{where}.hidden_size is {hidden}; expected a multiple of its num_attention_heads "
            f"{attention_heads}, such as {_near_multiple(hidden, attention_heads)}"
        )
    if getattr(encoder, "output_range", None) is not None:
        yield (
            f"{where}.output_range is {encoder.output_range}; expected null, since masked words "
            "stand anywhere in a row: leave it out"
        )
    activations = {
        f"{where}.hidden_activation": getattr(encoder, "hidden_activation", None),
        "task.model.mlm_activation": task.model.mlm_activation,
    }
    for index, head in enumerate(task.model.cls_heads):
        activations[f"task.model.cls_heads[{index}].activation"] = head.activation
        yield from _head_problems(f"task.model.cls_heads[{index}]", head, hidden)
    for name, activation in activations.items():
        try:
            tf_utils.get_activation(activation)
        except ValueError:
            yield f"{name} is {activation!r}; expected one that Keras knows, such as gelu or tanh"


def _head_problems(where: str, head: Any, hidden_size: int) -> Problems:
    if head.name != "next_sentence":
        yield (
            f"{where}.name is {head.name!r}; expected next_sentence, the only head that this task "
            "trains: rename it, or leave it out"
        )
        return
    if head.inner_dim != hidden_size:
        yield (
            f"task.model.cls_heads inner_dim is {head.inner_dim}; expected the encoder's "
            f"hidden_size {hidden_size}, since this head's pooler is the one exported"
        )
    if head.num_classes > 2:
        yield (
            f"{where}.num_classes is {head.num_classes}; expected 2: the second segment follows "
            "the first, or it does not"
        )


def _data_problems(
    name: str, data: PretrainDataConfig, task: LargeBatchPretrainConfig, workers: int
) -> Problems:
    encoder = task.model.encoder.get()
    positions = getattr(encoder, "max_position_embeddings", data.seq_length)
    if data.seq_length > positions:
        yield (
            f"task.{name}.seq_length {data.seq_length} is longer than the encoder's "
            f"max_position_embeddings {positions}"
        )
    predictions = data.max_predictions_per_seq
    for index, head in enumerate(task.model.cls_heads):
        if head.cls_token_idx >= data.seq_length:
            yield (
                f"task.model.cls_heads[{index}].cls_token_idx is {head.cls_token_idx}; expected a "
                f"place in rows of task.{name}.seq_length {data.seq_length}, such as [CLS]'s, 0"
            )
    if predictions is not None and predictions > data.seq_length:
        yield (
            f"task.{name}.max_predictions_per_seq is {predictions}; expected at most its "
            f"seq_length {data.seq_length}"
        )
    if not data.input_path:
        yield NoShards(
            f"task.{name}.input_path is empty; give the folder that tfrecords.build wrote, for "
            f"example --params_override=task.{name}.input_path=shards"
        )
        return
    try:
        manifest = check_shards(data, encoder.vocab_size)
    except UserError as error:
        yield str(error)
        return
    if manifest.next_sentence and getattr(encoder, "type_vocab_size", 2) < 2:
        yield (
            f"the encoder's type_vocab_size is {encoder.type_vocab_size}, but {data.input_path} "
            "holds segment pairs; expected at least 2"
        )
    yield from shard_problems(manifest, data, workers)


def _near_multiple(value: int, divisor: int) -> int:
    return max(1, round(value / divisor)) * divisor


def _parts(task: Any, mode: str) -> list[tuple[str, Any]]:
    """The data configs that a mode reads, by name."""
    parts = (("train_data", ranges.TRAIN), ("validation_data", ranges.EVAL))
    return [(name, getattr(task, name)) for name, part in parts if part in mode]


def _refusals(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Problems:
    """The words of the `UserError` that a check raises, if it raises one."""
    try:
        function(*args, **kwargs)
    except UserError as error:
        yield str(error)
