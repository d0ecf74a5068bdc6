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


def test_labels_of_any_type_are_numbers():
    kernel, labels = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[99], [50]])
    expected = label_alignment(kernel, labels.astype(float), centred=False)
    assert label_alignment(kernel, labels.astype("uint8"), centred=False) == expected


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_alignment_is_of_kernels_of_any_size(size):
    kernel = size * np.array([[2.0, 1.0], [1.0, 2.0]])
    assert alignment(kernel, kernel) == pytest.approx(1)


def test_what_has_no_alignment_or_spectrum_is_refused():
    with pytest.raises(ValueError, match="first: is zero"):
        alignment(np.zeros((2, 2)), np.eye(2))
    with pytest.raises(ValueError, match="labels: all are alike"):
        label_alignment(np.eye(2), [1, 1])
    with pytest.raises(ValueError, match="kernel: is not symmetric, by 5"):
        spectrum([[1, 5], [0, 1]])


def test_regression_needs_rows_of_outputs(rng):
    x = rng.normal(size=(3, 2)).astype("float32")
    for shape in [(), (2, 2)]:
        model = keras.Sequential([keras.Input((2,)), layers.Dense(4), layers.Reshape((2, 2))])
        if not shape:
            model = keras.Sequential([model, layers.Lambda(lambda y: y[:, 0, 0])])
        with pytest.raises(ValueError, match=r"regression needs \(N, outputs\)"):
            NTKRegressor(model).fit(x, np.zeros((3, *shape)))


def test_inputs_of_predictions_become_those_of_the_fit(rng):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    x = np.array([[0, 1], [1, 0], [1, 1]])
    fitted = NTKRegressor(model).fit(x.astype("float32"), [[1.0], [2.0], [3.0]])
    for kind in ("float64", "int32"):
        np.testing.assert_allclose(fitted.predict(x.astype(kind)), fitted.predict(fitted._x))
    with pytest.raises(ValueError, match=r"x: .* does not take inputs of shapes"):
        fitted.predict(np.zeros((2, 3), "float32"))
    longer = keras.Sequential([keras.Input((None, 2)), layers.Dense(3), layers.Dense(1)])
    longer.add(layers.GlobalAveragePooling1D())
    fitted = NTKRegressor(longer).fit(np.ones((1, 3, 2), "float32"), [[1.0]])
    with pytest.raises(ValueError, match="x: got examples of shapes"):
        fitted.predict(np.ones((1, 4, 2), "float32"))


@pytest.mark.parametrize("kernel_of", [empirical_ntk, lambda m, x: ntk_vector_product(m, x, [1])])
def test_outputs_without_a_gradient_are_refused(kernel_of, rng):
    x = keras.Input((2,))
    model = keras.Model(x, keras.ops.argmax(layers.Dense(3)(x), -1))
    with pytest.raises(ValueError, match="gives outputs of type int"):
        kernel_of(model, rng.normal(size=(1, 2)).astype("float32"))


def test_vectors_and_variables_are_numbers_of_the_models(rng):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dropout(0.5)])
    x = rng.normal(size=(1, 2)).astype("float32")
    with pytest.raises(ValueError, match=r"vector: its numbers are too large for .* float32"):
        ntk_vector_product(model, x, np.full((1, 3), 1e300))
    with pytest.raises(ValueError, match="are not real numbers, and have no gradient"):
        empirical_ntk(model, x, variables=model.layers[1].variables)
