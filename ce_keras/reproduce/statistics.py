"""Statistics that several figures need: slopes, ranks, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def log_slope(
    x: Sequence[float] | np.ndarray, y: np.ndarray, error: np.ndarray
) -> tuple[float, float]:
    """The exponent of y ~ x^slope and its standard error.

    Args:
        x: where.
        y: independent measurements.
        error: their standard errors.

    >>> log_slope([1, 2, 4], np.array([8.0, 4.0, 2.0]), np.array([0.1, 0.1, 0.1]))[0]
    -1.0
    """
    weight = (y / error) ** 2
    x, y = np.log(np.asarray(x, dtype=float)), np.log(y)
    away = x - np.average(x, weights=weight)
    spread = (weight * away**2).sum()
    return round(float((weight * away * y).sum() / spread), 12), float(1 / np.sqrt(spread))


def deviation(samples: np.ndarray) -> tuple[float, float]:
    """The standard deviation of samples and its standard error, whatever their distribution.

    >>> deviation(np.array([1.0, -1.0, 1.0, -1.0]))[1]
    0.0
    """
    square = (samples - samples.mean()) ** 2
    variance = square.mean()
    error = square.std() / np.sqrt(len(samples))
    return float(np.sqrt(variance)), float(error / (2 * np.sqrt(variance)))


def mean_and_error(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    samples = np.asarray(samples, dtype=float)
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [1.5, 0.0, 1.5]
    """
    values = np.asarray(values, dtype=float)
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) - 1) / 2


def rank_correlation(x: Any, y: Any) -> float:
    """Spearman's rank correlation.

    >>> rank_correlation([1, 2, 3], [10, 20, 30])
    1.0
    """
    a, b = (each - each.mean() for each in (ranks(x), ranks(y)))
    return round(float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())), 12)


def permutation_p(x: Any, y: Any, seed: int, permutations: int = 10_000) -> float:
    """How often a random order has a rank correlation as far from 0 as the one found.

    >>> permutation_p(range(10), range(10), seed=0) < 0.001
    True
    """
    rng = np.random.default_rng(seed)
    a, b = (each - each.mean() for each in (ranks(x), ranks(y)))
    orders = rng.permuted(np.tile(b, (permutations, 1)), axis=1)
    reached = int((abs(orders @ a) >= abs(b @ a) - 1e-9).sum())
    # The order found is one of the permutations: p is never 0.
    return (1 + reached) / (1 + permutations)
