"""The same files and numbers on every Keras backend that is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from ce_keras import zoo
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


MODELS = {"every_layer": every_layer, "resnext11": lambda: zoo.resnext11(mode="dual", classes=6)}


def run(backend, folder):
    script = Path(__file__).with_name("backend_step.py")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run(
        [sys.executable, script, folder], env=environment, check=True, capture_output=True
    )
    return np.load(folder / f"{backend}.npz")


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_one_backend_is_the_same_on_another(backend, name, tmp_path, rng):
    if backend == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: it is no dependency, not even of the tests")
    model = MODELS[name]()
    x = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(8) % 6)
    model.save(tmp_path / "model.keras")
    ours, theirs = run("tensorflow", tmp_path), run(backend, tmp_path)
    # Float32 through a dozen layers, summed in another order.
    np.testing.assert_allclose(theirs["before"], ours["before"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(theirs["loss"], ours["loss"], rtol=1e-3)
    np.testing.assert_allclose(theirs["after"], ours["after"], rtol=1e-2, atol=1e-4)
    back = keras.models.load_model(tmp_path / f"{backend}.keras")
    np.testing.assert_allclose(back.predict(x, verbose=0), theirs["after"], rtol=1e-3, atol=1e-5)
