"""Chains as the theory sees them, and the optimal design of each family of them."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ce_keras.algorithm2 import solve
from ce_keras.cost import Measured
from ce_keras.geometry import Layer, Module, Network, Stack, Width, scaled_widths
from ce_keras.layers import CollegialConv2D
from ce_keras.rewrite.chains import Chain, kernel_of
from ce_keras.rewrite.options import Options, Per
from ce_keras.rewrite.report import Candidate, Decision
from ce_keras.variance.fit import fit_alpha
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
        """Width of the reference, which a design's width stands for."""
        return max(self.reference.widths)

    @property
    def name(self) -> str:
        """Kind, kernels or widths, number and width of its chains, in words."""
        kernels = ("x".join(map(str, kernel_of(x.layer))) for x in self.reference.in_law)
        what = (
            f"dense {'-'.join(map(str, self.reference.widths))}"
            if self.reference.kind == "dense"
            else f"bottleneck {', '.join(kernels)}"
        )
        return f"{what} ({len(self.chains)}, from width {self.width})"

    def path(self, width: Width) -> list[Layer]:
        """Return the layers of one path of every chain."""
        return [layer for chain in self.chains for layer in _path_of(chain, width, self.width)]

    def cost(self, what: str, width: int) -> float:
        """Return the `"params"` or `"flops"` of one path of every chain."""
        return sum(float(getattr(layer, what)) for layer in self.path(width))

    def module(self) -> Module:
        """Return the reference chain by itself, whose law it is."""
        first, reference = self.reference, self.width
        path = functools.partial(_path_of, first, reference=reference)
        _, *behind = first.in_law
        positions = [each.pixels for each in behind]

        def stack(width: Width) -> Stack:
            widths = scaled_widths(width, first.widths, reference)
            return Stack(first.linear[0].inputs, positions[0], widths)

        # A second kernel reads overlapping patches: no closed form is known.
        exact = all(pixels == 1 for pixels in positions[1:])
        return Module(self.name, reference, path, stack=stack if exact else None)

    def path_width(self, design_width: int, baseline_width: int) -> int:
        """Return the width of a path where the baseline has `baseline_width` channels."""
        (width,) = scaled_widths(design_width, [baseline_width], self.width)
        return int(width)


def families_of(chains: Sequence[Chain], per: Per) -> list[Family]:
    """Sort chains by their shape; `per="stage"` tells those of different widths apart."""

    def shape(chain: Chain) -> tuple[Any, ...]:
        pixels = [each.pixels for each in chain.in_law]
        ratios = [round(width / max(chain.widths), 6) for width in chain.widths]
        return chain.kind, *pixels, *ratios, *(chain.widths if per == "stage" else ())

    by_shape: dict[tuple[Any, ...], list[Chain]] = {}
    for chain in chains:
        by_shape.setdefault(shape(chain), []).append(chain)
    return [Family(tuple(same), _reference(same)) for same in by_shape.values()]


def _reference(chains: Sequence[Chain]) -> Chain:
    def ends(chain: Chain) -> tuple[int, int]:
        return chain.linear[0].inputs, chain.linear[-1].outputs

    least = min(max(chain.widths) for chain in chains)
    narrowest = [chain for chain in chains if max(chain.widths) == least]
    ((most, _),) = Counter(map(ends, narrowest)).most_common(1)
    return next(chain for chain in narrowest if ends(chain) == most)


def network_of(family: Family, params: int, flops: int | None) -> Network:
    """Return a family in a model of so many parameters and FLOPs, as the search sees it."""
    return Network(family.name, family.module(), family.path, _rest(family, params, flops))


def decide(
    family: Family, network: Network, asked: Mapping[str, Any], options: Options
) -> Decision:
    """Return the design of a family.

    Args:
        family: the family.
        network: the same, with the rest of the model.
        asked: the arguments of `ce_keras.algorithm2.solve` that say what a design may cost.
        options: the other options.

    Raises:
        ValueError: as `ce_keras.search`.
    """
    module, alpha = network.module, alpha_of(family, options.alpha, options.seed)
    measured: tuple[Measured, ...] = ()
    if options.design is not None:
        design = options.design
        if design.width > family.width:
            raise ValueError(
                f"design: got {design}; a path of {family.name} is at most {family.width} wide"
            )
        law = _law(module, alpha)
        path, baseline = law.path_variance(np.array([design.width, family.width]))
        constant = getattr(law, "alpha", None)
        found = (law.name, constant, float(baseline), float(path / design.cardinality))
    else:
        solution = solve(
            network,
            options.mode,
            alpha=alpha,
            **asked,
            tolerance=options.tolerance,
            multiple_of=options.multiple_of,
        )
        design, measured = solution.design, solution.measured
        found = (solution.law, solution.alpha, solution.baseline_variance, solution.variance)
    path_params = round(family.cost("params", design.width))
    chains = tuple(chain.name for chain in family.chains)
    return Decision(family.name, chains, family.width, design, *found, path_params, measured)


def candidates_of(family: Family, decision: Decision, baseline: Any) -> list[Candidate]:
    """Return what becomes of each chain of a family; `baseline` is the family as a baseline."""
    m, n = decision.design
    return [
        Candidate(
            chain.name,
            chain.kind,
            chain.layers,
            chain.widths,
            tuple(family.path_width(n, width) for width in chain.widths),
            m,
            decision.alpha,
            decision.baseline_variance,
            decision.variance,
            baseline,
        )
        for chain in family.chains
    ]


def _path_of(chain: Chain, width: Width, reference: int) -> list[Layer]:
    """Return one path of a chain as the search sees it, for a reference path of `width`."""

    def scaled(size: int, base: int) -> Width:
        (path_width,) = scaled_widths(width, [base], reference)
        return size // base * path_width

    found = []
    for index, each in enumerate(chain.linear):
        first, last = index == 0, each is chain.linear[-1]
        found.append(
            Layer(
                each.pixels * (each.inputs if first else scaled(each.inputs, each.base)),
                each.outputs if last else scaled(each.outputs, each.outputs),
                each.all_positions or 0,
                # What is added to the sum of the paths is not a path's.
                bias=bool(each.layer.use_bias) and not last,
                in_law=not each.gate and not (first and chain.kind == "dense"),
            )
        )
    for layer, channels, _, base in chain.intermediate:
        # Moving statistics are not trained.
        trained = [w for w in layer.weights if not w.name.startswith("moving_")]
        per_channel = sum(math.prod(weight.shape) for weight in trained) / channels
        found.append(Layer(per_channel, scaled(channels, base), 0, in_law=False))
    return found


def _rest(family: Family, params: int, flops: int | None) -> list[Layer]:
    """Return everything else in the model, as one layer of so many parameters and FLOPs."""
    alone = Network("paths", family.module(), family.path, [])
    rest = params - float(alone.params(1, family.width))
    work = 0.0 if flops is None else flops - float(alone.flops(1, family.width))
    # Of a layer with one output, FLOPs are twice its parameters at each position.
    positions: Any = work / (2 * rest) if rest > 0 else 0
    return [Layer(rest, 1, positions)]


# The variance law --------------------------------------------------------------------------------


def alpha_of(family: Family, alpha: Any, seed: int | None) -> Any:
    """Return the search's `alpha`: by default the exact law where it is known, else a fit."""
    if isinstance(alpha, Mapping):
        fitting = [
            value
            for pattern, value in alpha.items()
            if any(fnmatch.fnmatch(chain.name, pattern) for chain in family.chains)
        ]
        alpha = fitting[0] if fitting else None
    if alpha is None:
        alpha = "fit" if family.module().stack is None else "closed_form"
    return _fitted(family, seed) if isinstance(alpha, str) and alpha == "fit" else alpha


def _law(module: Module, alpha: Any) -> Law:
    if alpha == "closed_form":
        return ClosedFormLaw(module)
    return ExponentialLaw(module, float(getattr(alpha, "alpha", alpha)))


def _fitted(family: Family, seed: int | None) -> Any:
    """Fit the law of the reference's linear layers, with ReLU between them (Algorithm 1)."""
    module = family.module()
    if module.stack is not None:
        return fit_alpha(module, seed=seed)

    def build(width: int) -> keras.Model:
        return _plain_path(family, width)

    build.__name__ = family.name
    return fit_alpha(build, width=family.width, seed=seed)


def _plain_path(family: Family, width: int) -> keras.Model:
    """Return a path of convolutions and ReLUs, on the smallest image that it sees all of."""
    chain = family.reference
    sides = [each.layer.kernel_size for each in chain.in_law]
    image = [1 + sum(side[axis] - 1 for side in sides) for axis in (0, 1)]
    hidden = [
        CollegialConv2D(family.path_width(width, n), side, activation="relu", use_bias=False)
        for n, side in zip(chain.widths, sides, strict=False)
    ]
    last = CollegialConv2D(1, sides[-1], use_bias=False, gain=1.0)
    return keras.Sequential([keras.Input((*image, chain.linear[0].inputs)), *hidden, last])
