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
from typing import Any, NamedTuple

import numpy as np
from keras.ops import convert_to_numpy

from ce_keras.rewrite.building import Decided
from ce_keras.rewrite.chains import Chain, LinearLayer
from ce_keras.rewrite.decisions import Family
from ce_keras.rewrite.report import Decision
from ce_keras.variance.samplers import generator

_EXPONENT = 0.75

#: For every path, the channels of the baseline that it takes.
Channels = list[np.ndarray]


class Units(NamedTuple):
    """The channels of a baseline's chain that its paths take.

    Attributes:
        outputs: of every hidden linear layer, first to last.
        inputs: of every linear layer but the first.
        intermediate: of every intermediate layer.
    """

    outputs: list[Channels]
    inputs: list[Channels]
    intermediate: list[Channels]


def split(pairs: Sequence[tuple[Any, Any]], decided: Decided, seed: int | None) -> None:
    """Give new layers the weights of the old; paths take units at random.

    Args:
        pairs: old layers, each with what took its place.
        decided: the families whose chains became paths, and their designs.
        seed: of which path takes which units.

    Raises:
        ValueError: for a layer of a chain in the NTK parameterisation.
    """
    new = carry_over(pairs, decided, "split")
    rng = generator(seed)
    for family, decision in decided:
        for chain in family.chains:
            fill(chain, _drawn(chain, family, decision, rng), new)


def carry_over(pairs: Sequence[tuple[Any, Any]], decided: Decided, init: str) -> dict[int, Any]:
    """Give the layers outside chains the weights of the old, and return all new layers by the old.

    Raises:
        ValueError: for a layer of a chain in the NTK parameterisation.
    """
    in_chains: set[int] = set()
    for chain in (chain for family, _ in decided for chain in family.chains):
        in_chains.update(id(layer) for layer, *_ in (*chain.linear, *chain.intermediate))
        for each in chain.linear:
            if getattr(each.layer, "parameterization", "standard") != "standard":
                raise ValueError(
                    f"init: {init!r} needs weights in the standard parameterisation; "
                    f"{each.layer.name!r} has that of the NTK: use init='random'"
                )
    for old, layer in pairs:
        if old is not layer and id(old) not in in_chains and getattr(old, "weights", []):
            layer.set_weights([convert_to_numpy(weight) for weight in old.weights])
    return {id(old): layer for old, layer in pairs}


def fill(chain: Chain, units: Units, new: dict[int, Any], exponent: float = _EXPONENT) -> None:
    """Give the new layers of a chain the weights of the units that their paths take.

    Weights behind the first layer are scaled by this power of the part of the units that is left.
    """
    *hidden, last = chain.linear
    for index, linear in enumerate(hidden):
        kernel, layer = convert_to_numpy(linear.layer.kernel), new[id(linear.layer)]
        paths = [kernel[..., own] for own in units.outputs[index]]
        if index > 0:
            inputs = units.inputs[index - 1]
            scale = (linear.inputs / len(inputs[0])) ** exponent
            paths = [scale * path[..., own, :] for path, own in zip(paths, inputs, strict=True)]
        # Dense paths have an axis of their own.
        has_axis = len(layer.kernel.shape) > kernel.ndim
        joined = np.stack(paths) if has_axis else np.concatenate(paths, axis=-1)
        layer.kernel.assign(joined.reshape(layer.kernel.shape))
        if linear.layer.use_bias:
            layer.bias.assign(
                np.take(
                    convert_to_numpy(linear.layer.bias),
                    np.concatenate(units.outputs[index]),
                )
            )
    for each, channels in zip(chain.intermediate, units.intermediate, strict=True):
        taken = np.concatenate(channels)
        weights = [
            np.take(convert_to_numpy(weight), taken, axis=-1) for weight in each.layer.weights
        ]
        new[id(each.layer)].set_weights(weights)
    _fill_exit(last, units.inputs[-1], new[id(last.layer)], exponent)


def _fill_exit(last: LinearLayer, inputs: Channels, layer: Any, exponent: float) -> None:
    m = len(inputs)
    kernel = convert_to_numpy(last.layer.kernel)[..., np.concatenate(inputs), :]
    kernel = kernel * (last.inputs / len(inputs[0])) ** exponent / m
    if getattr(layer, "aggregate", False):
        kernel *= np.sqrt(m)  # Its forward pass divides by that.
    layer.kernel.assign(kernel)
    if last.layer.use_bias:
        layer.bias.assign(convert_to_numpy(last.layer.bias))


def _drawn(chain: Chain, family: Family, decision: Decision, rng: np.random.Generator) -> Units:
    """Draw the channels of every path; layers of one width share theirs out alike.

    Values that meet belong together.
    """
    drawn: dict[int, Channels] = {}

    def channels(count: int, base: int) -> Channels:
        if base not in drawn:
            width = family.path_width(decision.design.width, base)
            size = decision.design.cardinality * width
            rounds = [rng.permutation(base) for _ in range(-(-size // base))]
            # In order: groups of a normalisation stay together in paths as wide as the model's.
            drawn[base] = list(np.sort(np.concatenate(rounds)[:size].reshape(-1, width), axis=1))
        return at_every_pixel(drawn[base], count, base)

    *hidden, _ = chain.linear
    return Units(
        [channels(each.outputs, each.outputs) for each in hidden],
        [channels(each.inputs, each.base) for each in chain.linear[1:]],
        [channels(each.channels, each.base) for each in chain.intermediate],
    )


def at_every_pixel(channels: Channels, count: int, base: int) -> Channels:
    """Return the places of a layer's channels among `count` values: all pixels' behind a Flatten.

    >>> at_every_pixel([np.array([0, 2])], 6, 3)[0].tolist()
    [0, 2, 3, 5]
    """
    pixels = base * np.arange(count // base)[:, None]
    return [(pixels + own).ravel() for own in channels]
