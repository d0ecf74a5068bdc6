"""Any Keras model in, its optimal collegial ensemble out.

>>> import keras
>>> model = keras.Sequential([keras.Input((784,)),
...     keras.layers.Dense(200, "relu"), keras.layers.Dense(200, "relu"),
...     keras.layers.Dense(200, "relu"), keras.layers.Dense(10)])
>>> smaller = collegialize(model, mode="dual")
>>> smaller.count_params() < model.count_params()
True
"""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras

from ce_keras.checks import brief, one_of, positive_int
from ce_keras.cost import Budget
from ce_keras.geometry import Design
from ce_keras.layers.flops import flops as flops_of
from ce_keras.layers.flops import parameters
from ce_keras.rewrite.building import check_copies, rebuilt
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.families import Answer, families_of, solve
from ce_keras.rewrite.finding import find_chains
from ce_keras.rewrite.graph import is_functional
from ce_keras.rewrite.options import Options, Patterns, Per, checked_options
from ce_keras.rewrite.report import Chosen, Costs, Found, Left, Report
from ce_keras.rewrite.splitting import carry_over
from ce_keras.rewrite.timing import check_measurable, step_seconds
from ce_keras.solution import Mode

__all__ = ["Report", "collegialize", "inspect"]

logger = logging.getLogger("ce_keras")


def inspect(
    model: keras.Model,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["fit", "closed_form"] | Mapping[str, Any] | Any = None,
    budget: Budget = "params",
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    design: str | Design | None = None,
    only: Patterns = None,
    skip: Patterns = None,
    per: Per = "network",
    seed: int | None = None,
) -> Report:
    """What `collegialize` would do with a model: nothing is built.

    Arguments are those of `collegialize`.

    Returns:
        The report: what can be ensembled and how; layer by layer what cannot, and why.

    >>> layers = [keras.layers.Dense(64, "relu") for _ in range(2)] + [keras.layers.Dense(1)]
    >>> report = inspect(keras.Sequential([keras.Input((8,)), *layers]))
    >>> report.found[0].widths, report.found[0].cardinality > 1
    ((64, 64), True)
    """
    options = checked_options(
        mode=mode,
        alpha=alpha,
        budget=budget,
        tolerance=tolerance,
        multiple_of=multiple_of,
        design=design,
        only=only,
        skip=skip,
        per=per,
        seed=seed,
    )
    return _plan(model, options).report


def collegialize(
    model: keras.Model,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["fit", "closed_form"] | Mapping[str, Any] | Any = None,
    budget: Budget = "params",
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    design: str | Design | None = None,
    only: Patterns = None,
    skip: Patterns = None,
    per: Per = "network",
    seed: int | None = None,
    init: Literal["random", "split"] = "random",
    measure: int | None = None,
) -> keras.Model:
    """Turn a Keras model into its optimal collegial ensemble (Algorithm 2).

    Chains of 1x1, k x k and 1x1 convolutions, and stacks of two or more hidden dense layers, become
    `cardinality` paths side by side; everything else stays as it is. Chains of one kind and shape
    are one family and get one design: the width is that of the narrowest, and wider ones get paths
    wider in proportion, as in the paper.

    The new model is *not trained*: its weights are drawn from the model's own initialisers, and
    none are carried over unless `init="split"` asks for it. Preprocessing layers, which learn by
    `adapt`, are the model's own. A compiled model is compiled again in the same way; one whose loss
    or metrics Keras cannot rebuild is returned uncompiled, with a warning.

    Args:
        model: functional, or sequential with a known input. Models inside it are searched too.
        mode: `"primal"`: smoothest at the model's size. `"dual"`: smallest at its smoothness.
        alpha: the variance law: `"closed_form"`, the exact one, for dense stacks and chains with
            one kernel larger than 1x1; `"fit"`: Algorithm 1 for the chain's linear maps with ReLU
            between them; a fit of `ce_keras.ntk.fit_alpha`; the constant of the exponential law
            (the paper's is 1.6, for its bottleneck block); or a mapping from patterns of chains'
            names to any of these. By default the closed form, and a fit where there is none.
        budget: `"params"`, `"flops"`, or a function of cardinality and width, as for
            `ce_keras.search`.
        tolerance: how far from the optimum a design counts as equal; the widest such is taken.
        multiple_of: consider only widths that are multiples of this.
        design: such as `"12x10d"`, or a pair of cardinality and width, instead of the optimum.
        only: patterns, such as `"conv4_*"`: chains are taken that have a layer of such a name.
        skip: patterns: chains with a layer of such a name are left.
        per: `"network"`: one design for each family. `"stage"`: one for each width as well.
        seed: for the draws of a fit, and of a split. Random weights follow Keras' own generator:
            `keras.utils.set_random_seed`.
        init: `"random"`: new weights, drawn from the model's own initialisers. `"split"`: for a
            model that is trained: every path takes a share of its units and the weights between
            them, and everything else is carried over. The function is not kept (only where paths
            are as wide as the model was), but training starts ahead, most of all for dense stacks.
        measure: a batch size: training steps before and after are timed, for the report.

    Returns:
        A new model of the same inputs, outputs and names: functional, sequential, or of a subclass
        of `keras.Model` that has no constructor of its own. Its `report` attribute, which is not
        saved with it, says what was done.

    Raises:
        ValueError: for a model in which nothing can be ensembled, with the report; a model that
            is subclassed or has no known input; a layer that cannot be built again from its
            configuration; patterns that fit nothing; or arguments as for `ce_keras.search`.

    >>> layers = [keras.layers.Dense(64, "relu") for _ in range(2)] + [keras.layers.Dense(1)]
    >>> wide = keras.Sequential([keras.Input((8,)), *layers])
    >>> ensemble = collegialize(wide, design="4x16d")
    >>> tuple(ensemble.layers[1].kernel.shape)
    (4, 16, 16)
    """
    options = checked_options(
        mode=mode,
        alpha=alpha,
        budget=budget,
        tolerance=tolerance,
        multiple_of=multiple_of,
        design=design,
        only=only,
        skip=skip,
        per=per,
        seed=seed,
    )
    one_of("init", init, ("random", "split"))
    if measure is not None:
        positive_int("measure", measure)
    plan = _plan(model, options)
    if measure is not None:
        check_measurable(model)
    if not plan.report.found:
        raise ValueError(f"model: {plan.report}")
    ensemble, pairs = rebuilt(model, plan.answers)
    if init == "split":
        carry_over(pairs, plan.answers, seed)
    times: Sequence[float | None] = (None, None)
    if measure is not None:
        # Copies are timed: nobody's weights or optimisers are touched.
        copies = [rebuilt(each, compiled=False).model for each in (model, ensemble)]
        times = step_seconds(copies, measure)
    report = dataclasses.replace(
        plan.report,
        before=dataclasses.replace(plan.report.before, step_seconds=times[0]),
        after=Costs(parameters(ensemble), _flops_or_none(ensemble), times[1]),
    )
    logger.info("%s", report)
    ensemble.report = report
    return ensemble


# Planning ----------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    report: Report
    answers: tuple[Answer, ...]


def _plan(model: keras.Model, options: Options) -> _Plan:
    """What is found in the model, and the design that every family gets."""
    _check_model(model)
    params, flops = parameters(model), _flops_or_none(model)
    chains, left = find_chains(model)
    chains, excluded = _selected(chains, options)
    if chains:
        check_copies(model)
    answers = []
    for family in families_of(chains, options.per):
        why = None
        if options.design is None and family.width < (options.multiple_of or 1):
            why = f"too narrow for a width that is a multiple of {options.multiple_of}"
        else:
            answer = solve(family, params, flops, options)
            if answer.design == Design(1, family.width):
                why = "too narrow for more than a path: the optimum is the chain as it is"
            else:
                answers.append(answer)
        excluded += [(chain, why) for chain in family.chains if why is not None]
    left.update(
        (chain.prefix + each.layer.name, (type(each.layer).__name__, reason))
        for chain, reason in excluded
        for each in chain.maps
    )
    report = Report(
        model.name,
        str(options.design or options.mode),
        tuple(_found(answer, chain) for answer in answers for chain in answer.family.chains),
        tuple(Left(name, *why) for name, why in left.items()),
        Costs(params, flops),
        _predicted(params, flops, answers),
        tuple(_chosen(answer) for answer in answers),
    )
    return _Plan(report, tuple(answers))


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"model: got {brief(model)}; it must be a Keras model, as keras.models.load_model gives"
        )
    if isinstance(model, keras.Sequential) and not is_functional(model):
        raise ValueError(
            f"model: {model.name!r} has no input yet; begin it with keras.Input(shape)"
        )
    if not is_functional(model):
        raise ValueError(
            f"model: {model.name!r} is subclassed ({type(model).__name__}): Keras does not know "
            "its layers' order. Where its `call` only calls layers, this makes it functional: "
            "inputs = keras.Input(shape); model = keras.Model(inputs, model.call(inputs))"
        )


def _flops_or_none(model: keras.Model) -> int | None:
    try:
        return flops_of(model)
    except ValueError as error:
        logger.info("FLOPs of %s are not known: %s", model.name, error)
        return None


def _selected(chains: list[Chain], options: Options) -> tuple[list[Chain], list[tuple[Chain, str]]]:
    """The chains that were asked for, and those that were not."""
    chosen, excluded = [], []
    only, skip, alpha = options.only, options.skip, options.alpha
    names = [name for chain in chains for name in (chain.name, *chain.layers)]
    _check_patterns("only", only, names)
    _check_patterns("skip", skip, names)
    for chain in chains:
        if _fits(chain, skip):
            excluded.append((chain, f"left out by skip={skip}"))
        elif only and not _fits(chain, only):
            excluded.append((chain, f"left out by only={only}"))
        else:
            chosen.append(chain)
    if isinstance(alpha, Mapping):
        _check_patterns("alpha", list(alpha), [chain.name for chain in chosen])
    return chosen, excluded


def _fits(chain: Chain, patterns: list[str]) -> bool:
    names = (chain.name, *chain.layers)
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def _check_patterns(argument: str, patterns: list[str], names: list[str]) -> None:
    for pattern in patterns:
        if names and not any(fnmatch.fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"{argument}: {brief(pattern)} fits no layer that can be ensembled; "
                f"these can: {', '.join(names)}"
            )


def _found(answer: Answer, chain: Chain) -> Found:
    return Found(
        chain.name,
        chain.kind,
        tuple(chain.layers),
        chain.widths,
        answer.widths(chain),
        answer.design.cardinality,
        answer.alpha,
        answer.baseline_variance,
        answer.variance,
    )


def _chosen(answer: Answer) -> Chosen:
    family = answer.family
    return Chosen(
        family.name,
        tuple(chain.name for chain in family.chains),
        family.width,
        answer.design,
        answer.law,
        answer.alpha,
        round(sum(float(layer.params) for layer in family.path(answer.design.width))),
    )


def _predicted(params: int, flops: int | None, answers: list[Answer]) -> Costs:
    """Each family's paths in place of its single path."""

    def change(answer: Answer, cost: str) -> int:
        def of(width: int) -> float:
            return sum(float(getattr(layer, cost)) for layer in answer.family.path(width))

        m, n = answer.design
        return round(m * of(n)) - round(of(answer.family.width))

    params += sum(change(answer, "params") for answer in answers)
    if flops is not None:
        flops += sum(change(answer, "flops") for answer in answers)
    return Costs(params, flops)
