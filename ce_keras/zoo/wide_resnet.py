"""Wide ResNet (Zagoruyko and Komodakis 2016), which the paper's Table 1 compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from ce_keras.checks import checked_seed, keras_object, positive_int, text
from ce_keras.layers.bottleneck import batch_norm
from ce_keras.layers.initializers import kernel_initializer
from ce_keras.zoo.defaults import defaults
from ce_keras.zoo.resnext import checked_shape
from ce_keras.zoo.weights import find_weights, load_weights

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
    """A Wide ResNet: normalisation and ReLU before each of two 3x3 convolutions of a block.

    Args:
        input_shape: of the images, 32x32x3 if not given.
        classes: outputs.
        classifier_activation: `"softmax"`, or `None` for logits.
        weights: a `.weights.h5` or `.safetensors` file; `None` for random weights.
        name: of the model.
        depth: convolutions, 6 n + 4 for n blocks in each of three stages.
        widening: how many times wider than a ResNet the stages are.
        seed: for reproducible weights.
        dtype: of the layers, or a policy's name; Keras' default if not given.
        data_format: `"channels_last"` or `"channels_first"`; Keras' default if not given.

    Raises:
        ValueError: for a depth that is not 6 n + 4, or sizes that are not positive.

    >>> wide_resnet(depth=10, widening=1).name
    'wide_resnet10_1'
    """
    if name is not None:
        text("name", name)
    if input_shape is not None:
        input_shape = checked_shape(input_shape)
        if len(input_shape) != 3 or None in input_shape:
            raise ValueError(
                f"input_shape: got {input_shape}; it must be height, width and channels"
            )
    keras_object("classifier_activation", classifier_activation, keras.activations.get)
    for argument, size in {"classes": classes, "widening": widening, "depth": depth}.items():
        positive_int(argument, size)
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: got {depth}; it must be 10, 16, 22, 28 or another 6 n + 4")
    name = name or f"wide_resnet{depth}_{widening}"
    source = find_weights(weights, name)
    with defaults(dtype, data_format):
        axis = -1 if keras.config.image_data_format() == "channels_last" else 1
        image = keras.Input(input_shape or ((32, 32, 3) if axis == -1 else (3, 32, 32)))
        block = _Block(axis, seed)
        x = block.conv(image, _STEM, "conv1")
        for stage, channels in enumerate(_STAGES, start=2):
            for index in range(blocks):
                strides = 2 if stage > 2 and index == 0 else 1
                x = block(x, channels * widening, strides, f"conv{stage}_block{index + 1}")
        x = block.activated(x, "post")
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        outputs = layers.Dense(
            classes,
            classifier_activation,
            kernel_initializer=kernel_initializer(gain=1.0, seed=block.next_seed()),
            # Under a mixed policy the probabilities stay in full precision.
            dtype=keras.config.dtype_policy().variable_dtype,
            name="predictions",
        )(x)
        model = keras.Model(image, outputs, name=name)
    if source is not None:
        load_weights(model, source)
    return model


class _Block:
    """A pre-activation block: the shortcut is projected after the activation, where it must be."""

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
        """Normalised and rectified."""
        return layers.ReLU(name=f"{name}_relu")(batch_norm(self._axis, f"{name}_bn")(x))

    def conv(self, x: Any, channels: int, name: str, strides: int = 1, kernel: int = 3) -> Any:
        """A convolution that is padded all round."""
        padding = "same"
        if strides != 1 and kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
            padding = "valid"
        return layers.Conv2D(
            channels,
            kernel,
            strides,
            padding,
            use_bias=False,
            kernel_initializer=kernel_initializer(seed=self.next_seed()),
            name=f"{name}_conv",
        )(x)

    def next_seed(self) -> int | None:
        """Another for each layer."""
        return None if self._seeds is None else int(self._seeds.integers(2**30))
