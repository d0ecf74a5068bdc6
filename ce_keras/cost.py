"""The cost of a design, and the number of paths that a budget affords.

A budget is a fraction of the baseline's cost; 1 is the baseline's own (Eq. 12). The cost of one
module decides the width, as in the paper, and the cost of the whole network the cardinality: every
cost has `of` and `affordable` for the network, and `module_of` and `module_affordable` for the
module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from ce_keras.checks import brief, called, one_of
from ce_keras.geometry import Design, Module, Network

Counted = Literal["params", "flops"]
Budget = Counted | Callable[[int, int], float]

#: Costs that are counted from the geometry of a module or network, with their names in reports.
COUNTED: dict[Counted, str] = {"params": "parameters", "flops": "FLOPs"}

#: Costs that need a model: measured times, and the activations of a training step.
OF_MODELS = ("latency", "memory")

#: Very narrow paths of deep networks ask for more paths than anyone can build.
MOST_PATHS = 2**31


class Measured(NamedTuple):
    """A cost that is not counted from the geometry, of the baseline and of a design.

    Attributes:
        name: such as `"training step, batch 32"`.
        unit: of the values.
        baseline: of the baseline.
        value: of the design.
    """

    name: str
    unit: str
    baseline: float
    value: float


class Cost(Protocol):
    """A cost that a search can minimise, or keep to."""

    name: str
    baseline: float

    def of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the cost of the whole network with real-valued cardinalities m of widths n."""

    def affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the real-valued cardinality at a fraction of the baseline's cost."""

    def module_of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the cost of the module, relative to that of the baseline's."""

    def module_affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the real-valued cardinality of the module, given the network's fraction."""

    def log_error(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the standard error of the logarithm of the network's cost; 0 if counted."""

    def measured(self, design: Design) -> tuple[Measured, ...]:
        """Return the costs of a design that are not counted from the geometry, for reports."""


class _Counted:
    """The parts of a cost that is exact, and needs no line of its own in a report."""

    def log_error(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return zeros."""
        return np.zeros(np.shape(n))

    def measured(self, design: Design) -> tuple[Measured, ...]:  # noqa: ARG002
        """Return nothing."""
        return ()


class AffineCost(_Counted):
    """A cost of the form fixed(width) + cardinality * path(width): parameters, FLOPs.

    Args:
        name: for reports.
        network: the cost of the whole network, a function of cardinality and width.
        module: likewise of the module, without any fixed part.
        width: the baseline's.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[Any, Any], Any],
        module: Callable[[Any, Any], Any],
        width: int,
    ) -> None:
        self.name = name
        self.of = network
        self.baseline = float(network(1, width))
        self._module = module
        self._width = width

    def affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the real-valued cardinality at a fraction of the baseline's cost."""
        fixed = self.of(0, n)
        return (fraction * self.baseline - fixed) / (self.of(1, n) - fixed)

    def module_of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the cost of the module, relative to that of the baseline's."""
        return self._module(m, n) / self._module(1, self._width)

    def module_affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the cardinality at which the module costs what is left for the paths."""
        left = self.affordable(np.array([self._width]), fraction)[0]
        return left * self._module(1, self._width) / self._module(1, n)


class FunctionCost(_Counted):
    """A user's cost of (cardinality, width), interpolated between whole cardinalities."""

    name = "your cost"

    def __init__(self, cost: Callable[[int, int], float], width: int) -> None:
        self._function = cost
        self._known: dict[tuple[int, int], float] = {}
        self.baseline = self._cost(1, width)

    def of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the cost of real-valued cardinalities m of widths n."""
        return np.array([self._interpolated(float(a), int(b)) for a, b in zip(m, n, strict=True)])

    def affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the real-valued cardinality of each width n at a fraction of the baseline's cost.

        Below one path it is the affordable fraction of the first.
        """
        return np.array([self._affordable(int(width), fraction * self.baseline) for width in n])

    def module_of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the whole network's cost relative to the baseline's: the function's only cost."""
        return self.of(m, n) / self.baseline

    module_affordable = affordable

    def _cost(self, m: int, n: int) -> float:
        if (m, n) not in self._known:
            cost = called("budget", self._function, m, n)
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

    def _affordable(self, n: int, target: float) -> float:
        if self._cost(1, n) > target:
            return target / self._cost(1, n)
        # The last cardinality that costs no more: several may cost the same.
        below, above = 1, 2
        while self._cost(above, n) <= target:
            self._step(below, above, n)
            below, above = above, 2 * above
            if above > MOST_PATHS:
                raise ValueError(
                    f"budget: the cost of width {n} never exceeds the baseline's "
                    f"{target:.6g}; it must grow with cardinality"
                )
        while above - below > 1:
            middle = (below + above) // 2
            if self._cost(middle, n) <= target:
                below = middle
            else:
                above = middle
        return below + (target - self._cost(below, n)) / self._step(below, above, n)


class JointCost:
    """Several costs at once: the largest of them, each relative to the baseline's."""

    def __init__(self, costs: Sequence[Cost]) -> None:
        self._costs = tuple(costs)
        self.name = " and ".join(cost.name for cost in costs)
        self.baseline = 1.0

    def of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the largest of the costs, each relative to the baseline's."""
        return _largest(cost.of(m, n) / cost.baseline for cost in self._costs)

    def affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the cardinality that none of the costs forbids."""
        return -_largest(-cost.affordable(n, fraction) for cost in self._costs)

    def module_of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the largest of the module's relative costs."""
        return _largest(cost.module_of(m, n) for cost in self._costs)

    def module_affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the module's cardinality that none of the costs forbids."""
        return -_largest(-cost.module_affordable(n, fraction) for cost in self._costs)

    def log_error(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the largest of the errors."""
        return _largest(cost.log_error(m, n) for cost in self._costs)

    def measured(self, design: Design) -> tuple[Measured, ...]:
        """Return those of every cost."""
        return tuple(line for cost in self._costs for line in cost.measured(design))


def _largest(values: Any) -> np.ndarray:
    return functools.reduce(np.maximum, values)


def checked_budget(budget: Any) -> Any:
    """Return a budget: a name, a function, or a tuple of them.

    Raises:
        ValueError: for something else.
    """
    if isinstance(budget, tuple | list):
        if not budget:
            raise ValueError(f"budget: got {brief(budget)}; name one cost at least")
        return tuple(map(checked_budget, budget))
    return budget if callable(budget) else one_of("budget", budget, (*COUNTED, *OF_MODELS))


def cost_of(budget: Budget | Cost | Sequence[Any], baseline: Module | Network) -> Cost:
    """Return the cost that a budget names, or a user's function, or several of them at once.

    Raises:
        ValueError: for something else.
    """
    if isinstance(budget, tuple | list):
        return JointCost([cost_of(each, baseline) for each in budget])
    if hasattr(budget, "module_affordable"):
        return budget  # type: ignore[return-value]
    if callable(budget):
        return FunctionCost(budget, baseline.width)
    name = one_of("budget", budget, tuple(COUNTED))
    counted = getattr(baseline, name), getattr(baseline.module, name)
    return AffineCost(COUNTED[name], *counted, baseline.width)
