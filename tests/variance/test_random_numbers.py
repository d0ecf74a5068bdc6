"""Numbers from random bits: held to their laws over every value that the bits can have."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.variance.random_numbers import normal, truncated, uniform


def test_normal_numbers_are_boxs_and_mullers_to_single_precision():
    grid = (np.arange(-(2**15), 2**15) + 0.5) * 2.0**-15
    radius, angle = np.meshgrid(grid[::257], grid[::31])
    numbers = normal(tf.constant(np.stack([radius, angle]).astype("float32"))).numpy()
    length = np.sqrt(-2 * np.log(radius / 2 + 0.5))
    np.testing.assert_allclose(numbers[0], length * np.cos(np.pi * angle), atol=5e-6)
    np.testing.assert_allclose(numbers[1], length * np.sin(np.pi * angle), atol=5e-6)
    square = -2 * np.log(grid / 2 + 0.5)  # Of the length: exponential, with moments 2 and 8.
    assert square.mean() == pytest.approx(2, rel=1e-5)
    assert (square**2).mean() == pytest.approx(8, rel=1e-4)


def test_other_numbers_have_their_laws_moments():
    grid = ((np.arange(-(2**15), 2**15) + 0.5) * 2.0**-15).astype("float32")
    density = math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    second = 1 - 4 * density  # Of a normal number between -2 and 2.
    fourth = 3 * second - 16 * density
    for quantile, kurtosis in ((uniform, 9 / 5), (truncated, fourth / second**2)):
        numbers = np.asarray(quantile(tf.constant(grid)), float)
        assert (numbers**2).mean() == pytest.approx(1, rel=1e-5)
        assert (numbers**4).mean() == pytest.approx(kurtosis, rel=1e-5)
