"""The XLA programs that update all blocks of a model, one program per distinct block shape.

TensorFlow only; both Kerases come here. A program reads and writes the variables in place,
through their resource handles, so that nothing is copied at the assignment and any wrapper
(mirrored, auto-cast) works. Inside a step that the user compiles as a whole, the programs
dissolve into it. They hold no collective: `distributed_update` brings the gradient all-reduced.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from tf_lans import update_rules
from tf_lans.hyperparameters import Hyperparameters, LayerAdaptiveHyperparameters
from tf_lans.update_rules import Block, Step, Treatment, Updated

# The most elements of a piece of a block on a CPU: seven arrays of them stay in a core's second
# cache, and XLA gives the whole loop to one core, where it is cheapest; others take other blocks.
LARGEST_PIECE = 16_384
# A running sum of more equal float32 terms loses more than two of its seven digits. Rows of short
# ones, and their sums, keep them.
_LONGEST_ROW = 2**12
_SHORT_ROW = 1024

NAMESPACE = types.SimpleNamespace(
    sqrt=tf.sqrt,
    square=tf.square,
    where=tf.where,
    expm1=tf.math.expm1,
    maximum=tf.maximum,
    minimum=tf.minimum,
)


def compute_dtype(dtype: Any) -> tf.DType:
    """float64 for float64 variables, float32 for every other."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def stored_dtype(variable: tf.Variable) -> tf.DType:
    """The dtype that the variable is stored in, auto-cast or not."""
    return tf.as_dtype(getattr(variable, "true_dtype", variable.dtype))


def dense(gradient: Any) -> tf.Tensor:
    """The gradient as a dense tensor; the values of duplicate indices are summed."""
    return tf.convert_to_tensor(gradient)


def plain_sums(*arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The sum of each array."""
    return tuple(tf.reduce_sum(array) for array in arrays)


def single_pass_sums(*arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The sum of each array, in one pass over memory where XLA compiles it.

    Rows are summed first, then the row sums: one running float32 sum over a large embedding
    would lose three digits. Long rows are cut into short ones, and so are many rows' sums.
    """
    shape = arrays[0].shape
    if not shape.is_fully_defined() or shape.rank < 1 or shape.num_elements() == 0:
        return plain_sums(*arrays)
    if shape[-1] > _LONGEST_ROW:
        # XLA's own reduction in parts, on CPUs up to TensorFlow 2.20, is gone in 2.21.
        return single_pass_sums(*(_in_short_rows(array) for array in arrays))
    # XLA makes one running sum of a single array's row sums and their sum, not of two arrays'.
    together = arrays if len(arrays) > 1 else arrays * 2
    add = _adder(len(together), arrays[0].dtype)
    zeros = [tf.zeros([], arrays[0].dtype)] * len(together)
    row_sums = xla.variadic_reduce(together, zeros, (shape.rank - 1,), add)
    many = row_sums[0].shape.num_elements() > _LONGEST_ROW
    finish = single_pass_sums if many else plain_sums
    return finish(*(tf.reshape(sums, [-1]) for sums in row_sums[: len(arrays)]))


def _in_short_rows(array: tf.Tensor) -> tf.Tensor:
    """All elements in rows of about `_SHORT_ROW`, with zeros after the last one where need be."""
    elements = array.shape.num_elements()
    fitting = range(_SHORT_ROW, _SHORT_ROW // 4, -1)
    row = next((length for length in fitting if elements % length == 0), None)
    if row is not None:  # filling up copies the array
        return tf.reshape(array, [elements // row, row])
    padded = tf.pad(tf.reshape(array, [elements]), [[0, -elements % _SHORT_ROW]])
    return tf.reshape(padded, [-(-elements // _SHORT_ROW), _SHORT_ROW])


@functools.cache
def _adder(count: int, dtype: tf.DType) -> Any:
    def add(*terms: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(left + right for left, right in zip(terms[:count], terms[count:], strict=True))

    return tf.function(add).get_concrete_function(*[tf.TensorSpec([], dtype)] * (2 * count))


def squared_norms(arrays: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """||g||^2 of each array in float32, or float64 for a float64 one: one pass over memory."""
    wide = [tf.cast(array, compute_dtype(array.dtype)) for array in arrays]
    if not wide:
        return []
    # Inside a program that XLA compiles, this op counts as none of the devices. TensorFlow's own
    # kernels share one array among all cores; XLA would make their op one slow running sum.
    devices = ["CPU", "GPU"]
    in_program = tf.raw_ops.DeviceIndex(device_names=devices) >= len(devices)
    return tf.cond(
        in_program,
        lambda: [_sum_of_squares(array.shape, array.dtype)(array) for array in wide],
        lambda: [2.0 * tf.nn.l2_loss(array) for array in wide],
    )


@functools.cache
def _sum_of_squares(shape: tf.TensorShape, dtype: tf.DType) -> Any:
    """One traced function for all blocks of a shape: in most graphs it never runs."""

    def total(array: tf.Tensor) -> tf.Tensor:
        return single_pass_sums(tf.square(array))[0]

    traced = tf.function(total, autograph=False)
    return traced.get_concrete_function(tf.TensorSpec(shape, dtype))


_whole_blocks = contextvars.ContextVar("whole_blocks", default=False)


@contextlib.contextmanager
def whole_blocks() -> Iterator[None]:
    """What is traced inside is the update of an accelerator, wherever the variables live.

    For reading on a CPU the program that a TPU is given.

    Example:
        >>> with whole_blocks():
        ...     on_cpu(tf.Variable(1.0))
        False
    """
    token = _whole_blocks.set(True)
    try:
        yield
    finally:
        _whole_blocks.reset(token)


def on_cpu(variable: tf.Variable) -> bool:
    """Whether the variable is updated as one that lives on a CPU."""
    device_type = tf.DeviceSpec.from_string(variable.device).device_type
    return device_type == "CPU" and not _whole_blocks.get()


@functools.cache
def block_program(
    rule: Callable[..., Updated],
    settings: Hyperparameters,
    treatment: Treatment,
    shape: tuple[int, ...],
    dtype: tf.DType,
    on_cpu: bool,
) -> Callable[..., None]:
    """The program of one kind of block: it reads and assigns x, m and v.

    Args:
        rule: a function of `update_rules`.
        settings: the optimizer's hyper-parameters, constants of the program.
        treatment: the blocks' flags.
        shape: the blocks' shape.
        dtype: the variables' dtype; m and v are float32, or float64 for float64.
        on_cpu: whether the blocks live on a CPU.

    Returns:
        A function of the handles of x, m, v, of the gradient, and of the scalars learning_rate,
        number, squared_norm, clip and finite. Where `finite` does not hold, nothing changes.
    """
    state_dtype = compute_dtype(dtype)
    piece = piece_elements(math.prod(shape)) if on_cpu and settings.jit_compile else None

    def update(
        x_handle: tf.Tensor,
        m_handle: tf.Tensor,
        v_handle: tf.Tensor,
        gradient: tf.Tensor,
        learning_rate: tf.Tensor,
        number: tf.Tensor,
        squared: tf.Tensor,
        clip: tf.Tensor,
        finite: tf.Tensor,
    ) -> None:
        stored = Block(
            _read(x_handle, shape, dtype),
            _read(m_handle, shape, state_dtype),
            _read(v_handle, shape, state_dtype),
            gradient,
        )
        scalars = (learning_rate, number, squared, clip)
        step = Step(*(tf.cast(scalar, state_dtype) for scalar in scalars))

        def advance(block: Block, sums: Callable[..., tuple[tf.Tensor, ...]]) -> Updated:
            wide = Block(*(tf.cast(array, state_dtype) for array in block))
            updated = rule(NAMESPACE, sums, wide, step, treatment, settings)
            return Updated(tf.cast(updated.x, dtype), updated.m, updated.v)

        if piece is not None:
            known = _sums_of_the_whole(lambda sums: advance(stored, sums))
            new = _in_pieces(lambda part: advance(part, lambda *_: known), stored, finite, piece)
        else:
            sums = single_pass_sums if settings.jit_compile else plain_sums
            new = Updated(
                *(
                    tf.where(finite, after, before)
                    for after, before in zip(advance(stored, sums), stored[:3], strict=True)
                )
            )
        for handle, value in zip((x_handle, m_handle, v_handle), new, strict=True):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)

    return _compiled(update) if settings.jit_compile else update


def _sums_of_the_whole(advance: Callable[[Any], Updated]) -> tuple[tf.Tensor, ...]:
    """The sums that a rule asks for over a whole block; the rest of its result is not computed."""
    known: list[tf.Tensor] = []

    def sums(*arrays: tf.Tensor) -> tuple[tf.Tensor, ...]:
        known.extend(single_pass_sums(*arrays))
        return tuple(known)

    advance(sums)
    return tuple(known)


def piece_elements(elements: int) -> int | None:
    """How many elements of a block a CPU updates at a time; None for all.

    Pieces are equal: XLA would copy the whole block for the sake of a shorter last one. A number
    of elements without a fitting divisor, prime for instance, makes one piece, as a small one does.

    Example:
        >>> piece_elements(768 * 3072), piece_elements(30522 * 768), piece_elements(768)
        (16384, 15261, None)
    """
    if elements <= LARGEST_PIECE:
        return None
    fitting = range(LARGEST_PIECE, LARGEST_PIECE // 8, -1)
    return next((piece for piece in fitting if elements % piece == 0), None)


def _in_pieces(
    advance: Callable[[Block], Updated], block: Block, finite: tf.Tensor, piece: int
) -> tuple[tf.Tensor, ...]:
    """The block's new x, m and v, a cache-sized piece at a time; the old ones if not `finite`.

    A CPU moves x, m, v and g through its memory once this way, where XLA would emit one loop
    over all of them for each of the three results. And a loop that writes the buffer it reads
    falls back to scalar instructions (LLVM cannot tell that element from its neighbours), so a
    piece is copied out, updated into scratch memory, and copied back. Only a conditional keeps
    XLA from fusing the three, which is why `finite` is asked of each piece.
    """
    shape, elements = block.x.shape, block.x.shape.num_elements()
    *state, g = (tf.reshape(array, [elements]) for array in block)

    def one(index: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        start = [index * piece]
        part = Block(*(xla.dynamic_slice(array, start, [piece]) for array in (*state, g)))
        new = tf.cond(finite, lambda: tuple(advance(part)), lambda: tuple(part[:3]))
        written = (
            xla.dynamic_update_slice(array, values, start)
            for array, values in zip(state, new, strict=True)
        )
        return (index + 1, *written)

    pieces = elements // piece
    _, *state = tf.while_loop(
        lambda index, *_: index < pieces, one, (tf.constant(0, tf.int64), *state)
    )
    return tuple(tf.reshape(array, shape) for array in state)


@functools.cache
def ratio_program(
    settings: LayerAdaptiveHyperparameters,
    treatment: Treatment,
    shape: tuple[int, ...],
    dtype: tf.DType,
) -> Callable[..., tf.Tensor]:
    """The program that reads x, m and v of one kind of block and returns its trust ratio.

    Arguments as in `block_program`. Returns a function of the three handles and of t.
    """
    state_dtype = compute_dtype(dtype)
    sums = single_pass_sums if settings.jit_compile else plain_sums

    def ratio(
        x_handle: tf.Tensor, m_handle: tf.Tensor, v_handle: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        state = Updated(
            tf.cast(_read(x_handle, shape, dtype), state_dtype),
            _read(m_handle, shape, state_dtype),
            _read(v_handle, shape, state_dtype),
        )
        value = update_rules.momentum_trust_ratio(
            NAMESPACE, sums, state, tf.cast(number, state_dtype), treatment, settings
        )
        return tf.cast(value, tf.float32)

    return _compiled(ratio) if settings.jit_compile else ratio


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.function(function, jit_compile=True, autograph=False)


def _read(handle: tf.Tensor, shape: tuple[int, ...], dtype: tf.DType) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
    # Not `ensure_shape`: its XLA form declares every dimension anew.
    value.set_shape(shape)
    return value
