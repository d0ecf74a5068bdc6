"""The graph of a functional Keras model: its calls, who reads what, and the models inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from ce_keras.checks import brief
from ce_keras.layers.functional import is_functional, model_inside
from ce_keras.layers.keras_internals import all_layers


class Call(NamedTuple):
    """One call of a layer or operation in a model's graph."""

    operation: Any
    inputs: list[Any]
    outputs: list[Any]


class _StandIn(keras.Operation):
    """Takes an operation's place in a copy of its graph, with outputs of the same shapes."""

    def __init__(self, operation: Any) -> None:
        super().__init__(name=operation.name)
        self._operation = operation

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._operation.compute_output_spec(*args, **kwargs)


class Graph:
    """The calls of a functional model, first to last, and where each tensor is read.

    `readers` has positions in `calls` by the tensor's id; -1 stands for whoever calls the model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.calls: list[Call] = []
        stand_ins: dict[int, _StandIn] = {}

        def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
            stand_in = stand_ins.setdefault(id(operation), _StandIn(operation))
            outputs = stand_in(*args, **kwargs)
            tensors = [
                each
                for each in keras.tree.flatten((args, kwargs))
                if isinstance(each, keras.KerasTensor)
            ]
            self.calls.append(Call(operation, tensors, keras.tree.flatten(outputs)))
            return outputs

        # Keras has no public list of a model's calls, but it lets a copy's be intercepted.
        plain = keras.Model(model.inputs, model.outputs, name=model.name)
        copy = keras.models.clone_model(
            plain, clone_function=lambda layer: layer, call_function=record
        )
        self.readers: dict[int, list[int]] = {id(tensor): [-1] for tensor in copy.outputs}
        for position, call in enumerate(self.calls):
            for tensor in call.inputs:
                self.readers.setdefault(id(tensor), []).append(position)


_MAKE_FUNCTIONAL = (
    ": Keras does not know its layers' order. Where its `call` only calls layers, this makes it "
    "functional: inputs = keras.Input(shape); model = keras.Model(inputs, model.call(inputs))"
)


def check_functional(model: Any, subclassed: str = _MAKE_FUNCTIONAL) -> None:
    """Raise unless Keras knows a model's graph.

    Args:
        model: the model.
        subclassed: how the message for a subclassed model goes on.

    Raises:
        ValueError: for something else, a model that is subclassed, or one without an input.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"model: got {brief(model)}; it must be a Keras model, as keras.models.load_model gives"
        )
    if is_functional(model):
        return
    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"model: {model.name!r} has no input yet; begin it with keras.Input(shape)"
        )
    raise ValueError(f"model: {model.name!r} is subclassed ({type(model).__name__}){subclassed}")


def models_in(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the model and all functional models inside it, each once, with prefixes of names."""
    seen: set[int] = set()

    def walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if id(model) not in seen:
            seen.add(id(model))
            yield prefix, model
            for layer in model.layers:
                if (inner := model_inside(layer)) is not None:
                    yield from walk(inner, f"{prefix}{layer.name}/")

    return walk(model, "")


def layers_of(operation: Any) -> list[Any]:
    """Return a layer and those inside it; a functional model inside has a graph of its own."""
    if not isinstance(operation, keras.layers.Layer) or model_inside(operation) is not None:
        return [operation]
    return all_layers(operation)
