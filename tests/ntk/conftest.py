"""Fixtures that tests of kernels share."""

import keras
import pytest
from keras import layers

from ce_keras.layers import CollegialConv2D


@pytest.fixture
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")  # The type of `keras.Input`.
    yield
    keras.config.set_dtype_policy(before)
    keras.config.set_floatx("float32")


@pytest.fixture
def model():
    """A small convolutional network with paths."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            CollegialConv2D(8, 3, cardinality=2, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
