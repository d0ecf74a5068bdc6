"""Fan-ins, against what a layer of ones sums."""

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.layers import CollegialConv2D, CollegialDense
from ce_keras.layers.layer_table import fan_ins, inverse_fan_in

LAYERS = {
    "dense": (layers.Dense(5), (7,)),
    "einsum": (layers.EinsumDense("abc,cde->abde", (None, 3, 5)), (4, 7)),
    "conv1d": (layers.Conv1D(5, 3), (9, 7)),
    "conv2d": (layers.Conv2D(6, (2, 3), groups=2), (9, 9, 4)),
    "conv3d": (layers.Conv3D(5, 2), (5, 5, 5, 3)),
    "depthwise": (layers.DepthwiseConv2D(3), (9, 9, 4)),
    "transposed": (layers.Conv2DTranspose(5, 4, strides=2), (6, 6, 3)),
    "collegial dense": (CollegialDense(6, 3), (9,)),
    "collegial convolution": (CollegialConv2D(6, 3, cardinality=3), (9, 9, 9)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_one_output_sums_its_fan_in(layer, shape):
    x = np.ones((1, *shape), "float32")
    layer(x)
    for weight in layer.weights:
        weight.assign(np.full(weight.shape, "kernel" in weight.name, "float32"))
    # Away from the border, every output of ones is the number of its inputs.
    assert fan_ins(layer) == [np.asarray(layer(x)).max()]


def test_separable_layers_have_two():
    layer = layers.SeparableConv2D(5, 3)
    layer.build((None, 8, 8, 4))
    assert fan_ins(layer) == [9, 4]


def test_inner_models_count():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2)])
    assert inverse_fan_in(model) == 1 / 4 + 1 / 8


def test_matrices_that_are_not_known_are_named():
    layer = layers.LSTM(3)
    layer.build((None, 5, 4))
    with pytest.raises(ValueError, match=r"fan-in of .*kernel' in a LSTMCell is not known"):
        fan_ins(layer.cell)
