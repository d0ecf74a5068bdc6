"""The layers of a calibrated chain, trained together."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from rewritable import BUILDERS, inputs_of, mlp
from test_splitting import shaken

from ce_keras import collegialize
from ce_keras.rewrite.calibration import calibrate, reconstruction
from ce_keras.rewrite.calibration.data import read_images


def calibrated(model, x, design="2x8d"):
    return collegialize(model, design=design, init="calibrated", data=x, alpha=2.0, seed=0)


def errors(ensemble):
    return [block.after for block in ensemble.report.calibration.blocks]


@pytest.fixture
def fitted_only(monkeypatch):
    """A function that calibrates without training layers together."""

    def run(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(calibrate, "reconstruct", lambda *_: None)
            return calibrated(*arguments)

    return run


def assert_equal_weights(one, other):
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["mlp", pytest.param("squeezed", marks=pytest.mark.slow)])
def test_layers_trained_together_come_nearer_on_images_held_out(name, fitted_only, rng):
    model = shaken(BUILDERS[name](), rng)
    x = inputs_of(model, rng, batch=200)
    new, fitted = calibrated(model, x), fitted_only(model, x)
    assert errors(new)[0] < 0.99 * errors(fitted)[0]
    fresh = inputs_of(model, rng, batch=50)
    wanted = model.predict(fresh, verbose=0)
    apart = [np.linalg.norm(each.predict(fresh, verbose=0) - wanted) for each in (new, fitted)]
    assert apart[0] < apart[1]


def test_weights_that_training_makes_worse_are_restored(fitted_only, monkeypatch, rng):
    model = shaken(mlp(), rng)
    x = inputs_of(model, rng, batch=60)
    monkeypatch.setattr(reconstruction, "_RATE", 100.0)
    new, fitted = calibrated(model, x), fitted_only(model, x)
    assert errors(new) == errors(fitted)
    assert_equal_weights(new, fitted)


def test_layers_that_the_user_froze_keep_their_fitted_weights(fitted_only, rng):
    model = shaken(mlp(), rng)
    for layer in model.layers:
        layer.trainable = False
    x = inputs_of(model, rng, batch=60)
    assert_equal_weights(calibrated(model, x), fitted_only(model, x))


def test_regularisers_of_the_model_do_not_matter(rng):
    def stack(**options):
        hidden = [layers.Dense(32, "relu", **options) for _ in range(3)]
        return shaken(keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(4)]), rng)

    x = rng.normal(size=(60, 12)).astype("float32")
    plain, penalised = stack(), stack(kernel_regularizer="l2", activity_regularizer="l1")
    penalised.set_weights(plain.get_weights())
    assert_equal_weights(*(calibrated(model, x) for model in (plain, penalised)))


def test_statistics_of_batch_normalisations_are_those_of_the_new_activations(fitted_only, rng):
    model = shaken(BUILDERS["convolutional"](), rng)
    x = inputs_of(model, rng, batch=60)
    new, fitted = calibrated(model, x), fitted_only(model, x)
    # Of the first chain; later ones read what it gives.
    norm = next(layer for layer in new.layers if isinstance(layer, layers.BatchNormalization))
    assert not np.array_equal(norm.moving_mean, fitted.get_layer(norm.name).moving_mean)
    images = read_images(model, x, 0)
    fit = np.concatenate([images.inputs[batch][0] for batch in images.fit])
    values = keras.Model(new.inputs, norm.input).predict(fit, verbose=0)
    rows = values.reshape(-1, values.shape[-1]).astype("float64")
    np.testing.assert_allclose(norm.moving_mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, rows.var(0), rtol=1e-4, atol=1e-5)


@pytest.fixture
def batches(monkeypatch):
    """The inputs of all training steps, as they come."""
    seen, train = [], keras.Model.train_on_batch

    def recorded(self, x, *arguments, **options):
        seen.append(x)
        return train(self, x, *arguments, **options)

    monkeypatch.setattr(keras.Model, "train_on_batch", recorded)
    return seen


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_chain_that_reads_its_own_outputs_reads_them_as_they_are(activation, batches, rng):
    hidden = [layers.Dense(32, "relu") for _ in range(2)]
    inner = keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(12, activation)])
    image = keras.Input((12,))
    model = shaken(keras.Model(image, layers.Dense(4)(inner(inner(image)))), rng)
    calibrated(model, rng.normal(size=(60, 12)).astype("float32"))
    first, second = batches[::2], batches[1::2]
    assert min(x.min() for x in first) < -1
    assert all((x >= 0).all() and (x <= 1).all() for x in second)


def test_every_device_gets_as_many_images(batches, monkeypatch, rng):
    four = SimpleNamespace(device_mesh=SimpleNamespace(shape=(2, 2)))
    monkeypatch.setattr(keras.distribution, "distribution", lambda: four)
    model = shaken(mlp(), rng)
    calibrated(model, inputs_of(model, rng, batch=70))  # 56 to fit: batches of 50 and of 6.
    assert {len(x) for x in batches} == {48, 4}


@pytest.mark.parametrize(
    "policy", ["float64", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_models_of_other_precisions_are_trained_too(policy, fitted_only, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        hidden = [layers.Dense(32, "relu") for _ in range(3)]
        model = shaken(keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(4)]), rng)
        x = rng.normal(size=(300, 12)).astype("float32")
        assert errors(calibrated(model, x))[0] < errors(fitted_only(model, x))[0]
    finally:
        keras.config.set_dtype_policy(before)


def test_outputs_are_compared_before_a_softmax(fitted_only, rng):
    hidden = [layers.Dense(32, "relu") for _ in range(3)]
    stack = keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(4, "softmax")])
    model = shaken(stack, rng)
    x = rng.normal(size=(600, 12)).astype("float32")
    logits = keras.Model(model.inputs, model.layers[-2].output).predict(x, verbose=0)
    logits = logits @ model.layers[-1].kernel.numpy() + model.layers[-1].bias.numpy()

    def apart(new):
        hidden = keras.Model(new.inputs, new.layers[-2].output)
        kernel = new.layers[-1].kernel.numpy() / np.sqrt(2)  # Of two paths that are added up.
        found = hidden.predict(x, verbose=0) @ kernel + new.layers[-1].bias.numpy()
        return np.linalg.norm(found - logits)

    new, fitted = calibrated(model, x), fitted_only(model, x)
    assert apart(new) < 0.97 * apart(fitted)
    assert new.layers[-1].activation is keras.activations.softmax
    assert model.layers[-1].activation is keras.activations.softmax
