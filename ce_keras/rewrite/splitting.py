"""Initial weights of an ensemble out of a trained baseline: `init="split"`.

Every path takes some of the baseline's units, in every layer the same, and the weights between
them. Paths share the units out among themselves; where they have more places than there are units,
units are taken again. What lies outside the chains is carried over as it is.

A path of n of N units loses the other N - n terms of every sum. Weights times N / n would keep the
sum's mean, times sqrt(N / n) its spread. In between, (N / n)^(3/4) came nearest to the baseline's
outputs (docs/benchmarks/split_init.md). With n = N nothing is lost, and the outputs are the
baseline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ce_keras.rewrite.building import Decided
from ce_keras.rewrite.chains import Chain, LinearLayer
from ce_keras.rewrite.decisions import Family
from ce_keras.rewrite.report import Decision
from ce_keras.variance.samplers import generator

_EXPONENT = 0.75


def carry_over(pairs: Sequence[tuple[Any, Any]], decided: Decided, seed: int | None) -> None:
    """Give new layers the weights of the old.

    Args:
        pairs: old layers, each with what took its place.
        decided: the families whose chains became paths, and their designs.
        seed: of which path takes which units.

    Raises:
        ValueError: for a layer of a chain in the NTK parameterisation.
    """
    new = {id(old): layer for old, layer in pairs}
    in_chains: set[int] = set()
    rng = generator(seed)
    for family, decision in decided:
        for chain in family.chains:
            _Split(family, decision, rng).fill(chain, new)
            in_chains.update(id(layer) for layer, *_ in (*chain.linear, *chain.intermediate))
    for old, layer in pairs:
        if old is not layer and id(old) not in in_chains and getattr(old, "weights", []):
            layer.set_weights([_numpy(weight) for weight in old.weights])


class _Split:
    """The units of one chain, shared out among its paths."""

    def __init__(self, family: Family, decision: Decision, rng: np.random.Generator) -> None:
        self._rng = rng
        self._cardinality, self._width = decision.design
        self._family = family
        self._units: dict[int, np.ndarray] = {}

    def fill(self, chain: Chain, new: dict[int, Any]) -> None:
        """Set the weights of the chain's new layers."""
        for each in chain.linear:
            if getattr(each.layer, "parameterization", "standard") != "standard":
                raise ValueError(
                    "init: 'split' needs weights in the standard parameterisation; "
                    f"{each.layer.name!r} has that of the NTK: use init='random'"
                )
        *hidden, last = chain.linear
        for index, linear in enumerate(hidden):
            self._fill_hidden(linear, new[id(linear.layer)], first=index == 0)
        for layer, channels, _, base in chain.intermediate:
            units = np.concatenate(self._places(channels, base))
            weights = [np.take(_numpy(weight), units, axis=-1) for weight in layer.weights]
            new[id(layer)].set_weights(weights)
        self._fill_exit(last, new[id(last.layer)])

    def _fill_hidden(self, linear: LinearLayer, layer: Any, *, first: bool) -> None:
        kernel = _numpy(linear.layer.kernel)
        outputs = self._places(linear.outputs, linear.outputs)
        paths = [kernel[..., own] for own in outputs]
        if not first:
            inputs = self._places(linear.inputs, linear.base)
            scale = self._scale(linear)
            paths = [scale * path[..., own, :] for path, own in zip(paths, inputs, strict=True)]
        # Dense paths have an axis of their own.
        has_axis = len(layer.kernel.shape) > kernel.ndim
        joined = np.stack(paths) if has_axis else np.concatenate(paths, axis=-1)
        layer.kernel.assign(joined.reshape(layer.kernel.shape))
        if linear.layer.use_bias:
            layer.bias.assign(np.take(_numpy(linear.layer.bias), np.concatenate(outputs)))

    def _fill_exit(self, last: LinearLayer, layer: Any) -> None:
        m = self._cardinality
        units = np.concatenate(self._places(last.inputs, last.base))
        kernel = _numpy(last.layer.kernel)[..., units, :] * self._scale(last) / m
        if getattr(layer, "aggregate", False):
            kernel *= np.sqrt(m)  # Its forward pass divides by that.
        layer.kernel.assign(kernel)
        if last.layer.use_bias:
            layer.bias.assign(_numpy(last.layer.bias))

    def _scale(self, linear: LinearLayer) -> float:
        return (linear.base / self._family.path_width(self._width, linear.base)) ** _EXPONENT

    def _places(self, channels: int, base: int) -> list[np.ndarray]:
        """Return, for every path, where its values lie among the baseline's channels.

        Layers of one width share their units out alike: values that meet belong together.
        """
        if base not in self._units:
            size = self._cardinality * self._family.path_width(self._width, base)
            rounds = [self._rng.permutation(base) for _ in range(-(-size // base))]
            self._units[base] = np.concatenate(rounds)[:size].reshape(self._cardinality, -1)
        # Behind a Flatten, every pixel has the channels of the layer before.
        pixels = base * np.arange(channels // base)[:, None]
        return [(pixels + own).ravel() for own in self._units[base]]


def _numpy(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight)
