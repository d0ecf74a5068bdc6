"""Finds all chains of a model, and says why its other matrices are in none."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras

from ce_keras.layers.fan_in import leaves
from ce_keras.layers.grouping import CannotGroupError
from ce_keras.rewrite.chains import (
    BY_CHANNEL,
    CONV,
    DENSE,
    Between,
    Chain,
    cardinality_of,
    grow,
    is_entry,
    kernel_of,
)
from ce_keras.rewrite.graph import Graph, is_functional, layers_of, models_in


def find_chains(model: keras.Model) -> tuple[list[Chain], dict[str, tuple[str, str]]]:
    """All chains of a functional model, and why its other matrices are in none.

    Returns:
        The chains, first to last; and by layer's name, the layer's class and the reason.
    """
    graphs = [(prefix, inner, Graph(inner)) for prefix, inner in models_in(model)]
    calls = Counter(
        id(layer)
        for _, _, graph in graphs
        for step in graph.steps
        for layer in layers_of(step.operation)
    )
    chains: list[Chain] = []
    reasons: dict[int, str] = {}
    for prefix, _, graph in graphs:
        chains += _chains_of(graph, prefix, calls, reasons)
    chains = _told_apart(chains)
    taken = {id(each.layer) for chain in chains for each in chain.maps}
    left = {}
    for prefix, inner, _ in graphs:
        for layer in inner.layers:
            if id(layer) not in taken and not is_functional(layer) and _has_matrix(layer):
                reason = reasons.get(id(layer)) or _why_not(layer)
                left[prefix + layer.name] = (type(layer).__name__, reason)
    return chains, left


def _told_apart(chains: list[Chain]) -> list[Chain]:
    """Return the chains with names of their own: Keras' own layer names begin alike in all."""
    counts = Counter(chain.name for chain in chains)
    return [
        chain
        if counts[chain.name] == 1
        else dataclasses.replace(chain, name=f"{chain.layers[0]} to {chain.layers[-1]}")
        for chain in chains
    ]


def _chains_of(
    graph: Graph, prefix: str, calls: Counter[int], reasons: dict[int, str]
) -> list[Chain]:
    starts: dict[int, list[int]] = {}
    for position, step in enumerate(graph.steps):
        if is_entry(step.operation):
            starts.setdefault(id(step.operation), []).append(position)
    chains: list[Chain] = []
    taken: set[int] = set()
    for entry, positions in starts.items():
        if entry in taken:
            continue
        try:
            grown = [grow(graph, position, prefix) for position in positions]
            chain = _same_everywhere(grown, calls, taken)
        except CannotGroupError as error:
            reasons[entry] = str(error)
            continue
        chains.append(chain)
        taken.update(id(each.layer) for each in chain.maps)
    return chains


def _same_everywhere(grown: Sequence[Chain], calls: Counter[int], taken: set[int]) -> Chain:
    """The one chain of a shared entry; all its layers must be shared in the same way.

    Raises:
        CannotGroupError: if a layer of the chain is also used elsewhere.
    """
    chain = grown[0]
    if any([x.layer for x in other.maps] != [x.layer for x in chain.maps] for other in grown[1:]):
        raise CannotGroupError("it is shared, and not followed by the same layers everywhere")
    members = [
        layer
        for other in grown
        for layer in ([x.layer for x in other.maps] + [x.layer for x in other.between])
    ]
    used = Counter(map(id, members))
    for layer in members:
        if calls[id(layer)] != used[id(layer)] or id(layer) in taken:
            raise CannotGroupError(f"{layer.name!r} is also used outside the chain")
    # What lies between the shared layers may be another layer at every use.
    between: dict[int, Between] = {}
    for each in (each for other in grown for each in other.between):
        if between.setdefault(id(each.layer), each) != each:
            raise CannotGroupError(f"{each.layer.name!r} is applied to several shapes")
    return dataclasses.replace(chain, between=tuple(between.values()))


def _why_not(layer: Any) -> str:
    """Why a layer that begins no chain is in none."""
    if isinstance(layer, keras.Model):
        return (
            "subclassed: Keras does not know its layers' order; build it with "
            "keras.Model(inputs, model.call(inputs))"
        )
    if isinstance(layer, BY_CHANNEL) or cardinality_of(layer) > 1:
        return "already grouped"
    if type(layer) in CONV:
        size = "x".join(map(str, kernel_of(layer)))
        return f"not in a chain of 1x1, k x k and 1x1 convolutions: its kernel is {size}"
    if isinstance(layer, (*DENSE, *CONV)):
        return "subclassed: it may compute something else than its parent"
    return f"there is no grouped form of a {type(layer).__name__}"


def _has_matrix(layer: Any) -> bool:
    return any(
        len(weight.shape) > 1
        for leaf in leaves(layer)
        for weight in leaf.trainable_variables + leaf.non_trainable_variables
    )
