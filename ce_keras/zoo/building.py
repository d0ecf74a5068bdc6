"""Parts that the zoo's builders share: Keras' defaults, seeds, convolution, classifier, shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from ce_keras.checks import (
    brief,
    checked_seed,
    keras_object,
    one_of,
    positive_int,
    sequence_of,
    text,
)
from ce_keras.layers.initializers import kernel_initializer
from ce_keras.zoo.weights import load_weights

# Largest number of axes of one example.
_MAX_AXES = 8


@contextmanager
def defaults(dtype: Any = None, data_format: str | None = None) -> Iterator[None]:
    """Give layers built in the block this dtype (or policy) and data format, unless they have own.

    Raises:
        ValueError: for a dtype, policy or data format that Keras does not know.

    >>> with defaults("mixed_bfloat16"):
    ...     keras.layers.Dense(1).compute_dtype
    'bfloat16'
    """
    before = keras.config.dtype_policy(), keras.config.image_data_format()
    one_of("data_format", data_format, (None, "channels_last", "channels_first"))
    try:
        if dtype is not None:
            keras_object("dtype", dtype, _set_policy)
        if data_format is not None:
            keras.config.set_image_data_format(data_format)
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])


def _set_policy(dtype: Any) -> Any:
    keras.config.set_dtype_policy(dtype)
    return keras.config.dtype_policy()


def channel_axis() -> int:
    """Return the axis of channels in the default data format."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def layer_seeds(seed: int | None, count: int) -> list[int | None]:
    """Return a seed for each of so many layers; `None` for each without a seed."""
    if checked_seed(seed) is None:
        return [None] * count
    return [int(word) >> 2 for word in np.random.SeedSequence(seed).generate_state(count)]


def convolution(
    x: Any, channels: int, kernel: int, strides: int, seed: int | None, name: str
) -> Any:
    """Apply a convolution without bias; one with strides is padded equally on all sides."""
    padding = "same"
    if strides > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv2D(
        channels,
        kernel,
        strides,
        padding,
        use_bias=False,
        kernel_initializer=kernel_initializer(seed=seed),
        name=f"{name}_conv",
    )(x)


def classifier(x: Any, classes: int, activation: Any, seed: int | None) -> Any:
    """Apply global average pooling and a dense layer, in full precision under a mixed policy."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return layers.Dense(
        classes,
        activation,
        kernel_initializer=kernel_initializer(gain=1.0, seed=seed),
        dtype=keras.config.dtype_policy().variable_dtype,
        name="predictions",
    )(x)


def with_weights(model: keras.Model, source: Path | None) -> keras.Model:
    """Return a model, with the weights of a file if there is one."""
    if source is not None:
        load_weights(model, source)
    return model


def check_outputs(name: str | None, classes: int, activation: Any) -> None:
    """Raise `ValueError` unless name, number of outputs and activation are valid."""
    if name is not None:
        text("name", name)
    positive_int("classes", classes)
    keras_object("classifier_activation", activation, keras.activations.get)


def checked_shape(input_shape: Any) -> tuple[int | None, ...]:
    """Return the shape of an example.

    Raises:
        ValueError: unless its sizes are whole numbers of 1 or more, or `None`.
    """

    def size(argument: str, value: Any) -> int | None:
        return None if value is None else positive_int(argument, value)

    found = sequence_of("input_shape", input_shape, size)
    if not 1 <= len(found) <= _MAX_AXES:
        raise ValueError(
            f"input_shape: got {brief(input_shape)}; it must have a size for each axis"
        )
    return tuple(found)
