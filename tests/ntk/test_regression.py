"""Regression with the kernel, and its product with a vector."""

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.ntk import (
    NTKRegressor,
    alignment,
    empirical_ntk,
    label_alignment,
    ntk_vector_product,
    spectrum,
)


@pytest.mark.parametrize("other", [False, True])
def test_the_product_with_a_vector_is_the_kernels(model, other, rng):
    x1, x2 = (rng.normal(size=(n, 6, 6, 2)).astype("float32") for n in (4, 5))
    second = x2 if other else x1
    vector = rng.normal(size=(len(second), 3))
    kernel = empirical_ntk(model, x1, second, trace_axes=())
    ours = ntk_vector_product(model, x1, vector, x2 if other else None)
    expected = np.einsum("nmop,mp->no", kernel, vector)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize("traced", [True, False])
def test_regression_fits_its_examples_and_is_a_linear_solve(model, traced, rng):
    x, new = (rng.normal(size=(n, 6, 6, 2)).astype("float32") for n in (8, 5))
    y = rng.normal(size=(8, 3))
    regressor = NTKRegressor(model, ridge=1e-6, traced=traced).fit(x, y)
    np.testing.assert_allclose(regressor.predict(x), y, atol=1e-3)
    prediction = regressor.predict(new)
    assert prediction.shape == (5, 3)
    if traced:
        kernel = empirical_ntk(model, x).astype(float)
        kernel += 1e-6 * np.trace(kernel) / 8 * np.eye(8)
        coefficients = np.linalg.solve(kernel, y - model(x))
        expected = model(new) + empirical_ntk(model, new, x) @ coefficients
        np.testing.assert_allclose(prediction, expected, rtol=1e-4, atol=1e-4)


def test_regression_is_where_training_the_linear_model_ends(rng):
    # A linear model is its own linearisation: gradient descent from its weights ends there.
    model = keras.Sequential([keras.Input((12,)), layers.Dense(2, use_bias=False)])
    x, new = (rng.normal(size=(n, 12)).astype("float32") for n in (6, 4))
    y = rng.normal(size=(6, 2))
    prediction = NTKRegressor(model, ridge=0).fit(x, y).predict(new)
    start = model.layers[0].kernel.numpy()
    end = start + np.linalg.pinv(x) @ (y - x @ start)
    np.testing.assert_allclose(prediction, new @ end, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda model, x: spectrum(np.ones((2, 3))), "kernel: got shape"),
        (lambda model, x: alignment(np.eye(2), np.eye(3)), "second: got shape"),
        (lambda model, x: label_alignment(np.eye(2), [1, 2, 3]), "labels: got 3"),
        (lambda model, x: ntk_vector_product(model, x, np.ones(3)), "vector: got shape"),
        (lambda model, x: NTKRegressor(model, ridge=-1), "ridge: got -1"),
        (lambda model, x: NTKRegressor(model).fit(x, np.ones(4)), "y: got shape"),
        (lambda model, x: NTKRegressor(model).predict(x), "call fit"),
    ],
)
def test_bad_arguments_are_refused_by_name(model, act, message, rng):
    with pytest.raises(ValueError, match=message):
        act(model, rng.normal(size=(4, 6, 6, 2)).astype("float32"))
