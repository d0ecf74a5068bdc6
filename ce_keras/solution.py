"""What a search answers: the optimal design, and the curve that it was read from."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ce_keras.best_width import Stage
from ce_keras.checks import checked_tolerance
from ce_keras.geometry import Design, Module, Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Which problem: the smoothest of one cost, or the cheapest of one smoothness.
Mode = Literal["primal", "dual"]


# Coefficients that a line has room for.
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Curve:
    """Every candidate of a search: arrays of one length, one entry for each width.

    `m`, `objective`, `rho` and `variance` are the theory's, for one module and a real-valued
    cardinality. `cardinality`, `parameters` and `flops` are what a built network would have.

    Attributes:
        width: width of a path in the first stage.
        m: real-valued cardinality, Eq. 12 (primal) or Eq. 14 (dual).
        objective: what is optimised: the variance, minimised (primal), or rho, maximised (dual).
        rho: the baseline's cost over the ensemble's, Eq. 8.
        variance: Var(K) / E[K]^2, Eq. 11.
        cardinality: the integer the design takes.
        parameters: trained parameters of the whole network.
        flops: FLOPs of the whole network for one example.
        log_error: standard error of the logarithm of the objective, relative to the best width's;
            zero where the law is taken as known.
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

    def __len__(self) -> int:
        return len(self.width)


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """An optimal design, what it costs, and the curve it was read from.

    Attributes:
        baseline: the module or network that was asked about.
        mode: `"primal"` or `"dual"`.
        law: the variance law that was used, in words.
        alpha: its constant; `None` if it is not the exponential law.
        tolerance: designs this close to the optimum counted as equal, and the widest was taken.
        design: the answer.
        multiplicity: the cardinality before it was rounded.
        params: trained parameters of the whole network with this design.
        flops: FLOPs of the whole network for one example.
        baseline_params: the same for the baseline.
        baseline_flops: the same for the baseline.
        rho: the baseline's cost over the design's, for the whole network as it would be built;
            cost is what the search's `budget` counts.
        unrounded_rho: rho of one module at the unrounded cardinality, as the paper's curves show
            it (Eq. 8).
        variance: Var(K) / E[K]^2 of a module with this design.
        baseline_variance: the same for the baseline.
        curve: every candidate.
        coefficients: with the closed form, c_k of Var(K) / E[K]^2 = sum_k c_k / n^k for one path;
            `None` for another law.
        best_width: with the closed form, the real-valued width that is best for the module.
        stages: with the closed form, the same for every stage of a network, and what the design,
            whose width doubles with each, loses to it.
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
    coefficients: tuple[float, ...] | None = None
    best_width: float | None = None
    stages: tuple[Stage, ...] = ()

    def near_optimal(self, tolerance: float | None = None) -> list[Design]:
        """The designs whose objective is within `tolerance` of the best, narrowest first.

        Where the law was fitted or measured, also those within two standard errors of that.

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
        near = within(badness, tolerance, self.curve.log_error)
        return [
            Design(int(m), int(n))
            for m, n in zip(self.curve.cardinality[near], self.curve.width[near], strict=True)
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the objective against width, with the optimum and its near-optimal band.

        Args:
            ax: where to draw; a new figure if not given.

        Returns:
            The axes drawn on; `.figure.savefig("curve.png")` keeps the picture.
        """
        from ce_keras import plotting

        return plotting.objective_curve(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain numbers and strings, for JSON. The curve is left out."""
        skipped = {"baseline", "curve", "design"}
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
            "near_optimal": [str(design) for design in self.near_optimal()],
        }

    def _rows(self) -> list[tuple[str, str, str]]:
        """What is worth reading, as (quantity, baseline, this design)."""
        ratio = self.baseline_variance / self.variance
        times = f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"
        return [
            ("cardinality", "1", f"{self.design.cardinality} ({self.multiplicity:.2f} unrounded)"),
            ("width of a path", f"{self.baseline.width}", f"{self.design.width}"),
            ("parameters", f"{self.baseline_params:,}", f"{self.params:,}"),
            ("FLOPs", f"{self.baseline_flops:,}", f"{self.flops:,}"),
            ("Var(K)/E[K]^2", f"{self.baseline_variance:.5f}", f"{self.variance:.5f} ({times})"),
            ("efficiency rho", "1", f"{self.rho:.2f} ({self.unrounded_rho:.2f} unrounded)"),
        ]

    def _title(self) -> str:
        return f"{self.design}: {self.mode} optimum of {self.baseline.name} ({self.law})"

    def _footnote(self) -> str:
        near = [str(design) for design in self.near_optimal()]
        if len(near) > 8:
            near = [*near[:3], "...", *near[-3:]]
        return f"within {self.tolerance:.3g} of the optimum: {', '.join(near)}"

    def _exact(self) -> list[str]:
        """Lines on the coefficients, the best width and the stages, where the law is exact."""
        lines = []
        if self.coefficients is not None and len(self.coefficients) <= _SHOWN:
            terms = (f"{c:.3g}/n^{k}" for k, c in enumerate(self.coefficients, start=1))
            law = " + ".join(terms).replace("^1 ", " ").removesuffix("^1")
            lines.append(f"of one path, Var(K)/E[K]^2 = {law}")
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
        return lines

    def __repr__(self) -> str:
        rows = [("", "baseline", str(self.design)), *self._rows()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"  {a:<{first}}  {b:>{second}}  {c}" for a, b, c in rows]
        notes = ("  " + note for note in [*self._exact(), self._footnote()])
        return "\n".join([self._title(), *lines, *notes])

    def _repr_html_(self) -> str:
        cells = [("", "baseline", str(self.design)), *self._rows()]
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in cells
        )
        title = html.escape(self._title())
        note = "<br>".join(map(html.escape, [*self._exact(), self._footnote()]))
        return f"<table><caption>{title}</caption>{rows}</table><p>{note}</p>"


def badness_of(mode: Mode, objective: np.ndarray) -> np.ndarray:
    """The objective turned so that smaller is better, in the same proportions for both modes."""
    with np.errstate(divide="ignore"):
        return objective if mode == "primal" else 1 / objective


def within(badness: np.ndarray, tolerance: float, log_error: np.ndarray) -> np.ndarray:
    """Where a design counts as equal to the best: two standard errors of a law are added."""
    return badness <= (1 + tolerance) * badness.min() * np.exp(2 * log_error)
