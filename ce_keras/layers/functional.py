"""List the calls of a functional Keras model, including those of the models inside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from ce_keras.layers.keras_internals import run_through


def is_functional(model: Any) -> bool:
    """Return whether Keras knows the model's graph: functional, or sequential with an input."""
    graphs = (keras.Function, keras.Sequential)
    return isinstance(model, graphs) and getattr(model, "inputs", None) is not None


def model_inside(layer: Any) -> Any:
    """Return the functional model that a layer is, or applies at every time step; or `None`."""
    inner = layer.layer if type(layer) is keras.layers.TimeDistributed else layer
    return inner if is_functional(inner) else None


class Applied(NamedTuple):
    """One call of an operation by a model, or by a model inside it.

    Attributes:
        operation: the layer or function.
        outputs: its symbolic outputs.
        times: how often it is called so for one example: once for each step of a `TimeDistributed`
            around it; `None` if their number is not known.
    """

    operation: Any
    outputs: list[keras.KerasTensor]
    times: int | None


def calls_of(model: Any) -> list[Applied]:
    """Return all calls of a functional model, those of the models inside it in place of theirs.

    Sizes are those that tensors have in this model: the models inside may have been built for
    others, and called several times. In place of a `TimeDistributed` come the calls of what it
    applies. A model inside whose `call` is a user's own is a layer like others.

    Args:
        model: as `is_functional` takes it.
    """
    calls: list[Applied] = []
    _run(model, model.inputs, 1, calls)
    return calls


def _run(model: Any, inputs: Any, times: int | None, calls: list[Applied]) -> Any:
    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return _called(operation, args, kwargs, times, calls)

    # A sequential model keeps its graph to itself.
    return run_through(keras.Function(model.inputs, model.outputs), inputs, call)


def _called(operation: Any, args: Any, kwargs: Any, times: int | None, calls: list[Applied]) -> Any:
    """Return an operation's symbolic outputs, and note its call, or those inside it."""
    if is_functional(operation) and runs_its_graph(operation):
        given = inputs_of_call(operation, args, kwargs)
        bound = [_merged(*pair) for pair in zip(given, operation.inputs, strict=True)]
        return _run(operation, bound, times, calls)
    outputs = operation.compute_output_spec(*args, **kwargs)
    if type(operation) is keras.layers.TimeDistributed:
        x = args[0] if args else kwargs["inputs"]
        batch, steps, *shape = x.shape
        step = keras.KerasTensor((batch, *shape), x.dtype)
        of_steps = None if times is None or steps is None else times * steps
        _called(operation.layer, (step,), {}, of_steps, calls)
    else:
        calls.append(Applied(operation, keras.tree.flatten(outputs), times))
    return outputs


def runs_its_graph(model: Any) -> bool:
    """Return whether a model's `call` is Keras' own."""
    return type(model).call.__module__.startswith("keras.")


def inputs_of_call(model: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return what a functional model is called with, in the order of its inputs.

    Keras takes a dictionary by the inputs' names where they are a list; flattened, it is sorted.
    """
    given = args[0] if args else kwargs["inputs"]
    if isinstance(given, dict) and not isinstance(model.input, dict):
        return [given[tensor.name] for tensor in model.inputs]
    if isinstance(given, dict):
        given = {key: given[key] for key in model.input}
    return keras.tree.flatten(given)


def _merged(given: Any, own: keras.KerasTensor) -> keras.KerasTensor:
    """Return an input of the size that it is given, or of the model's own where that says less.

    A constant says nothing here, nor does another rank: Keras adds and removes axes of length one.
    """
    if not isinstance(given, keras.KerasTensor) or len(given.shape) != len(own.shape):
        return own
    shape = [a if b is None else b for a, b in zip(own.shape, given.shape, strict=True)]
    return keras.KerasTensor(shape, given.dtype, sparse=given.sparse)
