"""The two problems of the paper at every width: primal (Eq. 10-12) and dual (Eq. 13-14).

With v(n) the variance of one path and beta(n) its cost, both are solved by the width that minimises
v(n) * beta(n): strong duality. They differ in the cardinality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ce_keras.cost import MOST_PATHS, Cost
from ce_keras.geometry import Design

#: The problem: the primal minimises the variance at the baseline's cost, the dual the cost at the
#: baseline's variance.
Mode = Literal["primal", "dual"]
MODES: tuple[Mode, ...] = ("primal", "dual")

# A cardinality far above any network's, whose cost is still a finite number.
_MANY = 1e150


class Optimum(NamedTuple):
    """A problem, solved at every width, one entry for each.

    Attributes:
        m: the theory's real-valued cardinality, by the module's cost.
        objective: the variance, which the primal minimises, or rho, which the dual maximises.
        rho: the baseline's cost over the ensemble's, Eq. 8, by the module's cost.
        variance: Var(K) / E[K]^2, Eq. 11.
        multiplicity: the real-valued cardinality to round: the primal's is by the network's cost.
    """

    m: np.ndarray
    objective: np.ndarray
    rho: np.ndarray
    variance: np.ndarray
    multiplicity: np.ndarray


@dataclass(frozen=True, eq=False)
class Problem:
    """Widths to choose from, with the variance and the cost of their paths.

    Attributes:
        widths: widths of a path, increasing.
        path_variance: Var(K) / E[K]^2 of one path of each.
        baseline: the width of the baseline.
        baseline_variance: Var(K) / E[K]^2 of its one path.
        law_error: called with widths and one of them, returns the standard errors of the logarithm
            of the first's variance over the second's.
        cost: of a design.
        fraction: what the primal may cost, over the baseline's cost.
    """

    widths: np.ndarray
    path_variance: np.ndarray
    baseline: int
    baseline_variance: float
    law_error: Callable[[np.ndarray, int], np.ndarray]
    cost: Cost
    fraction: float = 1.0

    def primal(self, hard_budget: bool = False) -> Optimum:
        """Solve Eq. 10-12, least variance at a fraction of the baseline's cost.

        Args:
            hard_budget: solve it among whole cardinalities that cost no more.
        """
        n = self.widths
        multiplicity = self.cost.affordable(n, self.fraction)
        with np.errstate(divide="ignore", invalid="ignore"):
            if not hard_budget:
                m = self.cost.module_affordable(n, self.fraction)
                variance = self.path_variance / m
                rho = 1 / self.cost.module_of(np.maximum(m, 0), n)  # None may be left for paths.
                return Optimum(m, variance, rho, variance, multiplicity)
            m = whole_below(multiplicity)  # 0 where not even one path fits.
            variance = self.path_variance / m
            return Optimum(m, variance, 1 / self.cost.module_of(m, n), variance, m)

    def dual(self) -> Optimum:
        """Solve Eq. 13-14: least cost at the baseline's variance."""
        # m may be infinite, which no cost function takes.
        m = self.path_variance / self.baseline_variance
        rho = 1 / self.cost.module_of(np.minimum(m, _MANY), self.widths)
        return Optimum(m, rho, rho, np.full_like(m, self.baseline_variance), m)

    def solve(
        self,
        mode: Mode,
        tolerance: float,
        hard_budget: bool = False,
    ) -> tuple[Optimum, int, np.ndarray] | None:
        """Return the solved problem, the position of the width to take, and the standard errors.

        Args:
            mode: the problem.
            tolerance: relative distance from the optimum within which the widest is taken.
            hard_budget: as for `primal`.

        Returns:
            All three, the errors being of the logarithm of the objective over the best one; `None`
            where no width can be built.
        """
        optimum = self.dual() if mode == "dual" else self.primal(hard_budget)
        buildable = buildable_of(mode, optimum.multiplicity)
        badness = np.where(buildable, badness_of(mode, optimum.objective), np.inf)
        if not np.isfinite(badness).any():
            return None
        of_law = self.law_error(self.widths, int(self.widths[badness.argmin()]))
        errors = np.hypot(of_law, self.cost.log_error(optimum.multiplicity, self.widths))
        best = int(np.flatnonzero(within(badness, tolerance, errors))[-1])
        return optimum, best, errors

    def smoothest(self, fraction: float) -> Design | None:
        """Return the design of least variance that costs at most so much of the baseline's cost."""
        m = whole_below(self.cost.affordable(self.widths, fraction))
        fits = (m >= 1) & (m < MOST_PATHS)
        if not fits.any():
            return None
        variance = np.where(fits, self.path_variance / np.maximum(m, 1), np.inf)
        best = int(variance.argmin())
        return Design(int(m[best]), int(self.widths[best]))

    def variance_of(self, design: Design) -> float:
        """Return Var(K) / E[K]^2 of the baseline, or of a design with one of the widths."""
        if design == (1, self.baseline):
            return self.baseline_variance
        index = int(np.searchsorted(self.widths, design.width))
        return float(self.path_variance[index] / design.cardinality)

    def cost_of(self, design: Design) -> float:
        """Return the cost of the whole network with a design, relative to the baseline's."""
        return float(self.cost.of(*map(np.atleast_1d, design))[0] / self.cost.baseline)


def whole_below(multiplicity: np.ndarray) -> np.ndarray:
    """Return the whole cardinality below a real-valued one, rounding errors forgiven."""
    return np.floor(multiplicity + 1e-9)


def buildable_of(mode: Mode, multiplicity: np.ndarray) -> np.ndarray:
    """Return True for real-valued cardinalities of networks that can be built."""
    # Rounding may put the baseline itself just below one path.
    least = 0 if mode == "dual" else 1 - 1e-9
    return (multiplicity > least) & (multiplicity < MOST_PATHS)


def badness_of(mode: Mode, objective: np.ndarray) -> np.ndarray:
    """Return the objective, or its inverse for the dual, so that smaller is better."""
    with np.errstate(divide="ignore"):
        return objective if mode == "primal" else 1 / objective


def within(badness: np.ndarray, tolerance: float, log_error: np.ndarray) -> np.ndarray:
    """Return True where a design is within the tolerance and two standard errors of the best."""
    with np.errstate(over="ignore"):  # A measured error may be of any size.
        bound = (1 + tolerance) * badness.min() * np.exp(2 * log_error)
    return np.isfinite(badness) & (badness <= bound)
