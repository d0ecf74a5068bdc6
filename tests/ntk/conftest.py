"""What tests of kernels share."""

import keras
import pytest


@pytest.fixture
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")  # The type of `keras.Input`.
    yield
    keras.config.set_dtype_policy(before)
    keras.config.set_floatx("float32")
