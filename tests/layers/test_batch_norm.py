import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch_batch_norm

from ce_keras.layers import FusedBatchNormalization


def both(policy="float32", **options):
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": policy, **options}
    return FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)


def training_pass(layer, x, upstream):
    """Output, moving statistics and every gradient of one training pass."""
    layer.build(x.shape)
    for weight in layer.trainable_weights:
        weight.assign(np.linspace(0.5, 2, weight.shape[0]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    trained = [weight.value for weight in layer.trainable_weights]
    return [
        y,
        layer.moving_mean.value,
        layer.moving_variance.value,
        *tape.gradient(y, [x, *trained], upstream),
    ]


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((8, 5, 6, 7), -1), ((8, 5, 6, 7), 3), ((8, 7, 5, 6), 1), ((30, 7), -1)]
)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_it_is_keras_batch_normalisation(policy, shape, axis, options, rng):
    dtype = keras.DTypePolicy(policy).compute_dtype
    x = tf.cast(rng.normal(2, 3, shape), dtype)
    upstream = tf.cast(rng.normal(size=shape), dtype)
    ours, theirs = (
        training_pass(layer, x, upstream) for layer in both(policy, axis=axis, **options)
    )
    eps = {"float16": 2**-10, "bfloat16": 2**-7}.get(dtype, 2**-23)
    for a, b in zip(ours, theirs, strict=True):
        a, b = (tf.cast(value, tf.float64) for value in (a, b))  # noqa: PLW2901
        # A sum of 240 terms in another order, then one rounding.
        assert np.abs(a - b).max() <= 32 * eps * np.abs(b).max()


def test_training_uses_one_operation_and_inference_keras_own():
    layer, _ = both()
    layer.build((None, 4, 4, 3))
    spec = tf.TensorSpec((None, 4, 4, 3))
    for training in (True, False):
        graph = tf.function(lambda x, t=training: layer(x, training=t)).get_concrete_function(spec)
        kinds = [operation.type for operation in graph.graph.get_operations()]
        assert ("FusedBatchNormV3" in kinds) == training


@pytest.mark.parametrize("options", [{"trainable": False}, {"synchronized": True}])
def test_what_the_fused_operation_cannot_do_is_left_to_keras(options, rng):
    x = tf.constant(rng.normal(size=(8, 4, 4, 3)), tf.float32)
    ours, theirs = both(**options)
    np.testing.assert_array_equal(ours(x, training=True), theirs(x, training=True))
    np.testing.assert_array_equal(ours.moving_mean, theirs.moving_mean)


def test_a_single_value_per_channel_has_no_variance():
    layer, _ = both()
    y = layer(tf.fill((1, 1, 1, 3), 5.0), training=True)
    np.testing.assert_array_equal(y, np.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(layer.moving_variance, np.full(3, 0.9))


@pytest.mark.slow  # Another backend of Keras imports for itself.
def test_on_pytorch_it_is_keras_batch_normalisation():
    pytest.importorskip("torch", reason="`make torch` installs it")
    done = subprocess.run(
        [sys.executable, torch_batch_norm.__file__],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_config_round_trip():
    layer = FusedBatchNormalization(momentum=0.8, epsilon=1e-4, gamma_initializer="zeros")
    assert FusedBatchNormalization.from_config(layer.get_config()).get_config() == (
        layer.get_config()
    )
