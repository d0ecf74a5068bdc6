"""Kernels of many networks: one network at a time, and as the paths of one ensemble."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from brute_force import assert_same_means
from keras import initializers, layers

from ce_keras.geometry import bottleneck
from ce_keras.layers import CollegialConv2D, CollegialDense, CollegialEnsemble
from ce_keras.layers.grouping import CannotGroupError
from ce_keras.ntk.backends import backend
from ce_keras.variance import networks, stack_kernels
from ce_keras.variance.initial_values import Distribution, InitialValues, _table, initial_values
from ce_keras.variance.networks import ensemble_kernels, middle_unit, stack_model, tape_kernels


def perceptron():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="relu", bias_initializer="random_normal"),
            layers.Dense(4, activation="tanh", kernel_initializer="orthogonal"),
            layers.Dense(2),
        ]
    )


def convolutional(own=False):
    """Build a network with a grouped convolution, Keras' or our own."""
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer="he_normal")(image)
    x = layers.BatchNormalization()(x)
    options = {"padding": "same", "kernel_initializer": "he_uniform"}
    if own:
        y = CollegialConv2D(4, 3, cardinality=2, **options)(x)
    else:
        y = layers.Conv2D(4, 3, groups=2, **options)(x)
    x = layers.Flatten()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(3)(x))


def residual():
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 1, activation="relu")(image)
    return keras.Model(image, layers.Add()([layers.Conv2D(3, 3, padding="same")(x), image]))


def frozen_and_constant():
    image = keras.Input((6,))
    x = layers.Dense(6, "relu", trainable=False)(image)
    x = layers.Add()([layers.Dense(6)(x), layers.Dense(6, kernel_initializer="ones")(image)])
    return keras.Model(image, layers.Dense(1, bias_initializer="random_normal")(x))


def wide_and_sloped():
    image = keras.Input((3, 3, 2))
    x = layers.PReLU(alpha_initializer="random_normal")(layers.Conv2D(32, 1)(image))
    x = layers.Conv2D(12, 2, activation="tanh")(x)
    return keras.Model(image, layers.Conv2D(2, 2, padding="same")(x))


def used_again():
    image = keras.Input((4, 4, 2))
    again = layers.Conv2D(3, 3, padding="same", activation="tanh", bias_initializer="random_normal")
    x = again(again(layers.Conv2D(3, 1)(image)))
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(again(x))))


def several_paths():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "tanh"),
            CollegialDense(8, cardinality=4, activation="tanh"),
            CollegialDense(8, cardinality=2, activation="tanh", kernel_initializer="orthogonal"),
            layers.Dense(1),
        ]
    )


MEMBERS = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "residual": residual,
    "frozen_and_constant": frozen_and_constant,
    "several_paths": several_paths,
    "wide_and_sloped": wide_and_sloped,
    "used_again": used_again,
}


def inputs(build, rng, count=2):
    return rng.normal(size=(count, *build().input_shape[1:]))


@pytest.mark.parametrize("build", MEMBERS.values(), ids=MEMBERS)
def test_every_paths_products_are_its_own_networks(build, rng):
    x = inputs(build, rng)
    template = build()
    ensemble = CollegialEnsemble(template, 3)
    values = initial_values(template, ensemble.paths)
    varied = [value for value in values if value.variance]
    drawn = [tf.cast(value.draw(rng), value.variable.dtype) for value in varied]
    counted = [value for value in values if value.trainable]
    function = networks._products(ensemble.paths, varied, counted, 3, x, middle_unit)
    products = tf.function(function, autograph=False)(*drawn)
    for value, new in zip(varied, drawn, strict=True):
        value.variable.assign(new)
    for path in range(3):
        member = ensemble.get_member(path)
        gradients = []
        for example in x:
            with tf.GradientTape() as tape:
                output = middle_unit(member(example[None].astype("float32")))
            gradients.append(tape.gradient(output, [v.value for v in member.trainable_variables]))
        expected = [float(tf.reduce_sum(a * b)) for a, b in zip(*gradients, strict=True)]
        np.testing.assert_allclose(products[path], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [tape_kernels, ensemble_kernels])
@pytest.mark.parametrize("ntk", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stacks_have_the_samplers_kernels(method, ntk, rng):
    stack = bottleneck(6, width=3).stack(3)
    x = rng.normal(size=(2, 9, 6))
    draws = 100 if method is tape_kernels else 5000
    rng = np.random.default_rng(0)
    kernels = method(lambda: stack_model(stack), x, draws, rng, ntk=ntk)
    which = "ntk" if ntk else "standard"
    sampled = stack_kernels(x, stack.widths, 50_000, parameterization=which, seed=0)[:, 0, 1]
    assert_same_means(kernels, sampled)
    assert_same_means(kernels**2, sampled**2)


def collegial_convolutional():
    """`convolutional`; Keras would compile its own layer anew for each of a hundred gradients."""
    return convolutional(own=True)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(collegial_convolutional, marks=pytest.mark.slow),
        frozen_and_constant,
        several_paths,
    ],
)
def test_both_draw_the_same_kernels_of_any_model(build, rng):
    x = inputs(build, rng)

    def readout(outputs):
        return keras.ops.sum(outputs, axis=tuple(range(1, len(outputs.shape))))

    printed = tape_kernels(build, x, 50, np.random.default_rng(0), readout)
    together = ensemble_kernels(build, x, 500, np.random.default_rng(1), readout)
    assert_same_means(printed, together)
    assert_same_means(printed**2, together**2)


def test_what_one_ensemble_has_no_room_for_is_drawn_by_several(monkeypatch, rng):
    x = inputs(perceptron, rng, 1)
    monkeypatch.setattr(networks, "_MOST_NUMBERS", 10 * perceptron().count_params())
    own = np.random.default_rng(0)
    kernels = ensemble_kernels(perceptron, x, 25, own)
    assert own.random() == np.random.default_rng(0).random(), "ensembles share no generator"
    assert kernels.shape == (25,)
    assert len(set(kernels[kernels > 0])) > 15


@pytest.mark.parametrize("method", [tape_kernels, ensemble_kernels])
def test_the_same_seed_draws_the_same_networks(method, rng):
    x = inputs(perceptron, rng)
    draws = [method(perceptron, x, 3, np.random.default_rng(seed)) for seed in (1, 1, 2)]
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
        initializers.RandomUniform(0.25, 0.25),
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
        drawn.append(np.ravel(value.draw(rng) if value.variance else whole))
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


class Tenfold(initializers.HeNormal):
    def __call__(self, shape, dtype=None):
        return 10 * super().__call__(shape, dtype)


def ones(shape, dtype=None):
    return np.ones(shape)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.Dense(3, kernel_initializer=Tenfold()), "initialiser of .*kernel' is not one of"),
        (layers.Dense(3, kernel_initializer=ones), "not one of"),
        (layers.EinsumDense("ab,bc->ac", (3,)), "no grouped form of layer 'einsum_dense"),
    ],
)
def test_what_has_no_known_law_is_left_to_the_tape(layer, message):
    def build():
        return keras.Sequential([keras.Input((3,)), layer, layers.Dense(2)])

    assert re.search(message, networks.why_not_grouped(build))
    with pytest.raises(CannotGroupError, match=message):
        ensemble_kernels(build, np.ones((1, 3)), 5, np.random.default_rng(0))


def test_tables_have_kernels_too():
    def build():
        ids = keras.Input((4,), dtype="int32")
        x = layers.GlobalAveragePooling1D()(layers.Embedding(5, 3)(ids))
        return keras.Model(ids, layers.Dense(1)(x))

    kernels = tape_kernels(build, np.array([[0, 1, 1, 4]]), 3, np.random.default_rng(0))
    assert (kernels > 0).all()


@pytest.mark.parametrize("readout", [lambda y: y[0, 0], lambda y: y, tf.reduce_sum])
@pytest.mark.parametrize("method", [tape_kernels, ensemble_kernels])
def test_a_readout_is_a_number_of_each_network(readout, method):
    with pytest.raises(ValueError, match="readout: gave shape"):
        method(perceptron, np.ones((1, 6)), 3, np.random.default_rng(0), readout)


def test_stacks_are_networks_of_collegial_layers():
    model = stack_model(bottleneck(8, width=5).stack(5))
    kernels = [layer.fan_in for layer in model.layers if isinstance(layer, CollegialDense)]
    assert kernels == [8, 45, 5]


def test_numbers_have_their_distributions_moments(rng):
    density = math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    second = 1 - 4 * density  # The variance of a normal number between -2 and 2.
    fourth = 3 * second - 16 * density
    kurtoses = {"normal": 3.0, "uniform": 9 / 5, "truncated_normal": fourth / second**2}
    for name, kurtosis in kurtoses.items():
        table = _table(name)
        assert (table**2).mean() == pytest.approx(1, rel=1e-5)
        assert (table**4).mean() == pytest.approx(kurtosis, rel=1e-4)
        numbers = Distribution(name, 3.0, 2.0).sample(rng, 100_001)
        assert numbers.dtype == np.float32
        assert np.isin(numbers, (3 * table + 2).astype(np.float32)).all()
        assert numbers.mean() == pytest.approx(2.0, abs=5 * 3 / np.sqrt(len(numbers)))
        assert numbers.std() == pytest.approx(3.0, rel=5 / np.sqrt(2 * len(numbers)))


@pytest.mark.parametrize("first", [0, 1])
def test_a_tensor_on_the_memory_of_an_array_has_its_values(first, rng):
    array = Distribution("normal", 1.0).sample(rng, 130)[first : first + 128].reshape(32, 4)
    tensor = backend.from_numpy(array)
    np.testing.assert_array_equal(tensor * 2.0, array * 2)
