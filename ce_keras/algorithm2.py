"""Algorithm 2 for a module or network of `ce_keras.geometry`, with any law and any cost.

`ce_keras.search` is its public form, which also takes names and Keras models. Only NumPy is needed
here.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from ce_keras.best_width import best_width, stage_optima
from ce_keras.checks import (
    boolean,
    brief,
    checked_tolerance,
    finite_number,
    one_of,
    positive_int,
    whole_number,
)
from ce_keras.cost import COUNTED, MOST_PATHS, cost_of
from ce_keras.geometry import Design, Module, Network
from ce_keras.problem import MODES, Mode, Optimum, Problem, buildable_of
from ce_keras.solution import Curve, Solution
from ce_keras.variance.correlation import MeasuredCorrelation
from ce_keras.variance.law import (
    ClosedFormLaw,
    ExponentialLaw,
    Law,
    MeasuredLaw,
    PolynomialLaw,
    law_of,
)


def solve(
    baseline: Module | Network,
    mode: Mode = "primal",
    *,
    alpha: Any = None,
    correlation: Any = None,
    law: Any = None,
    budget: Any = "params",
    target: float | None = None,
    target_params: int | None = None,
    hard_budget: bool = False,
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    widths: Iterable[int] | None = None,
) -> Solution:
    """Return the optimal collegial ensemble of a module or network.

    Arguments and errors are those of `ce_keras.search`; the budget may also be a
    `ce_keras.cost.Cost`.
    """
    one_of("mode", mode, MODES)
    boolean("hard_budget", hard_budget)
    module = baseline.module
    measured = correlation if isinstance(correlation, MeasuredCorrelation) else None
    path_law = law_of(module, alpha, law, measured.first if measured else correlation)
    tolerance = checked_tolerance(tolerance)
    widths = _candidate_widths(baseline.width, widths, multiple_of, path_law)
    cost = cost_of(budget, baseline)
    fraction = checked_fraction(baseline, mode, budget, target, target_params)

    baseline_variance = float(path_law.path_variance(np.array(baseline.width)))
    if not np.isfinite(baseline_variance):
        raise ValueError(f"alpha: too large: with {path_law.name}, the baseline's Var(K) overflows")
    path_variance = path_law.path_variance(widths)
    problem = Problem(
        widths=widths,
        path_variance=path_variance,
        baseline=baseline.width,
        baseline_variance=baseline_variance,
        law_error=path_law.log_error,
        cost=cost,
        fraction=fraction or 1.0,
    )
    solved = problem.solve(mode, tolerance, hard_budget)
    if solved is None:
        raise ValueError(_no_design(problem, target, target_params))
    optimum, best, errors = solved
    curve = _curve(baseline, mode, widths, optimum, errors)
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
        rho=1 / problem.cost_of(design),
        unrounded_rho=float(optimum.rho[best]),
        variance=float(path_variance[best] / design.cardinality),
        baseline_variance=baseline_variance,
        curve=curve,
        budget=cost.name,
        target=fraction,
        measured=cost.measured(design),
        problem=problem,
        **_exact_optimum(baseline, path_law, budget, design, measured),
    )


def _exact_optimum(
    baseline: Module | Network,
    path_law: Law,
    budget: Any,
    design: Design,
    measured: MeasuredCorrelation | None,
) -> dict[str, Any]:
    """Return the fields of a solution that only a polynomial law in 1 / width has."""
    if not isinstance(path_law, ClosedFormLaw | PolynomialLaw) or path_law.coefficients is None:
        return {}
    found: dict[str, Any] = {"coefficients": tuple(map(float, path_law.coefficients))}
    if not isinstance(budget, str) or budget not in COUNTED:
        return found
    counted = getattr(baseline.module, budget)
    found["best_width"] = best_width(path_law.coefficients, functools.partial(counted, 1))
    if isinstance(path_law, ClosedFormLaw) and isinstance(baseline, Network) and baseline.stages:
        same = [path_law.gram] * len(baseline.stages)
        correlations = same if measured is None else measured.stages
        found["stages"] = stage_optima(baseline.stages, correlations, budget, design.width)
    return found


def _curve(
    baseline: Module | Network,
    mode: Mode,
    widths: np.ndarray,
    optimum: Optimum,
    log_error: np.ndarray,
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
        buildable=buildable_of(mode, optimum.multiplicity),
    )


# Checks ----------------------------------------------------------------------------------------


def checked_fraction(
    baseline: Module | Network, mode: Mode, budget: Any, target: Any, target_params: Any
) -> float | None:
    """Return the target as a fraction of the baseline's cost, or `None` where there is no target.

    Raises:
        ValueError: for a target that is not right, or does not go with the mode or budget.
    """
    given = {"target": target, "target_params": target_params}
    asked = [name for name, value in given.items() if value is not None]
    if not asked:
        return None
    name = asked[0]
    if len(asked) == 2:
        raise ValueError("target, target_params: give one of them")
    if mode == "dual":
        raise ValueError(
            f"{name}: got {brief(given[name])} with mode='dual', whose size follows from its "
            "smoothness; leave mode out for the smoothest design of that size"
        )
    if target is not None:
        return finite_number("target", target, above=0)
    if budget != "params":
        raise ValueError(
            f"target_params: is a number of parameters, but budget is {brief(budget)}; give "
            "target, the new cost over the baseline's"
        )
    return whole_number("target_params", target_params, 1) / float(
        baseline.params(1, baseline.width)
    )


def _no_design(problem: Problem, target: float | None, target_params: int | None) -> str:
    """Return the message where not even one path of any width is within the budget."""
    cost, widths = problem.cost, problem.widths
    least = [cost.of(np.ones(1), widths[i : i + 1])[0] for i in range(len(widths))]
    narrowest = int(np.argmin(least))
    asked, wanted = "budget", "the baseline's"
    if target is not None or target_params is not None:
        asked = "target" if target_params is None else "target_params"
        wanted = f"{problem.fraction:.4g} of the baseline's, which is"
    return (
        f"{asked}: no design of widths {widths[0]} to {widths[-1]} meets {wanted} "
        f"{problem.fraction * cost.baseline:.6g}: the smallest, 1x{widths[narrowest]}d, costs "
        f"{least[narrowest]:.6g} ({cost.name}), and more than {MOST_PATHS} paths are not "
        "considered; allow other widths, or a larger size"
    )


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
        every = range(math.ceil(low), baseline + 1)
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
