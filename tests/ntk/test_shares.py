"""Products of gradients, in every form that is chosen by size."""

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.ntk.shares import _products_of_rows


@pytest.mark.parametrize("shape", [(300, 4200), (520, 4100), (60, 4096), (60, 4099), (7, 5)])
def test_products_of_rows_are_the_products_of_rows(shape, rng):
    one, two = rng.normal(size=(2, *shape))
    for rows, others in ((one, one), (one, two), (np.stack([one, two]), np.stack([two, one]))):
        first = tf.constant(rows)
        second = first if others is rows else tf.constant(others)
        found = _products_of_rows(first, second)
        np.testing.assert_allclose(found, rows @ np.swapaxes(others, -1, -2), atol=1e-9)
