"""The search: the optimal collegial ensemble of any baseline, without any training.

>>> solution = search("resnext29", mode="dual")
>>> print(solution.design, f"{solution.rho:.2f} times fewer parameters")
10x10d 3.26 times fewer parameters

The *primal* problem (Eq. 10-12) minimises the kernel's variance at the baseline's cost; the *dual*
(Eq. 13-14) minimises the cost at the baseline's variance. With v(n) the variance of one path and
beta(n) its cost, both are solved by the width that minimises v(n) * beta(n): strong duality. They
differ in the cardinality.

Named networks, and modules described by `ce_keras.geometry`, need only NumPy. Keras is loaded for a
Keras model, and to measure times.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ce_keras.algorithm2 import solve
from ce_keras.checks import brief
from ce_keras.cost import COUNTED, OF_MODELS, checked_budget
from ce_keras.geometry import RESNEXTS, Module, Network, resnext
from ce_keras.geometry import baseline as named_baseline
from ce_keras.latency import LatencyCost, Phase, Table, Timing, known_table
from ce_keras.problem import Mode
from ce_keras.variance.law import FittedAlpha, FittedLaw

if TYPE_CHECKING:
    from ce_keras.rewrite.baselines import ModelBaseline


def search(
    baseline: Any,
    mode: Mode = "primal",
    *,
    family: str | None = None,
    alpha: float | Literal["closed_form", "fit"] | FittedAlpha | None = None,
    correlation: Any = None,
    law: Callable[[int], Any] | Mapping[int, Any] | FittedLaw | None = None,
    budget: Any = "params",
    target: float | None = None,
    target_params: int | None = None,
    hard_budget: bool = False,
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    widths: Iterable[int] | None = None,
    batch: int = 32,
    phase: Phase = "train",
    input_shape: tuple[int, int, int] | None = None,
    dtype: str | None = None,
    remeasure: bool = False,
) -> Any:
    """Find the optimal collegial ensemble of a baseline (Algorithm 2, Eq. 8-14).

    The width is chosen by one module's law and cost, as in the paper. The cardinality is then
    rounded to the nearest: the primal's is where the whole network costs as much, the dual's where
    the module's variance is equal. The objective is flat at its optimum and alpha is not known to a
    percent, so of all widths within `tolerance` of the best the widest is taken, since wide paths
    run faster.

    Args:
        baseline: a name (`"resnext29"`, `"resnext50-1x64d"`); a Keras model, or the path of its
            `.keras` file; a candidate of `ce_keras.inspect`'s report, which stands for its family;
            or a module or network from `ce_keras.geometry`, with its width.
        mode: `"primal"`: least variance at the baseline's cost. `"dual"`: least cost at the
            baseline's variance.
        family: of a Keras model, a pattern such as `"dense*"` of the family or chain to search for.
        alpha: the law's constant; the module's own if not given. A fit of it (Algorithm 1), with
            its standard error. Or `"closed_form"`: the exact variance instead of the exponential
            law, for modules that are stacks of ReLU layers, such as fully connected networks and
            the bottleneck block. Of a Keras model, as for `ce_keras.collegialize`.
        correlation: with the closed form, of the input of a block at the positions that its k x k
            convolution reads: a number for all pairs of positions, or a P x P matrix, or the
            result of `ce_keras.variance.measure_correlation`. By default 1, the limit of smooth
            feature maps; real ones have 0.8 to 0.95.
        law: the variance of one path instead of any formula: a function from a width to
            Var(K) / E[K]^2, or to a pair of that and its standard error; or a table of either by
            width, interpolated between its widths; or a fit of `ce_keras.variance.fit_alpha`,
            whose polynomial is used.
        budget: the cost: `"params"`; `"flops"`; `"latency"`, the measured time of a step on this
            device; `"memory"`, the activations that a training step keeps; or a function of
            (cardinality, width) that returns the cost of the whole network and does not fall as
            cardinality grows. A tuple of these asks for a design that is no worse in any.
        target: with the primal, the design's cost over the baseline's: 0.5
            for the smoothest design of half the size.
        target_params: likewise, as a number of parameters.
        hard_budget: solve the primal among whole cardinalities whose network costs no more than
            the baseline, or the target. By default the cardinality is rounded to the nearest, as
            in the paper, which may cost half a path more.
        tolerance: relative distance from the optimum within which designs count as equal; 0 takes
            the optimum itself. Two standard errors of a fitted or measured law, and of measured
            times, are added to it.
        multiple_of: consider only widths that are multiples of this, such as 8.
        widths: consider only these widths; by default every width up to the baseline's.
        batch: examples in a step, for a budget of latency or memory.
        phase: `"train"` or `"infer"`: the step whose latency is the budget.
        input_shape: of a named network, height, width and channels of its images.
        dtype: of a named network, the policy of its layers for latency or memory, such as
            `"mixed_bfloat16"`.
        remeasure: whether times that are known from before are measured again.

    Returns:
        The solution, with the whole curve. Of a Keras model with several families of modules, a
        dictionary of solutions by the family's name.

    Raises:
        ValueError: for an unknown name or mode, an alpha that is not positive, a width above the
            baseline's, an empty range of widths, a negative tolerance, or a budget that no
            design meets.

    >>> print(search("resnext50").design, search("resnext50", multiple_of=8).design)
    12x10d 15x8d
    >>> half = search("resnext29", target=0.5)
    >>> print(half.design, half.params, f"{half.variance / half.baseline_variance:.2f}")
    18x10d 7044626 0.55
    """
    timing = Timing(batch, phase, remeasure).checked()
    budget = checked_budget(budget)
    size: dict[str, Any] = {"target": target, "target_params": target_params}
    options: dict[str, Any] = {
        "correlation": correlation,
        "law": law,
        "hard_budget": hard_budget,
        "tolerance": tolerance,
        "multiple_of": multiple_of,
        "widths": widths,
    }
    if isinstance(baseline, str) and not baseline.endswith(".keras"):
        network = _named(baseline, input_shape)
        if family is not None:
            raise ValueError(f"family: got {brief(family)}; only a Keras model has families")
        asked = budget if isinstance(budget, tuple) else (budget,)
        if dtype is not None and not any(map(OF_MODELS.__contains__, asked)):
            raise ValueError(f"dtype: got {brief(dtype)}; no cost but latency and memory has one")
        cost = _cost_of_name(budget, network, timing, input_shape, dtype)
        return solve(network, mode, alpha=alpha, budget=cost, **size, **options)
    for name, value in {"input_shape": input_shape, "dtype": dtype}.items():
        if value is not None:
            raise ValueError(
                f"{name}: got {brief(value)}; only a named network takes it, others have their own"
            )
    if isinstance(baseline, Module | Network):
        _refuse_budgets_of_models(budget)
        return solve(baseline, mode, alpha=alpha, budget=budget, **size, **options)
    solutions = {}
    for each, cost in _of_model(baseline, family, mode, budget, timing, size):
        own = each.alpha(alpha) if law is None else alpha
        solutions[each.network.name] = solve(each.network, mode, alpha=own, **cost, **options)
    return solutions if len(solutions) > 1 else solutions.popitem()[1]


def _named(name: str, input_shape: Any) -> Module | Network:
    """Return a named baseline, for images of a shape."""
    network = named_baseline(name)
    if input_shape is None:
        return network
    shape = RESNEXTS.get(network.name)
    if shape is None:
        raise ValueError(f"input_shape: got {brief(input_shape)}; {network.name} has no images")
    resized = resnext(shape._replace(input_shape=input_shape), network.width)
    return dataclasses.replace(resized, name=network.name)


def _of_model(
    baseline: Any,
    family: str | None,
    mode: Mode,
    budget: Any,
    timing: Timing,
    size: dict[str, Any],
) -> Iterator[tuple[ModelBaseline, dict[str, Any]]]:
    """Yield each family of a model's chains, and what its design may cost."""
    # A model and a candidate have layers; Keras is not loaded to refuse anything else.
    if not isinstance(baseline, str | Path) and not hasattr(baseline, "layers"):
        raise ValueError(
            f"baseline: got {brief(baseline)}; it must be a name, a geometry.Module, a "
            "geometry.Network, a Keras model or the path of a .keras file, or a candidate of "
            "ce_keras.inspect's report"
        )
    from ce_keras.rewrite import baselines_of
    from ce_keras.rewrite.baselines import asked_of

    found = baselines_of(baseline, family)
    asked = asked_of(found, mode, budget, timing=timing, **size)
    return zip(found, asked, strict=True)


# Budgets that need a model -----------------------------------------------------------------------


def _refuse_budgets_of_models(budget: Any) -> None:
    for each in budget if isinstance(budget, tuple) else [budget]:
        if isinstance(each, str) and each in OF_MODELS:
            raise ValueError(
                f"budget: got {each!r}; it needs a network that can be built: a name such as "
                "'resnext29', or a Keras model. For a module, give a function of cardinality and "
                "width"
            )


def _cost_of_name(
    budget: Any,
    network: Module | Network,
    timing: Timing,
    input_shape: Any,
    dtype: str | None,
) -> Any:
    """Return the budget of a named network, with latency and memory as costs."""
    if isinstance(budget, tuple):
        return [_cost_of_name(each, network, timing, input_shape, dtype) for each in budget]
    if callable(budget) or budget in COUNTED:
        return budget
    if network.name not in RESNEXTS:
        _refuse_budgets_of_models(budget)
    build = functools.partial(_built, network, input_shape, dtype)
    if budget == "memory":
        return build().budget(budget, timing)

    def measure() -> Table:
        from ce_keras.rewrite.timing import measure_table

        found = build()
        return measure_table(found.model, found.family, timing)

    key = times_key(network, input_shape, dtype)
    return LatencyCost(timing, known_table(key, timing, measure), network.width)


def times_key(network: Module | Network, input_shape: Any, dtype: str | None) -> dict[str, Any]:
    """Return what the times of a named network are kept by, for `ce_keras.latency`."""
    shape = None if input_shape is None else list(input_shape)
    if dtype is None and "keras" in sys.modules:  # Else the policy is Keras' default.
        policy = sys.modules["keras"].config.dtype_policy().name
        dtype = None if policy == "float32" else policy
    return {"network": network.name, "width": network.width, "shape": shape, "dtype": dtype}


def _built(network: Module | Network, input_shape: Any, dtype: str | None) -> ModelBaseline:
    """Build a named network, and return its blocks as a baseline."""
    from ce_keras import zoo
    from ce_keras.rewrite import baselines_of

    model = zoo.NETWORKS[network.name](
        cardinality=1, width=network.width, input_shape=input_shape, dtype=dtype
    )
    (found,) = baselines_of(model)
    return found
