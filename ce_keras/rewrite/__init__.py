"""Turn any Keras model into its optimal collegial ensemble.

>>> import keras
>>> model = keras.Sequential([keras.Input((784,)),
...     keras.layers.Dense(200, "relu"), keras.layers.Dense(200, "relu"),
...     keras.layers.Dense(200, "relu"), keras.layers.Dense(10)])
>>> smaller = collegialize(model, mode="dual")
>>> smaller.count_params() < model.count_params()
True

One call goes through the modules in this order: `options` are checked, `chains` are found,
`decisions` gives each family of them a design, `building` makes the layers, `splitting` may carry
weights over, and `report` has the result and its costs.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras

from ce_keras.checks import brief, one_of, positive_int
from ce_keras.geometry import Design
from ce_keras.latency import Phase, Timing
from ce_keras.problem import Mode
from ce_keras.rewrite.baselines import (
    ModelBaseline,
    asked_of,
    loaded,
    model_baselines,
    selected,
)
from ce_keras.rewrite.building import Decided, check_copies, rebuilt
from ce_keras.rewrite.calibration.calibrate import nearest
from ce_keras.rewrite.calibration.data import read_images
from ce_keras.rewrite.calibration.designs import COMPARE_SMALLER, check_smaller, designs_of_size
from ce_keras.rewrite.chains import Chain, find_chains
from ce_keras.rewrite.decisions import Family, candidates_of, decide, families_of
from ce_keras.rewrite.graph import check_functional
from ce_keras.rewrite.options import Options, Patterns, Per
from ce_keras.rewrite.report import (
    Calibration,
    Candidate,
    Costs,
    Decision,
    Report,
    Skipped,
    costs_of,
)
from ce_keras.rewrite.splitting import split
from ce_keras.rewrite.timing import check_measurable, step_seconds

__all__ = ["Calibration", "Report", "collegialize", "inspect"]

logger = logging.getLogger("ce_keras")


def inspect(
    model: keras.Model,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["fit", "closed_form"] | Mapping[str, Any] | Any = None,
    budget: Any = "params",
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    target: float | None = None,
    target_params: int | None = None,
    design: str | Design | None = None,
    only: Patterns = None,
    skip: Patterns = None,
    per: Per = "network",
    seed: int | None = None,
    batch: int = 32,
    phase: Phase = "train",
    remeasure: bool = False,
) -> Report:
    """Return the report of what `collegialize` would do with a model. Nothing is built.

    Arguments are those of `collegialize`.

    Returns:
        Which layers can be ensembled and how, and why the others cannot.

    >>> layers = [keras.layers.Dense(64, "relu") for _ in range(2)] + [keras.layers.Dense(1)]
    >>> report = inspect(keras.Sequential([keras.Input((8,)), *layers]))
    >>> report.candidates[0].widths, report.candidates[0].cardinality > 1
    ((64, 64), True)
    """
    asked = mode, alpha, budget, tolerance, multiple_of, design, only, skip, per, seed
    size = target, target_params, Timing(batch, phase, remeasure)
    return _plan(model, Options(*asked, *size).checked())[0]


def collegialize(
    model: keras.Model,
    mode: Mode = "primal",
    *,
    alpha: float | Literal["fit", "closed_form"] | Mapping[str, Any] | Any = None,
    budget: Any = "params",
    tolerance: float = 0.02,
    multiple_of: int | None = None,
    target: float | None = None,
    target_params: int | None = None,
    design: str | Design | None = None,
    only: Patterns = None,
    skip: Patterns = None,
    per: Per = "network",
    seed: int | None = None,
    batch: int = 32,
    phase: Phase = "train",
    remeasure: bool = False,
    init: Literal["random", "split", "calibrated"] = "random",
    data: Any = None,
    measure: int | None = None,
) -> keras.Model:
    """Turn a Keras model into its optimal collegial ensemble (Algorithm 2).

    Chains of 1x1, k x k and 1x1 convolutions, and stacks of two or more hidden dense layers, become
    `cardinality` paths side by side; everything else stays as it is. Chains of one kind and shape
    form a family with one design: its width is that of the narrowest, and wider ones get paths
    wider in proportion, as in the paper.

    The new model is *not trained*: its weights are drawn from the model's own initialisers, and
    none are carried over unless `init="split"` asks for it. Preprocessing layers, which learn by
    `adapt`, are the model's own. A compiled model is compiled again in the same way, with its
    own functions; one whose optimizer or metrics Keras cannot rebuild is returned uncompiled,
    with a warning.

    Args:
        model: functional, or sequential with a known input. Models inside it are searched too.
        mode: `"primal"`: smoothest at the model's size. `"dual"`: smallest at its smoothness.
        alpha: the variance law: `"closed_form"`, the exact one, for dense stacks and chains with
            one kernel larger than 1x1; `"fit"`: Algorithm 1 for the chain's linear maps with ReLU
            between them; a fit of `ce_keras.ntk.fit_alpha`; the constant of the exponential law
            (the paper's is 1.6, for its bottleneck block); or a mapping from patterns of chains'
            names to any of these. By default the closed form, and a fit where there is none.
        budget: `"params"`, `"flops"`, `"latency"`, `"memory"`, a function of cardinality and
            width, or a tuple of these, as for `ce_keras.search`.
        tolerance: relative distance from the optimum within which the widest design is taken.
        multiple_of: consider only widths that are multiples of this.
        target: with the primal, the new model's cost over the model's: 0.5 for
            the smoothest ensemble of half the size.
        target_params: likewise, as a number of parameters.
        design: such as `"12x10d"`, or a pair of cardinality and width, instead of the optimum.
            `"calibrated"`: for a model that is trained. Designs of the optimum's size, the narrower
            network (cardinality 1) among them, are calibrated on `data`, and the one whose outputs
            come nearest to the model's on images held out is returned; the report has the list.
            It needs `mode="dual"` or a target.
        only: patterns, such as `"conv4_*"`: only chains that have a layer of such a name are taken.
        skip: patterns: chains that have a layer of such a name stay as they are.
        per: `"network"`: one design for each family. `"stage"`: one for each width as well.
        seed: for the draws of a fit, and of a split. Random weights follow Keras' own generator:
            `keras.utils.set_random_seed`.
        batch: examples in a step, for a budget of latency or memory.
        phase: `"train"` or `"infer"`: the step whose latency is the budget.
        remeasure: whether times that are known from before are measured again.
        init: `"random"`: new weights, drawn from the model's own initialisers. `"split"`: for a
            model that is trained: every path takes a share of its units and the weights between
            them, and everything else is carried over. The function changes unless paths are as
            wide as the model was, but training starts ahead, most of all for dense stacks.
            `"calibrated"`: for a trained model too; layer by layer, weights are fitted by least
            squares to the model's outputs on `data`, and the layers of each chain are then trained
            together to give the chain's outputs, so that the new model begins near to it.
        data: images (or other inputs) to calibrate on, without labels; about 1,000 suffice. An
            array for each input, or batches of them, such as a `tf.data.Dataset`; at most 5,000 are
            read. One in five is held out, and the report's errors are measured on those.
        measure: a batch size. Training steps before and after are timed, for the report.

    Returns:
        A new model of the same inputs, outputs and names: functional, sequential, or of a subclass
        of `keras.Model` that has no constructor of its own. Its `report` attribute, which is not
        saved with it, says what was done.

    Raises:
        ValueError: for a model in which nothing can be ensembled, with the report; a model that
            is subclassed or has no known input; a layer, or a model inside, that cannot be built
            again from its configuration; patterns that fit nothing; or arguments as for
            `ce_keras.search`.

    >>> layers = [keras.layers.Dense(64, "relu") for _ in range(2)] + [keras.layers.Dense(1)]
    >>> wide = keras.Sequential([keras.Input((8,)), *layers])
    >>> ensemble = collegialize(wide, design="4x16d")
    >>> tuple(ensemble.layers[1].kernel.shape)
    (4, 16, 16)
    """
    compare = isinstance(design, str) and design == "calibrated"
    if compare:
        design, init = None, "calibrated" if init == "random" else init
    asked = mode, alpha, budget, tolerance, multiple_of, design, only, skip, per, seed
    size = target, target_params, Timing(batch, phase, remeasure)
    options = Options(*asked, *size).checked()
    _check_init(init, data, compare)
    if compare and (options.mode, target, target_params) == ("primal", None, None):
        raise ValueError(COMPARE_SMALLER)
    if measure is not None:
        positive_int("measure", measure)
    check_functional(model)
    if measure is not None:
        check_measurable("measure", model)
    images = None if data is None else read_images(model, data, options.seed)
    report, decided = _plan(model, options)
    if not report.candidates:
        raise ValueError(f"model: {report}")
    if images is not None:
        choices = [decided]
        if compare:
            check_smaller(report.before, report.after)
            choices += designs_of_size(decided, report.before, report.after.params, options)
        ensemble, decided, found = nearest(model, choices, images, options.seed)
        report = dataclasses.replace(_with_designs(report, decided), calibration=found)
    else:
        ensemble, pairs = rebuilt(model, decided)
        if init == "split":
            split(pairs, decided, seed)
    before, after = report.before, costs_of(ensemble)
    if measure is not None:
        # Copies are timed: nobody's weights or optimisers are touched.
        copies = [rebuilt(each, compiled=False)[0] for each in (model, ensemble)]
        times = step_seconds(copies, measure)
        before, after = (
            dataclasses.replace(costs, step_seconds=seconds)
            for costs, seconds in zip((before, after), times, strict=True)
        )
    # Baselines hold the model, which an ensemble can do without.
    bare = tuple(dataclasses.replace(each, baseline=None) for each in report.candidates)
    report = dataclasses.replace(report, before=before, after=after, candidates=bare)
    logger.info("%s", report)
    ensemble.report = report
    return ensemble


# Planning ----------------------------------------------------------------------------------------


def _plan(model: keras.Model, options: Options) -> tuple[Report, Decided]:
    """Find the model's chains, and decide on a design for every family of them."""
    before, chains, skipped = _found(model)
    chains, excluded = _selected(chains, options)
    decided: list[tuple[Family, Decision]] = []
    baselines: list[ModelBaseline] = []
    found = model_baselines(model, families_of(chains, options.per), before)
    size = options.mode, options.budget, options.target, options.target_params
    # Nothing is timed for a design that is given.
    asked = [{}] * len(found) if options.design else asked_of(found, *size, options.timing)
    for baseline, own in zip(found, asked, strict=True):
        family = baseline.family
        decision = why = None
        if options.design is None and family.width < (options.multiple_of or 1):
            why = f"too narrow for a width that is a multiple of {options.multiple_of}"
        else:
            decision = decide(family, baseline.network, own, options)
            if decision.design == Design(1, family.width):
                why = "the optimum is one path: the chain as it is"
        if decision is None or why is not None:
            excluded += [(chain, str(why)) for chain in family.chains]
        else:
            decided.append((family, decision))
            baselines.append(baseline)
    for chain, reason in excluded:
        for name, each in zip(chain.layers, chain.linear, strict=True):
            skipped[name] = (type(each.layer).__name__, reason)
    report = Report(
        model.name,
        str(options.design or _asked_size(options) or options.mode),
        (),
        tuple(Skipped(name, *why) for name, why in skipped.items()),
        before,
        before,
    )
    return _with_designs(report, decided, baselines), decided


def _with_designs(
    report: Report, decided: Decided, baselines: Sequence[ModelBaseline | None] = ()
) -> Report:
    """Return a report on the same model with these designs."""
    return dataclasses.replace(
        report,
        candidates=tuple(
            each
            for (family, decision), baseline in itertools.zip_longest(decided, baselines)
            for each in candidates_of(family, decision, baseline)
        ),
        after=_predicted(report.before, decided),
        decisions=tuple(decision for _, decision in decided),
    )


def _asked_size(options: Options) -> str | None:
    """Return the size that is asked for, in words; `None` if none is."""
    if options.target_params is not None:
        return f"{options.target_params:,} parameters"
    return None if options.target is None else f"{options.target:.3g} of its size"


def baselines_of(baseline: Any, family: str | None = None) -> list[ModelBaseline]:
    """Return the families of a model's chains, for `ce_keras.search`.

    Args:
        baseline: a Keras model, the path of its `.keras` file, or a candidate of a report, which
            stands for its family.
        family: a pattern of the names of families or chains; all if not given.

    Raises:
        ValueError: for something else, or a model in which nothing can be ensembled.
    """
    if isinstance(baseline, Candidate):
        if baseline.baseline is None:
            raise ValueError(
                f"baseline: {baseline.name!r} is of an ensemble's report, which does not keep the "
                "model; take a candidate of ce_keras.inspect(model)"
            )
        return [baseline.baseline]
    model = loaded(baseline)
    before, chains, skipped = _found(model)
    if not chains:
        reasons = "; ".join(f"{name}: {why}" for name, (_, why) in list(skipped.items())[:3])
        raise ValueError(f"baseline: nothing in {model.name!r} can be ensembled ({reasons})")
    return selected(model_baselines(model, families_of(chains, "network"), before), family)


def _found(model: Any) -> tuple[Costs, list[Chain], dict[str, tuple[str, str]]]:
    """Return a model's costs, its chains, and the other layers with their class and reason."""
    check_functional(model)
    before = costs_of(model)
    chains, skipped = find_chains(model)
    if chains:
        check_copies(model)
    return before, chains, skipped


def _check_init(init: Any, data: Any, compare: bool) -> None:
    one_of("init", init, ("random", "split", "calibrated"))
    if compare and init != "calibrated":
        raise ValueError(f"init: got {init!r}; design='calibrated' needs init='calibrated'")
    if (data is None) == (init == "calibrated"):
        raise ValueError(
            f"data: got {brief(data)} and init={init!r}; init='calibrated' needs images to "
            "calibrate on, and nothing else reads them"
        )


def _selected(chains: list[Chain], options: Options) -> tuple[list[Chain], list[tuple[Chain, str]]]:
    """Return the chains that were asked for, and the others with the reason."""
    selected, excluded = [], []
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
            selected.append(chain)
    if isinstance(alpha, Mapping):
        _check_patterns("alpha", list(alpha), [chain.name for chain in selected])
    return selected, excluded


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


def _predicted(before: Costs, decided: Decided) -> Costs:
    """Return the model's costs with each family's paths in place of its single path."""

    def change(cost: str) -> int:
        return sum(
            round(decision.design.cardinality * family.cost(cost, decision.design.width))
            - round(family.cost(cost, family.width))
            for family, decision in decided
        )

    linear = (each for family, _ in decided for chain in family.chains for each in chain.linear)
    params = before.params + change("params")
    if before.flops is None or any(each.all_positions is None for each in linear):
        return Costs(params, None)
    return Costs(params, before.flops + change("flops"))
