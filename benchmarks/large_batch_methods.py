"""The contenders: their optimizers as published, and the ranges their rates are drawn from.

Every range is two decades wide, around what 64 steps need: far more than thousands do.
Layer norms and biases are neither decayed nor, by LAMB and LANS, adapted, as published BERT runs
have it: an adapted block of zeros grows by shares of its own norm, for which these runs are too
short. One contender is Algorithm 2 of the LANS paper to the letter, which adapts and decays every
block; another is AdamW that normalises the gradient of each block, and does nothing else that LANS
does. All that do not normalise the gradient clip its global norm. beta_1 is 0.9 but for Muon, whose
momentum is 0.95, as both are in Keras.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

from benchmarks.large_batch_settings import Run, Study

SHARED: Mapping[str, float] = {"epsilon": 1e-6, "weight_decay": 0.01}
CLIPNORM = 1.0
BETAS_2 = (0.95, 0.98, 0.999)
WARMUP_RATIOS = (0.05, 0.5)
# Phase 1 of the paper: 27.35 % of the steps at the peak after 42.65 % of warmup.
CONSTANT_PER_WARMUP = 27.35 / 42.65

# At other batches, times the best rate at the largest. With b the share of that batch:
GRID = (
    ("square root", lambda share: share**0.5),
    ("square root and linear, geometric mean", lambda share: share**0.75),
    ("twice the square root", lambda share: 2 * share**0.5),
    ("linear", lambda share: share),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A contender.

    Attributes:
        name: in tables and charts.
        optimizer: the class.
        rates: the range from which its rate is drawn, log-uniformly.
        constant: whether a constant phase follows the warmup: equation (9), else (8).
        switches: further arguments of the optimizer.
        everywhere: whether it runs at all batches, or at the largest only.
        every_block: whether layer norms and biases are decayed and adapted too.
    """

    name: str
    optimizer: str
    rates: tuple[float, float]
    constant: bool = False
    switches: tuple[tuple[str, Any], ...] = ()
    everywhere: bool = True
    every_block: bool = False


ADAMW_RATES, LAMB_RATES = (3e-4, 3e-2), (3e-3, 3e-1)
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="AdamW", optimizer="AdamW", rates=ADAMW_RATES),
        Method(name="LAMB eq. (8)", optimizer="LAMB", rates=LAMB_RATES),
        Method(name="LAMB eq. (9)", optimizer="LAMB", rates=LAMB_RATES, constant=True),
        Method(name="LANS eq. (8)", optimizer="LANS", rates=LAMB_RATES),
        Method(name="LANS eq. (9)", optimizer="LANS", rates=LAMB_RATES, constant=True),
        Method(
            name="LANS eq. (9) without normalisation",
            optimizer="LANS",
            rates=LAMB_RATES,
            constant=True,
            switches=(("normalize_gradients", False),),
            everywhere=False,
        ),
        Method(
            name="LANS eq. (9) without Nesterov",
            optimizer="LANS",
            rates=LAMB_RATES,
            constant=True,
            switches=(("nesterov", False),),
            everywhere=False,
        ),
        Method(
            name="LANS eq. (9), every block adapted",
            optimizer="LANS",
            rates=LAMB_RATES,
            constant=True,
            everywhere=False,
            every_block=True,
        ),
        Method(
            name="BlockNormalizedAdamW",
            optimizer="BlockNormalizedAdamW",
            rates=ADAMW_RATES,
            everywhere=False,
        ),
        Method(name="Keras Muon", optimizer="Muon", rates=ADAMW_RATES, everywhere=False),
        Method(
            name="ScheduleFreeAdamW, Keras mended",
            optimizer="ScheduleFreeAdamW",
            rates=ADAMW_RATES,
            everywhere=False,
        ),
    )
}


@functools.cache
def _point(seed: int, number: int) -> tuple[float, float, float]:
    """Number `number` of the sequence, in the unit cube."""
    return tuple(
        qmc.Halton(3, scramble=True, rng=np.random.default_rng(seed)).random(number + 1)[-1]
    )


def drawn(study: Study, method: Method, number: int) -> Run:
    """Draw `number` of the hyper-parameters at the largest batch.

    The same draw of all methods is at the same place of their ranges, with the same beta_2 and
    warmup, so that methods differ by nothing else. The draws are a scrambled Halton sequence, each
    uniform in rate's logarithm, beta_2 and warmup, and any first few spread over all three: twelve
    independent ones leave holes, in which one method's best rate may lie and not another's.
    """
    rate, beta_2, warmup = _point(study.seed, number)
    low, high = np.log(method.rates)
    least, most = WARMUP_RATIOS
    return Run(
        method=method.name,
        batch=study.largest,
        learning_rate=float(f"{np.exp(low + (high - low) * rate):.4g}"),
        beta_2=BETAS_2[int(beta_2 * len(BETAS_2))],
        warmup_ratio=round(float(least + (most - least) * warmup), 3),
    )


def scaled(study: Study, best: Run, batch: int, number: int) -> Run:
    """Rate `number` of the grid at another batch, all else as at the largest."""
    rate = best.learning_rate * GRID[number][1](batch / study.largest)
    return dataclasses.replace(best, batch=batch, learning_rate=float(f"{rate:.4g}"))


def phases(method: Method, steps: int, warmup_ratio: float) -> tuple[int, int]:
    """Steps of the warmup, at least one, and of the constant phase."""
    warmup = max(1, int(warmup_ratio * steps))
    constant = int(CONSTANT_PER_WARMUP * warmup_ratio * steps) if method.constant else 0
    return warmup, min(constant, steps - warmup)
