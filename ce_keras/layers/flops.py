"""FLOPs and parameters of a Keras model, counted from its built layers."""

from __future__ import annotations

import math
from typing import Any

import keras

from ce_keras.checks import brief
from ce_keras.layers.keras_internals import all_layers, own_trainable_variables
from ce_keras.layers.layer_table import fan_ins


def flops(model: keras.Model) -> int:
    """Return the FLOPs of a model's linear maps for one example: two for each multiply-add.

    Normalisation, activations and pooling are left out, as is usual. A layer that is called
    several times counts once.

    Args:
        model: built, with a known size of its input.

    Raises:
        ValueError: for outputs of unknown size, or a layer with a matrix that is not known.

    >>> flops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    24
    """
    build_all(model)
    return sum(_of(layer) for layer in all_layers(model))


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


def _of(layer: Any) -> int:
    """Return a layer's FLOPs: every output unit of a linear map sums its fan-in."""
    try:
        found = fan_ins(layer)
        shape = layer.output.shape[1:] if found else ()
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"model: the FLOPs of {layer.name}, a {type(layer).__name__}, are not known: {error}"
        ) from None
    if not found:
        return 0
    if None in shape:
        raise ValueError(f"model: {layer.name} has outputs of unknown size {shape}; give sizes")
    outputs = math.prod(shape)
    if getattr(layer, "aggregate", False):  # Each of its outputs is a sum over paths.
        outputs *= layer.cardinality
    if len(found) == 1:
        return round(2 * found[0] * outputs)
    # A separable convolution: its first map has as many channels as its second sums.
    first, second = found
    return round(2 * second * (outputs + first * outputs / layer.filters))
