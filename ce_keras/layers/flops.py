"""FLOPs and parameters of a Keras model, counted from its built layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras

from ce_keras.checks import brief
from ce_keras.layers.functional import Applied, calls_of, is_functional
from ce_keras.layers.keras_internals import all_layers, own_trainable_variables
from ce_keras.layers.layer_table import fan_ins


def flops(model: keras.Model) -> int:
    """Return the FLOPs of a model's linear maps for one example: two for each multiply-add.

    Normalisation, activations and pooling are left out, as is usual. A layer that is called
    several times counts each time; in a subclassed model, whose calls are not known, once.

    Args:
        model: built, with a known size of its input.

    Raises:
        ValueError: for outputs of unknown size, or a layer with a matrix that is not known.

    >>> flops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    24
    """
    build_all(model)
    if not is_functional(model):
        return sum(_of(layer) for layer in all_layers(model))
    calls = calls_of(model)
    return sum(map(_of_call, calls)) + _of_layers_within(calls)


def trained_parameters(model: keras.Model) -> int:
    """Return how many numbers training changes.

    Raises:
        ValueError: for a model that is not built.
    """
    build_all(model)
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def build_all(model: keras.Model) -> None:
    """Make the weights that some layers, such as activations, make only when they are called.

    Raises:
        ValueError: for a model that is not built.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"model: got {brief(model)}; it must be a Keras model")
    if not model.built:
        raise ValueError(
            f"model: {model.name!r} is not built; give it an Input, or call it on an example first"
        )
    if model.inputs and not all(layer.built for layer in all_layers(model)):
        specs = keras.tree.map_structure(
            lambda tensor: keras.KerasTensor(tensor.shape, tensor.dtype), model.input
        )
        # By tracing: a functional model would otherwise only ask its layers for their shapes.
        keras.Operation.compute_output_spec(model, specs, training=False)


def parameters(model: keras.Model) -> int:
    """Return how many numbers training would change if no layer were frozen."""
    build_all(model)
    found = {
        id(weight): math.prod(weight.shape)
        for layer in all_layers(model)
        for weight in own_trainable_variables(layer)
    }
    return sum(found.values())


def _of_layers_within(calls: Sequence[Applied]) -> int:
    """Return the FLOPs of the layers inside layers that are called, each counted once.

    Raises:
        ValueError: where they may be called several times.
    """
    called = Counter(id(call.operation) for call in calls)
    found: dict[int, Any] = {}
    for call in calls:
        if not isinstance(call.operation, keras.layers.Layer):
            continue
        parts = all_layers(call.operation)
        within = [each for each in parts if id(each) not in called and _maps(each)]
        repeats = any(isinstance(each, keras.layers.TimeDistributed) for each in parts)
        if within and (repeats or call.times != 1 or called[id(call.operation)] > 1):
            raise _unknown(within[0], f"how often {call.operation.name!r} calls it is not known")
        found.update((id(each), each) for each in within)
    return sum(map(_of, found.values()))


def _of_call(call: Applied) -> int:
    """Return the FLOPs of all calls of a layer of these sizes; none for a function."""
    layer = call.operation
    if not isinstance(layer, keras.layers.Layer) or not _maps(layer):
        return 0
    if len(call.outputs) > 1:
        raise _unknown(layer, "it gives several outputs")
    if call.times is None:
        raise ValueError(f"model: {layer.name} is applied to an unknown number of steps; give it")
    return call.times * _of_outputs(layer, call.outputs[0].shape)


def _of(layer: Any) -> int:
    """Return the FLOPs of a layer's first call."""
    if not _maps(layer):
        return 0
    try:
        shape = layer.output.shape
    except AttributeError as error:
        raise _unknown(layer, error) from None
    return _of_outputs(layer, shape)


def _of_outputs(layer: Any, output_shape: Sequence[int | None]) -> int:
    """Return the FLOPs of outputs of a shape: every unit of a linear map sums its fan-in."""
    maps, shape = _maps(layer), output_shape[1:]
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        raise ValueError(f"model: {layer.name} has outputs of unknown size {shape}; give sizes")
    outputs = math.prod(sizes)
    if getattr(layer, "aggregate", False):  # Each of its outputs is a sum over paths.
        outputs *= layer.cardinality
    if len(maps) == 1:
        return round(2 * maps[0] * outputs)
    # A separable convolution: its first map has as many channels as its second sums.
    first, second = maps
    return round(2 * second * (outputs + first * outputs / layer.filters))


def _maps(layer: Any) -> list[float]:
    try:
        return fan_ins(layer)
    except ValueError as error:
        raise _unknown(layer, error) from None


def _unknown(layer: Any, why: Any) -> ValueError:
    return ValueError(
        f"model: the FLOPs of {layer.name}, a {type(layer).__name__}, are not known: {why}"
    )
