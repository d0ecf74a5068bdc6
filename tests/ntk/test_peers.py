"""The same kernel from PyTorch, on the same weights. Runs where PyTorch is installed."""

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.layers import CollegialConv2D
from ce_keras.ntk import empirical_ntk

torch = pytest.importorskip("torch", reason="PyTorch is no dependency, not even of the tests")


def convolutional():
    return keras.Sequential(
        [
            keras.Input((7, 6, 4)),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            CollegialConv2D(8, 2, cardinality=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def in_torch(model, parameters, x):
    """The network above, a function of its weights, channels first as PyTorch has them."""
    functional = torch.nn.functional
    one, bias_one, two, bias_two, three, bias_three = parameters
    x = functional.relu(functional.conv2d(x, one.permute(3, 2, 0, 1), bias_one, stride=2))
    x = functional.relu(functional.conv2d(x, two.permute(3, 2, 0, 1), bias_two, groups=2))
    return x.mean(dim=(2, 3)) @ three + bias_three


@pytest.mark.parametrize("engine", ["structured", "tape"])
def test_torch_func_gives_the_same_kernel(engine, rng):
    model = convolutional()
    x1, x2 = (rng.normal(size=(n, 7, 6, 4)).astype("float32") for n in (4, 3))
    parameters = [torch.from_numpy(weight.numpy()).double() for weight in model.weights]

    def jacobian(x):
        images = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        parts = torch.func.jacrev(lambda weights: in_torch(model, weights, images))(parameters)
        return torch.cat([part.reshape(len(x), 3, -1) for part in parts], dim=2).numpy()

    outputs = in_torch(model, parameters, torch.from_numpy(x1).double().permute(0, 3, 1, 2))
    np.testing.assert_allclose(model(x1), outputs, rtol=1e-4, atol=1e-5)
    expected = np.einsum("nok,mpk->nmop", jacobian(x1), jacobian(x2))
    kernel = empirical_ntk(model, x1, x2, trace_axes=(), engine=engine)
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
