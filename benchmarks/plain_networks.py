"""Networks with grouped convolutions as one writes them in Keras: none of our layers in them."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def conv_bn(x: Any, filters: int, kernel: int, strides: int = 1, groups: int = 1) -> Any:
    """Apply a convolution and a batch normalisation."""
    x = layers.Conv2D(
        filters, kernel, strides, padding="same", groups=groups, use_bias=False,
        kernel_initializer="he_normal",
    )(x)  # fmt: skip
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def bottleneck(x: Any, filters: int, outputs: int, strides: int, groups: int) -> Any:
    """Apply the block that ResNeXt and RegNet share."""
    shortcut = x
    if strides > 1 or x.shape[-1] != outputs:
        shortcut = conv_bn(x, outputs, 1, strides)
    y = layers.ReLU()(conv_bn(x, filters, 1))
    y = layers.ReLU()(conv_bn(y, filters, 3, strides, groups))
    return layers.ReLU()(layers.Add()([conv_bn(y, outputs, 1), shortcut]))


def classifier(image: Any, x: Any, classes: int, name: str) -> keras.Model:
    """Return the model that ends in a pooling and a dense layer."""
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(x), name=name)


def resnext50(side: int, classes: int = 10, depths: tuple[int, ...] = (3, 4, 6, 3)) -> keras.Model:
    """Return ResNeXt-50 32x4d (Xie et al. 2017, table 1)."""
    image = keras.Input((side, side, 3))
    x = layers.ReLU()(conv_bn(image, 64, 7, 2))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            strides = 2 if stage and not block else 1
            x = bottleneck(x, 128 * 2**stage, 256 * 2**stage, strides, 32)
    return classifier(image, x, classes, "ResNeXt-50-32x4d")


def regnetx(
    side: int,
    classes: int = 10,
    depths: tuple[int, ...] = (1, 2, 7, 12),
    widths: tuple[int, ...] = (32, 64, 160, 384),
) -> keras.Model:
    """Return RegNetX-400MF, whose groups have 16 channels (Radosavovic et al. 2020, fig. 17)."""
    image = keras.Input((side, side, 3))
    x = layers.ReLU()(conv_bn(image, 32, 3, 2))
    for depth, width in zip(depths, widths, strict=True):
        for block in range(depth):
            x = bottleneck(x, width, width, 1 if block else 2, width // 16)
    return classifier(image, x, classes, "RegNetX-400MF")


def shuffled(x: Any, groups: int) -> Any:
    """Transpose channels between the groups."""
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups))(x)
    return layers.Reshape((height, width, channels))(layers.Permute((1, 2, 4, 3))(x))


def shuffle_unit(x: Any, outputs: int, groups: int, strides: int, first: bool) -> Any:
    """Apply a ShuffleNet unit (Zhang et al. 2018, fig. 2)."""
    kept = outputs - x.shape[-1] if strides > 1 else outputs
    y = layers.ReLU()(conv_bn(x, outputs // 4, 1, groups=1 if first else groups))
    y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(shuffled(y, groups))
    y = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(y)
    y = conv_bn(y, kept, 1, groups=groups)
    if strides == 1:
        return layers.ReLU()(layers.Add()([x, y]))
    pooled = layers.AveragePooling2D(3, 2, "same")(x)
    return layers.ReLU()(layers.Concatenate()([pooled, y]))


def shufflenet(
    side: int,
    classes: int = 10,
    depths: tuple[int, ...] = (4, 8, 4),
    groups: int = 3,
) -> keras.Model:
    """Return ShuffleNet 1x, of three groups (Zhang et al. 2018, table 1)."""
    image = keras.Input((side, side, 3))
    x = layers.ReLU()(conv_bn(image, 24, 3, 2))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            first = stage == block == 0
            x = shuffle_unit(x, 240 * 2**stage, groups, 1 if block else 2, first)
    return classifier(image, x, classes, "ShuffleNet-1x-g3")
