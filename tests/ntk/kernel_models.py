"""Models of which kernels are taken, and the plain gradient loop that says what those are."""

import keras
import numpy as np
from keras import layers

from ce_keras.layers import (
    CollegialConv2D,
    CollegialDense,
    CollegialEnsemble,
    FusedBatchNormalization,
)
from ce_keras.ntk import empirical_ntk


def sequential(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


def flat(*stack):
    """Layers on a row, an image or a volume, then two logits."""
    return [*stack, layers.Flatten(), layers.Dense(2)]


def shared_layer():
    inputs = keras.Input((5,))
    twice = layers.Dense(5, "tanh")
    return keras.Model(inputs, layers.Dense(2)(twice(twice(inputs))))


def shared_convolution():
    image = keras.Input((6, 6, 2))
    conv = layers.Conv2D(2, 3, padding="same", activation="tanh")
    x = layers.MaxPooling2D()(conv(image))
    return keras.Model(image, layers.Dense(2)(layers.Flatten()(conv(x))))


def residual():
    image = keras.Input((5, 5, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Add()([image, layers.BatchNormalization()(x)])
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def attention():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 8)(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.LayerNormalization()(x)
    return keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def nested():
    inner = sequential((5,), layers.Dense(4, "relu"), layers.Dense(4, "tanh"))
    return sequential((5,), inner, layers.Dense(2))


def ensemble():
    def member():
        return sequential(
            (6, 6, 2), layers.Conv2D(3, 3, activation="relu"), layers.Flatten(), layers.Dense(2)
        )

    return sequential((6, 6, 2), CollegialEnsemble(member, 3))


def normed_ensemble():
    def member():
        return sequential((5,), layers.Dense(4), layers.LayerNormalization(), layers.Dense(2))

    return sequential((5,), CollegialEnsemble(member, 3))


def copied_ensemble():
    def member():
        einsum = layers.EinsumDense("ab,bc->ac", 4)
        return sequential((5,), einsum, layers.Dense(2))

    return sequential((5,), CollegialEnsemble(member, 3))


MODELS = {
    "dense": lambda: sequential((5,), layers.Dense(7, "relu"), layers.Dense(3)),
    "dense_over_pixels": lambda: sequential((3, 4), *flat(layers.Dense(5, "tanh"))),
    "no_bias": lambda: sequential((5,), layers.Dense(4, "relu", use_bias=False), layers.Dense(2)),
    "einsum": lambda: sequential(
        (3, 4), *flat(layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="d"))
    ),
    "einsum_grouped": lambda: sequential(
        (3, 4), *flat(layers.EinsumDense("abc,bcd->abd", (3, 5), bias_axes="bd"))
    ),
    "einsum_over_two": lambda: sequential(
        (3, 4), layers.EinsumDense("abc,bcde->ade", (2, 5), bias_axes="e"), layers.Flatten()
    ),
    "einsum_ellipsis": lambda: sequential(
        (3, 2, 4),
        layers.EinsumDense("...c,cd->...d", 3, bias_axes="d"),
        layers.GlobalAveragePooling2D(),
    ),
    "conv1d": lambda: sequential((9, 3), *flat(layers.Conv1D(4, 3, strides=2, padding="same"))),
    "conv1d_causal": lambda: sequential(
        (9, 3), *flat(layers.Conv1D(4, 3, dilation_rate=2, padding="causal"))
    ),
    "conv2d": lambda: sequential((7, 6, 3), *flat(layers.Conv2D(4, 3, activation="relu"))),
    "conv2d_strided": lambda: sequential(
        (7, 6, 3), *flat(layers.Conv2D(4, (3, 2), strides=(2, 1), padding="same"))
    ),
    "conv2d_dilated": lambda: sequential(
        (9, 9, 2), *flat(layers.Conv2D(4, 3, dilation_rate=(2, 3), padding="same"))
    ),
    "conv2d_grouped": lambda: sequential(
        (7, 6, 4), *flat(layers.Conv2D(6, 3, groups=2, strides=2, padding="same"))
    ),
    "conv3d": lambda: sequential(
        (5, 4, 5, 2), *flat(layers.Conv3D(3, 2, strides=2, padding="same"))
    ),
    "conv1d_grouped": lambda: sequential(
        (9, 4), *flat(layers.Conv1D(6, 3, groups=2, dilation_rate=2, padding="causal"))
    ),
    "conv3d_grouped": lambda: sequential(
        (5, 4, 5, 4), *flat(layers.Conv3D(6, 2, groups=2, strides=2, padding="same"))
    ),
    "depthwise1d": lambda: sequential((9, 3), *flat(layers.DepthwiseConv1D(3, depth_multiplier=2))),
    "depthwise2d": lambda: sequential(
        (7, 6, 3),
        *flat(layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, activation="tanh")),
    ),
    "separable1d": lambda: sequential((9, 3), *flat(layers.SeparableConv1D(4, 3, padding="same"))),
    "separable2d": lambda: sequential(
        (7, 6, 3), *flat(layers.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu"))
    ),
    "transposed1d": lambda: sequential((5, 3), *flat(layers.Conv1DTranspose(4, 3, strides=2))),
    "transposed2d": lambda: sequential(
        (4, 5, 3), *flat(layers.Conv2DTranspose(2, 3, strides=2, padding="same"))
    ),
    "transposed2d_short": lambda: sequential((4, 5, 3), *flat(layers.Conv2DTranspose(2, 2, 3))),
    "transposed3d": lambda: sequential((3, 3, 3, 2), *flat(layers.Conv3DTranspose(2, 2, 2))),
    "batch_norm": lambda: sequential((4, 4, 3), *flat(layers.BatchNormalization())),
    "fused_batch_norm": lambda: sequential((4, 4, 3), *flat(FusedBatchNormalization())),
    "layer_norm": lambda: sequential((4, 3), *flat(layers.LayerNormalization())),
    "layer_norm_two_axes": lambda: sequential((4, 3), *flat(layers.LayerNormalization([1, 2]))),
    "group_norm": lambda: sequential((4, 4, 6), *flat(layers.GroupNormalization(3))),
    "embedding": lambda: sequential((6,), *flat(layers.Embedding(5, 3))),
    "collegial_conv": lambda: sequential(
        (7, 6, 4), *flat(CollegialConv2D(6, 3, cardinality=2, parameterization="ntk"))
    ),
    "collegial_conv_shared": lambda: sequential(
        (7, 6, 4),
        *flat(CollegialConv2D(6, 3, cardinality=2, shared_input=True, activation="relu")),
    ),
    "collegial_dense": lambda: sequential(
        (6,), CollegialDense(8, 2, "relu", parameterization="ntk"), CollegialDense(4, 2)
    ),
    "shared_layer": shared_layer,
    "shared_convolution": shared_convolution,
    "residual": residual,
    "attention": attention,
    "nested": nested,
    "ensemble": ensemble,
    "normed_ensemble": normed_ensemble,
    "copied_ensemble": copied_ensemble,
}


#: One model for every rule.
ONE_FOR_EVERY_RULE = (
    *("einsum_grouped", "conv1d_causal", "conv2d_grouped", "separable2d", "transposed2d_short"),
    *("batch_norm", "group_norm", "attention", "collegial_conv_shared", "normed_ensemble"),
    "shared_convolution",
)


def behind_a_layer(model):
    """The model's own first layer has signals to pass on then."""
    if any(isinstance(layer, layers.Embedding) for layer in model.layers):
        return model
    return sequential(model.input_shape[1:], layers.Dense(model.input_shape[-1], "tanh"), model)


def inputs(model, count, rng):
    shape = (count, *model.input_shape[1:])
    if any(isinstance(layer, layers.Embedding) for layer in model.layers):
        return rng.integers(0, 5, shape).astype("int32")
    return rng.normal(size=shape)


def shaken(model, rng):
    """The model with every weight off its special initial value: zeros hide mistakes."""
    for weight in model.weights:
        if weight.dtype.startswith("float"):
            noise = rng.uniform(0.1, 0.5, weight.shape)
            weight.assign(weight.numpy() + noise)
    return model


def plain_loop(model, x, variables=None):
    """The jacobian, (N, O, parameters): one `tape.gradient` per example and output."""
    import tensorflow as tf

    variables = model.trainable_variables if variables is None else variables
    rows = []
    for example in range(len(x)):
        # One tape for all outputs: Keras compiles grouped convolutions anew at each call.
        with tf.GradientTape(persistent=True) as tape:
            outputs = tf.unstack(tf.reshape(model(x[example : example + 1], training=False), [-1]))
        row = []
        for output in outputs:
            gradients = tape.gradient(
                output, [v.value for v in variables], unconnected_gradients="zero"
            )
            row.append(
                np.concatenate([np.ravel(tf.convert_to_tensor(g).numpy()) for g in gradients])
            )
        rows.append(row)
    return np.array(rows)


def ours(caplog):
    return [record for record in caplog.records if record.name == "ce_keras"]


def agree(model, x, **options):
    kernels = [empirical_ntk(model, x, engine=engine, **options) for engine in ("auto", "tape")]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-5 * abs(kernels[1]).max())
