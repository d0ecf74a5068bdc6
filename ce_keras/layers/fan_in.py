"""What one output unit of a layer sums: the n of the variance law, read from Keras layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from ce_keras.layers.collegial import CollegialConv2D, CollegialDense


def fan_ins(layer: Any) -> list[float]:
    """The fan-in of each of a built layer's linear maps; empty for a layer that has none.

    Raises:
        ValueError: for a layer with a matrix that is not known here.

    >>> convolution = layers.Conv2D(8, 3, groups=2)
    >>> convolution.build((None, 5, 5, 10))
    >>> fan_ins(convolution), fan_ins(layers.ReLU())
    ([45], [])
    """
    for kinds, read in _KNOWN.items():
        if isinstance(layer, kinds):
            return read(layer)
    matrices = [v.path for v in layer._trainable_variables if len(v.shape) > 1]
    if matrices and not isinstance(layer, (layers.Embedding, layers.PReLU)):
        raise ValueError(
            f"module: the fan-in of {matrices[0]!r} in a {type(layer).__name__} is not known; "
            "describe the module with ce_keras.geometry.Module instead"
        )
    return []


def _transposed(layer: Any) -> list[float]:
    """Of the kernel's pixels, an output pixel meets one in `strides`."""
    seen = math.prod(layer.kernel_size) / math.prod(layer.strides)
    return [seen * layer.kernel.shape[-1]]


def _einsum(layer: Any) -> list[float]:
    _, kernel, outputs = layer.equation.replace("->", ",").replace(" ", "").split(",")
    sizes = zip(kernel, layer.kernel.shape, strict=True)
    return [math.prod(size for label, size in sizes if label not in outputs)]


# The first that fits: ours are also convolutions.
_KNOWN: dict[tuple[type, ...], Callable[[Any], list[float]]] = {
    (CollegialConv2D, CollegialDense): lambda layer: [layer.fan_in],
    (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D): lambda layer: [
        math.prod(layer.kernel.shape[:-1])
    ],
    (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose): _transposed,
    (layers.DepthwiseConv1D, layers.DepthwiseConv2D): lambda layer: [math.prod(layer.kernel_size)],
    (layers.SeparableConv1D, layers.SeparableConv2D): lambda layer: [
        math.prod(layer.kernel_size),
        layer.pointwise_kernel.shape[-2],
    ],
    (layers.EinsumDense,): _einsum,
}


def inverse_fan_in(model: keras.Model) -> float:
    """S of Eq. 9 for a built model: the sum of 1 / fan_in over its linear maps.

    Frozen maps count, since the kernel is made of them too; one that is applied twice counts once.

    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(1)])
    >>> inverse_fan_in(model) == 1 / 4 + 1 / 5
    True
    """
    return sum(1 / n for layer in leaves(model) for n in fan_ins(layer))


def leaves(layer: Any) -> list[Any]:
    """All layers, inner ones included. Keras has no public walk that sees inside composites."""
    return [inner for inner in layer._flatten_layers() if isinstance(inner, keras.layers.Layer)]
