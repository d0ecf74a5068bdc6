"""The variance law: how the tangent kernel of a finite network fluctuates at initialisation.

For one path, E[K^2] / E[K]^2 = exp(alpha * S) for every entry K of the kernel, with S the sum
of 1 / fan_in over its layers (Assumption 1; Eq. 9). The m paths of a collegial ensemble are
independent, and the ensemble's kernel is their mean: its variance is m times smaller (Eq. 11).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def second_moment(alpha: float, inverse_fan_in: Any, cardinality: Any = 1) -> Any:
    """E[K^2] / E[K]^2 of an ensemble of `cardinality` paths.

    Args:
        alpha: the law's constant for the module.
        inverse_fan_in: S of one path, from `Module.inverse_fan_in`; a number or an array.
        cardinality: the number of paths.

    >>> round(float(second_moment(1.6, 0.115)), 4)
    1.202
    """
    return 1 + variance(alpha, inverse_fan_in, cardinality)


def variance(alpha: float, inverse_fan_in: Any, cardinality: Any = 1) -> Any:
    """Var(K) / E[K]^2 of an ensemble of `cardinality` paths (Eq. 11). Arguments as above.

    >>> round(float(variance(1.6, 0.115, cardinality=10)), 4)
    0.0202
    """
    # Deep, narrow paths can exceed the range of floats: infinite variance is the right answer.
    with np.errstate(over="ignore"):
        return np.expm1(alpha * inverse_fan_in) / cardinality
