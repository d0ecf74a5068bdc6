"""Statistics with standard errors, rank correlation and permutation tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def log_slope(
    x: Sequence[float] | np.ndarray, y: np.ndarray, error: np.ndarray
) -> tuple[float, float]:
    """Return the exponent of y ~ x^slope and its standard error.

    Args:
        x: positions.
        y: independent measurements.
        error: their standard errors.

    >>> log_slope([1, 2, 4], np.array([8.0, 4.0, 2.0]), np.array([0.1, 0.1, 0.1]))[0]
    -1.0
    """
    weight = (y / error) ** 2
    x, y = np.log(np.asarray(x, dtype=float)), np.log(y)
    centred = x - np.average(x, weights=weight)
    spread = (weight * centred**2).sum()
    return round(float((weight * centred * y).sum() / spread), 12), float(1 / np.sqrt(spread))


def standard_deviation(samples: np.ndarray) -> tuple[float, float]:
    """Return the standard deviation of samples and its standard error, for any distribution.

    >>> standard_deviation(np.array([1.0, -1.0, 1.0, -1.0]))[1]
    0.0
    """
    square = (samples - samples.mean()) ** 2
    variance = square.mean()
    error = square.std() / np.sqrt(len(samples))
    return float(np.sqrt(variance)), float(error / (2 * np.sqrt(variance)))


def mean_and_error(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    samples = np.asarray(samples, dtype=float)
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))


def rank_correlation(x: Any, y: Any) -> Any:
    """Return Spearman's rank correlation, over the last axis: a number, or one for each row.

    >>> rank_correlation([1, 2, 3], [10, 20, 30])
    1.0
    """
    a, b = _centred_ranks(x), _centred_ranks(y)
    found = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return found if found.ndim else float(found)


def permutation_p(x: Any, y: Any, seed: int, permutations: int = 10_000) -> float:
    """Return the probability that a random order has a rank correlation as far from 0.

    All orders are tried where there are at most `permutations`, else so many random ones.

    >>> permutation_p(range(10), range(10), seed=0) < 0.001
    True
    """
    from scipy.stats import permutation_test

    y_ranks = _centred_ranks(y)
    test = permutation_test(
        (_centred_ranks(x),),
        lambda x_ranks, axis: abs((x_ranks * y_ranks).sum(axis)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=permutations,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _centred_ranks(values: Any) -> np.ndarray:
    try:
        from scipy.stats import rankdata
    except ImportError:
        raise ImportError(
            "rank correlations need SciPy; run: pip install 'ce-keras[reproduce]'"
        ) from None
    found = rankdata(np.asarray(values), axis=-1)
    return found - found.mean(-1, keepdims=True)
