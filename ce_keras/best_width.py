"""The real-valued best width under the exact variance, for a module and for each stage.

With the variance sum_k c_k / n^k of one path and its cost a n + b n^2, the width n that minimises
their product solves primal and dual. For two hidden layers, n* = sqrt(a c_2 / (b c_1)).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ce_keras.geometry import Module
from ce_keras.variance.law import ClosedFormLaw


class Stage(NamedTuple):
    """A stage of a network, of a design whose width doubles from stage to stage.

    Attributes:
        width: width of a path in this stage.
        best_width: the real-valued width that minimises variance times cost in this stage.
        loss: relative increase of the variance over that width's, at equal cost.
    """

    width: int
    best_width: float
    loss: float


def best_width(coefficients: np.ndarray, cost: Callable[[float], float]) -> float | None:
    """Return the real-valued width that minimises variance times cost.

    Args:
        coefficients: c_1, c_2, ... of the variance sum_k c_k / n^k.
        cost: a function from the width of one path to its cost.

    Returns:
        The width; `None` if the cost is not of the form a n + b n^2, or there is no minimum.

    >>> round(best_width(np.array([58 / 9, 113 / 9]), lambda n: 512 * n + 9 * n**2), 2)
    10.53
    """
    polynomial = _quadratic(cost)
    if polynomial is None:
        return None
    a, b = polynomial
    degree = len(coefficients)
    # The product is sum_k c_k (a n^(1 - k) + b n^(2 - k)). `product` has the coefficients of
    # n^(degree - 1) times it, lowest power first; times `powers`, those of its derivative.
    product = np.zeros(degree + 1)
    for k, c in enumerate(coefficients, start=1):
        product[degree - k] += a * c
        product[degree - k + 1] += b * c
    powers = np.arange(degree + 1) - (degree - 1)
    roots = np.polynomial.polynomial.polyroots(product * powers)
    real = roots.real[(abs(roots.imag) < 1e-9 * abs(roots)) & (roots.real > 0)]
    if not real.size:
        return None
    values = [np.polynomial.polynomial.polyval(n, product) / n ** (degree - 1) for n in real]
    return float(real[np.argmin(values)])


def _quadratic(cost: Callable[[float], float]) -> tuple[float, float] | None:
    """Return a and b of a cost a n + b n^2, or `None` if it has another form."""
    # At wide paths, the rounding of scaled widths is negligible.
    n = np.array([256.0, 1024.0, 4096.0])
    values = np.array([float(cost(width)) for width in n])
    a, b = np.linalg.solve(np.stack([n[:2], n[:2] ** 2], axis=1), values[:2])
    if b <= 0 or a < 0 or abs(a * n[2] + b * n[2] ** 2 - values[2]) > 0.01 * values[2]:
        return None
    return a, b


def stage_optima(
    stages: Sequence[Module],
    correlations: Sequence[np.ndarray],
    budget: Literal["params", "flops"],
    width: int,
) -> tuple[Stage, ...]:
    """Return each stage's width in a design and its best width; nothing if one has none.

    Args:
        stages: the module of each stage.
        correlations: of the positions of each stage's input, as `ClosedFormLaw` takes it.
        budget: the cost.
        width: of a path in the first stage; it doubles from stage to stage.
    """
    if len(correlations) != len(stages):
        raise ValueError(
            f"correlation: got those of {len(correlations)} stages; the network has {len(stages)}"
        )
    found = []
    for index, (module, gram) in enumerate(zip(stages, correlations, strict=True)):
        law = ClosedFormLaw(module, gram)
        cost = functools.partial(getattr(module, budget), 1)
        coefficients = law.coefficients
        best = None if coefficients is None else best_width(coefficients, cost)
        if best is None:
            return ()
        own = width * 2**index
        products = [float(law.path_variance(np.array(n)) * cost(n)) for n in (own, best)]
        found.append(Stage(own, best, products[0] / products[1] - 1))
    return tuple(found)
