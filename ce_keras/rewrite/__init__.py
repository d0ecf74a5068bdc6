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
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import keras

from ce_keras.budget import Budget
from ce_keras.checks import checked_seed, positive_int
from ce_keras.geometry import Design, scaled_widths
from ce_keras.layers.flops import flops as flops_of
from ce_keras.layers.flops import parameters
from ce_keras.layers.grouping import widened
from ce_keras.layers.initializers import SummedPaths
from ce_keras.optimum import Mode
from ce_keras.rewrite.chains import Chain, find_chains, is_functional
from ce_keras.rewrite.families import Answer, Per, families_of, solve
from ce_keras.rewrite.report import Costs, Found, Left, Report
from ce_keras.rewrite.timing import step_seconds

__all__ = ["Report", "collegialize", "inspect"]

logger = logging.getLogger("ce_keras")

Patterns = str | Sequence[str] | None


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
    return _plan(
        model,
        mode,
        alpha=alpha,
        budget=budget,
        tolerance=tolerance,
        multiple_of=multiple_of,
        design=design,
        only=only,
        skip=skip,
        per=per,
        seed=seed,
    ).report


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
    measure: int | None = None,
) -> keras.Model:
    """Turn a Keras model into its optimal collegial ensemble (Algorithm 2).

    Chains of 1x1, k x k and 1x1 convolutions, and stacks of two or more hidden dense layers, become
    `cardinality` paths side by side; everything else stays as it is. Chains of one kind and shape
    are one family and get one design: the width is that of the narrowest, and wider ones get paths
    wider in proportion, as in the paper.

    The new model is *not trained*: its weights are drawn from the model's own initialisers, and
    none are carried over. A compiled model is compiled again in the same way.

    Args:
        model: functional, or sequential with a known input. Models inside it are searched too.
        mode: `"primal"`: smoothest at the model's size. `"dual"`: smallest at its smoothness.
        alpha: the constant of the variance law: a number; a fit of `ce_keras.ntk.fit_alpha`;
            `"fit"`: Algorithm 1 for the chain's linear maps with ReLU between them;
            `"closed_form"`, for dense stacks; or a mapping from patterns of chains' names to any
            of these. By default the paper's for its block, the theory's for dense stacks, and a
            fit for everything else.
        budget: `"params"`, `"flops"`, or a function of cardinality and width, as for
            `ce_keras.search`.
        tolerance: how far from the optimum a design counts as equal; the widest such is taken.
        multiple_of: consider only widths that are multiples of this.
        design: such as `"12x10d"`, instead of the optimum.
        only: patterns, such as `"conv4_*"`: chains are taken that have a layer of such a name.
        skip: patterns: chains with a layer of such a name are left.
        per: `"network"`: one design for each family. `"stage"`: one for each width as well.
        seed: for the draws of a fit. Weights follow Keras' own generator:
            `keras.utils.set_random_seed`.
        measure: a batch size: training steps before and after are timed, for the report.

    Returns:
        A new model of the same class, inputs, outputs and names. Its `report` attribute, which is
        not saved with it, says what was done.

    Raises:
        ValueError: for a model in which nothing can be ensembled, with the report; a model that
            is subclassed or has no known input; patterns that fit nothing; or arguments as for
            `ce_keras.search`.

    >>> layers = [keras.layers.Dense(64, "relu") for _ in range(2)] + [keras.layers.Dense(1)]
    >>> wide = keras.Sequential([keras.Input((8,)), *layers])
    >>> ensemble = collegialize(wide, design="4x16d")
    >>> tuple(ensemble.layers[1].kernel.shape)
    (4, 16, 16)
    """
    if measure is not None:
        positive_int("measure", measure)
    plan = _plan(
        model,
        mode,
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
    if not plan.report.found:
        raise ValueError(f"model: {plan.report}")
    ensemble = _rewritten(model, plan.answers)
    if not model.trainable:  # Of layers it is kept by their configuration.
        ensemble.trainable = False
    times = [None, None] if measure is None else step_seconds([model, ensemble], measure)
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


def _plan(
    model: keras.Model,
    mode: Mode,
    *,
    alpha: Any,
    budget: Budget,
    tolerance: float,
    multiple_of: int | None,
    design: str | Design | None,
    only: Patterns,
    skip: Patterns,
    per: Per,
    seed: int | None,
) -> _Plan:
    _check_model(model)
    if mode not in get_args(Mode):
        raise ValueError(f"mode: got {mode!r}; it must be 'primal' or 'dual'")
    if per not in get_args(Per):
        raise ValueError(f"per: got {per!r}; it must be 'network' or 'stage'")
    checked_seed(seed)
    forced = None if design is None else _design(design)
    params, flops = parameters(model), _flops_or_none(model)
    chains, left = find_chains(model)
    chains, excluded = _selected(chains, only, skip)
    if isinstance(alpha, Mapping):
        _check_patterns("alpha", list(alpha), [chain.name for chain in chains])

    answers = []
    for family in families_of(chains, per):
        answer = solve(
            family,
            params,
            flops,
            mode,
            alpha,
            forced,
            seed,
            budget=budget,
            tolerance=tolerance,
            multiple_of=multiple_of,
        )
        if answer.design == Design(1, family.width):
            excluded += [
                (chain, "too narrow for more than a path: the optimum is the chain as it is")
                for chain in family.chains
            ]
        else:
            answers.append(answer)
    left.update(
        (chain.prefix + each.layer.name, (type(each.layer).__name__, reason))
        for chain, reason in excluded
        for each in chain.maps
    )
    found = [_found(answer, chain) for answer in answers for chain in answer.family.chains]
    report = Report(
        model.name,
        str(forced or mode),
        tuple(found),
        tuple(Left(name, *why) for name, why in left.items()),
        Costs(params, flops),
        _predicted(params, flops, answers),
        tuple(answers),
    )
    return _Plan(report, tuple(answers))


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"model: got {model!r}; it must be a Keras model")
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


def _design(design: Any) -> Design:
    if isinstance(design, str):
        return Design.parse(design)
    if not (isinstance(design, Sequence) and len(design) == 2):
        raise ValueError(f"design: got {design!r}; it must be like '12x10d', or (12, 10)")
    return Design(*(positive_int("design", size) for size in design))


def _flops_or_none(model: keras.Model) -> int | None:
    try:
        return flops_of(model)
    except ValueError as error:
        logger.info("FLOPs of %s are not known: %s", model.name, error)
        return None


def _selected(
    chains: list[Chain], only: Patterns, skip: Patterns
) -> tuple[list[Chain], list[tuple[Chain, str]]]:
    """The chains that were asked for, and those that were not."""
    chosen, excluded = [], []
    names = [name for chain in chains for name in (chain.name, *chain.layers)]
    only, skip = _listed("only", only), _listed("skip", skip)
    _check_patterns("only", only, names)
    _check_patterns("skip", skip, names)
    for chain in chains:
        if _fits(chain, skip):
            excluded.append((chain, f"left out by skip={skip}"))
        elif only and not _fits(chain, only):
            excluded.append((chain, f"left out by only={only}"))
        else:
            chosen.append(chain)
    return chosen, excluded


def _listed(argument: str, patterns: Patterns) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else patterns or []
    if not isinstance(listed, Sequence) or not all(isinstance(each, str) for each in listed):
        raise ValueError(
            f"{argument}: got {patterns!r}; it must be a pattern like 'conv4_*', or a list of them"
        )
    return list(listed)


def _fits(chain: Chain, patterns: list[str]) -> bool:
    names = (chain.name, *chain.layers)
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def _check_patterns(argument: str, patterns: list[str], names: list[str]) -> None:
    for pattern in patterns:
        if names and not any(fnmatch.fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"{argument}: {pattern!r} fits no layer that can be ensembled; "
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


def _predicted(params: int, flops: int | None, answers: list[Answer]) -> Costs:
    """Each family's paths in place of its single path."""
    for answer in answers:
        m, n = answer.design
        for count, layers in (
            (1, answer.family.path(n)),
            (-1, answer.family.path(answer.family.width)),
        ):
            paths = m if count == 1 else 1
            params += round(count * paths * sum(float(layer.params) for layer in layers))
            if flops is not None:
                flops += round(count * paths * sum(float(layer.flops) for layer in layers))
    return Costs(params, flops)


# Building ----------------------------------------------------------------------------------------


def _rewritten(model: keras.Model, answers: Sequence[Answer]) -> keras.Model:
    """The model with every chain's layers in place of the old."""
    new = {}
    for answer in answers:
        for chain in answer.family.chains:
            new.update(_paths_of(chain, answer))

    def replaced(layer: Any) -> Any:
        return new[id(layer)] if id(layer) in new else _copied(layer)

    return keras.models.clone_model(
        model, input_tensors=_inputs_like(model), clone_function=replaced, recursive=True
    )


def _inputs_like(model: keras.Model) -> Any:
    """Inputs of the same names: left to itself, Keras names them after their tensors."""
    if isinstance(model, keras.Sequential):
        return None

    def same(tensor: Any) -> Any:
        layer = tensor._keras_history.operation
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            optional=layer.optional,
            name=layer.name,
        )

    return keras.tree.map_structure(same, model.input)


def _copied(layer: Any) -> Any:
    """A fresh layer of the same configuration."""
    if not getattr(layer, "weights", []):
        try:
            return type(layer).from_config(layer.get_config())
        except (TypeError, ValueError, NotImplementedError):
            # A Lambda, say: without weights there is nothing that two models could disturb.
            return layer
    return type(layer).from_config(layer.get_config())


def _paths_of(chain: Chain, answer: Answer) -> dict[int, Any]:
    """The layers of a chain as paths side by side, by what they replace."""
    m = answer.design.cardinality

    def scaled(width: int | None) -> int:
        assert width is not None
        return int(scaled_widths(answer.design.width, [width], answer.family.width)[0])

    def inside(shape: Sequence[int | None]) -> Any:
        return keras.KerasTensor((*shape[:-1], m * scaled(shape[-1])))

    *maps, last = chain.maps
    new: dict[int, Any] = {id(last.layer): _exit(last.layer, m, chain.kind)}
    for index, each in enumerate(maps):
        size = "units" if hasattr(each.layer, "units") else "filters"
        config = {**each.layer.get_config(), size: scaled(each.outputs)}
        narrow = type(each.layer).from_config(config)
        shape = (None,) * (len(each.layer.output.shape) - 1)
        x = (
            keras.KerasTensor((*shape, each.inputs))
            if index == 0
            else inside((*shape, each.inputs))
        )
        new[id(each.layer)] = widened(narrow, m, index == 0, [x])
    for layer, shapes in chain.between:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Reshape):
            config["target_shape"] = (*config["target_shape"][:-1], scaled(shapes[0][-1]))
        if isinstance(layer, keras.layers.GroupNormalization):
            config["groups"] = _groups(config["groups"], shapes[0][-1], scaled(shapes[0][-1]))
        narrow = type(layer).from_config(config)
        new[id(layer)] = widened(narrow, m, False, [inside(shape) for shape in shapes])
    return new


def _groups(groups: int, before: int | None, width: int) -> int:
    """Groups of channels in a path: one for each if it was so, else as many as divide it."""
    return width if groups in (-1, before) else math.gcd(groups, width)


def _exit(layer: Any, m: int, kind: str) -> Any:
    """The last layer, which sums the paths (Eq. 4)."""
    config = layer.get_config()
    if kind == "dense":
        from ce_keras.layers import CollegialDense

        return CollegialDense.from_config(
            {**_dense_config(config), "cardinality": m, "aggregate": True, "shared_input": False}
        )
    if config.get("parameterization") != "ntk":
        # There the forward pass divides by the fan-in of all paths together.
        config["kernel_initializer"] = SummedPaths(config["kernel_initializer"], m)
    return type(layer).from_config(config)


def _dense_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without the options of `Dense` that matter only for a model that is trained."""
    unused = ("lora_rank", "lora_alpha", "quantization_config")
    return {name: value for name, value in config.items() if name not in unused}
