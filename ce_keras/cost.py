"""The cost of a design, and the cardinality that the baseline's cost affords.

Both classes have `of(m, n)`, the cost of m paths of width n, and `affordable(n)`, the real-valued
cardinality at which width n costs as much as the baseline (Eq. 12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ce_keras.checks import brief, called, one_of
from ce_keras.geometry import Module, Network

Budget = Literal["params", "flops"] | Callable[[int, int], float]

#: Very narrow paths of deep networks ask for more paths than anyone can build.
MOST_PATHS = 2**31


class AffineCost:
    """A cost of the form fixed + cardinality * path(width): parameters, FLOPs."""

    def __init__(self, cost: Callable[[Any, Any], Any], width: int) -> None:
        self.of = cost
        self.target = float(cost(1, width))

    def affordable(self, n: np.ndarray) -> np.ndarray:
        """Return the real-valued cardinality at which width n costs as much as the baseline."""
        fixed = self.of(0, n)
        return (self.target - fixed) / (self.of(1, n) - fixed)


class MeasuredCost:
    """A user's cost of (cardinality, width), interpolated between whole cardinalities."""

    def __init__(self, cost: Callable[[int, int], float], width: int) -> None:
        self._measure = cost
        self._known: dict[tuple[int, int], float] = {}
        self.target = self._cost(1, width)

    def of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the cost of real-valued cardinalities m of widths n."""
        return np.array([self._interpolated(float(a), int(b)) for a, b in zip(m, n, strict=True)])

    def affordable(self, n: np.ndarray) -> np.ndarray:
        """Return the real-valued cardinality of each width n at the baseline's cost.

        Below one path it is the affordable fraction of the first.
        """
        return np.array([self._affordable(int(width)) for width in n])

    def _cost(self, m: int, n: int) -> float:
        if (m, n) not in self._known:
            cost = called("budget", self._measure, m, n)
            if not (isinstance(cost, int | float | np.number) and np.isfinite(cost) and cost > 0):
                raise ValueError(
                    f"budget: the cost of {m}x{n}d is {brief(cost)}; costs are positive and finite"
                )
            self._known[m, n] = float(cost)
        return self._known[m, n]

    def _interpolated(self, m: float, n: int) -> float:
        if not m < MOST_PATHS:
            return np.inf
        below = max(1, int(m))
        here = self._cost(below, n)
        return here if m <= below else here + (m - below) * self._step(below, below + 1, n)

    def _step(self, below: int, above: int, n: int) -> float:
        """Return the difference in cost between two cardinalities."""
        step = self._cost(above, n) - self._cost(below, n)
        if step < 0:
            raise ValueError(
                f"budget: the cost of width {n} falls from {self._cost(below, n):.6g} at "
                f"{below} paths to {self._cost(above, n):.6g} at {above}; it must not fall as "
                "cardinality grows"
            )
        return step

    def _affordable(self, n: int) -> float:
        if self._cost(1, n) >= self.target:
            return self.target / self._cost(1, n)
        below, above = 1, 2
        while self._cost(above, n) < self.target:
            self._step(below, above, n)
            below, above = above, 2 * above
            if above > MOST_PATHS:
                raise ValueError(
                    f"budget: the cost of width {n} never reaches the baseline's "
                    f"{self.target:.6g}; it must grow with cardinality"
                )
        while above - below > 1:
            middle = (below + above) // 2
            if self._cost(middle, n) < self.target:
                below = middle
            else:
                above = middle
        return below + (self.target - self._cost(below, n)) / self._step(below, above, n)


Cost = AffineCost | MeasuredCost


def costs(budget: Budget, baseline: Module | Network) -> tuple[Cost, Cost]:
    """Return the cost that decides the width, and the one that decides the whole cardinality."""
    if callable(budget):
        measured = MeasuredCost(budget, baseline.width)
        return measured, measured
    checked_budget(budget)
    module, network = (
        AffineCost(getattr(counted, budget), baseline.width)
        for counted in (baseline.module, baseline)
    )
    return module, network


def checked_budget(budget: Any) -> Budget:
    """Return the budget: `"params"`, `"flops"`, or a function."""
    return budget if callable(budget) else one_of("budget", budget, ("params", "flops"))
