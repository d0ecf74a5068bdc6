"""Wide ResNet (Zagoruyko and Komodakis 2016), which the paper's Table 1 compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from ce_keras.checks import checked_seed, positive_int
from ce_keras.layers.bottleneck import batch_norm
from ce_keras.zoo.building import (
    channel_axis,
    check_outputs,
    checked_shape,
    classifier,
    convolution,
    defaults,
    with_weights,
)
from ce_keras.zoo.weights import find_weights

# Channels of the stem, and of the stages of a network of width 1.
_STEM, _STAGES = 16, (16, 32, 64)


def wide_resnet(
    input_shape: tuple[int | None, ...] | None = None,
    classes: int = 10,
    classifier_activation: str | None = "softmax",
    weights: str | Path | None = None,
    name: str | None = None,
    *,
    depth: int = 28,
    widening: int = 10,
    seed: int | None = None,
    dtype: Any = None,
    data_format: str | None = None,
) -> keras.Model:
    """Build a Wide ResNet: normalisation and ReLU before each of two 3x3 convolutions of a block.

    Args:
        input_shape: shape of the images; 32x32x3 if not given.
        classes: number of outputs.
        classifier_activation: `"softmax"`, or `None` for logits.
        weights: a `.weights.h5` or `.safetensors` file; `None` for random weights.
        name: name of the model.
        depth: number of convolutions, 6 n + 4 for n blocks in each of three stages.
        widening: factor of the stages' widths over a ResNet's.
        seed: for reproducible weights.
        dtype: dtype of the layers, or a policy's name; Keras' default if not given.
        data_format: `"channels_last"` or `"channels_first"`; Keras' default if not given.

    Raises:
        ValueError: for a depth that is not 6 n + 4, or sizes that are not positive.

    >>> wide_resnet(depth=10, widening=1).name
    'wide_resnet10_1'
    """
    check_outputs(name, classes, classifier_activation)
    if input_shape is not None:
        input_shape = checked_shape(input_shape)
        if len(input_shape) != 3 or None in input_shape:
            raise ValueError(
                f"input_shape: got {input_shape}; it must be height, width and channels"
            )
    positive_int("widening", widening)
    blocks, rest = divmod(positive_int("depth", depth) - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: got {depth}; it must be 10, 16, 22, 28 or another 6 n + 4")
    name = name or f"wide_resnet{depth}_{widening}"
    source = find_weights(weights, name)
    with defaults(dtype, data_format):
        axis = channel_axis()
        image = keras.Input(input_shape or ((32, 32, 3) if axis == -1 else (3, 32, 32)))
        block = _Block(axis, seed)
        x = block.conv(image, _STEM, "conv1")
        for stage, channels in enumerate(_STAGES, start=2):
            for index in range(blocks):
                strides = 2 if stage > 2 and index == 0 else 1
                x = block(x, channels * widening, strides, f"conv{stage}_block{index + 1}")
        x = block.activated(x, "post")
        outputs = classifier(x, classes, classifier_activation, block.next_seed())
        return with_weights(keras.Model(image, outputs, name=name), source)


class _Block:
    """A pre-activation block, whose shortcut is projected after the activation."""

    def __init__(self, axis: int, seed: int | None) -> None:
        self._axis = axis
        self._seeds = None if checked_seed(seed) is None else np.random.default_rng(seed)

    def __call__(self, x: Any, channels: int, strides: int, name: str) -> Any:
        active = self.activated(x, f"{name}_1")
        shortcut = x
        if strides != 1 or x.shape[self._axis] != channels:
            shortcut = self.conv(active, channels, f"{name}_0", strides, kernel=1)
        y = self.conv(active, channels, f"{name}_1", strides)
        y = self.conv(self.activated(y, f"{name}_2"), channels, f"{name}_2")
        return layers.Add(name=f"{name}_add")([shortcut, y])

    def activated(self, x: Any, name: str) -> Any:
        """Apply normalisation and ReLU."""
        return layers.ReLU(name=f"{name}_relu")(batch_norm(self._axis, f"{name}_bn")(x))

    def conv(self, x: Any, channels: int, name: str, strides: int = 1, kernel: int = 3) -> Any:
        """Apply a convolution."""
        return convolution(x, channels, kernel, strides, self.next_seed(), name)

    def next_seed(self) -> int | None:
        """Return the seed of the next layer."""
        return None if self._seeds is None else int(self._seeds.integers(2**30))
