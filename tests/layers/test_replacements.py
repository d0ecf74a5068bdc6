"""Rows and volumes: beside one plain convolution of Keras for every group."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from ce_keras.layers import GroupedConv1D, GroupedConv3D

LAYERS = {
    "same": lambda: GroupedConv1D(6, 3, padding="same", groups=2),
    "strided": lambda: GroupedConv1D(6, 4, strides=3, groups=2, activation="relu"),
    "causal": lambda: GroupedConv1D(6, 3, padding="causal", dilation_rate=2, groups=2),
    "depthwise": lambda: GroupedConv1D(4, 5, padding="same", groups=4),
    "channels first": lambda: GroupedConv1D(
        6, 3, padding="causal", groups=2, data_format="channels_first"
    ),
    "volume": lambda: GroupedConv3D(6, (2, 3, 1), strides=2, padding="same", groups=2),
    "one group": lambda: GroupedConv1D(6, 3),
}


def group_by_group(layer, x):
    """The layer's function, by a plain convolution for every group."""
    config = {**layer.get_config(), "groups": 1, "filters": layer.filters // layer.groups}
    plain = keras.layers.Conv1D if isinstance(layer, GroupedConv1D) else keras.layers.Conv3D
    axis = -1 if layer.data_format == "channels_last" else 1
    outputs = []
    kernels, biases = (np.split(each, layer.groups, -1) for each in layer.get_weights())
    for image, *weights in zip(ops.split(x, layer.groups, axis), kernels, biases, strict=True):
        one = plain.from_config(config)
        one.build(image.shape)
        one.set_weights(weights)
        outputs.append(one(image))
    return ops.concatenate(outputs, axis)


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_it_is_a_plain_convolution_for_every_group(build, rng):
    layer = build()
    shape = (3, 9, 4) if isinstance(layer, GroupedConv1D) else (3, 4, 5, 3, 4)
    if layer.data_format == "channels_first":
        shape = (3, 4, 9)
    x = tf.constant(rng.normal(size=shape), tf.float32)
    layer.build(shape)
    layer.bias.assign(rng.normal(size=layer.filters))
    values, gradients = [], []
    for function in (layer, lambda x: group_by_group(layer, x)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = ops.sum(y**2)
        values.append(y)
        gradients.append(tape.gradient(loss, x))
    # Sums of at most 18 products forward, and of as many backward.
    np.testing.assert_allclose(*values, rtol=0, atol=64 * 2**-23 * abs(values[1]).numpy().max())
    np.testing.assert_allclose(
        *gradients, rtol=0, atol=64 * 2**-23 * abs(gradients[1]).numpy().max()
    )
    assert layer.compute_output_shape((None, *shape[1:]))[1:] == tuple(y.shape)[1:]
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_kernel_gradients_of_a_row_are_those_of_a_sum_over_positions(rng):
    layer = GroupedConv1D(6, 3, groups=2, use_bias=False)
    x = rng.normal(size=(3, 9, 4)).astype("float32")
    layer.build(x.shape)
    upstream = rng.normal(size=(3, 7, 6)).astype("float32")
    with tf.GradientTape() as tape:
        loss = ops.sum(layer(x) * upstream)
    ours = tape.gradient(loss, layer.kernel.value)
    windows = np.stack([x[:, pixel : pixel + 7] for pixel in range(3)])
    apart = windows.reshape(3, 3, 7, 2, 2), upstream.reshape(3, 7, 2, 3)
    expected = np.einsum("kblgi,blgo->kigo", *(each.astype("float64") for each in apart))
    np.testing.assert_allclose(ours, expected.reshape(3, 2, 6), rtol=1e-5, atol=1e-5)
