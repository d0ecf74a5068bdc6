"""The engine of jacobians gives the kernel of the plain gradient loop."""

import keras
import numpy as np
import pytest
from keras import layers
from kernel_models import MODELS, inputs, plain_loop, shaken

from ce_keras.ntk import (
    empirical_ntk,
)


@pytest.mark.parametrize("name", ["dense", "conv2d_grouped", "collegial_conv", "embedding"])
def test_tape_kernels_are_those_of_the_plain_gradient_loop(name, float64, rng):
    model = shaken(MODELS[name](), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    full = empirical_ntk(model, x1, x2, trace_axes=(), engine="tape")
    np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), rtol=1e-9, atol=1e-9)


def test_variables_of_half_precision_have_kernels(rng, tmp_path):
    """Variables of half precision have gradients too, also by tape."""

    class Scaled(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="uniform")

        def call(self, x):
            return x * self.scale

    for policy in ("bfloat16", "float16"):
        stack = [layers.Dense(6, "tanh", dtype=policy), Scaled(dtype=policy)]
        model = shaken(
            keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2, dtype=policy)]), rng
        )
        x = rng.normal(size=(4, 5)).astype("float32")
        single = keras.Sequential(
            [keras.Input((5,)), layers.Dense(6, "tanh"), Scaled(), layers.Dense(2)]
        )
        single.set_weights([np.asarray(w, "float32") for w in model.get_weights()])
        for axes in ((-1,), ()):
            expected = empirical_ntk(single, x, trace_axes=axes, engine="tape")
            for engine in ("auto", "tape"):
                found = empirical_ntk(model, x, trace_axes=axes, engine=engine).astype("float32")
                np.testing.assert_allclose(found, expected, atol=0.05 * abs(expected).max())
        found = empirical_ntk(model, x, out=tmp_path / f"{policy}.npy")
        assert found.shape == (4, 4)
