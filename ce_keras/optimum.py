"""Algorithm 2: the optimal collegial ensemble of a baseline, without training anything.

>>> solution = search("resnext29", mode="dual")
>>> print(solution.design, f"{solution.rho:.2f} times fewer parameters")
10x10d 3.26 times fewer parameters

The *primal* problem (Eq. 10-12) asks which ensemble of the baseline's size has the smoothest
kernel; the *dual* (Eq. 13-14) which ensemble as smooth as the baseline is smallest. With v(n) the
variance of one path and beta(n) its cost, both are solved by the width that minimises
v(n) * beta(n): strong duality. They differ in the cardinality they give it.

Only NumPy is needed here.
"""

from __future__ import annotations

import dataclasses
import html
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from ce_keras.budget import MOST_PATHS, Budget, Cost, costs
from ce_keras.checks import checked_tolerance, positive_int
from ce_keras.geometry import Design, Module, Network
from ce_keras.geometry import baseline as named_baseline
from ce_keras.law import ClosedFormLaw, ExponentialLaw, Law, MeasuredLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mode = Literal["primal", "dual"]


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

    def near_optimal(self, tolerance: float | None = None) -> list[Design]:
        """The designs whose objective is within `tolerance` of the best, narrowest first.

        Where the law was fitted or measured, also those within two standard errors of that.

        Args:
            tolerance: relative distance; the search's own if not given.

        Raises:
            ValueError: for a negative tolerance.

        >>> [str(design) for design in search("resnext29", "dual").near_optimal()]
        ['21x5d', '17x6d', '15x7d', '13x8d', '11x9d', '10x10d']
        """
        tolerance = self.tolerance if tolerance is None else checked_tolerance(tolerance)
        badness = _badness(self.mode, self.curve.objective)
        near = _within(badness, tolerance, self.curve.log_error)
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

    def __repr__(self) -> str:
        rows = [("", "baseline", str(self.design)), *self._rows()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"  {a:<{first}}  {b:>{second}}  {c}" for a, b, c in rows]
        return "\n".join([self._title(), *lines, "  " + self._footnote()])

    def _repr_html_(self) -> str:
        cells = [("", "baseline", str(self.design)), *self._rows()]
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in cells
        )
        title, note = html.escape(self._title()), html.escape(self._footnote())
        return f"<table><caption>{title}</caption>{rows}</table><p>{note}</p>"


def search(
    baseline: str | Module | Network,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["closed_form"] | FittedAlpha | None = None,
    law: Callable[[int], Any] | Mapping[int, Any] | None = None,
    budget: Budget = "params",
    hard_budget: bool = False,
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    widths: Iterable[int] | None = None,
) -> Solution:
    """Find the optimal collegial ensemble of a baseline (Algorithm 2, Eq. 8-14).

    The width is chosen by one module's law and cost, as in the paper. The cardinality is then
    made an integer: the primal's matches the whole network's cost to the baseline's, nearest; the
    dual's is the module's, rounded. The objective is flat at its optimum and alpha is not known
    to a percent, so of all widths within `tolerance` of the best the widest is taken: wide paths
    run faster.

    Args:
        baseline: a name (`"resnext29"`, `"resnext50-1x64d"`), or a module or network from
            `ce_keras.geometry`, with its width.
        mode: `"primal"`: smoothest for the baseline's cost. `"dual"`: cheapest at the baseline's
            smoothness.
        alpha: the law's constant; the module's own if not given. A fit of it (Algorithm 1), with
            its standard error. Or `"closed_form"`: the exact variance instead of the exponential
            law, for the modules that have one.
        law: the variance of one path instead of any formula: a function from a width to
            Var(K) / E[K]^2, or to a pair of that and its standard error; or a table of either by
            width, interpolated between its widths.
        budget: the cost: `"params"`, `"flops"`, or a function of (cardinality, width) that gives
            the cost of the whole network and does not fall as cardinality grows.
        hard_budget: a primal's problem is solved among whole cardinalities of which the network
            costs no more than the baseline. By default its cardinality is rounded to the nearest,
            as in the paper, which may cost half a path more.
        tolerance: how far from the optimum a design counts as equal; 0 is the bare optimum. Two
            standard errors of a fitted or measured law are added to it.
        multiple_of: consider only widths that are multiples of this, such as 8.
        widths: consider only these widths; by default every width up to the baseline's.

    Returns:
        The solution, with the whole curve.

    Raises:
        ValueError: for an unknown name or mode, an alpha that is not positive, a width above the
            baseline's, an empty range of widths, a negative tolerance, or a budget that no
            design meets.

    >>> print(search("resnext50").design, search("resnext50", multiple_of=8).design)
    12x10d 15x8d
    """
    baseline = _checked_baseline(baseline)
    if mode not in ("primal", "dual"):
        raise ValueError(f"mode: got {mode!r}; it must be 'primal' or 'dual'")
    module = baseline.module
    path_law = _chosen_law(module, alpha, law)
    tolerance = checked_tolerance(tolerance)
    widths = _candidate_widths(baseline.width, widths, multiple_of, path_law)
    module_cost, network_cost = costs(budget, baseline)

    path_variance = path_law.path_variance(widths)
    baseline_variance = float(path_law.path_variance(np.array(baseline.width)))
    if not np.isfinite(baseline_variance):
        raise ValueError(
            f"alpha: too large: with {path_law.name}, already the baseline's Var(K) is beyond any "
            "number"
        )
    if mode == "primal":
        solve = _primal_in_whole_paths if hard_budget else _primal
        optimum = solve(widths, path_variance, module_cost, network_cost)
    else:
        optimum = _dual(widths, path_variance, baseline_variance, module_cost)

    badness = np.where(_buildable(mode, optimum), _badness(mode, optimum.objective), np.inf)
    if not np.isfinite(badness).any():
        single = network_cost.of(np.ones(1), widths[:1])[0]
        raise ValueError(
            f"budget: no design of widths {widths[0]} to {widths[-1]} meets the baseline's "
            f"{network_cost.target:.6g}: one path of width {widths[0]} costs {single:.6g}, and "
            f"more than {MOST_PATHS} paths are not considered; allow other widths"
        )
    # Among equals the widest.
    log_error = path_law.log_error(widths, int(widths[badness.argmin()]))
    best = int(np.flatnonzero(_within(badness, tolerance, log_error))[-1])
    curve = _curve(baseline, widths, optimum, log_error)
    design = Design(int(curve.cardinality[best]), int(widths[best]))
    return Solution(
        baseline=baseline,
        mode=mode,
        law=path_law.name,
        alpha=path_law.alpha if isinstance(path_law, ExponentialLaw) else None,
        tolerance=tolerance,
        design=design,
        multiplicity=float(optimum.multiplicity[best]),
        params=int(baseline.params(*design)),
        flops=int(baseline.flops(*design)),
        baseline_params=int(baseline.params(1, baseline.width)),
        baseline_flops=int(baseline.flops(1, baseline.width)),
        rho=float(network_cost.target / network_cost.of(*map(np.atleast_1d, design))[0]),
        unrounded_rho=float(optimum.rho[best]),
        variance=float(path_variance[best] / design.cardinality),
        baseline_variance=baseline_variance,
        curve=curve,
    )


class _Optimum(NamedTuple):
    """A problem of the paper, solved at every width; `multiplicity` is what gets rounded."""

    m: np.ndarray
    objective: np.ndarray
    rho: np.ndarray
    variance: np.ndarray
    multiplicity: np.ndarray


def _primal(n: np.ndarray, path_variance: np.ndarray, module: Cost, network: Cost) -> _Optimum:
    """Eq. 10-12: least variance at the baseline's cost."""
    m = module.affordable(n)
    variance = path_variance / m
    return _Optimum(m, variance, np.ones_like(m), variance, network.affordable(n))


def _primal_in_whole_paths(
    n: np.ndarray, path_variance: np.ndarray, module: Cost, network: Cost
) -> _Optimum:
    """The same among what can be built without costing more than the baseline."""
    m = np.floor(network.affordable(n) + 1e-9)  # The baseline itself is one path, but for rounding.
    with np.errstate(divide="ignore"):  # Where not even one path fits.
        variance, rho = path_variance / m, module.target / module.of(m, n)
    return _Optimum(m, variance, rho, variance, m)


def _dual(
    n: np.ndarray, path_variance: np.ndarray, baseline_variance: float, module: Cost
) -> _Optimum:
    """Eq. 13-14: least cost at the baseline's variance."""
    m = path_variance / baseline_variance
    rho = module.target / module.of(m, n)
    return _Optimum(m, rho, rho, np.full_like(m, baseline_variance), m)


def _curve(
    baseline: Module | Network, widths: np.ndarray, optimum: _Optimum, log_error: np.ndarray
) -> Curve:
    """The theory's curve beside what can be built: whole cardinalities, whole networks."""
    cardinality = np.clip(np.rint(optimum.multiplicity), 1, MOST_PATHS).astype(np.int64)
    return Curve(
        width=widths,
        m=optimum.m,
        objective=optimum.objective,
        rho=optimum.rho,
        variance=optimum.variance,
        cardinality=cardinality,
        parameters=baseline.params(cardinality.astype(float), widths),
        flops=baseline.flops(cardinality.astype(float), widths),
        log_error=log_error,
    )


def _buildable(mode: Mode, optimum: _Optimum) -> np.ndarray:
    """Where there is a design: within the budget (primal), of a cardinality one can build."""
    fits = optimum.multiplicity < MOST_PATHS
    # The baseline itself is one path, but for rounding.
    return fits & (optimum.multiplicity > 1 - 1e-9) if mode == "primal" else fits


def _badness(mode: Mode, objective: np.ndarray) -> np.ndarray:
    """The objective turned so that smaller is better, in the same proportions for both modes."""
    with np.errstate(divide="ignore"):
        return objective if mode == "primal" else 1 / objective


def _within(badness: np.ndarray, tolerance: float, log_error: np.ndarray) -> np.ndarray:
    return badness <= (1 + tolerance) * badness.min() * np.exp(2 * log_error)


# Checks ----------------------------------------------------------------------------------------


def _checked_baseline(baseline: Any) -> Module | Network:
    if isinstance(baseline, str):
        return named_baseline(baseline)
    if isinstance(baseline, Module | Network):
        return baseline
    raise ValueError(
        f"baseline: got {baseline!r}; it must be a name, a geometry.Module or a geometry.Network"
    )


class FittedAlpha(Protocol):
    """What `search` needs of a fit: `alpha` and its standard error."""

    alpha: float
    alpha_error: float


def _chosen_law(module: Module, alpha: Any, curve: Any) -> Law:
    if curve is not None:
        if alpha is not None:
            raise ValueError(f"alpha, law: got alpha={alpha!r} and a law; give one of them")
        if not callable(curve) and not isinstance(curve, Mapping):
            raise ValueError(f"law: got {curve!r}; it must be a function of a width, or a table")
        return MeasuredLaw(curve)
    if alpha == "closed_form":
        return ClosedFormLaw(module)
    if alpha is None and module.alpha is None:
        raise ValueError(
            f"alpha: none given and none known for {module.name!r}; fit one with Algorithm 1 "
            "(the paper's bottleneck block has 1.60)"
        )
    alpha = module.alpha if alpha is None else alpha
    error = getattr(alpha, "alpha_error", 0.0)
    value = getattr(alpha, "alpha", alpha)
    if not (isinstance(value, numbers.Real) and 0 < float(value) < np.inf):
        raise ValueError(
            f"alpha: got {alpha!r}; it must be a positive number, 'closed_form', or a fit "
            "(the paper's bottleneck block has 1.60)"
        )
    return ExponentialLaw(module, float(value), float(error))


def _candidate_widths(
    baseline: int, widths: Iterable[int] | None, multiple_of: int | None, path_law: Law
) -> np.ndarray:
    low, high = path_law.range if isinstance(path_law, MeasuredLaw) else (1, np.inf)
    if not low <= baseline <= high:
        raise ValueError(
            f"law: its table spans widths {low} to {high}; it must reach the baseline's, {baseline}"
        )
    try:
        asked = (
            range(int(low), baseline + 1)
            if widths is None
            else sorted({*map(operator.index, widths)})
        )
    except TypeError:
        raise ValueError(f"widths: got {widths!r}; it must be whole numbers") from None
    step = 1 if multiple_of is None else positive_int("multiple_of", multiple_of)
    wrong = [n for n in asked if not low <= n <= baseline]
    if wrong:
        raise ValueError(
            f"widths: got {wrong[0]}; widths are {low} to {baseline}, which the baseline has"
        )
    kept = np.array([n for n in asked if n % step == 0], dtype=np.int64)
    if not kept.size:
        raise ValueError(
            f"widths: no width is left to choose from (widths={widths!r}, "
            f"multiple_of={multiple_of!r}, baseline width {baseline})"
        )
    return kept
