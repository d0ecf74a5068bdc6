"""Chains as the theory sees them, and the optimal design of each family of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ce_keras.geometry import (
    Design,
    Layer,
    Module,
    Network,
    Stack,
    Width,
    scaled_widths,
)
from ce_keras.optimum import search
from ce_keras.rewrite.chains import Chain, Map, kernel_of
from ce_keras.rewrite.options import Options, Per
from ce_keras.solution import Solution
from ce_keras.variance.law import ClosedFormLaw, ExponentialLaw, Law


@dataclass(frozen=True, eq=False)
class Family:
    """Chains of one kind and one shape, that get one design.

    Attributes:
        chains: first to last.
        reference: the chain whose law decides: of the narrowest, the most common.
    """

    chains: tuple[Chain, ...]
    reference: Chain

    @property
    def width(self) -> int:
        """Width of the reference: what a design's width stands for."""
        return max(self.reference.widths)

    @property
    def name(self) -> str:
        """How reports call it."""
        kernels = [kernel_of(x.layer) for x in self.reference.maps if not x.gate]
        what = (
            f"dense {'-'.join(map(str, self.reference.widths))}"
            if self.reference.kind == "dense"
            else "bottleneck " + ", ".join("x".join(map(str, k)) for k in kernels)
        )
        return f"{what} ({len(self.chains)}, from width {self.width})"

    def path(self, width: Width) -> list[Layer]:
        """The layers of one path of every chain."""
        return [layer for chain in self.chains for layer in path_layers(chain, width, self.width)]

    def module(self) -> Module:
        """The reference chain by itself, whose law it is."""
        first = self.reference
        path = functools.partial(path_layers, first, reference=self.width)
        return Module(self.name, self.width, path, stack=_stack_of(first, self.width))


@dataclass(frozen=True, eq=False)
class Answer:
    """A family and the design it gets.

    Attributes:
        family: the chains.
        design: cardinality, and width of a path of the reference.
        law: the variance law used, in words.
        alpha: its constant; `None` if it has none.
        variance: Var(K) / E[K]^2 of the reference with this design.
        baseline_variance: the same before.
        solution: what the search answered; `None` for a design that was forced.
    """

    family: Family
    design: Design
    law: str
    alpha: float | None
    variance: float
    baseline_variance: float
    solution: Solution | None

    def widths(self, chain: Chain) -> tuple[int, ...]:
        """Widths of one path of a chain of the family."""
        return tuple(
            int(n) for n in scaled_widths(self.design.width, chain.widths, self.family.width)
        )


def path_layers(chain: Chain, width: Width, reference: int) -> list[Layer]:
    """One path of a chain as the search sees it, for a reference path of `width`."""

    def scaled(size: int, base: int | None = None) -> Width:
        base = size if base is None else base
        (answer,) = scaled_widths(width, [base], reference)
        return size // base * answer

    found = []
    for index, each in enumerate(chain.maps):
        first, last = index == 0, each is chain.maps[-1]
        found.append(
            Layer(
                each.pixels * (each.inputs if first else scaled(each.inputs, each.base)),
                each.outputs if last else scaled(each.outputs),
                each.positions or 0,
                # What is added to the sum of the paths is not a path's.
                bias=bool(each.layer.use_bias) and not last,
                in_law=not each.gate and not (first and chain.kind == "dense"),
            )
        )
    for layer, shapes, base in chain.between:
        channels = shapes[0][-1]
        assert channels is not None
        numbers = sum(math.prod(weight.shape) for weight in _trained(layer))
        found.append(Layer(numbers / channels, scaled(channels, base), 0, in_law=False))
    return found


def _trained(layer: Any) -> list[Any]:
    """What training changes in a layer, or would if it were not frozen."""
    return [weight for weight in layer.weights if not weight.name.startswith("moving_")]


def _stack_of(chain: Chain, reference: int) -> Any:
    """The chain as a stack of ReLU layers, where theory knows its variance exactly."""
    main = [each for each in chain.maps if not each.gate]
    positions, *behind = [each.pixels for each in main[1:]]
    if any(pixels > 1 for pixels in behind):
        # A second kernel reads overlapping patches.
        return None

    def stack(width: Width) -> Stack:
        return Stack(main[0].inputs, positions, scaled_widths(width, chain.widths, reference))

    return stack


def families_of(chains: Sequence[Chain], per: Per) -> list[Family]:
    """Chains sorted by their shape; `per="stage"` tells those of different widths apart."""

    def shape(chain: Chain) -> tuple[Any, ...]:
        main = [each.pixels for each in chain.maps if not each.gate]
        ratios = [round(width / max(chain.widths), 6) for width in chain.widths]
        return chain.kind, *main, *ratios, *(chain.widths if per == "stage" else ())

    sorted_chains: dict[tuple[Any, ...], list[Chain]] = {}
    for chain in chains:
        sorted_chains.setdefault(shape(chain), []).append(chain)
    return [Family(tuple(same), _reference(same)) for same in sorted_chains.values()]


def _reference(chains: Sequence[Chain]) -> Chain:
    narrowest = min(max(chain.widths) for chain in chains)
    first = [chain for chain in chains if max(chain.widths) == narrowest]
    ends = Counter((chain.maps[0].inputs, chain.maps[-1].outputs) for chain in first)
    ((most, _),) = ends.most_common(1)
    return next(c for c in first if (c.maps[0].inputs, c.maps[-1].outputs) == most)


def solve(family: Family, params: int, flops: int | None, options: Options) -> Answer:
    """The design of a family in a model of so many parameters and FLOPs.

    Raises:
        ValueError: as `ce_keras.search`; or for a budget of FLOPs where they are not known.
    """
    module, chosen = _with_alpha(family, options.alpha, options.seed)
    if options.design is not None:
        return _forced(family, module, chosen, options.design)
    if options.budget == "flops" and flops is None:
        raise ValueError(
            "budget: 'flops' needs a model whose FLOPs are known: give its input a size"
        )
    network = Network(family.name, module, family.path, _rest(family, params, flops))
    solution = search(
        network,
        options.mode,
        alpha=chosen,
        budget=options.budget,
        tolerance=options.tolerance,
        multiple_of=options.multiple_of,
    )
    return Answer(
        family,
        solution.design,
        solution.law,
        solution.alpha,
        solution.variance,
        solution.baseline_variance,
        solution,
    )


def _rest(family: Family, params: int, flops: int | None) -> list[Layer]:
    """Everything else in the model, as one layer of so many parameters and FLOPs."""
    alone = Network("paths", family.module(), family.path, [])
    rest = params - float(alone.params(1, family.width))
    work = 0.0 if flops is None else flops - float(alone.flops(1, family.width))
    if rest <= 0:
        return [Layer(rest, 1, 0)]
    # Of a layer with one output, FLOPs are twice its parameters at each position.
    return [dataclasses.replace(Layer(rest, 1), positions=work / (2 * rest))]  # type: ignore[arg-type]


def _forced(family: Family, module: Module, alpha: Any, design: Design) -> Answer:
    if design.width > family.width:
        raise ValueError(
            f"design: got {design}; a path of {family.name} is at most {family.width} wide"
        )
    law: Law
    if alpha == "closed_form":
        law, constant = ClosedFormLaw(module), None
    else:
        constant = float(getattr(alpha, "alpha", alpha))
        law = ExponentialLaw(module, constant)
    variance, before = law.path_variance(np.array([design.width, family.width]))
    return Answer(
        family,
        design,
        law.name,
        constant,
        float(variance / design.cardinality),
        float(before),
        None,
    )


def _with_alpha(family: Family, alpha: Any, seed: int | None) -> tuple[Module, Any]:
    """The family's module, and its law as the search's `alpha`: the exact one where it is known."""
    if isinstance(alpha, Mapping):
        fitting = [
            value
            for pattern, value in alpha.items()
            if any(fnmatch.fnmatch(chain.name, pattern) for chain in family.chains)
        ]
        alpha = fitting[0] if fitting else None
    module = family.module()
    if alpha is None:
        alpha = "fit" if module.stack is None else "closed_form"
    return module, _fitted(family, module, seed) if alpha == "fit" else alpha


def _fitted(family: Family, module: Module, seed: int | None) -> Any:
    """Algorithm 1 for the reference's linear maps, with ReLU between them."""
    from ce_keras.ntk import fit_alpha

    if module.stack is not None:
        return fit_alpha(module, seed=seed)
    build = functools.partial(_plain_path, family.reference, reference=family.width)
    return fit_alpha(_named(build, family.name), width=family.width, seed=seed)


def _named(function: Any, name: str) -> Any:
    functools.update_wrapper(function, _plain_path)
    function.__name__ = name
    return function


def _plain_path(chain: Chain, width: int, reference: int) -> Any:
    """One path of convolutions and ReLUs, on the smallest image that it sees all of."""
    import keras

    from ce_keras.layers import CollegialConv2D

    main: list[Map] = [each for each in chain.maps if not each.gate]
    sides = [each.layer.kernel_size for each in main]
    image = [1 + sum(side[axis] - 1 for side in sides) for axis in (0, 1)]
    widths = [int(n) for n in scaled_widths(width, chain.widths, reference)]
    convolutions = [
        CollegialConv2D(n, side, activation="relu", use_bias=False)
        for n, side in zip(widths, sides, strict=False)
    ]
    last = CollegialConv2D(1, sides[-1], use_bias=False, gain=1.0)
    return keras.Sequential([keras.Input((*image, main[0].inputs)), *convolutions, last])
