"""The algorithms, one pure function each, of the arrays of one block.

A block is one trainable variable. Notation, beside the paper (Zheng, Lin, Zha, Li, "Accelerated
Large Batch Optimization of BERT Pretraining in 54 minutes", arXiv 2006.13484):

    x, m, v, g   the block's values, its two moments, its gradient
    eta, t       the learning rate and the number of this update: 1, 2, ...
    lambda       the weight decay, 0 for a block excluded from it
    phi          the identity, or a clip of ||x|| to bounds

Arrays are float32, or float64 throughout: the caller casts. Every function takes the array
namespace `xp` (NumPy itself will do) and, where it needs norms, `sums`, a function of several
arrays that returns the sum of each, so that XLA can take them all in one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tf_lans.hyperparameters import (
    Hyperparameters,
    LANSHyperparameters,
    LayerAdaptiveHyperparameters,
)

Array = Any
Sums = Callable[..., tuple[Array, ...]]

# The longest row that a `Sums` may add up in one running sum: one of more float32 terms could lose
# more than three of its seven digits.
LONGEST_ROW = 2**16


class ArrayNamespace(Protocol):
    """The functions the rules need; NumPy, JAX's and Keras's namespaces all have them."""

    sqrt: Callable[..., Array]
    square: Callable[..., Array]
    where: Callable[..., Array]
    expm1: Callable[..., Array]
    maximum: Callable[..., Array]
    minimum: Callable[..., Array]


class Block(NamedTuple):
    """One block's arrays, all of one shape and dtype."""

    x: Array
    m: Array
    v: Array
    g: Array


class Step(NamedTuple):
    """What is known of this update before it begins: scalars of the block's dtype.

    Attributes:
        learning_rate: eta_t.
        number: t, from 1.
        squared_norm: ||g||^2 of the gradient as it came, before `clip`.
        clip: the factor that gradient clipping puts on g, 1 without clipping.
    """

    learning_rate: Array
    number: Array
    squared_norm: Array
    clip: Array


class Treatment(NamedTuple):
    """What the user's patterns decide for a block, fixed when it is built."""

    decays: bool
    adapts: bool


class Updated(NamedTuple):
    """The block's new values."""

    x: Array
    m: Array
    v: Array


def lans(
    xp: ArrayNamespace,
    sums: Sums,
    block: Block,
    step: Step,
    treatment: Treatment,
    settings: LANSHyperparameters,
) -> Updated:
    """One update of LANS, Algorithm 2 of the paper.

        g~ = g / ||g||
        m  = beta_1 m + (1 - beta_1) g~
        v  = beta_2 v + (1 - beta_2) g~^2
        m^ = m / (1 - beta_1^t),  v^ = v / (1 - beta_2^t)
        r  = m^ / (sqrt(v^) + epsilon),  c = g~ / (sqrt(v^) + epsilon)
        d  = phi(||x||) [ beta_1 (r + lambda x) / ||r + lambda x||
                          + (1 - beta_1) (c + lambda x) / ||c + lambda x|| ]
        x  = x - eta d

    Without `settings.nesterov` the second half of d and the factor beta_1 of the first are
    gone; without `settings.normalize_gradients` g~ = g; without both this is `lamb`, bit for bit.
    """
    if settings.normalize_gradients:
        g = _normalized(xp, block.g, step.squared_norm)
    else:
        g = block.g * step.clip
    if not settings.nesterov:
        return _lamb(xp, sums, block._replace(g=g), step, treatment, settings)
    m, v, m_hat, denominator = _moments(xp, block._replace(g=g), step, settings)
    decay = _decay(treatment, settings)
    r_decayed = m_hat / denominator + decay * block.x
    c_decayed = g / denominator + decay * block.x
    r_ratio, c_ratio = _trust_ratios(xp, sums, block.x, (r_decayed, c_decayed), treatment, settings)
    a = settings.beta_1 * r_ratio
    b = (1.0 - settings.beta_1) * c_ratio
    # a r_decayed + b c_decayed, with one division instead of two
    d = (a * m_hat + b * g) / denominator + ((a + b) * decay) * block.x
    return Updated(block.x - step.learning_rate * d, m, v)


def lamb(
    xp: ArrayNamespace,
    sums: Sums,
    block: Block,
    step: Step,
    treatment: Treatment,
    settings: LayerAdaptiveHyperparameters,
) -> Updated:
    """One update of LAMB, Algorithm 1 of the paper.

    With g after clipping:

        m  = beta_1 m + (1 - beta_1) g
        v  = beta_2 v + (1 - beta_2) g^2
        m^ = m / (1 - beta_1^t),  v^ = v / (1 - beta_2^t)
        r  = m^ / (sqrt(v^) + epsilon)
        d  = phi(||x||) (r + lambda x) / ||r + lambda x||
        x  = x - eta d
    """
    clipped = block._replace(g=block.g * step.clip)
    return _lamb(xp, sums, clipped, step, treatment, settings)


def block_normalized_adamw(
    xp: ArrayNamespace,
    sums: Sums,
    block: Block,
    step: Step,
    treatment: Treatment,
    settings: Hyperparameters,
) -> Updated:
    """One update of AdamW on the block-normalized gradient, section 3.2 of the paper.

    Without layer adaptation:

        g~ = g / ||g||
        m  = beta_1 m + (1 - beta_1) g~
        v  = beta_2 v + (1 - beta_2) g~^2
        m^ = m / (1 - beta_1^t),  v^ = v / (1 - beta_2^t)
        x  = x - eta (m^ / (sqrt(v^) + epsilon) + lambda x)
    """
    del sums  # no norm beyond that of g
    g = _normalized(xp, block.g, step.squared_norm)
    m, v, m_hat, denominator = _moments(xp, block._replace(g=g), step, settings)
    d = m_hat / denominator + _decay(treatment, settings) * block.x
    return Updated(block.x - step.learning_rate * d, m, v)


def momentum_trust_ratio(
    xp: ArrayNamespace,
    sums: Sums,
    state: Updated,
    number: Array,
    treatment: Treatment,
    settings: LayerAdaptiveHyperparameters,
) -> Array:
    """The trust ratio phi(||x||) / ||r + lambda x|| of the momentum term, from state alone.

    Args:
        xp: the array namespace.
        sums: the function that sums several arrays.
        state: x, m and v after an update.
        number: t, the number of that update; 0 before the first, when the ratio is 1.
        treatment: the block's flags.
        settings: the optimizer's hyper-parameters.

    Returns:
        A scalar; 1 where ||x|| or the denominator is 0.
    """
    correction_number = xp.maximum(number, 1)
    m_hat = state.m / _bias_correction(xp, settings.beta_1, correction_number)
    v_hat = state.v / _bias_correction(xp, settings.beta_2, correction_number)
    r_decayed = m_hat / (xp.sqrt(v_hat) + settings.epsilon) + _decay(treatment, settings) * state.x
    (ratio,) = _trust_ratios(xp, sums, state.x, (r_decayed,), treatment, settings)
    return xp.where(number > 0, ratio, 1.0)


def clip_factors(
    xp: ArrayNamespace,
    squared_norms: list[Array],
    *,
    clipnorm: float | None,
    global_clipnorm: float | None,
) -> list[Array]:
    """The factor that gradient clipping puts on each block's gradient.

        clipnorm c:         c / max(||g||, c), a block at a time
        global_clipnorm c:  c / max(||all blocks||, c), the same for every block

    Args:
        xp: the array namespace.
        squared_norms: ||g||^2 of each block.
        clipnorm: the largest norm of a block, or None or 0 for no such clipping.
        global_clipnorm: the largest norm of all blocks together, or None or 0 likewise;
            `clipnorm` wins where both are given.
    """
    if clipnorm:
        return [clipnorm / xp.maximum(xp.sqrt(square), clipnorm) for square in squared_norms]
    if global_clipnorm:
        norm = xp.sqrt(sum(squared_norms[1:], squared_norms[0]))
        return [global_clipnorm / xp.maximum(norm, global_clipnorm)] * len(squared_norms)
    return [1.0] * len(squared_norms)


def _lamb(
    xp: ArrayNamespace,
    sums: Sums,
    block: Block,
    step: Step,
    treatment: Treatment,
    settings: LayerAdaptiveHyperparameters,
) -> Updated:
    """Algorithm 1 on a gradient that is already clipped or normalized."""
    m, v, m_hat, denominator = _moments(xp, block, step, settings)
    r_decayed = m_hat / denominator + _decay(treatment, settings) * block.x
    (ratio,) = _trust_ratios(xp, sums, block.x, (r_decayed,), treatment, settings)
    d = ratio * r_decayed
    return Updated(block.x - step.learning_rate * d, m, v)


def _normalized(xp: ArrayNamespace, g: Array, squared_norm: Array) -> Array:
    """The block-normalized gradient g / ||g||, 0 where ||g|| is 0."""
    nonzero = squared_norm != 0  # true of a NaN, which stays one
    norm = xp.sqrt(xp.where(nonzero, squared_norm, 1.0))
    return g * xp.where(nonzero, 1.0 / norm, 0.0)


def _moments(
    xp: ArrayNamespace, block: Block, step: Step, settings: Hyperparameters
) -> tuple[Array, Array, Array, Array]:
    """New m and v, then m^ and sqrt(v^) + epsilon."""
    m = settings.beta_1 * block.m + (1.0 - settings.beta_1) * block.g
    v = settings.beta_2 * block.v + (1.0 - settings.beta_2) * xp.square(block.g)
    m_hat = m * (1.0 / _bias_correction(xp, settings.beta_1, step.number))
    v_hat = v * (1.0 / _bias_correction(xp, settings.beta_2, step.number))
    return m, v, m_hat, xp.sqrt(v_hat) + settings.epsilon


def _bias_correction(xp: ArrayNamespace, beta: float, number: Array) -> Array:
    """1 - beta^t, without the cancellation that costs float32 four digits at t = 1."""
    if beta == 0.0:
        return 1.0
    return -xp.expm1(number * math.log(beta))


def _decay(treatment: Treatment, settings: Hyperparameters) -> float:
    return settings.weight_decay if treatment.decays else 0.0


def _trust_ratios(
    xp: ArrayNamespace,
    sums: Sums,
    x: Array,
    directions: tuple[Array, ...],
    treatment: Treatment,
    settings: LayerAdaptiveHyperparameters,
) -> tuple[Array, ...]:
    """phi(||x||) / ||direction|| for each; 1 without adaptation or where either norm is 0."""
    if not treatment.adapts:
        return (1.0,) * len(directions)
    x_square, *squares = sums(xp.square(x), *(xp.square(direction) for direction in directions))
    phi = xp.sqrt(x_square)
    if settings.weight_norm_bounds is not None:
        lower, upper = settings.weight_norm_bounds
        phi = xp.minimum(xp.maximum(phi, lower), upper)
    return tuple(_ratio(xp, phi, x_square, square) for square in squares)


def _ratio(xp: ArrayNamespace, phi: Array, x_square: Array, square: Array) -> Array:
    defined = (x_square != 0) & (square != 0)
    return xp.where(defined, phi / xp.sqrt(xp.where(defined, square, 1.0)), 1.0)
