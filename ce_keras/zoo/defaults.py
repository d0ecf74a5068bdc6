"""Keras' defaults, set for as long as a network is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from ce_keras.checks import keras_object, one_of


@contextmanager
def defaults(dtype: Any = None, data_format: str | None = None) -> Iterator[None]:
    """Layers built inside have this dtype (or policy) and data format, unless they say otherwise.

    Raises:
        ValueError: for what Keras does not know.

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
