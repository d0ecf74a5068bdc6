"""The result of a search: the optimal design, and the curve over all widths."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.best_width import Stage
from ce_keras.checks import checked_tolerance
from ce_keras.cost import Measured
from ce_keras.frontier import Frontier, frontier_of
from ce_keras.geometry import Design, Module, Network
from ce_keras.plotting import COLOR, axes_for, mark
from ce_keras.problem import MODES, Mode, Problem, badness_of, within
from ce_keras.variance.law import polynomial_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OBJECTIVES = {
    "primal": "Var(K)/E[K]² at the baseline's size",
    "dual": "efficiency ρ at the baseline's Var(K)",
}
_TICKS = [tens * n for tens in (1, 10, 100, 1000) for n in (1, 2, 5)]

# A polynomial with more coefficients does not fit a line.
_MOST_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Curve:
    """Every candidate of a search: arrays of one length, one entry for each width.

    `m`, `objective`, `rho` and `variance` are the theory's, for one module and a real-valued
    cardinality. `cardinality`, `parameters` and `flops` are those of a built network.

    Attributes:
        width: width of a path in the first stage.
        m: real-valued cardinality, Eq. 12 (primal) or Eq. 14 (dual).
        objective: the variance, which the primal minimises, or rho, which the dual maximises.
        rho: the baseline's cost over the ensemble's, Eq. 8.
        variance: Var(K) / E[K]^2, Eq. 11.
        cardinality: `m` rounded to an integer, at the whole network's cost.
        parameters: trained parameters of the whole network.
        flops: FLOPs of the whole network for one example.
        log_error: standard error of the logarithm of the objective, relative to the best width's;
            zero if the law is taken as known.
        buildable: whether a network of that width meets the budget, with at least one path and not
            billions.
    """

    width: np.ndarray
    m: np.ndarray
    objective: np.ndarray
    rho: np.ndarray
    variance: np.ndarray
    cardinality: np.ndarray
    parameters: np.ndarray
    flops: np.ndarray
    log_error: np.ndarray
    buildable: np.ndarray

    def __len__(self) -> int:
        return len(self.width)


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """An optimal design, its cost, and the curve over all widths.

    Attributes:
        baseline: the module or network that was searched.
        mode: `"primal"` or `"dual"`.
        law: name of the variance law.
        alpha: its constant; `None` if it is not the exponential law.
        tolerance: designs this close to the optimum counted as equal, and the widest was taken.
        design: the optimal design.
        multiplicity: the cardinality before rounding.
        params: trained parameters of the whole network with this design.
        flops: FLOPs of the whole network for one example.
        baseline_params: trained parameters of the baseline.
        baseline_flops: FLOPs of the baseline.
        rho: the baseline's cost over the design's, for the whole network as built; the cost is
            the search's `budget`.
        unrounded_rho: rho of one module at the unrounded cardinality, as in the paper's curves
            (Eq. 8).
        variance: Var(K) / E[K]^2 of a module with this design.
        baseline_variance: Var(K) / E[K]^2 of the baseline's module.
        curve: every candidate.
        budget: what the cost is, in words.
        target: the fraction of the baseline's cost that was asked for; `None` if none was.
        measured: costs that are not counted from the geometry, such as times.
        problem: what was solved.
        coefficients: with the closed form, c_k of Var(K) / E[K]^2 = sum_k c_k / n^k for one path;
            `None` for another law.
        best_width: with the closed form, the real-valued width that is best for the module.
        stages: with the closed form, the best width of every stage of a network, and the variance
            that the design loses there, since its width doubles from stage to stage.
    """

    baseline: Module | Network
    mode: Mode
    law: str
    alpha: float | None
    tolerance: float
    design: Design
    multiplicity: float
    params: int
    flops: int
    baseline_params: int
    baseline_flops: int
    rho: float
    unrounded_rho: float
    variance: float
    baseline_variance: float
    curve: Curve
    budget: str
    target: float | None
    measured: tuple[Measured, ...]
    problem: Problem
    coefficients: tuple[float, ...] | None = None
    best_width: float | None = None
    stages: tuple[Stage, ...] = ()

    def near_optimal(self, tolerance: float | None = None) -> list[Design]:
        """Return the designs whose objective is within `tolerance` of the best, narrowest first.

        Two standard errors of a fitted or measured law are added to the tolerance.

        Args:
            tolerance: relative distance; the search's own if not given.

        Raises:
            ValueError: for a negative tolerance.

        >>> from ce_keras import search
        >>> [str(design) for design in search("resnext29", "dual").near_optimal()]
        ['21x5d', '17x6d', '15x7d', '13x8d', '11x9d', '10x10d']
        """
        tolerance = self.tolerance if tolerance is None else checked_tolerance(tolerance)
        badness = badness_of(self.mode, self.curve.objective)
        badness = np.where(self.curve.buildable, badness, np.inf)
        near = within(badness, tolerance, self.curve.log_error)
        return [
            Design(int(m), int(n))
            for m, n in zip(self.curve.cardinality[near], self.curve.width[near], strict=True)
        ]

    def frontier(self) -> Frontier:
        """Return the best design at every size up to 1.25 times the baseline's.

        Its `plot` marks the baseline, the primal, the dual and this design, and draws the baseline
        made narrower, one path of every width, as a second curve.

        >>> from ce_keras import search
        >>> frontier = search("resnext29").frontier()
        >>> half = frontier.best.params <= frontier.marked["baseline"].params / 2
        >>> print(frontier.best.design[half.nonzero()[0][-1]])
        22x8d
        """
        whole = dataclasses.replace(self.problem, fraction=1.0)
        marked = {"baseline": Design(1, self.baseline.width)}
        for mode in MODES:
            if mode == self.mode and self.target is None:
                marked[mode] = self.design
            elif (solved := whole.solve(mode, self.tolerance)) is not None:
                optimum, best, _ = solved
                m = max(1, round(float(optimum.multiplicity[best])))
                marked[mode] = Design(m, int(whole.widths[best]))
        if self.target is not None:
            marked[f"{self.target:.3g} of it"] = self.design
        return frontier_of(whole, self.baseline, marked)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the objective against width, with the optimum and its near-optimal band.

        Args:
            ax: where to draw; a new figure if not given.

        Returns:
            The axes drawn on; `.figure.savefig("curve.png")` keeps the picture.
        """
        ax = axes_for(ax)
        width, objective = self.curve.width, self.curve.objective
        ax.plot(width, objective, color=COLOR, marker="." if len(width) < 20 else "")
        shaded = ""
        if self.tolerance > 0:
            near = [design.width for design in self.near_optimal()]
            ax.axvspan(min(near) - 0.5, max(near) + 0.5, color=COLOR, alpha=0.15, lw=0)
            shaded = f"  (shaded: within {self.tolerance:.2g} of the optimum)"
        if self.best_width is not None:
            label = f"best width {self.best_width:.1f}"
            ax.axvline(self.best_width, color="gray", lw=1, ls="--", label=label)
            of_a_path = polynomial_text(np.round(self.coefficients or (), 2))
            ax.legend(frameon=False, title=f"variance of a path: {of_a_path}")
        offset = 14 if self.mode == "dual" else -18
        best = objective[np.searchsorted(width, self.design.width)]
        mark(ax, self.design.width, best, str(self.design), offset)
        if width[-1] == self.baseline.width:
            mark(ax, width[-1], objective[-1], str(Design(1, self.baseline.width)), -offset)

        ax.set_xscale("log")
        if self.mode == "primal" and objective.max() > 30 * objective.min() > 0:
            ax.set_yscale("log")
        ticks = [n for n in _TICKS if width[0] <= n <= width[-1]] or [int(n) for n in width]
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.margins(x=0.08, y=0.2)
        ax.set_xlabel(f"width n of a path{shaded}")
        ax.set_ylabel(_OBJECTIVES[self.mode])
        name = f"{self.baseline.name} 1x{self.baseline.width}d"
        ax.set_title(f"{self.mode}, baseline {name}", fontsize=11)
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Return the solution without its curve as plain numbers and strings, for JSON."""
        skipped = {"baseline", "curve", "design", "problem"}
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in skipped
        }
        return {
            "baseline": f"{self.baseline.name}-1x{self.baseline.width}d",
            "design": str(self.design),
            "cardinality": self.design.cardinality,
            "width": self.design.width,
            **fields,
            "stages": [stage._asdict() for stage in self.stages],
            "measured": [line._asdict() for line in self.measured],
            "near_optimal": [str(design) for design in self.near_optimal()],
        }

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return rows of quantity, the baseline's value, this design's value, and a note."""
        ratio = self.baseline_variance / self.variance
        times = f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"
        unrounded = f"{self.unrounded_rho:.2f} unrounded"
        design = self.design
        return [
            ("", "baseline", str(design), ""),
            ("cardinality", "1", f"{design.cardinality}", f"{self.multiplicity:.2f} unrounded"),
            ("width of a path", f"{self.baseline.width}", f"{design.width}", ""),
            ("parameters", f"{self.baseline_params:,}", f"{self.params:,}", ""),
            ("FLOPs", f"{self.baseline_flops:,}", f"{self.flops:,}", ""),
            *(
                (line.name, f"{line.baseline:.3g} {line.unit}", f"{line.value:.3g} {line.unit}", "")
                for line in self.measured
            ),
            ("Var(K)/E[K]^2", f"{self.baseline_variance:.5f}", f"{self.variance:.5f}", times),
            ("efficiency rho", "1", f"{self.rho:.2f}", unrounded),
        ]

    def _title(self) -> str:
        what = f"{self.mode} optimum of"
        if self.target is not None:
            what = f"smoothest design with {self.target:.3g} of the {self.budget} of"
        return f"{self.design}: {what} {self.baseline.name} ({self.law})"

    def _notes(self) -> list[str]:
        """Return lines on the exact law, if the law is exact, and on the near-optimal designs."""
        lines = []
        if self.coefficients is not None and len(self.coefficients) <= _MOST_SHOWN:
            lines.append(f"of one path, Var(K)/E[K]^2 = {polynomial_text(self.coefficients)}")
        if self.best_width is not None:
            lines.append(f"best width, not rounded: {self.best_width:.2f}")
        if self.stages:
            widths = ", ".join(f"{stage.width}" for stage in self.stages)
            best = ", ".join(f"{stage.best_width:.1f}" for stage in self.stages)
            worst = max(stage.loss for stage in self.stages)
            lines.append(
                f"widths {widths} by stage; best in each {best}: at most {worst:.1%} of variance "
                "is lost"
            )
        near = [str(design) for design in self.near_optimal()]
        near = near if len(near) <= 8 else [*near[:3], "...", *near[-3:]]
        return [*lines, f"within {self.tolerance:.3g} of the optimum: {', '.join(near)}"]

    def __repr__(self) -> str:
        rows = self._rows()
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [
            f"  {quantity:<{first}}  {baseline:>{second}}  {value}" + (f" ({note})" if note else "")
            for quantity, baseline, value, note in rows
        ]
        return "\n".join([self._title(), *lines, *(f"  {note}" for note in self._notes())])

    def _repr_html_(self) -> str:
        head, *body = [[html.escape(cell) for cell in row] for row in self._rows()]
        aligned = '<td style="text-align: right">'
        header = "".join(f'<th scope="col" style="text-align: right">{cell}</th>' for cell in head)
        rows = "".join(
            f'<tr><th scope="row" style="text-align: left">{quantity}</th>'
            f"{aligned}{baseline}</td>{aligned}{value}</td>"
            f'<td style="text-align: left">{note}</td></tr>'
            for quantity, baseline, value, note in body
        )
        return (
            f"<table><caption>{html.escape(self._title())}</caption>"
            f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{'<br>'.join(map(html.escape, self._notes()))}</p>"
        )
