"""Which members have a grouped form, and why the others have none."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from members import softmax_member

from ce_keras.layers import CollegialDense, CollegialEnsemble


def normalised_member():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.UnitNormalization(), layers.Dense(2)]
    )


def noisy_input_member():
    return keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), layers.Dense(2)])


def mixing_member():
    image = keras.Input((6,))
    return keras.Model(image, layers.Concatenate()([image, layers.Dense(6)(image)]))


def operation_member():
    image = keras.Input((6,))
    return keras.Model(image, keras.ops.sin(layers.Dense(2)(image)))


def lambda_activation_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(3, activation=lambda x: x**2)])


def gelu(x):
    return keras.ops.square(x)


def namesake_activation_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(3, activation=gelu)])


def activation_object_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(3, activation=layers.Softmax())])


def several_paths_member():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, "relu"),
            CollegialDense(6, 3, shared_input=True),
        ]
    )


def gated_member():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(image)
    gate = layers.Conv2D(1, 1)(x)
    return keras.Model(image, layers.Multiply()([x, gate]))


def common_noise_member():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.Dropout(0.5, noise_shape=(None, 1))]
    )


def scaled_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(2), layers.Rescaling([1.0, 2.0])])


def constrained_member():
    return keras.Sequential([keras.Input((6,)), layers.Dense(2, kernel_constraint="max_norm")])


def orthogonal_member():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(2, kernel_regularizer="orthogonal_regularizer")]
    )


def flattened_twice_member():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(image)
    flatten = layers.Flatten()
    parts = [flatten(x), flatten(layers.MaxPooling2D()(x))]
    return keras.Model(image, layers.Add()([layers.Dense(2)(part) for part in parts]))


class Doubled(keras.Model):
    """A subclassed member, not registered with Keras and built by its first call."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return 2 * self.dense(inputs)


class SizedModel(Doubled):
    """Its configuration does not build it: only the function does."""

    def __init__(self, size, scale):
        super().__init__()
        self.scale = scale(size)


def unbuilt_member():
    return keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(2)])


def sized_member():
    return SizedModel(2, lambda size: size**2)


# Keras warns of what cannot be read back from a file; the ensemble works without.
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    ("build_member", "why"),
    [
        (softmax_member, "activation of layer 'dense.*softmax"),
        (normalised_member, "no grouped form of layer 'unit_normalization"),
        (noisy_input_member, "draws noise on the shared input"),
        (mixing_member, "mixes the input with members' values"),
        (operation_member, r"no grouped form of layer 'sin.*' \(Sin\)"),
        (lambda_activation_member, "activation of layer 'dense.*not known to be elementwise"),
        (namesake_activation_member, "activation of layer 'dense.*not known to be elementwise"),
        (activation_object_member, "activation of layer 'dense.*not known to be elementwise"),
        (several_paths_member, "several paths on one input"),
        (gated_member, "merges different numbers of channels"),
        (common_noise_member, "shares its noise among channels"),
        (scaled_member, "scales every channel differently"),
        (constrained_member, "kernel_constraint of layer 'dense.*MaxNorm"),
        (orthogonal_member, "kernel_regularizer of layer 'dense.*Orthogonal"),
        (flattened_twice_member, "flattens more than one value"),
        (Doubled, "is not a functional model"),
        (sized_member, "is not a functional model"),
        (unbuilt_member, "is not a functional model"),
    ],
)
def test_members_that_cannot_be_grouped_are_copied_and_the_reason_is_told(build_member, why, rng):
    ensemble = CollegialEnsemble(build_member, 3)
    assert not ensemble.grouped
    with pytest.raises(ValueError, match=why):
        CollegialEnsemble(build_member, 3, grouped=True)
    shape = getattr(build_member(), "input_shape", (None, 6))[1:]
    x = rng.standard_normal((3, *shape)).astype("float32")
    y = ensemble(x)
    members = [ensemble.get_member(path) for path in range(3)]
    np.testing.assert_allclose(y, sum(m(x) for m in members) / np.sqrt(3), rtol=1e-5, atol=1e-6)
    assert len({member.get_weights()[0].tobytes() for member in members}) == 3


@pytest.mark.parametrize(
    "activation",
    [
        tf.nn.relu,
        tf.nn.gelu,
        keras.ops.relu,
        keras.ops.leaky_relu,
        layers.ReLU(),
        layers.LeakyReLU(0.1),
        layers.Activation("tanh"),
    ],
)
def test_elementwise_activations_are_known_whoever_wrote_them(activation, rng):
    def member():
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(5, activation=activation), layers.Dense(2)]
        )

    ensemble = CollegialEnsemble(member, 3)
    assert ensemble.grouped, ensemble.why_copies
    x = rng.normal(size=(4, 6)).astype("float32")
    members = [ensemble.get_member(path)(x) for path in range(3)]
    np.testing.assert_allclose(ensemble(x), sum(members) / 3**0.5, rtol=1e-4, atol=1e-5)


def relu(x):
    """Not Keras' function of this name."""
    return x - keras.ops.mean(x, axis=-1, keepdims=True)


def test_a_function_of_the_same_name_is_not_that_function():
    def member():
        return keras.Sequential([keras.Input((6,)), layers.Dense(5, relu), layers.Dense(2)])

    assert not CollegialEnsemble(member, 3).grouped


def test_calls_between_layers_are_known(rng):
    def member():
        image = keras.Input((6,))
        x = keras.activations.relu(layers.Dense(5)(image))
        x = keras.ops.tanh(layers.Dense(4)(x))
        x = layers.GaussianDropout(0.1)(layers.AlphaDropout(0.1)(x))
        return keras.Model(image, layers.Dense(2)(layers.ActivityRegularization(l2=0.1)(x)))

    ensemble = CollegialEnsemble(member, 3)
    assert ensemble.grouped, ensemble.why_copies
    x = rng.normal(size=(4, 6)).astype("float32")
    members = [ensemble.get_member(path)(x) for path in range(3)]
    np.testing.assert_allclose(ensemble(x), sum(members) / 3**0.5, rtol=1e-4, atol=1e-5)


def test_a_template_that_cannot_be_copied_is_refused():
    with pytest.raises(ValueError, match="build_member: this model cannot be rebuilt"):
        CollegialEnsemble(sized_member(), 2)
