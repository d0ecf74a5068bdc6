import functools
import os
import subprocess
import sys

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import grouped_conv as reference_conv
from reference import kernel_gradient, rounding_bound

from ce_keras.layers import CollegialConv2D
from ce_keras.layers.grouped_conv import ConvSpec, choose, grouped_conv

SPECS = {
    "same": ConvSpec(3, (3, 3), padding="same"),
    "valid": ConvSpec(3, (3, 3)),
    "strided": ConvSpec(3, (3, 3), strides=(2, 2), padding="same"),
    "uneven": ConvSpec(3, (5, 3), strides=(2, 1), padding="valid"),
    "dilated": ConvSpec(3, (3, 3), padding="same", dilation=(2, 2)),
    "pointwise": ConvSpec(3, (1, 1)),
}
implementations = pytest.mark.parametrize("implementation", ["native", "split"])
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def draw(spec, rng, dtype="float32", batch=2, side=9, inputs=4, outputs=5):
    x = rng.standard_normal((batch, side, side, spec.groups * inputs)).astype(dtype)
    kernel = rng.standard_normal((*spec.kernel_size, inputs, spec.groups * outputs)).astype(dtype)
    return x, kernel


def settings(spec):
    return spec.groups, spec.strides, spec.padding, spec.dilation


@specs
@implementations
def test_forward_is_the_float64_reference_to_rounding(spec, implementation, rng):
    x, kernel = draw(spec, rng)
    expected, magnitude = reference_conv(x, kernel, *settings(spec))
    ours = grouped_conv(x, kernel, spec, implementation).numpy()
    bound = rounding_bound(np.prod(kernel.shape[:3]), magnitude)
    assert (abs(ours - expected) <= bound).all()


@specs
@implementations
def test_kernel_gradient_is_the_float64_reference_to_rounding(spec, implementation, rng):
    x, kernel = draw(spec, rng)
    with tf.GradientTape() as tape:
        variable = tf.Variable(kernel)
        y = grouped_conv(tf.constant(x), variable, spec, implementation)
        upstream = rng.standard_normal(y.shape).astype("float32")
        loss = tf.reduce_sum(y * upstream)
    ours = tape.gradient(loss, variable).numpy()
    expected, magnitude = kernel_gradient(x, kernel.shape, upstream, *settings(spec))
    assert (abs(ours - expected) <= rounding_bound(np.prod(y.shape[:3]), magnitude)).all()


@specs
@implementations
def test_input_gradient_is_the_adjoint_of_the_reference(spec, implementation, rng):
    # <upstream, conv(v)> = <gradient, v> for every v: checked on random directions.
    x, kernel = draw(spec, rng)
    image = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(image)
        y = grouped_conv(image, tf.constant(kernel), spec, implementation)
        upstream = rng.standard_normal(y.shape).astype("float32")
        loss = tf.reduce_sum(y * upstream)
    gradient = tape.gradient(loss, image).numpy().astype("float64")
    for _ in range(5):
        direction = rng.standard_normal(x.shape)
        through, magnitude = reference_conv(direction, kernel, *settings(spec))
        bound = rounding_bound(kernel.size, (magnitude * abs(upstream)).sum())
        assert abs((through * upstream).sum() - (gradient * direction).sum()) <= bound


@specs
def test_float64_splits_and_agrees_to_its_own_rounding(spec, rng):
    assert choose(spec, "float64") == "split"
    x, kernel = draw(spec, rng, "float64")
    expected, magnitude = reference_conv(x, kernel, *settings(spec))
    ours = grouped_conv(x, kernel, spec, "split").numpy()
    eps = np.finfo(np.float64).eps
    assert (abs(ours - expected) <= rounding_bound(np.prod(kernel.shape[:3]), magnitude, eps)).all()


@specs
def test_same_as_separate_keras_convolutions(spec, rng):
    x, kernel = draw(spec, rng)
    parts = []
    for image, weights in zip(np.split(x, 3, -1), np.split(kernel, 3, -1), strict=True):
        layer = keras.layers.Conv2D(
            5,
            spec.kernel_size,
            strides=spec.strides,
            padding=spec.padding,
            dilation_rate=spec.dilation,
            use_bias=False,
        )
        layer.build(image.shape)
        layer.kernel.assign(weights)
        parts.append(layer(image))
    ours = grouped_conv(x, kernel, spec, "native").numpy()
    magnitude = reference_conv(x, kernel, *settings(spec))[1]
    bound = 2 * rounding_bound(np.prod(kernel.shape[:3]), magnitude)
    assert (abs(ours - np.concatenate(parts, -1)) <= bound).all()


@specs
@implementations
def test_channels_first_is_channels_last_moved(spec, implementation, rng):
    x, kernel = draw(spec, rng)
    first = spec._replace(data_format="channels_first")
    if implementation == "native" and choose(first, "float32") != "native":
        pytest.skip("TensorFlow has no such convolution here, and the layer does not take it")
    results = []
    for way, pixels in ((spec, x), (first, np.moveaxis(x, -1, 1))):
        image, weights = tf.constant(pixels), tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch([image, weights])
            y = grouped_conv(image, weights, way, implementation)
            loss = tf.reduce_sum(tf.sin(y))
        results.append((y, *tape.gradient(loss, [image, weights])))
    (last, to_image, to_kernel), (ours, our_image, our_kernel) = results
    np.testing.assert_allclose(np.moveaxis(ours, 1, -1), last, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.moveaxis(our_image, 1, -1), to_image, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(our_kernel, to_kernel, rtol=1e-4, atol=1e-4)


# Trap: a vectorised jacobian is silently wrong for TensorFlow's own grouped convolution. ---------


def network(x, kernel, spec):
    return tf.reduce_mean(tf.nn.relu(grouped_conv(x, kernel, spec, "native")), [1, 2])


def jacobian(function, x, kernel, **options):
    with tf.GradientTape(persistent=True) as tape:
        y = function(x, kernel)
    return tape.jacobian(y, kernel, **options)


def per_logit(function, x, kernel):
    rows = []
    for example in range(x.shape[0]):
        row = []
        for logit in range(function(x, kernel).shape[1]):
            with tf.GradientTape() as tape:
                y = function(x, kernel)[example, logit]
            row.append(tape.gradient(y, kernel))
        rows.append(tf.stack(row))
    return tf.stack(rows)


def wrapped(outer, inner):
    """`jacobian`, with the network or the whole in a `tf.function`."""

    def compute(function, x, kernel, **options):
        traced = tf.function(function) if inner else function
        run = tf.function(jacobian) if outer else jacobian
        return run(traced, x, kernel, **options)

    return compute


@pytest.mark.parametrize("pfor", [True, False], ids=["vectorised", "while_loop"])
@pytest.mark.parametrize("outer", [True, False], ids=["in_function", "eager"])
@pytest.mark.parametrize("inner", [True, False], ids=["of_function", "of_eager"])
@pytest.mark.parametrize("name", ["same", "strided"])
def test_jacobians_are_right(name, inner, outer, pfor, rng):
    spec = SPECS[name]
    x, kernel = draw(spec, rng, side=5)
    x, kernel = tf.constant(x), tf.Variable(kernel)
    function = lambda x, kernel: network(x, kernel, spec)  # noqa: E731
    compute = wrapped(outer, inner)
    ours = compute(function, x, kernel, experimental_use_pfor=pfor)
    np.testing.assert_allclose(ours, per_logit(function, x, kernel), rtol=1e-4, atol=1e-6)


def test_the_trap_is_still_there_for_tensorflows_own_convolution(rng):
    # Once this fails, TensorFlow has mended its rule, and the layer can stop working around it.
    spec = SPECS["same"]
    x, kernel = draw(spec, rng, side=5)
    x, kernel = tf.constant(x), tf.Variable(kernel)
    function = lambda x, kernel: tf.reduce_mean(tf.nn.conv2d(x, kernel, 1, "SAME"), [1, 2])  # noqa: E731
    wrong = jacobian(function, x, kernel)
    assert np.abs(wrong - per_logit(function, x, kernel)).max() > 0.01


def test_jacobian_through_a_model_of_the_layers(rng):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            CollegialConv2D(8, 3, cardinality=1, padding="same", activation="relu"),
            CollegialConv2D(8, 3, cardinality=4, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    x = tf.constant(rng.standard_normal((4, 6, 6, 3)), tf.float32)
    kernel = model.layers[1].kernel.value
    with tf.GradientTape() as tape:
        y = model(x)
    vectorised = tape.jacobian(y, kernel)
    expected = per_logit(lambda x, kernel: model(x), x, kernel)
    np.testing.assert_allclose(vectorised, expected, rtol=1e-4, atol=1e-6)


def test_per_example_gradients_under_vectorized_map(rng):
    spec = SPECS["same"]
    x, kernel = draw(spec, rng, side=5)
    x, kernel = tf.constant(x), tf.Variable(kernel)

    def one(image):
        with tf.GradientTape() as tape:
            y = network(image[None], kernel, spec)[0, 0]
        return tape.gradient(y, kernel)

    expected = per_logit(lambda x, kernel: network(x, kernel, spec), x, kernel)[:, 0]
    np.testing.assert_allclose(tf.vectorized_map(one, x), expected, rtol=1e-4, atol=1e-6)


def vectorised_rows(function, x, kernel, wrap, rng):
    """Gradients for several upstream values at once, on one input, and one after another."""
    upstreams = tf.constant(rng.standard_normal((4, *function(x, kernel).shape)), tf.float32)

    def row(upstream):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(upstream * function(x, kernel))
        return tape.gradient(y, kernel)

    return tf.vectorized_map(wrap(row), upstreams), [row(upstream) for upstream in upstreams]


BODIES = {
    "plain": lambda row: row,
    "function": tf.function,
    "compiled": functools.partial(tf.function, jit_compile=True),
    "function_in_function": lambda row: tf.function(tf.function(row)),
}


@pytest.mark.parametrize("body", BODIES)
def test_gradients_on_one_input_under_vectorized_map(body, rng):
    spec = SPECS["same"]
    x, kernel = draw(spec, rng, side=5)
    x, kernel = tf.constant(x), tf.Variable(kernel)
    ours, expected = vectorised_rows(
        lambda x, kernel: network(x, kernel, spec), x, kernel, BODIES[body], rng
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("body", ["plain", "function"])
def test_the_trap_is_there_under_vectorized_map_too(body, rng):
    spec = SPECS["same"]
    x, kernel = draw(spec, rng, side=5)
    x, kernel = tf.constant(x), tf.Variable(kernel)
    wrong, expected = vectorised_rows(
        lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), x, kernel, BODIES[body], rng
    )
    assert np.abs(wrong - np.stack(expected)).max() > 0.01


@implementations
def test_second_derivatives_and_forward_mode(implementation, rng):
    spec = SPECS["strided"]
    x, kernel = draw(spec, rng, side=5)
    tangent = tf.constant(rng.standard_normal(kernel.shape), tf.float32)

    def loss(kernel):
        return tf.reduce_sum(tf.tanh(grouped_conv(x, kernel, spec, implementation)) ** 2)

    def curvature(kernel):
        with tf.GradientTape() as outer:
            outer.watch(kernel)
            with tf.GradientTape() as inner:
                inner.watch(kernel)
                value = loss(kernel)
            slope = tf.reduce_sum(inner.gradient(value, kernel) * tangent)
        return slope, outer.gradient(slope, kernel)

    kernel = tf.constant(kernel)
    slope, hessian_vector = curvature(kernel)
    with tf.autodiff.ForwardAccumulator(kernel, tangent) as forward:
        value = loss(kernel)
    np.testing.assert_allclose(forward.jvp(value), slope, rtol=1e-4)
    # A central difference of the slope, along the tangent, in float64 by the split form.
    kernel64, tangent64 = tf.cast(kernel, tf.float64), tf.cast(tangent, tf.float64)

    def slope64(kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = grouped_conv(tf.cast(x, tf.float64), kernel, spec, "split")
            value = tf.reduce_sum(tf.tanh(y) ** 2)
        return tf.reduce_sum(tape.gradient(value, kernel) * tangent64)

    step = 1e-4
    difference = (slope64(kernel64 + step * tangent64) - slope64(kernel64 - step * tangent64)) / (
        2 * step
    )
    ours = float(tf.reduce_sum(hessian_vector * tangent))
    assert ours == pytest.approx(float(difference), rel=1e-3)


# The choice of an implementation. ------------------------------------------------------------


def test_the_choice_is_logged_with_its_reason(caplog):
    choose.cache_clear()
    with caplog.at_level("INFO", logger="ce_keras"):
        choose(SPECS["valid"], "float64")
        choose(SPECS["valid"], "float64")
    (record,) = caplog.records
    assert "split" in record.getMessage()
    assert "not native" in record.getMessage()


def test_the_choice_can_be_made_while_a_graph_is_traced():
    choose.cache_clear()
    layer = CollegialConv2D(6, 3, cardinality=2)
    traced = tf.function(layer)
    assert traced(tf.ones((1, 5, 5, 4))).shape == (1, 3, 3, 6)
    assert layer.chosen_implementation in ("native", "split")


PROBE = """
import tensorflow as tf
from ce_keras.layers import CollegialConv2D
layer = CollegialConv2D(6, 3, cardinality=2)
with tf.GradientTape() as tape:
    y = layer(tf.ones((1, 5, 5, 4)))
gradient = tape.gradient(y, layer.trainable_weights[0].value)
print(layer.chosen_implementation, gradient.shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("onednn", "chosen"), [("0", "split"), ("1", "native")])
def test_without_onednn_the_layer_splits(onednn, chosen):
    if onednn == "1" and choose(ConvSpec(2, (3, 3)), "float32") != "native":
        pytest.fail("oneDNN is expected where the tests run: the fast path is not exercised")
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn}
    if onednn == "1":  # As in the tests' own environment.
        ended = fresh.run(["-c", PROBE], environment)
    else:
        command = [sys.executable, "-c", PROBE]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split("(")[0].strip() == chosen


def operations(graph):
    """The types of all operations in a graph and its functions."""
    names = {node.op for node in graph.node}
    for function in graph.library.function:
        names |= {node.op for node in function.node_def}
        names |= {
            "xla" for key in function.attr if "XlaMustCompile" in key and function.attr[key].b
        }
    return names


def traced_operations(layer):
    x = tf.TensorSpec((None, 8, 8, 12))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, layer.trainable_weights[0].value)

    return operations(step.get_concrete_function(x).graph.as_graph_def())


def test_no_step_of_the_layer_is_forced_through_xla():
    ours = CollegialConv2D(12, 3, cardinality=4)
    ours.build((None, 8, 8, 12))
    keras_own = keras.layers.Conv2D(12, 3, groups=4)
    keras_own.build((None, 8, 8, 12))
    assert "xla" not in traced_operations(ours)
    assert "xla" in traced_operations(keras_own), "the trap is gone: the fast path may be too"


@pytest.mark.parametrize("implementation", ["native", "split"])
def test_no_images_give_no_images_of_the_right_shape(implementation):
    layer = CollegialConv2D(6, 3, cardinality=2, implementation=implementation)
    with tf.GradientTape() as tape:
        y = layer(np.zeros((0, 5, 5, 4), "float32"))
        total = tf.reduce_sum(y)
    assert y.shape == (0, 3, 3, 6)
    assert not np.any(tape.gradient(total, layer.kernel.value))
