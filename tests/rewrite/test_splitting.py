"""New models that start from a trained model's own units."""

import keras
import numpy as np
import pytest
from keras import layers
from rewritable import hidden, mlp

from ce_keras import collegialize
from ce_keras.layers import CollegialDense


def shaken(model, rng):
    """The model with weights as training leaves them: no zeros, no ones."""
    for weight in model.weights:
        value = weight.numpy() + 0.3 * rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.1 if "variance" in weight.path else value)
    return model


def split_models():
    keras.utils.set_random_seed(0)
    image, vector = keras.Input((6, 6, 5)), keras.Input((3, 3, 4))
    x = layers.Conv2D(12, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(8, 1, name="a")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(8, 3, padding="same", name="b")(y)
    y = layers.PReLU(shared_axes=[1, 2])(layers.LayerNormalization()(y))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    y = layers.Conv2D(12, 1, name="c")(layers.Multiply()([y, gate]))
    y = layers.Flatten()(layers.Add()([x, y]))
    yield "convolutional", keras.Model(image, layers.Dense(3)(y))
    z = layers.BatchNormalization()(layers.Flatten()(hidden("a", 7)(vector)))
    z = hidden("c", 14)(hidden("b", 14)(z))
    yield "flattened", keras.Model(vector, layers.Dense(3, "softmax")(z))


@pytest.mark.parametrize(("name", "model"), list(split_models()))
def test_paths_as_wide_as_the_model_split_into_its_function(name, model, rng):
    shaken(model, rng)
    ensemble = collegialize(model, design=(2, 8 if name == "convolutional" else 14), init="split")
    x = rng.normal(size=(3, *model.input_shape[1:]))
    np.testing.assert_allclose(ensemble(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "model"), list(split_models()))
def test_a_split_is_of_the_models_own_units(name, model, rng):
    shaken(model, rng)
    one, again, other = (
        collegialize(model, design="3x4d", init="split", seed=seed) for seed in (1, 1, 2)
    )
    for mine, same in zip(one.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, same)
    kernels = [each.get_layer("a").kernel.numpy() for each in (one, other)]
    assert abs(kernels[0] - kernels[1]).max() > 0
    units = np.unique(kernels[0].reshape(-1, kernels[0].shape[-1]), axis=1)
    old = model.get_layer("a").kernel.numpy()
    assert {*units[0]} <= {*old.reshape(-1, old.shape[-1])[0]}
    if name == "convolutional":
        np.testing.assert_array_equal(one.get_layer("stem").kernel, model.get_layer("stem").kernel)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_a_normalisation_stay_together_in_wide_paths(groups, rng):
    def build(axis_groups):
        x = y = keras.Input((6, 6, 3))
        y = layers.Conv2D(8, 1, name="in")(y)
        y = layers.Conv2D(8, 3, padding="same")(
            layers.ReLU()(layers.GroupNormalization(axis_groups)(y))
        )
        y = layers.ReLU()(layers.GroupNormalization(axis_groups)(y))
        return keras.Model(x, layers.Conv2D(3, 1, name="out")(y))

    model = shaken(build(groups), rng)
    new = collegialize(model, design="2x8d", init="split", seed=1)
    x = rng.normal(size=(4, 6, 6, 3)).astype("float32")
    wanted = model.predict(x, verbose=0)
    assert abs(new.predict(x, verbose=0) - wanted).max() < 1e-4 * abs(wanted).max()


def test_a_split_can_be_asked_for_wrongly():
    model = mlp()
    with pytest.raises(ValueError, match="init: got 'copy'; it must be one of 'random', 'split'"):
        collegialize(model, init="copy")
    theory = keras.Sequential(
        [
            keras.Input((6,)),
            *(CollegialDense(8, activation="relu", parameterization="ntk") for _ in range(3)),
            layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match="init: 'split' needs weights in the standard"):
        collegialize(theory, design="2x4d", init="split")
