"""Products of gradients, in every form that is chosen by size."""

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.ntk.shares import Gradients, Products, _products_of_rows, together


@pytest.mark.parametrize(
    "shape", [(300, 4200), (520, 4100), (640, 500), (60, 4096), (60, 4099), (7, 5)]
)
def test_products_of_rows_are_the_products_of_rows(shape, rng):
    one, two = rng.normal(size=(2, *shape))
    for rows, others in ((one, one), (one, two), (np.stack([one, two]), np.stack([two, one]))):
        first = tf.constant(rows)
        second = first if others is rows else tf.constant(others)
        found = _products_of_rows(first, second)
        np.testing.assert_allclose(found, rows @ np.swapaxes(others, -1, -2), atol=1e-9)


@pytest.mark.parametrize("same_examples", [True, False])
def test_shares_with_one_signal_are_one_share(same_examples, rng):
    a, ones = rng.normal(size=(4, 1, 1, 5)), np.ones((4, 1, 1, 1))
    b = tf.constant(rng.normal(size=(1, 2, 3, 4, 1, 1, 7)))
    shares = [Products([a], b), Products([ones], b), Gradients(b[..., 0, 0, :])]
    merged = together(shares)
    assert [type(share) for share in merged] == [Products, Gradients]
    first, second, _ = (share.gram(share, same_examples) for share in shares)
    found = merged[0].gram(merged[0], same_examples)
    np.testing.assert_allclose(found, first + second, rtol=1e-12)
    signals, inputs = np.asarray(b)[0, ..., 0, 0, :], a[:, 0, 0]
    pairs = np.einsum("drnc,dsmc,nm->drnsm", signals, signals, inputs @ inputs.T + 1)
    expected = np.einsum("drnsn->drns", pairs) if same_examples else pairs
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    apart = together([Products([a], b), Products([ones], tf.identity(b))])
    assert len(apart) == 2, "other signals"
