"""What classifications and scores are measured by, in percent as GLUE's board has them."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import sklearn.metrics
from scipy import stats

ACCURACY, F1, MACRO_F1, MATTHEWS = "accuracy", "f1", "macro_f1", "matthews_correlation"
PEARSON, SPEARMAN = "pearson", "spearman"

_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    ACCURACY: sklearn.metrics.accuracy_score,
    # Of the class numbered 1: paraphrases and duplicates.
    F1: lambda truth, found: sklearn.metrics.f1_score(truth, found, zero_division=0.0),
    MATTHEWS: sklearn.metrics.matthews_corrcoef,
    PEARSON: lambda truth, found: _correlation(stats.pearsonr, truth, found),
    SPEARMAN: lambda truth, found: _correlation(stats.spearmanr, truth, found),
}


def score(
    metrics: Sequence[str], truth: np.ndarray, predicted: np.ndarray, num_classes: int = 0
) -> dict[str, float]:
    """The metrics of predictions, in percent.

    Args:
        metrics: names of this module.
        truth: (N,), class numbers, or numbers to regress to.
        predicted: (N,), the same.
        num_classes: what `MACRO_F1` is the mean over, among these rows or not; 0: those among them.

    Example:
        >>> score([ACCURACY], np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
        {'accuracy': 75.0}
    """
    functions = _METRICS | {MACRO_F1: functools.partial(_macro_f1, num_classes)}
    return {name: 100.0 * float(functions[name](truth, predicted)) for name in metrics}


def _macro_f1(num_classes: int, truth: np.ndarray, found: np.ndarray) -> float:
    labels = np.arange(num_classes) if num_classes else None
    return sklearn.metrics.f1_score(truth, found, labels=labels, average="macro", zero_division=0.0)


def _correlation(
    function: Callable[..., Sequence[float]], truth: np.ndarray, found: np.ndarray
) -> float:
    """0 where none is defined: one of them is constant, or not finite."""
    if len(truth) < 2 or not np.isfinite(found).all() or not (np.ptp(truth) and np.ptp(found)):
        return 0.0
    value = float(function(truth, found)[0])
    return value if math.isfinite(value) else 0.0
