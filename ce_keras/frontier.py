"""The best design at every size: what halving a network costs, and what paths buy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.geometry import Design, Module, Network
from ce_keras.plotting import COLOR, axes_for
from ce_keras.problem import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Sizes at which the best design is looked for, and the largest of them over the baseline's.
_SIZES = 96
_LARGEST = 1.25

# Where the names of designs are written: a dual is often near to the primal.
_PLACES: dict[str, dict[str, Any]] = {
    "baseline": {"xytext": (0, 8), "ha": "center", "va": "bottom"},
    "dual": {"xytext": (-6, -6), "ha": "right", "va": "top"},
}
_BELOW: dict[str, Any] = {"xytext": (0, -10), "ha": "center", "va": "top"}

# The smallest size over the baseline's that is drawn.
_LEAST_SHOWN = 0.1


@dataclass(frozen=True, eq=False)
class Designs:
    """Designs by increasing cost: arrays of one length, one entry for each.

    Attributes:
        design: cardinality and width.
        cost: of the whole network, in the unit of the budget.
        variance: Var(K) / E[K]^2 over the baseline's.
        params: trained parameters of the whole network.
        flops: FLOPs of the whole network for one example.
    """

    design: tuple[Design, ...]
    cost: np.ndarray
    variance: np.ndarray
    params: np.ndarray
    flops: np.ndarray

    def __len__(self) -> int:
        return len(self.design)


@dataclass(frozen=True, eq=False)
class Frontier:
    """The best design at every size, and the designs to compare it with.

    Attributes:
        name: of the baseline.
        budget: what the costs are of.
        best: at every size, the smoothest design that costs no more.
        narrower: one path of every width: the baseline made narrower.
        marked: the baseline, the primal and the dual, and the design that was asked for.
    """

    name: str
    budget: str
    best: Designs
    narrower: Designs
    marked: dict[str, Designs]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the variance against the cost, both relative to the baseline's.

        The colour of a point is its number of parameters, where the cost is another.

        Args:
            ax: where to draw; a new figure if not given.
        """
        ax = axes_for(ax)
        unit = float(self.marked["baseline"].cost[0])
        best, narrower = self.best, self.narrower
        ax.plot(best.cost / unit, best.variance, color=COLOR, label="best design")
        label = "one path, made narrower"
        ax.plot(narrower.cost / unit, narrower.variance, "--", color="gray", label=label)
        if self.budget != "parameters":
            dots = ax.scatter(best.cost / unit, best.variance, 18, best.params / 1e6, zorder=3)
            figure = ax.get_figure()
            assert figure is not None
            figure.colorbar(dots, ax=ax, label="parameters in millions")
        self._mark_designs(ax, unit)
        ax.set(xscale="log", yscale="log", title=f"{self.name}, {self.budget}")
        # Very small networks would take most of the axes.
        least = max(best.cost.min() / unit, _LEAST_SHOWN)
        ax.set_xlim(least / 1.05, _LARGEST * 1.1)
        ax.set_ylim(best.variance.min() / 2.5, best.variance[best.cost >= least * unit].max() * 1.3)
        ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25) if tick >= least / 1.05]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        low, high = ax.get_ylim()
        powers = [base * 10.0**power for power in range(-3, 4) for base in (1, 2, 5)]
        shown = [value for value in powers if low <= value <= high]
        ax.set_yticks(shown, [f"{value:g}" for value in shown])
        ax.minorticks_off()
        ax.set_xlabel(f"{self.budget}, relative to the baseline's")
        ax.set_ylabel("Var(K)/E[K]², relative to the baseline's")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, loc="upper right")
        return ax

    def _mark_designs(self, ax: Axes, unit: float) -> None:
        """Draw a dot for every marked design, with all of its names."""
        names: dict[str, list[str]] = {}
        for name, point in self.marked.items():
            names.setdefault(str(point.design[0]), []).append(name)
        for point in self.marked.values():
            design = str(point.design[0])
            if design not in names:
                continue
            own = names.pop(design)
            place = next((_PLACES[name] for name in _PLACES if name in own), _BELOW)
            x, y = point.cost[0] / unit, point.variance[0]
            ax.plot(x, y, "o", color=COLOR, ms=7, zorder=4)
            ax.annotate(
                f"{', '.join(own)}\n{design}",
                (x, y),
                textcoords="offset points",
                weight="bold",
                color=COLOR,
                zorder=5,
                **place,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return designs and values as plain lists, for JSON."""
        groups = {"best": self.best, "narrower": self.narrower, **self.marked}
        return {
            "baseline": self.name,
            "budget": self.budget,
            **{
                name: {
                    "design": list(map(str, group.design)),
                    **{
                        field: getattr(group, field).tolist()
                        for field in ("cost", "variance", "params", "flops")
                    },
                }
                for name, group in groups.items()
            },
        }


def frontier_of(
    problem: Problem, baseline: Module | Network, marked: dict[str, Design]
) -> Frontier:
    """Return the frontier of a problem.

    Args:
        problem: its widths are considered, its fraction of the baseline's cost is not.
        baseline: whose parameters and FLOPs are told.
        marked: designs to mark, by name.
    """
    single = [Design(1, int(n)) for n in problem.widths]
    smallest = min(problem.cost_of(design) for design in single)
    fractions = np.geomspace(min(smallest, _LARGEST), _LARGEST, _SIZES)
    found = [problem.smoothest(float(fraction)) for fraction in (*fractions, 1.0)]
    best = {design for design in found if design is not None}

    def described(designs: Any) -> Designs:
        ordered = sorted(designs, key=lambda each: (problem.cost_of(each), each))
        m, n = np.array(ordered, dtype=float).T
        return Designs(
            tuple(ordered),
            np.array([problem.cost_of(each) for each in ordered]) * problem.cost.baseline,
            np.array([problem.variance_of(each) for each in ordered]) / problem.baseline_variance,
            baseline.params(m, n.astype(int)),
            baseline.flops(m, n.astype(int)),
        )

    return Frontier(
        f"{baseline.name} 1x{baseline.width}d",
        problem.cost.name,
        described(best),
        described(single),
        {name: described([design]) for name, design in marked.items()},
    )
