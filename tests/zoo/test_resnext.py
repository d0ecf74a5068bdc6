import inspect
import math

import keras
import numpy as np
import pytest

from ce_keras import zoo
from ce_keras.layers import CollegialConv2D


def test_arguments_are_those_of_keras_applications_in_their_order():
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = inspect.signature(zoo.resnext50).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        if name not in ("weights", "name"):  # Weights: none are published. Name: of the design.
            assert ours[name].default == parameter.default, name
    assert all(ours[name].kind.name == "KEYWORD_ONLY" for name in list(ours)[len(theirs) :])


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_functions_are_documented_and_named(name):
    function = zoo.NETWORKS[name]
    assert function.__name__ == name
    assert "cardinality" in function.__doc__


def test_the_published_dual_of_resnext50():
    model = zoo.resnext50(mode="dual")
    assert model.name == "resnext50_4x16d"
    assert zoo.trained_parameters(model) == 17_069_096
    assert model.output_shape == (None, 1000)


def test_layers_have_the_names_of_keras_applications():
    theirs = keras.applications.ResNet50(weights=None)
    ours = zoo.resnext50(mode="baseline")
    convolutions = [
        {layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
        for model in (theirs, ours)
    ]
    assert convolutions[0] == convolutions[1]


def test_every_grouped_convolution_is_ours():
    model = zoo.resnext29(mode="dual")
    grouped = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1
    ]
    assert len(grouped) == 9
    assert all(isinstance(layer, CollegialConv2D) for layer in grouped)


def test_without_top_any_size_of_image():
    model = zoo.resnext29(include_top=False, mode="dual")
    assert model.input_shape == (None, None, None, 3)
    assert model.output_shape == (None, None, None, 1024)
    for side in (32, 45):
        smaller = math.ceil(math.ceil(side / 2) / 2)
        assert model(np.zeros((1, side, side, 3), "float32")).shape == (1, smaller, smaller, 1024)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling(pooling):
    model = zoo.resnext11(include_top=False, pooling=pooling, input_shape=(20, 24, 2))
    assert model.output_shape == (None, 512)
    assert model(np.ones((2, 20, 24, 2), "float32")).shape == (2, 512)


def test_input_tensor_continues_a_graph():
    image = keras.Input((28, 28, 1))
    doubled = keras.layers.Rescaling(2.0)(image)
    model = zoo.resnext11(input_tensor=doubled, seed=0)
    plain = zoo.resnext11(seed=0)
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(model(x), plain(2 * x), rtol=1e-4, atol=1e-6)


def test_classes_and_activation():
    model = zoo.resnext11(classes=7, classifier_activation=None)
    logits = model(np.ones((1, 28, 28, 1), "float32")).numpy()
    assert logits.shape == (1, 7)
    assert abs(logits.sum() - 1) > 1e-3


def test_seed_decides_the_weights():
    first, again, other = (zoo.resnext11(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_initial_weights_are_untruncated_he_normals():
    model = zoo.resnext29(mode="primal", seed=0)
    for name, fan_in in (("conv3_block2_2_conv", 9 * 20), ("conv4_block3_3_conv", 37 * 40)):
        weights = model.get_layer(name).kernel.numpy().ravel() * math.sqrt(fan_in / 2)
        error = (weights**2).std() / math.sqrt(weights.size)
        assert abs((weights**2).mean() - 1) < 5 * error
        assert abs(weights).max() > 3  # he_normal stops at 2.3.


def test_normalisation_has_the_constants_of_the_experiments():
    layer = zoo.resnext29().get_layer("conv2_block1_1_bn")
    assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_policies(policy, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = zoo.resnext11(mode="dual")
        model.compile("sgd", "sparse_categorical_crossentropy")
        x = rng.normal(size=(8, 28, 28, 1)).astype("float32")
        assert np.isfinite(model.train_on_batch(x, np.arange(8)))
        assert model.output.dtype == ("float64" if policy == "float64" else "float32")
    finally:
        keras.config.set_dtype_policy(before)


def test_channels_first_is_the_same_network(rng):
    x = rng.normal(size=(4, 28, 28, 1)).astype("float32")
    last = zoo.resnext11(mode="dual", seed=0)
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        first = zoo.resnext11(mode="dual", seed=0)
    finally:
        keras.config.set_image_data_format(before)
    moved = np.moveaxis(x, -1, 1)
    np.testing.assert_allclose(first(moved), last(x), rtol=1e-3, atol=1e-5)
    losses = []
    for model, images in ((first, moved), (last, x)):
        model.compile("sgd", "sparse_categorical_crossentropy")
        losses.append([model.train_on_batch(images, np.arange(4)) for _ in range(2)])
    np.testing.assert_allclose(*losses, rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenet"}, "weights: there are none of .* called 'imagenet'"),
        ({"pooling": "sum"}, "pooling: got 'sum'"),
        ({"classes": 0}, "classes: got 0"),
        ({"input_shape": (28, 28)}, "input_shape: got"),
        ({"input_shape": (4, 28, 1)}, "sides of 16 or more"),
        ({"input_shape": (28, 28, None)}, "input_shape: got"),
        ({"input_shape": (28, 28, 0)}, "input_shape: got"),
        ({"input_shape": (28, -28, 1)}, "input_shape: got -28"),
        ({"input_tensor": keras.Input((8, 8, 1))}, "sides of 16 or more"),
        (
            {"input_tensor": keras.Input((16, 16, 1)), "input_shape": (32, 32, 1)},
            "input_shape: got .*input_tensor has",
        ),
        ({"mode": "dual", "cardinality": 2, "width": 2}, "contradicts"),
        ({"cardinality": 2.9, "width": 3}, "cardinality: got 2.9"),
        ({"cardinality": "2", "width": 3}, "cardinality: got '2'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_arguments_raise_before_anything_is_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.resnext11(**arguments)
