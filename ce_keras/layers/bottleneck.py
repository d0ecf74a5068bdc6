"""The bottleneck block as a collegial ensemble (Fig. 5): ResNeXt's block, of any design."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from ce_keras.checks import (
    Parameterization,
    brief,
    checked_parameterization,
    checked_seed,
    one_of,
    positive_int,
    text,
)
from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.collegial import CollegialConv2D
from ce_keras.layers.initializers import kernel_initializer


def collegial_bottleneck(
    x: Any,
    filters: int,
    cardinality: int,
    width: int,
    *,
    strides: int = 1,
    parameterization: Parameterization = "standard",
    data_format: str | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> Any:
    """Apply a residual block whose branch is `cardinality` bottleneck paths of `width`.

    Each path is a 1x1, a 3x3 and a 1x1 convolution with normalisation and ReLU between. Side by
    side that is a wide 1x1, a grouped 3x3 and a wide 1x1. The last sums the paths; because its
    fan-in counts all of them, its weights start `sqrt(cardinality)` times smaller than one path's
    would, which is the scaling of Eq. 4. Where the input has other channels than `filters`, or
    `strides` is not 1, a 1x1 convolution projects the shortcut.

    Args:
        x: a Keras tensor, `(batch, height, width, channels)`, or channels first.
        filters: output channels.
        cardinality: the number of paths.
        width: channels of each path.
        strides: of the 3x3 convolution, padded by a pixel all round.
        parameterization: `"standard"` or `"ntk"`, as in `CollegialConv2D`.
        data_format: Keras' default if not given.
        seed: for reproducible weights.
        name: prefix of the layers' names, which are those of `keras.applications`' ResNet; one
            of its own for every block if not given.

    Returns:
        A Keras tensor, `(batch, height / strides, width / strides, filters)`.

    Raises:
        ValueError: for sizes that are not whole numbers of 1 or more, an unknown parameterisation
            or data format, or a seed below 0.

    >>> x = keras.Input((8, 8, 64))
    >>> collegial_bottleneck(x, 256, cardinality=10, width=10, strides=2).shape
    (None, 4, 4, 256)
    """
    if len(getattr(x, "shape", ())) != 4:
        raise ValueError(f"x: got {brief(x)}; it must be a tensor of images, of four axes")
    sizes = {"filters": filters, "cardinality": cardinality, "width": width, "strides": strides}
    for argument, size in sizes.items():
        positive_int(argument, size)
    checked_parameterization(parameterization)
    checked_seed(seed)
    if name is not None:
        text("name", name)
    if data_format is not None:
        one_of("data_format", data_format, ("channels_last", "channels_first"))
    name = name or f"bottleneck_{keras.backend.get_uid('bottleneck')}"
    data_format = data_format or keras.config.image_data_format()
    axis = -1 if data_format == "channels_last" else 1

    def conv_bn(x: Any, step: int, channels: int, kernel: int = 1, **options: Any) -> Any:
        x = CollegialConv2D(
            channels,
            kernel,
            use_bias=False,
            parameterization=parameterization,
            kernel_initializer=kernel_initializer(
                parameterization, seed=None if seed is None else 4 * seed + step
            ),
            data_format=data_format,
            name=f"{name}_{step}_conv",
            **options,
        )(x)
        return batch_norm(axis, f"{name}_{step}_bn")(x)

    shortcut = x
    if strides != 1 or x.shape[axis] != filters:
        shortcut = conv_bn(x, 0, filters, strides=strides)

    x = conv_bn(x, 1, cardinality * width)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    # A stride of 2 with Keras' "same" pads right and bottom only; everyone else pads all round.
    padding = "same"
    if strides != 1:
        x = layers.ZeroPadding2D(1, data_format=data_format, name=f"{name}_2_pad")(x)
        padding = "valid"
    x = conv_bn(
        x, 2, cardinality * width, 3, strides=strides, padding=padding, cardinality=cardinality
    )
    x = layers.ReLU(name=f"{name}_2_relu")(x)
    x = conv_bn(x, 3, filters)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def batch_norm(axis: int, name: str) -> FusedBatchNormalization:
    """Return batch normalisation with the constants of the original experiments."""
    return FusedBatchNormalization(axis=axis, momentum=0.9, epsilon=1e-5, name=name)
