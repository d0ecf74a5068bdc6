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

from ce_keras.geometry import scaled_widths
from ce_keras.rewrite.chains import Chain, Map
from ce_keras.rewrite.families import Answer
from ce_keras.variance.samplers import generator

_EXPONENT = 0.75


def carry_over(
    pairs: Sequence[tuple[Any, Any]], answers: Sequence[Answer], seed: int | None
) -> None:
    """Give the new layers the old ones' weights.

    Args:
        pairs: old layers, each with what took its place.
        answers: whose chains became paths.
        seed: of which path takes which units.

    Raises:
        ValueError: for a layer of a chain in the NTK parameterisation.
    """
    new = {id(old): layer for old, layer in pairs}
    in_chains: set[int] = set()
    rng = generator(seed)
    for answer in answers:
        for chain in answer.family.chains:
            _Split(chain, answer, rng).fill(new)
            in_chains.update(id(each.layer) for each in chain.maps)
            in_chains.update(id(each.layer) for each in chain.between)
    for old, layer in pairs:
        if old is not layer and id(old) not in in_chains and getattr(old, "weights", []):
            layer.set_weights([keras.ops.convert_to_numpy(weight) for weight in old.weights])


class _Split:
    """One chain's units, shared out among its paths."""

    def __init__(self, chain: Chain, answer: Answer, rng: np.random.Generator) -> None:
        self._chain, self._answer, self._rng = chain, answer, rng
        self._cardinality = answer.design.cardinality
        self._units: dict[int, np.ndarray] = {}

    def fill(self, new: dict[int, Any]) -> None:
        """Set the weights of the chain's new layers."""
        *maps, last = self._chain.maps
        for index, each in enumerate(maps):
            _check_standard(each.layer)
            self._fill_map(each, new[id(each.layer)], first=index == 0)
        for layer, shapes, base in self._chain.between:
            channels = shapes[0][-1]
            assert channels is not None
            units = np.concatenate(self._places(channels, base))
            new[id(layer)].set_weights(
                [np.take(_numpy(weight), units, axis=-1) for weight in layer.weights]
            )
        self._fill_exit(last, new[id(last.layer)])

    def _fill_map(self, each: Map, layer: Any, *, first: bool) -> None:
        kernel = _numpy(each.layer.kernel)
        outputs = self._places(each.outputs, each.outputs)
        if first:
            paths = [kernel[..., own] for own in outputs]
        else:
            inputs = self._places(each.inputs, each.base)
            paths = [
                self._scale(each) * kernel[..., read, :][..., own]
                for read, own in zip(inputs, outputs, strict=True)
            ]
        # Dense paths have an axis of their own.
        join = np.stack if len(layer.kernel.shape) > kernel.ndim else _beside
        layer.kernel.assign(join(paths).reshape(layer.kernel.shape))
        if each.layer.use_bias:
            layer.bias.assign(np.take(_numpy(each.layer.bias), np.concatenate(outputs)))

    def _fill_exit(self, last: Map, layer: Any) -> None:
        _check_standard(last.layer)
        m = self._cardinality
        units = np.concatenate(self._places(last.inputs, last.base))
        kernel = _numpy(last.layer.kernel)[..., units, :] * self._scale(last) / m
        if getattr(layer, "aggregate", False):
            kernel *= np.sqrt(m)  # Its forward pass divides by that.
        layer.kernel.assign(kernel)
        if last.layer.use_bias:
            layer.bias.assign(_numpy(last.layer.bias))

    def _scale(self, each: Map) -> float:
        return (each.base / self._width(each.base)) ** _EXPONENT

    def _width(self, base: int) -> int:
        (width,) = scaled_widths(self._answer.design.width, [base], self._answer.family.width)
        return int(width)

    def _places(self, channels: int, base: int) -> list[np.ndarray]:
        """Where every path's values lie among the baseline's channels.

        Layers of one width share their units out alike: values that meet belong together.
        """
        if base not in self._units:
            size = self._cardinality * self._width(base)
            rounds = [self._rng.permutation(base) for _ in range(-(-size // base))]
            self._units[base] = np.concatenate(rounds)[:size].reshape(self._cardinality, -1)
        # Behind a Flatten, every pixel has the channels of the layer before.
        pixels = base * np.arange(channels // base)[:, None]
        return [(pixels + own).ravel() for own in self._units[base]]


def _beside(paths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(paths, axis=-1)


def _numpy(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight)


def _check_standard(layer: Any) -> None:
    if getattr(layer, "parameterization", "standard") != "standard":
        raise ValueError(
            f"init: 'split' needs weights in the standard parameterisation; {layer.name!r} has "
            "that of the NTK: use init='random'"
        )
