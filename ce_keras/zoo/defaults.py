"""Keras' defaults, set for as long as a network is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras


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
    if data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(
            f"data_format: got {data_format!r}; it must be 'channels_last' or 'channels_first'"
        )
    try:
        if dtype is not None:
            keras.config.set_dtype_policy(dtype)
        if data_format is not None:
            keras.config.set_image_data_format(data_format)
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])
