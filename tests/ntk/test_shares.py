"""Products of gradients, in every form that is chosen by size."""

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.ntk.pairs import Pairs
from ce_keras.ntk.shares import (
    _MOST_SUMMED,
    Gradients,
    Lookups,
    Products,
    _products_of_rows,
    now,
    together,
)


@pytest.mark.parametrize("shape", [(300, 4200), (1030, 2100), (640, 500), (7, 5)])
def test_products_of_rows_are_the_products_of_rows(shape, rng):
    one, two = rng.normal(size=(2, *shape))
    both, swapped = np.stack([one, two]), np.stack([two, one])
    for rows, others in ((one, one), (one, two), (both, both), (both, swapped)):
        first = tf.constant(rows)
        second = first if others is rows else tf.constant(others)
        found = _products_of_rows(first, second)
        np.testing.assert_allclose(found, rows @ np.swapaxes(others, -1, -2), atol=1e-9)


def test_long_sums_are_rounded_as_their_pieces(rng):
    j = rng.random((1, 1, 1, 3, 2**22 + 1000), dtype=np.float32)
    first, second = (Gradients(tf.constant(j)) for _ in "12")
    wide = j[0, 0, 0].astype("float64")
    # A random walk of rounding errors, one for each number of a piece.
    error = 2.0**-24 * np.sqrt(_MOST_SUMMED)
    for found in (first.gram(first, Pairs()), first.gram(second, Pairs())):
        np.testing.assert_allclose(found[0, 0, :, 0], wide @ wide.T, rtol=error)


@pytest.mark.parametrize("same_examples", [True, False])
def test_shares_with_one_signal_are_one_share(same_examples, rng):
    a, ones = rng.normal(size=(4, 1, 1, 5)), np.ones((4, 1, 1, 1))
    b = tf.constant(rng.normal(size=(1, 2, 3, 4, 1, 1, 7)))
    shares = [Products([a], b), Products([ones], b), Gradients(b[..., 0, 0, :])]
    merged = together(shares)
    assert [type(share) for share in merged] == [Products, Gradients]
    which = Pairs(same_examples)
    first, second, _ = (share.gram(share, which) for share in shares)
    found = merged[0].gram(merged[0], which)
    np.testing.assert_allclose(found, first + second, rtol=1e-12)
    signals, inputs = np.asarray(b)[0, ..., 0, 0, :], a[:, 0, 0]
    pairs = np.einsum("drnc,dsmc,nm->drnsm", signals, signals, inputs @ inputs.T + 1)
    expected = np.einsum("drnsn->drns", pairs) if same_examples else pairs
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    apart = together([Products([a], b), Products([ones], tf.identity(b))])
    assert len(apart) == 2, "other signals"


SHARES = {
    "gradients": lambda rng, b: Gradients(tf.reshape(b, [*b.shape[:4], -1])),
    "vectors": lambda rng, b: Products([rng.normal(size=(4, 1, 1, 9))], b[..., :1, :1, :]),
    "few positions": lambda rng, b: Products([rng.normal(size=(4, 2, 3, 99))], b),
    "many positions": lambda rng, b: Products(2 * [rng.normal(size=(4, 2, 3, 1))], b),
    "lookups": lambda rng, b: Lookups(tf.constant(rng.integers(0, 3, (4, 2))), b[..., 0, :]),
}


@pytest.mark.parametrize("kind", ["vectors", "few positions", "many positions"])
def test_used_twice_is_used_at_more_positions(kind, rng):
    one, two = (
        SHARES[kind](rng, tf.constant(rng.normal(size=(3, 1, 2, 4, 2, 3, 5)))) for _ in "12"
    )
    joined = one.join(two)
    every = Pairs()
    found = joined.gram(joined, every)
    gradients = sum(
        tf.stack([share._gradients(part) for part in share.a], -1) for share in (one, two)
    )
    expected = np.einsum("tdrnkp,tdsmkp->drnsm", gradients, gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert joined.held == one.held + two.held
    assert all(part.shape == now(part).shape for part in joined.a)


@pytest.mark.parametrize("parts", range(1, 7))
@pytest.mark.parametrize("kind", SHARES)
def test_of_parts_every_two_meet(kind, parts, rng):
    b = tf.constant(rng.normal(size=(3, 1, 2 * parts, 4, 2, 3, 5)))
    share = SHARES[kind](rng, b)
    every, pairs = Pairs(), Pairs(parts=parts)
    met = share.gram(share, pairs)
    assert met.shape[1] * met.shape[3] == pairs.met * (2 * parts) ** 2, "no two parts met twice"
    expected = share.gram(share, every)
    np.testing.assert_allclose(pairs.whole(met), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("outputs", "examples", "parts"),
    [(10, 64, 5), (10, 16, 1), (10, 26, 2), (1, 1000, 1), (1000, 1, 5), (7, 128, 7), (11, 999, 1)],
)
def test_parts_keep_the_cores_busy(outputs, examples, parts):
    assert Pairs.symmetric(outputs, examples) == Pairs(False, parts)
