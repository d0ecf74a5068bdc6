"""Inner products of gradients, in every form that is chosen by size."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ce_keras.ntk import empirical_ntk
from ce_keras.ntk.contractions import (
    _MOST_SUMMED,
    EmbeddingGradients,
    Gradients,
    OuterProducts,
    materialize,
    merged,
)


@pytest.mark.parametrize("shape", [(300, 4200), (1030, 2100), (640, 500), (7, 5)])
def test_inner_products_of_gradients_are_matrix_products(shape, rng):
    one, two = rng.normal(size=(2, *shape))
    both, swapped = np.stack([one, two]), np.stack([two, one])
    for rows, others in ((one, one), (one, two), (both, both), (both, swapped)):
        first, second = (
            Gradients(tf.constant(each.reshape(1, -1, 1, *shape))) for each in (rows, others)
        )
        found = first.gram(first if others is rows else second)
        expected = (rows @ np.swapaxes(others, -1, -2)).reshape(-1, shape[0], shape[0])
        np.testing.assert_allclose(found[:, 0, :, 0], expected, atol=1e-9)


def test_long_sums_are_rounded_as_their_pieces(rng):
    j = rng.random((1, 1, 1, 3, 2**22 + 1000), dtype=np.float32)
    first, second = (Gradients(tf.constant(j)) for _ in "12")
    wide = j[0, 0, 0].astype("float64")
    # A random walk of rounding errors, one for each number of a piece.
    error = 2.0**-24 * np.sqrt(_MOST_SUMMED)
    for found in (first.gram(first), first.gram(second)):
        np.testing.assert_allclose(found[0, 0, :, 0], wide @ wide.T, rtol=error)


@pytest.mark.parametrize("same_examples", [True, False])
def test_contributions_with_the_same_cotangents_are_merged(same_examples, rng):
    a, ones = rng.normal(size=(4, 1, 1, 5)), np.ones((4, 1, 1, 1))
    b = tf.constant(rng.normal(size=(1, 2, 3, 4, 1, 1, 7)))
    contributions = [OuterProducts([a], b), OuterProducts([ones], b), Gradients(b[..., 0, 0, :])]
    found = merged(contributions)
    assert [type(each) for each in found] == [OuterProducts, Gradients]
    first, second, _ = (each.gram(each, same_examples) for each in contributions)
    found = found[0].gram(found[0], same_examples)
    np.testing.assert_allclose(found, first + second, rtol=1e-12)
    cotangents, inputs = np.asarray(b)[0, ..., 0, 0, :], a[:, 0, 0]
    pairs = np.einsum("drnc,dsmc,nm->drnsm", cotangents, cotangents, inputs @ inputs.T + 1)
    expected = np.einsum("drnsn->drns", pairs) if same_examples else pairs
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    apart = merged([OuterProducts([a], b), OuterProducts([ones], tf.identity(b))])
    assert len(apart) == 2, "other cotangents"


CONTRIBUTIONS = {
    "gradients": lambda rng, b: Gradients(tf.reshape(b, [*b.shape[:4], -1])),
    "vectors": lambda rng, b: OuterProducts([rng.normal(size=(4, 1, 1, 9))], b[..., :1, :1, :]),
    "few positions": lambda rng, b: OuterProducts([rng.normal(size=(4, 2, 3, 99))], b),
    "many positions": lambda rng, b: OuterProducts(2 * [rng.normal(size=(4, 2, 3, 1))], b),
    "embedding": lambda rng, b: EmbeddingGradients(
        tf.constant(rng.integers(0, 3, (4, 2))), b[..., 0, :]
    ),
}


@pytest.mark.parametrize("kind", ["vectors", "few positions", "many positions"])
def test_used_twice_is_used_at_more_positions(kind, rng):
    one, two = (
        CONTRIBUTIONS[kind](rng, tf.constant(rng.normal(size=(3, 1, 2, 4, 2, 3, 5)))) for _ in "12"
    )
    joined = one.join(two)
    found = joined.gram(joined)
    gradients = sum(
        tf.stack([each._gradients(piece) for piece in each.inputs], -1) for each in (one, two)
    )
    expected = np.einsum("tdrnkp,tdsmkp->drnsm", gradients, gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert joined.held == one.held + two.held
    assert all(piece.shape == materialize(piece).shape for piece in joined.inputs)


@pytest.mark.parametrize("kind", CONTRIBUTIONS)
def test_kernels_of_equal_examples_are_the_diagonal_of_the_whole(kind, rng):
    b = tf.constant(rng.normal(size=(3, 1, 2, 4, 2, 3, 5)))
    contribution = CONTRIBUTIONS[kind](rng, b)
    whole = contribution.gram(contribution)
    expected = np.einsum("drnsn->drns", whole)
    np.testing.assert_allclose(contribution.gram(contribution, True), expected, rtol=1e-9)


def test_long_texts_are_compared_a_few_at_a_time(rng, monkeypatch):
    ids = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(ids))
    model = keras.Model(ids, layers.Dense(3)(x))
    x1, x2 = (rng.integers(0, 9, (n, 6)) for n in (5, 4))
    whole = empirical_ntk(model, x1, x2, trace_axes=())
    monkeypatch.setattr("ce_keras.ntk.contractions._MOST_PAIRS", 2 * 6 * 4 * 6 * 9)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(empirical_ntk(again, x1, x2, trace_axes=()), whole, rtol=1e-5)
