"""Members of ensembles, which tests of layers share."""

import keras
import pytest
from keras import layers

from ce_keras.layers import CollegialConv2D, CollegialDense


def perceptron():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu"),
            layers.Dense(4, activation="tanh", kernel_initializer="orthogonal"),
            layers.Dense(2),
        ]
    )


def ntk_perceptron():
    return keras.Sequential(
        [
            keras.Input((6,)),
            CollegialDense(5, activation="relu", use_bias=False, parameterization="ntk"),
            CollegialDense(4, activation="relu", use_bias=False, parameterization="ntk"),
            CollegialDense(1, use_bias=False, parameterization="ntk", gain=1.0),
        ]
    )


def convolutional():
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(2.0, offset=-1.0)(image)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 3, padding="same", groups=2)(x)
    y = CollegialConv2D(4, 3, cardinality=2, padding="same")(y)
    x = layers.Add()([x, y])
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Activation("gelu")(x)
    return keras.Model(image, layers.Dense(3)(x))


def feature_map():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(image)
    x = layers.ReLU()(x)
    return keras.Model(image, layers.Conv2D(5, 1)(x))


def shared_layer():
    image = keras.Input((6,))
    x = layers.Dense(4, activation="relu")(image)
    twice = layers.Dense(4, activation="relu")
    return keras.Model(image, layers.Dense(2)(twice(twice(x))))


def residual():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, activation="relu")(image)
    return keras.Model(image, layers.Add()([layers.Conv2D(3, 3, padding="same")(x), image]))


GROUPED = {
    "residual": residual,
    "perceptron": perceptron,
    "ntk_perceptron": ntk_perceptron,
    "convolutional": convolutional,
    "feature_map": feature_map,
    "shared_layer": shared_layer,
}


grouped = pytest.mark.parametrize("build_member", GROUPED.values(), ids=GROUPED)


def batch(member, rng, count=3):
    return rng.standard_normal((count, *member().input_shape[1:])).astype("float32")


def softmax_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax")])
