"""Training of the linearised model, against matrix exponentials and against training."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.linalg import expm

from ce_keras.layers import CollegialDense
from ce_keras.ntk import empirical_ntk, max_learning_rate, predict
from ce_keras.ntk.analysis import as_matrix


def positive(rng, size):
    root = rng.normal(size=(size, size))
    return root @ root.T / size


@pytest.mark.parametrize("paired", [False, True])
def test_predictions_are_those_of_the_matrix_exponential(paired, rng):
    n, m, o = 5, 3, 2
    whole = positive(rng, (n + m) * (o if paired else 1))
    y, first, last = (rng.normal(size=(rows, o)) for rows in (n, n, m))
    if paired:
        whole = whole.reshape(n + m, o, n + m, o).transpose(0, 2, 1, 3)
        matrices = [as_matrix(whole[rows, :n]) for rows in (slice(n), slice(n, None))]
    else:
        matrices = [np.kron(whole[rows, :n], np.eye(o)) for rows in (slice(n), slice(n, None))]
    train, test = matrices
    times = np.array([[0.0, 0.3], [4.0, np.inf]])
    found = predict(whole[:n, :n], whole[n:, :n], y, times, first, last)
    assert found.shape == (2, 2, m, o)
    for t, prediction in zip(times.ravel(), found.reshape(-1, m, o), strict=True):
        decay = expm(-2 * t * train / (n * o)) if np.isfinite(t) else np.zeros_like(train)
        learnt = np.linalg.solve(train, (np.eye(len(train)) - decay) @ (y - first).ravel())
        np.testing.assert_allclose(prediction, last + (test @ learnt).reshape(m, o), rtol=1e-9)
    converged = predict(whole[:n, :n], whole[n:, :n], y)
    np.testing.assert_allclose(converged.ravel(), test @ np.linalg.solve(train, y.ravel()))


def test_nothing_is_learnt_where_the_kernel_is_zero():
    features = np.array([[1.0], [2.0]])
    kernel = features @ features.T
    np.testing.assert_allclose(predict(kernel, kernel, [1.0, 0.0]), [0.2, 0.4])


def test_a_wide_network_trains_as_its_kernel_says(rng):
    keras.utils.set_random_seed(0)
    wide = CollegialDense(4096, activation="tanh", parameterization="ntk")
    model = keras.Sequential([keras.Input((3,)), wide, CollegialDense(2, parameterization="ntk")])
    x, new = (rng.normal(size=(n, 3)).astype("float32") for n in (8, 4))
    y = rng.normal(size=(8, 2)).astype("float32")
    kernels = empirical_ntk(model, x, trace_axes=()), empirical_ntk(model, new, x, trace_axes=())
    before = [model.predict_on_batch(each) for each in (x, new)]
    rate, steps = max_learning_rate(kernels[0]) / 50, 60
    model.compile(keras.optimizers.SGD(rate), "mse")
    model.fit(x, y, batch_size=8, epochs=steps, verbose=0)
    expected = predict(*kernels, y, rate * steps, *before)
    change = abs(expected - before[1]).max()
    # The steps are a fiftieth of the largest, and the width is a few thousand: percents.
    np.testing.assert_allclose(model.predict_on_batch(new), expected, atol=0.05 * change)


def test_training_diverges_above_the_largest_learning_rate(rng):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, use_bias=False)])
    x = rng.normal(size=(4, 6)).astype("float32")
    largest = max_learning_rate(empirical_ntk(model, x), outputs=2)
    start = model.get_weights()
    model.compile(keras.optimizers.SGD(), "mse")
    for part, grows in ((0.96, False), (1.04, True)):
        model.set_weights(start)
        model.optimizer.learning_rate = part * largest
        losses = [model.train_on_batch(x, np.zeros((4, 2))) for _ in range(60)]
        assert (losses[-1] > losses[0]) == grows


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda k: predict(np.ones((2, 3)), k, [1, 2]), "kernel_train: got shape"),
        (lambda k: predict(k, np.ones((4, 3)), [1, 2]), "kernel_test: got shape"),
        (lambda k: predict(k, k, [1, 2, 3]), r"y: got shape \(3,\)"),
        (lambda k: predict(k, k, [1, 2], t=-1), "t: got -1; it must be 0 or more"),
        (lambda k: predict(k, k, [1, 2], t=np.nan), "t: got nan"),
        (lambda k: predict(k, k, [1, 2], 1, np.ones(3)), "initial_train: got shape"),
        (lambda k: max_learning_rate(0 * k), "kernel: its largest eigenvalue is 0"),
        (lambda k: max_learning_rate(np.ones((2, 2, 3, 3)), 2), "outputs: got 2; the kernel has 3"),
    ],
)
def test_bad_arguments_are_refused_by_name(act, message):
    with pytest.raises(ValueError, match=message):
        act(np.eye(2))
