"""Algorithm 2: the optimal collegial ensemble of a baseline, without any training.

>>> solution = search("resnext29", mode="dual")
>>> print(solution.design, f"{solution.rho:.2f} times fewer parameters")
10x10d 3.26 times fewer parameters

The *primal* problem (Eq. 10-12) minimises the kernel's variance at the baseline's cost; the *dual*
(Eq. 13-14) minimises the cost at the baseline's variance. With v(n) the variance of one path and
beta(n) its cost, both are solved by the width that minimises v(n) * beta(n): strong duality. They
differ in the cardinality.

Only NumPy is needed here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ce_keras.best_width import best_width, stage_optima
from ce_keras.checks import boolean, brief, checked_tolerance, instance, one_of, positive_int
from ce_keras.cost import MOST_PATHS, Budget, Cost, costs
from ce_keras.geometry import Design, Module, Network
from ce_keras.geometry import baseline as named_baseline
from ce_keras.solution import MODES, Curve, Mode, Solution, badness_of, within
from ce_keras.variance.correlation import MeasuredCorrelation
from ce_keras.variance.law import (
    ClosedFormLaw,
    ExponentialLaw,
    FittedAlpha,
    FittedLaw,
    Law,
    MeasuredLaw,
    PolynomialLaw,
    law_of,
)


def search(
    baseline: str | Module | Network,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["closed_form"] | FittedAlpha | None = None,
    correlation: Any = None,
    law: Callable[[int], Any] | Mapping[int, Any] | FittedLaw | None = None,
    budget: Budget = "params",
    hard_budget: bool = False,
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    widths: Iterable[int] | None = None,
) -> Solution:
    """Find the optimal collegial ensemble of a baseline (Algorithm 2, Eq. 8-14).

    The width is chosen by one module's law and cost, as in the paper. The cardinality is then
    rounded: the primal's to the nearest cost of the whole network, the dual's to the nearest
    variance of the module. The objective is flat at its optimum and alpha is not known to a
    percent, so of all widths within `tolerance` of the best the widest is taken, since wide paths
    run faster.

    Args:
        baseline: a name (`"resnext29"`, `"resnext50-1x64d"`), or a module or network from
            `ce_keras.geometry`, with its width.
        mode: `"primal"`: least variance at the baseline's cost. `"dual"`: least cost at the
            baseline's variance.
        alpha: the law's constant; the module's own if not given. A fit of it (Algorithm 1), with
            its standard error. Or `"closed_form"`: the exact variance instead of the exponential
            law, for modules that are stacks of ReLU layers, such as fully connected networks and
            the bottleneck block.
        correlation: with the closed form, of the input of a block at the positions that its k x k
            convolution reads: a number for all pairs of positions, or a P x P matrix, or the
            result of `ce_keras.variance.measure_correlation`. By default 1, the limit of smooth
            feature maps; real ones have 0.8 to 0.95.
        law: the variance of one path instead of any formula: a function from a width to
            Var(K) / E[K]^2, or to a pair of that and its standard error; or a table of either by
            width, interpolated between its widths; or a fit of `ce_keras.variance.fit_alpha`,
            whose polynomial is used.
        budget: the cost: `"params"`, `"flops"`, or a function of (cardinality, width) that returns
            the cost of the whole network and does not fall as cardinality grows.
        hard_budget: solve the primal among whole cardinalities whose network costs no more than
            the baseline. By default the cardinality is rounded to the nearest, as in the paper,
            which may cost half a path more.
        tolerance: relative distance from the optimum within which designs count as equal; 0 takes
            the optimum itself. Two standard errors of a fitted or measured law are added to it.
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
    one_of("mode", mode, MODES)
    boolean("hard_budget", hard_budget)
    module = baseline.module
    measured = correlation if isinstance(correlation, MeasuredCorrelation) else None
    path_law = law_of(module, alpha, law, measured.first if measured else correlation)
    tolerance = checked_tolerance(tolerance)
    widths = _candidate_widths(baseline.width, widths, multiple_of, path_law)
    module_cost, network_cost = costs(budget, baseline)

    path_variance = path_law.path_variance(widths)
    baseline_variance = float(path_law.path_variance(np.array(baseline.width)))
    if not np.isfinite(baseline_variance):
        raise ValueError(f"alpha: too large: with {path_law.name}, the baseline's Var(K) overflows")
    if mode == "dual":
        optimum = _dual(widths, path_variance, baseline_variance, module_cost)
    else:
        optimum = _primal(widths, path_variance, module_cost, network_cost, hard_budget)

    # Rounding may put the baseline itself just below one path.
    least = 0 if mode == "dual" else 1 - 1e-9
    buildable = (optimum.multiplicity > least) & (optimum.multiplicity < MOST_PATHS)
    badness = np.where(buildable, badness_of(mode, optimum.objective), np.inf)
    if not np.isfinite(badness).any():
        single = network_cost.of(np.ones(1), widths[:1])[0]
        raise ValueError(
            f"budget: no design of widths {widths[0]} to {widths[-1]} meets the baseline's "
            f"{network_cost.target:.6g}: one path of width {widths[0]} costs {single:.6g}, and "
            f"more than {MOST_PATHS} paths are not considered; allow other widths"
        )
    log_error = path_law.log_error(widths, int(widths[badness.argmin()]))
    best = int(np.flatnonzero(within(badness, tolerance, log_error))[-1])
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
        **_exact_optimum(baseline, path_law, budget, design, measured),
    )


def _exact_optimum(
    baseline: Module | Network,
    path_law: Law,
    budget: Budget,
    design: Design,
    measured: MeasuredCorrelation | None,
) -> dict[str, Any]:
    """Return the fields of a solution that only a polynomial law in 1 / width has."""
    if not isinstance(path_law, ClosedFormLaw | PolynomialLaw) or path_law.coefficients is None:
        return {}
    found: dict[str, Any] = {"coefficients": tuple(map(float, path_law.coefficients))}
    if callable(budget):
        return found
    counted = getattr(baseline.module, budget)
    found["best_width"] = best_width(path_law.coefficients, functools.partial(counted, 1))
    if isinstance(path_law, ClosedFormLaw) and isinstance(baseline, Network) and baseline.stages:
        same = [path_law.gram] * len(baseline.stages)
        correlations = same if measured is None else measured.stages
        found["stages"] = stage_optima(baseline.stages, correlations, budget, design.width)
    return found


# A cardinality far above any network's, whose cost is still a finite number.
_MANY = 1e150


class _Optimum(NamedTuple):
    """A problem of the paper, solved at every width; the search rounds `multiplicity`."""

    m: np.ndarray
    objective: np.ndarray
    rho: np.ndarray
    variance: np.ndarray
    multiplicity: np.ndarray


def _primal(
    n: np.ndarray, path_variance: np.ndarray, module: Cost, network: Cost, hard_budget: bool
) -> _Optimum:
    """Solve Eq. 10-12, least variance at the baseline's cost, maybe for whole cardinalities."""
    multiplicity = network.affordable(n)
    if not hard_budget:
        m = module.affordable(n)
        return _Optimum(m, path_variance / m, np.ones_like(m), path_variance / m, multiplicity)
    m = np.floor(multiplicity + 1e-9)  # Rounding may put the baseline just below one path.
    with np.errstate(divide="ignore"):  # m is 0 where not even one path fits.
        return _Optimum(m, path_variance / m, module.target / module.of(m, n), path_variance / m, m)


def _dual(
    n: np.ndarray, path_variance: np.ndarray, baseline_variance: float, module: Cost
) -> _Optimum:
    """Solve Eq. 13-14: least cost at the baseline's variance."""
    m = path_variance / baseline_variance  # May be infinite, which no cost function takes.
    rho = module.target / module.of(np.minimum(m, _MANY), n)
    return _Optimum(m, rho, rho, np.full_like(m, baseline_variance), m)


def _curve(
    baseline: Module | Network, widths: np.ndarray, optimum: _Optimum, log_error: np.ndarray
) -> Curve:
    """Return the theory's curve with the rounded cardinalities and the networks' costs."""
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


# Checks ----------------------------------------------------------------------------------------


def _checked_baseline(baseline: Any) -> Module | Network:
    if isinstance(baseline, str):
        return named_baseline(baseline)
    wanted = "a name, a geometry.Module or a geometry.Network"
    return instance("baseline", baseline, Module | Network, wanted)


def _candidate_widths(
    baseline: int, widths: Iterable[int] | None, multiple_of: int | None, path_law: Law
) -> np.ndarray:
    low, high = path_law.range if isinstance(path_law, MeasuredLaw) else (1, np.inf)
    if not low <= baseline <= high:
        raise ValueError(
            f"law: its table spans widths {low:g} to {high:g}; it must reach the baseline's, "
            f"{baseline}"
        )
    try:
        every = range(int(low), baseline + 1)
        candidates = every if widths is None else sorted({*map(operator.index, widths)})
    except TypeError:
        raise ValueError(f"widths: got {brief(widths)}; it must be whole numbers") from None
    step = 1 if multiple_of is None else positive_int("multiple_of", multiple_of)
    wrong = [n for n in candidates if not low <= n <= baseline]
    if wrong:
        raise ValueError(
            f"widths: got {brief(wrong[0])}; widths are {low:g} to {baseline}, the baseline's"
        )
    kept = np.array([n for n in candidates if n % step == 0], dtype=np.int64)
    if not kept.size:
        raise ValueError(
            f"widths: no width is left to choose from (widths={brief(widths)}, "
            f"multiple_of={multiple_of!r}, baseline width {baseline})"
        )
    return kept
