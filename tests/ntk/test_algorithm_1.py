"""Networks by the thousand: as printed, and as the paths of one ensemble."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from brute_force import assert_same_means
from keras import initializers, layers

from ce_keras.geometry import bottleneck
from ce_keras.layers import CollegialDense, CollegialEnsemble
from ce_keras.ntk import algorithm_1, stack_kernels
from ce_keras.ntk.algorithm_1 import ensemble_kernels, middle_unit, stack_model, tape_kernels
from ce_keras.ntk.initial_values import InitialValues, initial_values


def perceptron():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", bias_initializer="random_normal"),
            layers.Dense(4, activation="tanh", kernel_initializer="orthogonal"),
            layers.Dense(2),
        ]
    )


def convolutional():
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal")(image)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 3, padding="same", groups=2, kernel_initializer="he_uniform")(x)
    x = layers.Flatten()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(3)(x))


def residual():
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 1, activation="relu")(image)
    return keras.Model(image, layers.Add()([layers.Conv2D(3, 3, padding="same")(x), image]))


def ungrouped():
    """Layers without a grouped form."""
    image = keras.Input((6, 6, 3))
    x = layers.DepthwiseConv2D(3, activation="relu")(image)
    x = layers.LayerNormalization()(layers.SeparableConv2D(4, 3, activation="relu")(x))
    return keras.Model(image, layers.EinsumDense("bhwc,cd->bhwd", (None, None, 2))(x))


MEMBERS = {"perceptron": perceptron, "convolutional": convolutional, "residual": residual}


def inputs(build, rng, count=2):
    return rng.normal(size=(count, *build().input_shape[1:]))


@pytest.mark.parametrize("build", MEMBERS.values(), ids=MEMBERS)
def test_every_paths_products_are_its_own_networks(build, rng):
    x = inputs(build, rng)
    template = build()
    ensemble = CollegialEnsemble(template, 3)
    values = initial_values(template, ensemble.paths)
    for value in values:
        value.draw(rng)
    products = algorithm_1._traced_products(ensemble.paths, values, 3, x, middle_unit)()
    for path in range(3):
        member = ensemble.get_member(path)
        gradients = []
        for example in x:
            with tf.GradientTape() as tape:
                output = middle_unit(member(example[None].astype("float32")))
            gradients.append(tape.gradient(output, [v.value for v in member.trainable_variables]))
        expected = [float(tf.reduce_sum(a * b)) for a, b in zip(*gradients, strict=True)]
        np.testing.assert_allclose(products[path], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels_of", [tape_kernels, ensemble_kernels])
@pytest.mark.parametrize("ntk", [True, False])
def test_stacks_have_the_samplers_kernels(kernels_of, ntk, rng):
    stack = bottleneck(6, width=3).stack(3)
    x = rng.normal(size=(2, 9, 6))
    draws = 100 if kernels_of is tape_kernels else 5000
    kernels = kernels_of(lambda: stack_model(stack), x, draws, np.random.default_rng(0), ntk=ntk)
    which = "ntk" if ntk else "standard"
    sampled = stack_kernels(x, stack.widths, 50_000, parameterization=which, seed=0)[:, 0, 1]
    assert_same_means(kernels, sampled)
    assert_same_means(kernels**2, sampled**2)


@pytest.mark.parametrize("build", [convolutional, ungrouped])
def test_both_draw_the_same_kernels_of_any_model(build, rng):
    x = inputs(build, rng)

    def readout(outputs):
        return keras.ops.sum(outputs, axis=tuple(range(1, len(outputs.shape))))

    printed = tape_kernels(build, x, 50, np.random.default_rng(0), readout)
    together = ensemble_kernels(build, x, 500, np.random.default_rng(1), readout)
    assert_same_means(printed, together)
    assert_same_means(printed**2, together**2)


def test_ensembles_larger_than_memory_are_drawn_in_parts(monkeypatch, rng):
    x = inputs(perceptron, rng, 1)
    monkeypatch.setattr(algorithm_1, "_WEIGHTS", 10 * perceptron().count_params())
    kernels = ensemble_kernels(perceptron, x, 25, rng)
    assert kernels.shape == (25,)
    assert len(set(kernels[kernels > 0])) > 15


@pytest.mark.parametrize("kernels_of", [tape_kernels, ensemble_kernels])
def test_the_same_seed_draws_the_same_networks(kernels_of, rng):
    x = inputs(perceptron, rng)
    draws = [kernels_of(perceptron, x, 3, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isin(draws[0], draws[2]).any()


def test_the_default_readout_is_one_unit_of_the_middle_pixel():
    outputs = tf.reshape(tf.range(2 * 5 * 7 * 3), [2, 5, 7, 3])
    np.testing.assert_array_equal(middle_unit(outputs), outputs[:, 2, 3, 0])


@pytest.mark.parametrize(
    "initializer",
    [
        initializers.HeNormal(),
        initializers.GlorotUniform(),
        initializers.VarianceScaling(1.5, "fan_out", "untruncated_normal"),
        initializers.RandomNormal(0.5, 2.0),
        initializers.TruncatedNormal(0.5, 2.0),
        initializers.RandomUniform(-1.0, 3.0),
        initializers.Orthogonal(),
    ],
    ids=lambda initializer: type(initializer).__name__,
)
def test_values_follow_the_initialisers_law(initializer, rng):
    whole = keras.Variable(np.zeros((40, 3, 3, 4, 5), "float32"))
    shape = (3, 3, 4, 5)
    value = InitialValues(whole, shape, initializer)
    drawn, expected = [], []
    for seed in range(20):
        value.draw(rng)
        drawn.append(whole.numpy().reshape(-1))
        config = initializer.get_config() | {"seed": seed}
        own = [type(initializer).from_config(config | {"seed": 100 * seed + i}) for i in range(40)]
        expected.append(np.reshape([np.ravel(one(shape)) for one in own], -1))
    drawn, expected = np.concatenate(drawn).astype(float), np.concatenate(expected).astype(float)
    # Orthogonal columns are a little dependent: fewer than all numbers count.
    count = len(drawn) / (4 if isinstance(initializer, initializers.Orthogonal) else 1)
    for power in (1, 2, 4):
        error = np.hypot((drawn**power).std(), (expected**power).std()) / np.sqrt(count)
        assert abs((drawn**power).mean() - (expected**power).mean()) <= 5 * error
    assert value.variance == pytest.approx(drawn.var(), rel=0.02)
    assert drawn.max() <= 1.05 * expected.max()


def test_a_variable_without_its_initialiser_is_named():
    class Scale(layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(name="scale", shape=input_shape[1:], initializer="normal")

        def call(self, x):
            return x * self.scale

    def build():
        return keras.Sequential([keras.Input((3,)), Scale(), layers.Dense(2)])

    with pytest.raises(ValueError, match=r"scale' cannot be drawn anew.*use 'tape'"):
        ensemble_kernels(build, np.ones((1, 3)), 5, np.random.default_rng(0))
    assert tape_kernels(build, np.ones((1, 3)), 2, np.random.default_rng(0)).shape == (2,)


def test_stacks_are_networks_of_collegial_layers():
    model = stack_model(bottleneck(8, width=5).stack(5))
    kernels = [layer.fan_in for layer in model.layers if isinstance(layer, CollegialDense)]
    assert kernels == [8, 45, 5]
