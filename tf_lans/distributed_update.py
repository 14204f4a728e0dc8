"""One step over all blocks and all replicas: decide, clip, update, count; or accumulate.

TensorFlow only; both Kerases come here with their variables and this step's gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_lans import compiled_update, update_rules
from tf_lans.hyperparameters import Hyperparameters, LayerAdaptiveHyperparameters
from tf_lans.update_rules import Treatment, Updated


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockVariables:
    """The variables of one block, the gradient aside, and what is decided for it.

    Attributes:
        index: its place among all blocks.
        x: the model's variable.
        m: its first moment.
        v: its second moment.
        average: its exponential moving average, or None.
        constraint: a projection applied after the update, or None.
        treatment: the block's flags.
    """

    index: int
    x: tf.Variable
    m: tf.Variable
    v: tf.Variable
    average: tf.Variable | None
    constraint: Callable[[tf.Tensor], tf.Tensor] | None
    treatment: Treatment


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """How the exponential moving averages of the weights go on.

    Attributes:
        momentum: the weight of the old average, a scalar.
        overwrite: whether the weights become their averages after this update, a bool scalar,
            or None for never.
    """

    momentum: Any
    overwrite: tf.Tensor | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """Scalar integer variables: updates (or micro-steps) made, and steps skipped.

    Attributes:
        iterations: the updates made, or the micro-steps where gradients are accumulated.
        skipped: the steps skipped for a non-finite gradient.
        stride: micro-steps to an update; a skipped update takes all of them back.
    """

    iterations: tf.Variable
    skipped: tf.Variable
    stride: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientRecord:
    """What is kept of each step's gradient for diagnostics; no checkpoint holds it.

    Attributes:
        squared_norms: ||g||^2 of each block in the last step, of the global batch, before
            clipping; 0 for a block without gradient. float32, shape [blocks].
        skipped_in_a_row: the steps skipped since the last update, a scalar integer.
    """

    squared_norms: tf.Variable
    skipped_in_a_row: tf.Variable


def gradient_record(blocks: int, distribution: tf.distribute.Strategy) -> GradientRecord:
    """An empty record of so many blocks, with a copy on each replica of the strategy."""
    mirrored = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    # Within a replica, as where an optimizer is built by its first step, no scope can be entered.
    with contextlib.nullcontext() if in_replica else distribution.scope():
        return GradientRecord(
            squared_norms=tf.Variable(
                tf.zeros([blocks]), name="squared_gradient_norms", **mirrored
            ),
            skipped_in_a_row=tf.Variable(0, dtype=tf.int64, name="skipped_in_a_row", **mirrored),
        )


def last_gradient_norm(record: GradientRecord) -> tf.Tensor:
    """The norm of all blocks' gradients together in the last step."""
    return tf.sqrt(tf.reduce_sum(_local_copy(record.squared_norms).read_value()))


def trust_ratios(
    settings: LayerAdaptiveHyperparameters, blocks: dict[str, BlockVariables], iterations: Any
) -> dict[str, tf.Tensor]:
    """The momentum term's trust ratio of each block that adapts; see `update_rules`."""
    # A program that was given a variable would go on reading the one it was traced with.
    number = tf.convert_to_tensor(iterations)
    return {
        path: compiled_update.ratio_program(
            settings, block.treatment, tuple(block.x.shape), compiled_update.stored_dtype(block.x)
        )(*(_local_copy(each).handle for each in (block.x, block.m, block.v)), number)
        for path, block in blocks.items()
        if block.treatment.adapts
    }


def squared_weight_norms(variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """||x||^2 of each variable, outside of its replicas that of the first of its copies."""
    return compiled_update.squared_norms([_local_copy(each).read_value() for each in variables])


def _local_copy(variable: tf.Variable) -> tf.Variable:
    """The variable itself, or outside of its replicas the first of its equal copies."""
    distributed = isinstance(variable, tf.distribute.DistributedValues)
    if distributed and tf.distribute.in_cross_replica_context():
        return variable.values[0]
    return variable


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientClipping:
    """Keras's three ways to clip, one at most, applied once, to the gradient of the global batch.

    Attributes:
        clipnorm: the largest norm of a block's gradient, or None.
        global_clipnorm: the largest norm of all blocks' gradients together, or None.
        clipvalue: the largest absolute value of an element, or None.
    """

    clipnorm: float | None
    global_clipnorm: float | None
    clipvalue: float | None


def check_replica_context(optimizer: Any) -> None:
    """Refuses a step that tf.distribute could not sum over replicas.

    Raises:
        RuntimeError: the call comes from a cross-replica context, or the optimizer was created
            outside the scope of a strategy with several replicas.
    """
    name = type(optimizer).__name__
    if tf.distribute.in_cross_replica_context():
        raise RuntimeError(
            f"{name} was applied in a cross-replica context: call it inside strategy.run(...)"
        )
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1 and optimizer._distribution_strategy is not strategy:
        raise RuntimeError(
            f"{name} was created outside the scope of the {type(strategy).__name__} that runs it: "
            "create it under `with strategy.scope():`"
        )


def update_in_replica(
    rule: Callable[..., Updated],
    settings: Hyperparameters,
    blocks: Sequence[BlockVariables],
    gradients: Sequence[Any],
    *,
    learning_rate: tf.Tensor,
    updates_made: tf.Tensor,
    clipping: GradientClipping,
    averaging: MovingAverage | None,
    counters: Counters,
    record: GradientRecord | None = None,
) -> None:
    """Updates all blocks; called in a replica context, on the all-reduced gradient.

    Every replica comes to the same decisions from the same gradient, then updates its own copy
    of the variables.

    Args:
        rule: a function of `update_rules`.
        settings: the optimizer's hyper-parameters.
        blocks: the blocks that have a gradient.
        gradients: one for each, dense or IndexedSlices.
        learning_rate: eta, a scalar.
        updates_made: the updates before this one, an integer scalar; t is one more.
        clipping: the gradient clipping asked for.
        averaging: the moving averages, or None.
        counters: the variables that count this step.
        record: keeps the gradients' norms, if not None.
    """
    dense_gradients = [compiled_update.dense(gradient) for gradient in gradients]
    squared_norms = compiled_update.squared_norms(dense_gradients)
    # Always true, but XLA must not know: see `compiled_update._in_pieces`.
    finite = tf.convert_to_tensor(updates_made) >= 0
    if settings.skip_nonfinite:
        finite = tf.reduce_all(tf.stack([tf.math.is_finite(square) for square in squared_norms]))
    recorded = None
    if record is not None:
        recorded = tf.scatter_nd(
            [[block.index] for block in blocks],
            tf.stack([tf.cast(square, tf.float32) for square in squared_norms]),
            record.squared_norms.shape,
        )
    if clipping.clipvalue:
        bound = clipping.clipvalue
        dense_gradients = [tf.clip_by_value(each, -bound, bound) for each in dense_gradients]
        squared_norms = compiled_update.squared_norms(dense_gradients)
    widest = tf.float64 if any(s.dtype == tf.float64 for s in squared_norms) else tf.float32
    clips = update_rules.clip_factors(
        compiled_update.NAMESPACE,
        [tf.cast(square, widest) for square in squared_norms],
        clipnorm=clipping.clipnorm,
        global_clipnorm=clipping.global_clipnorm,
    )
    per_block = [
        (gradient, square, tf.cast(clip, square.dtype))
        for gradient, square, clip in zip(dense_gradients, squared_norms, clips, strict=True)
    ]
    tf.__internal__.distribute.interim.maybe_merge_call(
        functools.partial(
            _update_across_replicas, rule, settings, blocks, averaging, counters, record
        ),
        tf.distribute.get_strategy(),
        recorded,
        per_block,
        (tf.convert_to_tensor(learning_rate), tf.convert_to_tensor(updates_made) + 1),
        finite,
    )


def accumulate_in_replica(
    accumulators: Sequence[tf.Variable],
    gradients: Sequence[Any],
    *,
    micro_steps_made: tf.Variable,
    micro_steps: int,
    update: Callable[[list[tf.Tensor]], None],
) -> None:
    """Adds a micro-step's gradients; after the last of a window, updates with their mean.

    Called in a replica context, before any all-reduce. The condition is taken across replicas,
    since a branch taken within one could not all-reduce.

    Args:
        accumulators: one variable for each gradient, local to the replica.
        gradients: this replica's, dense or IndexedSlices.
        micro_steps_made: the micro-steps before this one; `update` counts a window's last one.
        micro_steps: the micro-steps of a window.
        update: all-reduces a list of gradients and updates with them; called in a replica context.
    """
    for accumulator, gradient in zip(accumulators, gradients, strict=True):
        accumulator.assign_add(tf.cast(compiled_update.dense(gradient), accumulator.dtype))

    def close_window() -> None:
        update([accumulator.read_value() / micro_steps for accumulator in accumulators])
        for accumulator in accumulators:
            accumulator.assign(tf.zeros(accumulator.shape, accumulator.dtype))

    def step(distribution: tf.distribute.Strategy) -> None:
        def finish() -> None:
            if tf.distribute.in_cross_replica_context():
                distribution.extended.call_for_each_replica(close_window)
            else:
                close_window()

        def go_on() -> None:
            micro_steps_made.assign_add(1)

        tf.cond((micro_steps_made + 1) % micro_steps == 0, finish, go_on)

    tf.__internal__.distribute.interim.maybe_merge_call(step, tf.distribute.get_strategy())


def _update_across_replicas(
    rule: Callable[..., Updated],
    settings: Hyperparameters,
    blocks: Sequence[BlockVariables],
    averaging: MovingAverage | None,
    counters: Counters,
    record: GradientRecord | None,
    distribution: tf.distribute.Strategy,
    recorded: tf.Tensor | None,
    per_block: Sequence[tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
    scalars: tuple[tf.Tensor, tf.Tensor],
    finite: tf.Tensor,
) -> None:
    """Updates every block on each device that holds a copy of it, or skips the step."""
    for block, (gradient, square, clip) in zip(blocks, per_block, strict=True):
        distribution.extended.update(
            block.x,
            functools.partial(_update_block, rule, settings, block, averaging),
            args=(block.m, block.v, block.average, gradient, square, clip, scalars, finite),
            group=False,
        )

    def assign(variable: tf.Variable, value: Callable[..., tf.Tensor], given: tf.Tensor) -> None:
        distribution.extended.update(
            variable, lambda copy, each: copy.assign(value(copy, each)), args=(given,), group=False
        )

    def count(variable: tf.Variable, amount: tf.Tensor) -> None:
        assign(variable, lambda copy, each: copy + tf.cast(each, copy.dtype), amount)

    # Every replica decided alike, from the same all-reduced gradient.
    decided = distribution.experimental_local_results(finite)[0]
    count(counters.iterations, tf.where(decided, 1, 1 - counters.stride))
    count(counters.skipped, tf.logical_not(decided))
    if record is not None:
        assign(record.squared_norms, lambda _, squares: squares, recorded)
        assign(
            record.skipped_in_a_row,
            lambda copy, each: (copy + 1) * tf.cast(tf.logical_not(each), copy.dtype),
            decided,
        )


def _update_block(
    rule: Callable[..., Updated],
    settings: Hyperparameters,
    block: BlockVariables,
    averaging: MovingAverage | None,
    x: tf.Variable,
    m: tf.Variable,
    v: tf.Variable,
    average: tf.Variable | None,
    gradient: tf.Tensor,
    square: tf.Tensor,
    clip: tf.Tensor,
    scalars: tuple[tf.Tensor, tf.Tensor],
    finite: tf.Tensor,
) -> None:
    """One block on one device; x, m, v and average are that device's copies."""
    learning_rate, number = scalars
    program = compiled_update.block_program(
        rule,
        settings,
        block.treatment,
        tuple(x.shape),
        compiled_update.stored_dtype(x),
        compiled_update.on_cpu(x),
    )
    program(x.handle, m.handle, v.handle, gradient, learning_rate, number, square, clip, finite)
    if average is not None and averaging is not None:
        _update_average(x, average, finite, averaging)
    if block.constraint is not None:
        old = x.read_value()
        x.assign(tf.where(finite, tf.cast(block.constraint(old), old.dtype), old))


def _update_average(
    x: tf.Variable, average: tf.Variable, finite: tf.Tensor, averaging: MovingAverage
) -> None:
    old = average.read_value()
    values = x.read_value()
    momentum = tf.cast(averaging.momentum, old.dtype)
    new = momentum * old + (1 - momentum) * tf.cast(values, old.dtype)
    average.assign(tf.where(finite, new, old))
    if averaging.overwrite is not None:
        overwritten = tf.where(averaging.overwrite, tf.cast(new, values.dtype), values)
        x.assign(tf.where(finite, overwritten, values))
