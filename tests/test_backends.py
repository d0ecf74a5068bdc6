"""The same files and numbers on every Keras backend that is installed."""

import backend_step
import keras
import numpy as np
import pytest

from ce_keras import zoo
from ce_keras.geometry import Design, ResNeXt
from ce_keras.layers import Aggregate, CollegialConv2D, CollegialDense, CollegialEnsemble


def member():
    return keras.Sequential(
        [keras.Input((12,)), CollegialDense(8, 2, parameterization="ntk"), keras.layers.Dense(6)]
    )


def every_layer():
    image = keras.Input((16, 16, 2))
    x = CollegialConv2D(12, 3, cardinality=3, shared_input=True, strides=2)(image)
    x = CollegialConv2D(12, 3, cardinality=3, activation="relu")(x)
    x = CollegialConv2D(12, 3, cardinality=6, implementation="split", padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = CollegialDense(24, cardinality=2, activation="relu")(x)
    x = CollegialEnsemble(member, 3)(Aggregate(2)(x))
    return keras.Model(image, keras.layers.Softmax()(x))


def with_imagenets_stem():
    network = ResNeXt((2,), 64)
    return zoo.build_resnext(network, Design(3, 2), input_shape=(48, 48, 3), classes=6)


MODELS = {
    "every_layer": every_layer,
    "resnext11": lambda: zoo.create("resnext11_7x7d", classes=6),
    "resnext50, its first stage": with_imagenets_stem,
    "wide_resnet": lambda: zoo.wide_resnet(depth=10, widening=1, classes=6),
    "fully_connected": lambda: zoo.create("fully_connected_3x5d", classes=6),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder for each model: the model, data, and what TensorFlow makes of them."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(20200929)
    for name, build in MODELS.items():
        model = build()
        (folder / name).mkdir()
        x = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
        np.savez(folder / name / "data.npz", x=x, y=np.arange(8) % 6)
        model.save(folder / name / "model.keras")
    backend_step.main(folder)
    return folder


@pytest.mark.slow  # Another backend imports for itself, and compiles five networks.
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_models_of_one_backend_are_the_same_on_another(backend, saved):
    backend_step.run_on(backend, backend_step.__file__, saved)
    for name in MODELS:
        folder = saved / name
        ours, theirs = (np.load(folder / f"{each}.npz") for each in ("tensorflow", backend))
        # Float32 through a dozen layers or more, summed in another order.
        tolerances = {"before": (1e-3, 1e-5), "loss": (1e-3, 0), "after": (1e-2, 1e-4)}
        for what, (rtol, atol) in tolerances.items():
            np.testing.assert_allclose(
                theirs[what], ours[what], rtol=rtol, atol=atol, err_msg=f"{name}, {what}"
            )
        back = keras.models.load_model(folder / f"{backend}.keras")
        found = back.predict(np.load(folder / "data.npz")["x"], verbose=0)
        np.testing.assert_allclose(found, theirs["after"], rtol=1e-3, atol=1e-5, err_msg=name)
