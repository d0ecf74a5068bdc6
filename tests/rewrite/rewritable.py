"""Models with something to rewrite."""

import keras
import pytest
from keras import layers

from ce_keras import zoo


def mlp(widths=(64, 64, 64), outputs=3):
    return keras.Sequential(
        [
            keras.Input((12,)),
            *(layers.Dense(n, "relu", name=f"fc{i}") for i, n in enumerate(widths)),
            layers.Dense(outputs, "softmax", name="head"),
        ]
    )


def block(x, width, name, squeeze=None, norm=layers.BatchNormalization, kernel=3):
    """A bottleneck with whatever may lie between."""
    y = layers.Conv2D(width, 1, name=f"{name}_1_conv", kernel_regularizer="l2")(x)
    y = norm(name=f"{name}_1_norm")(y)
    y = layers.PReLU(shared_axes=(1, 2), name=f"{name}_1_prelu")(y)
    y = layers.ZeroPadding2D(kernel // 2)(y)
    y = layers.Conv2D(width, kernel, use_bias=False, name=f"{name}_2_conv")(y)
    y = norm(name=f"{name}_2_norm")(y)
    y = layers.Activation("swish")(y)
    if squeeze:
        gate = layers.GlobalAveragePooling2D()(y)
        gate = layers.Reshape((1, 1, width), name=f"{name}_reshape")(gate)
        gate = layers.Conv2D(squeeze, 1, activation="relu", name=f"{name}_squeeze")(gate)
        gate = layers.Conv2D(width, 1, activation="sigmoid", name=f"{name}_excite")(gate)
        y = layers.Multiply()([y, gate])
    y = layers.Dropout(0.1)(y)
    y = layers.Conv2D(x.shape[-1], 1, name=f"{name}_3_conv")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def convolutional(**options):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, padding="same", name="stem")(image)
    x = block(x, 16, "a", **options)
    x = layers.Conv2D(64, 1, strides=2, name="down")(x)
    x = block(x, 32, "b", **options)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, "softmax", name="head")(x), name="net")


def deep():
    image = keras.Input((8, 8, 8))
    y = layers.Conv2D(48, 1, activation="relu", name="d_1")(image)
    y = layers.Conv2D(64, (3, 1), padding="same", activation="relu", name="d_2")(y)
    y = layers.Conv2D(48, (1, 3), padding="same", activation="relu", name="d_3")(y)
    y = layers.Conv2D(8, 1, name="d_4")(y)
    return keras.Model(image, layers.Add()([image, y]))


def nested():
    inner = keras.Sequential([keras.Input((12,)), *mlp().layers[:3], layers.Dense(6)], name="tower")
    a, b = keras.Input((12,), name="a"), keras.Input((12,), name="b")
    both = layers.Concatenate()([inner(a), inner(b)])
    return keras.Model({"a": a, "b": b}, {"sum": both, "out": layers.Dense(2, name="out")(both)})


def shared():
    fc = [layers.Dense(n, "relu", name=f"fc{n}") for n in (32, 33)] + [layers.Dense(4, name="fc4")]
    towers = []
    a, b = keras.Input((12,)), keras.Input((12,))
    for tower in (a, b):
        for layer in fc:
            tower = layer(tower)  # noqa: PLW2901
        towers.append(tower)
    return keras.Model([a, b], layers.Subtract()(towers))


def normalised():
    steps = []
    for i in range(3):
        steps += [layers.Dense(48, name=f"fc{i}"), layers.LayerNormalization(), layers.ReLU()]
    return keras.Sequential([keras.Input((12,)), *steps, layers.Dense(1)])


BUILDERS = {
    "mlp": mlp,
    "unequal": lambda: mlp((64, 32, 16)),
    "convolutional": convolutional,
    "squeezed": lambda: convolutional(squeeze=4),
    "group_norm": lambda: convolutional(norm=lambda name: layers.GroupNormalization(8, name=name)),
    "wide_kernel": lambda: convolutional(kernel=5),
    "deep": deep,
    "nested": nested,
    "shared": shared,
    "normalised": normalised,
    "baseline_of_the_zoo": lambda: zoo.resnext11(mode="baseline"),
}
# Fitted otherwise, which takes its time: once is enough, in a test below.
ALPHA = {"deep": 2.0, "wide_kernel": 2.0}
every_model = pytest.mark.parametrize("name", BUILDERS)


def inputs_of(model, rng, batch=4):
    return keras.tree.map_structure(
        lambda x: rng.standard_normal((batch, *x.shape[1:])).astype("float32"),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )


def hidden(name, width=8, **options):
    return layers.Dense(width, "relu", name=name, **options)
