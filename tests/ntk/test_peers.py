"""The same kernels from neural-tangents and from PyTorch, on the same weights.

Each runs where its peer is installed: neural-tangents in `.peers`, by `make peers`.
"""

import itertools
import json
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.layers import CollegialConv2D
from ce_keras.ntk import empirical_ntk, infinite_width_kernel

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".peers/bin/python"


def dense():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, activation="relu", bias_initializer="random_normal"),
            layers.Dense(7, activation="tanh", bias_initializer="random_normal"),
            layers.Dense(3),
        ]
    )


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


AXES = [
    {"trace_axes": [-1], "diagonal_axes": []},
    {"trace_axes": [], "diagonal_axes": []},
    {"trace_axes": [], "diagonal_axes": [-1]},
    {"trace_axes": [-1], "diagonal_axes": [0]},
]


@pytest.mark.skipif(not PEERS.exists(), reason="neural-tangents is not installed: make peers")
@pytest.mark.parametrize("network", [dense, convolutional])
def test_neural_tangents_gives_the_same_kernels(network, rng, tmp_path):
    model = network()
    x1, x2 = (rng.normal(size=(n, *model.input_shape[1:])).astype("float32") for n in (4, 3))
    weights = {f"weight_{index}": weight for index, weight in enumerate(model.get_weights())}
    np.savez(
        tmp_path / "asked.npz",
        network=network.__name__,
        axes=json.dumps(AXES),
        x1=x1.astype(float),
        x2=x2.astype(float),
        **{name: weight.astype(float) for name, weight in weights.items()},
    )
    script = ROOT / "tests/peers/neural_tangents_kernels.py"
    command = [PEERS, script, "asked.npz", "told.npz"]
    subprocess.run(command, check=True, cwd=tmp_path)
    expected = np.load(tmp_path / "told.npz")
    if network is dense:
        np.testing.assert_allclose(
            infinite_width_kernel(x1, x2, 4), expected["infinite"], rtol=1e-9
        )
    for axes, engine in itertools.product(AXES, ["structured", "tape"]):
        other = None if 0 in axes["diagonal_axes"] else x2
        kernel = empirical_ntk(model, x1, other, engine=engine, **axes)
        theirs = expected[json.dumps(axes)]
        assert kernel.shape == theirs.shape
        np.testing.assert_allclose(kernel, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


def in_torch(model, parameters, x):
    """The network above, a function of its weights, channels first as PyTorch has them."""
    from torch.nn import functional

    one, bias_one, two, bias_two, three, bias_three = parameters
    x = functional.relu(functional.conv2d(x, one.permute(3, 2, 0, 1), bias_one, stride=2))
    x = functional.relu(functional.conv2d(x, two.permute(3, 2, 0, 1), bias_two, groups=2))
    return x.mean(dim=(2, 3)) @ three + bias_three


@pytest.mark.parametrize("engine", ["structured", "tape"])
def test_torch_func_gives_the_same_kernel(engine, rng):
    torch = pytest.importorskip("torch", reason="`make torch` installs it")
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
