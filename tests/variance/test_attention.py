"""Kernels of attention: against Keras' own layer, and the exact draws against drawn matrices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ce_keras.variance import attention
from ce_keras.variance.attention import block_kernels, head_kernels


@pytest.mark.parametrize("norm", ["layer", "none", "before", "after"])
def test_kernels_are_the_gradients_of_keras_layers(norm, rng, monkeypatch):
    length, d, heads, n, seed = 5, 6, 3, 2, 7
    x = rng.standard_normal((1, length, d)).astype("float32")
    mha = keras.layers.MultiHeadAttention(heads, n, use_bias=False)
    up, down = keras.layers.Dense(4 * d, use_bias=False), keras.layers.Dense(d, use_bias=False)
    normalised = keras.layers.LayerNormalization(epsilon=1e-6)

    def block():
        h = normalised(x) if norm == "before" else x
        y = mha(h, h)
        if norm == "layer":
            return y
        z = normalised(x + y) if norm == "after" else x + y
        h = normalised(z) if norm == "before" else z
        z += down(keras.ops.relu(2**0.5 * up(h)))
        return normalised(z) if norm == "after" else z

    block()
    dense = mha._query_dense, mha._key_dense, mha._value_dense, mha._output_dense
    layers = [*dense, *((up, down) if norm != "layer" else ())]
    variances = [1 / d, 1 / d, 1 / d, 1 / (heads * n), 1 / d, 1 / (4 * d)]
    drawn = np.random.default_rng(seed)
    for layer, variance in zip(layers, variances, strict=False):
        first = layer in dense[:3]
        kernel = drawn.standard_normal((heads, d, n) if first else layer.kernel.shape, np.float32)
        layer.kernel.assign(variance**0.5 * (kernel.transpose(1, 0, 2) if first else kernel))
    with tf.GradientTape() as tape:
        output = block()[0, length // 2, 0]
    gradients = tape.gradient(output, [layer.kernel.value for layer in layers])
    expected = sum(
        variance * float(tf.reduce_sum(g**2))
        for variance, g in zip(variances, gradients, strict=False)
    )
    monkeypatch.setattr(attention, "_WEIGHTS", 1)  # One draw at a time.
    found = block_kernels(x[0], heads, n, norm, 2, np.random.default_rng(seed))
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[1] != found[0]


@pytest.mark.parametrize(("n", "correlation"), [(1, 0.5), (3, 0.0)])
def test_exact_draws_have_the_distribution_of_drawn_matrices(n, correlation, rng):
    own, common = rng.standard_normal((4, 5)), rng.standard_normal(5)
    x = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
    draws = 10_000
    exact = head_kernels(x, n, draws, rng)
    drawn = block_kernels(x, 1, n, "layer", draws, rng)
    # Kolmogorov and Smirnov: beyond this distance once in a million.
    both = np.sort(np.concatenate([exact, drawn]))
    distance = [np.searchsorted(np.sort(k), both, "right") / draws for k in (exact, drawn)]
    assert abs(distance[0] - distance[1]).max() < np.sqrt(np.log(2e6) / draws)


def test_what_is_derived(rng):
    # Identical tokens: n Var(K) / E[K]^2 is 1 at every width, and the limit is no variance.
    x = np.tile(rng.standard_normal(16), (3, 1))
    for n in (1, 10):
        kernels = head_kernels(x, n, 20_000, rng)
        squares = (kernels / kernels.mean() - 1) ** 2
        assert abs(squares.mean() - 1 / n) < 4 * squares.std() / np.sqrt(len(kernels))
    assert np.ptp(head_kernels(x, None, 100, rng)) < 1e-9 * kernels.mean()
    # Other tokens have a limit of their own.
    wide, limit = (head_kernels(rng.standard_normal((8, 16)), n, 4000, rng) for n in (10**6, None))
    assert limit.std() > 0.1 * limit.mean()
    assert wide.std() > 0.1 * wide.mean()
