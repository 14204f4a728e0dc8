"""A gradient of the global batch, however the batch was cut: micro-batches, replicas, workers.

Each piece contributes a share of the gradient; the shares are summed over the micro-batches in
one `tf.while_loop`, then over the replicas in one all-reduce, and only then does anything look at
the result. Forward and backward of all micro-batches can be one XLA program; the collectives lie
outside of it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from official_bert import dropout, noise_scale
from official_bert.loss_scaling import LossScale
from tf_lans import compiled_update

Tensors = Mapping[str, tf.Tensor]
# From a micro-batch, what all of them share, and the loss scale to the gradients and the scalars
# that are summed.
Share = Callable[[Tensors, Tensors, tf.Tensor], tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is carried out; none of it changes what the step computes, rounding aside.

    Attributes:
      compiled: whether forward and backward are one XLA program.
      communication: options of the gradients' all-reduce, or None for the strategy's own.
      loss_scale: for float16; None for 1.
    """

    compiled: bool = False
    communication: tf.distribute.experimental.CommunicationOptions | None = None
    loss_scale: LossScale | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summed:
    """What the pieces of a batch add up to, equal on every replica.

    Attributes:
      gradients: of the global batch, the loss scale taken out.
      scalars: the sums of the shares' scalars.
      piece_gradient_norm: sqrt(N sum_i ||c_i||^2) over the N pieces with shares c_i, the root mean
        square norm of the gradients that single pieces estimate; None for one piece.
    """

    gradients: list[tf.Tensor]
    scalars: list[tf.Tensor]
    piece_gradient_norm: tf.Tensor | None


def all_reduce_sum(values: Tensors) -> dict[str, tf.Tensor]:
    """Sums of scalars over all replicas, in one collective."""
    context = tf.distribute.get_replica_context()
    stacked = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(list(values.values())))
    return dict(zip(values, tf.unstack(stacked), strict=True))


def summed(
    share: Share,
    inputs: Tensors,
    shared: Tensors,
    variables: Sequence[tf.Variable],
    num_scalars: int,
    micro_batch_size: int,
    settings: StepSettings,
) -> Summed:
    """Gradients and scalars of the global batch; called in a replica context.

    Args:
      share: from (a micro-batch, `shared`, the loss scale) to the gradients of the micro-batch's
        scaled share of the loss and `num_scalars` float32 scalars.
      inputs: this replica's part of the batch; the first axis of every tensor is the batch.
      shared: scalars that every micro-batch gets, such as the global denominators.
      variables: what the gradients belong to.
      num_scalars: see `share`.
      micro_batch_size: examples in a micro-batch; divides the part. 0 takes it whole.
      settings: how to do it.
    """
    context = tf.distribute.get_replica_context()
    part = next(iter(inputs.values())).shape[0]
    micro_batches = part // micro_batch_size if micro_batch_size else 1
    pieces = micro_batches * context.num_replicas_in_sync
    # Dropout may run without a key, as in a step that no trainer drives.
    key = dropout.active_key()
    arguments = {"inputs": dict(inputs), "shared": dict(shared), "scale": tf.ones([])}
    if settings.loss_scale is not None:
        arguments["scale"] = settings.loss_scale.value.read_value()
    if key is not None:
        arguments["key"] = key

    def terms(given: dict[str, Any]) -> list[tf.Tensor]:
        def one(index: tf.Tensor, batch: Tensors) -> list[tf.Tensor]:
            gradients, scalars = _keyed_share(share, given, index, batch)
            if pieces > 1:
                squares = compiled_update.squared_norms(gradients)
                scalars = [*scalars, tf.add_n([tf.cast(each, tf.float32) for each in squares])]
            return [*gradients, *scalars]

        if micro_batches == 1:
            return one(tf.constant(0), given["inputs"])
        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        zeros += [tf.zeros([])] * (num_scalars + (pieces > 1))
        return accumulate(one, given["inputs"], micro_batches, zeros)

    # One function a trace: a replica's captures are its own copies of the variables.
    run = tf.function(terms, jit_compile=True, autograph=False) if settings.compiled else terms
    found = run(arguments)
    gradients, scalars = found[: len(variables)], found[len(variables) :]
    return _reduced(gradients, scalars, pieces, arguments["scale"], settings)


def _keyed_share(
    share: Share, given: dict[str, Any], index: tf.Tensor, batch: Tensors
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    key = dropout.folded(given["key"], index) if "key" in given else None
    with dropout.keyed(key):
        gradients, scalars = share(batch, given["shared"], given["scale"])
    return [tf.convert_to_tensor(gradient) for gradient in gradients], list(scalars)


def _reduced(
    gradients: Sequence[tf.Tensor],
    scalars: Sequence[tf.Tensor],
    pieces: int,
    scale: tf.Tensor,
    settings: StepSettings,
) -> Summed:
    context = tf.distribute.get_replica_context()
    numbered = {str(index): scalar for index, scalar in enumerate(scalars)}
    totals = list(all_reduce_sum(numbered).values())
    if context.num_replicas_in_sync > 1:
        gradients = context.all_reduce(
            tf.distribute.ReduceOp.SUM, list(gradients), options=settings.communication
        )
    piece_norm = None
    if pieces > 1:
        piece_norm = noise_scale.piece_gradient_norm(totals.pop(), pieces) / scale
    if settings.loss_scale is not None:
        gradients = [gradient / tf.cast(scale, gradient.dtype) for gradient in gradients]
    return Summed(gradients=list(gradients), scalars=totals, piece_gradient_norm=piece_norm)


def accumulate(
    step: Callable[[tf.Tensor, Tensors], Sequence[tf.Tensor]],
    inputs: Tensors,
    count: int,
    zeros: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Sum of `step` over the micro-batches of a batch, in one `tf.while_loop`.

    Memory does not grow with the number of micro-batches: the body is one graph, and the sums
    are its loop variables.

    Args:
      step: from the number of a micro-batch and its tensors to the terms.
      inputs: tensors whose first axis is the batch.
      count: the number of micro-batches; divides the batch.
      zeros: what the sums begin with, of the terms' shapes and dtypes.
    """
    cut = {
        name: tf.reshape(tensor, [count, tensor.shape[0] // count, *tensor.shape[1:]])
        for name, tensor in inputs.items()
    }

    def body(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        terms = step(index, {name: tensor[index] for name, tensor in cut.items()})
        return index + 1, *(total + term for total, term in zip(sums, terms, strict=True))

    _, *sums = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (tf.constant(0), *zeros),
        parallel_iterations=1,
        maximum_iterations=count,
    )
    return sums


def of_all_replicas(values: tf.Tensor) -> tf.Tensor:
    """The replicas' tensors end to end, on every replica of every worker.

    By a sum, the one collective that every strategy has: gathering fails inside a step of
    `MultiWorkerMirroredStrategy`.

    Args:
      values: (rows, ...), of one shape on all replicas.

    Returns:
      (replicas * rows, ...), in the order of the replicas.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return values
    place = tf.range(replicas) == context.replica_id_in_sync_group
    place = tf.reshape(place, [replicas, *[1] * values.shape.rank])
    spread = tf.where(place, values[None], tf.zeros_like(values)[None])
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, spread)
    return tf.reshape(total, [-1, *values.shape[1:]])


def apply(
    optimizer: tf_keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[tf.Variable],
    loss_scale: LossScale | None = None,
) -> None:
    """One update from gradients that are summed already; a loss scale learns how it went.

    Args:
      optimizer: ours, or one of Model Garden's legacy ones.
      gradients: of the global batch, equal on every replica.
      variables: what they belong to.
      loss_scale: for float16; needs an optimizer that counts `skipped_steps`.
    """
    legacy = isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer)
    summed_already = (
        {"experimental_aggregate_gradients": False}
        if legacy
        else {"skip_gradients_aggregation": True}
    )
    bound = getattr(optimizer, "gradient_clip_norm", 0.0) if legacy else 0.0
    if bound:  # Model Garden's AdamWeightDecay clips only what it has summed itself
        gradients, _ = tf.clip_by_global_norm(list(gradients), bound)
    before = optimizer.skipped_steps.read_value() if loss_scale is not None else None
    optimizer.apply_gradients(list(zip(gradients, variables, strict=True)), **summed_already)
    if loss_scale is not None:
        loss_scale.update(optimizer.skipped_steps.read_value() == before)
