"""The graph of a functional Keras model, and those of the models within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import layers


class Step(NamedTuple):
    """One call of a layer or operation in a model's graph."""

    operation: Any
    inputs: list[Any]
    outputs: list[Any]


class Graph:
    """The calls of a functional model, first to last, and who reads what."""

    def __init__(self, model: Any) -> None:
        network = getattr(model, "_functional", None) or model
        by_depth = network._nodes_by_depth
        self.steps = [
            Step(node.operation, list(node.input_tensors), list(node.output_tensors))
            for depth in sorted(by_depth, reverse=True)
            for node in by_depth[depth]
            if node.input_tensors
        ]
        # Readers by tensor: positions in `steps`, or -1 for whoever calls the model.
        self.readers: dict[int, list[int]] = {id(tensor): [-1] for tensor in network.outputs}
        for position, step in enumerate(self.steps):
            for tensor in step.inputs:
                self.readers.setdefault(id(tensor), []).append(position)


def is_functional(model: Any) -> bool:
    """Whether Keras knows the model's graph: functional, or sequential with a known input."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) is not None
    return hasattr(model, "_nodes_by_depth")


def models_in(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The model and all functional models that are layers of it, each once, with its prefix."""
    seen: set[int] = set()

    def walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if id(model) in seen:
            return
        seen.add(id(model))
        yield prefix, model
        for layer in model.layers:
            if is_functional(layer):
                yield from walk(layer, f"{prefix}{layer.name}/")

    yield from walk(model, prefix)


def layers_of(operation: Any) -> list[Any]:
    """A layer and those inside it, as of a wrapper; a model within has a graph of its own."""
    if not isinstance(operation, layers.Layer) or is_functional(operation):
        return [operation]
    return list(operation._flatten_layers())
