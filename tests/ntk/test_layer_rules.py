"""Every layer rule gives the kernel of the plain gradient loop."""

import keras
import numpy as np
import pytest
from keras import layers
from kernel_models import (
    MODELS,
    ONE_FOR_EVERY_RULE,
    behind_a_layer,
    flat,
    inputs,
    ours,
    plain_loop,
    sequential,
    shaken,
)

from ce_keras.ntk import (
    empirical_ntk,
)


def in_single_precision(model, name):
    """The same model, with the same weights."""
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    single = behind_a_layer(MODELS[name]())
    single.set_weights(model.get_weights())
    return single


def single_type(x):
    return "float32" if x.dtype == "float64" else x.dtype


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_FOR_EVERY_RULE else pytest.mark.slow)
        for name in MODELS
    ],
)
def test_structured_kernels_are_those_of_the_plain_gradient_loop(name, float64, rng, caplog):
    model = shaken(behind_a_layer(MODELS[name]()), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    scale = 1e-10 * abs(np.einsum("nok,nok->n", j1, j1)).max()
    for _ in range(2):  # As it comes, and traced.
        full = empirical_ntk(model, x1, x2, trace_axes=(), engine="structured")
        full = full.reshape(3, 2, j1.shape[1], j1.shape[1])
        np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), atol=scale)
        traced = empirical_ntk(model, x1, engine="structured")
        expected = np.einsum("nok,mok->nm", j1, j1) / j1.shape[1]
        np.testing.assert_allclose(traced, expected, atol=scale)
    twin, x = in_single_precision(model, name), x1.astype(single_type(x1))
    single = empirical_ntk(twin, x, engine="structured")
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    assert not ours(caplog), "a rule was not used, or was wrong"


@pytest.mark.parametrize("layer", [layers.Conv1D, layers.Conv2D, layers.Conv3D])
@pytest.mark.parametrize("owner", ["frozen", "custom"])
def test_cotangents_pass_through_frozen_and_custom_grouped_convolutions(layer, owner, float64, rng):
    class Custom(layer):
        def call(self, x):
            return super().call(x)

    conv = {"frozen": layer, "custom": Custom}[owner](4, 2, groups=2, padding="same")
    shape = [3, 2, 3][: conv.rank]
    model = shaken(sequential((*shape, 3), layers.Dense(4, "tanh"), *flat(conv)), rng)
    conv.trainable = owner != "frozen"
    x = inputs(model, 3, rng)
    jacobian = plain_loop(model, x)
    kernel = empirical_ntk(model, x, trace_axes=(), engine="structured")
    np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian))
