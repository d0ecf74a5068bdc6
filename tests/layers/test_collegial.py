import math

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from ce_keras.layers import Aggregate, CollegialConv2D, CollegialDense
from ce_keras.layers.initializers import for_each_path, kernel_initializer

LAYERS = {
    "conv": lambda: CollegialConv2D(12, 3, cardinality=4, strides=2, padding="same", gain=1.0),
    "conv_split": lambda: CollegialConv2D(12, 3, cardinality=4, implementation="split"),
    "conv_shared": lambda: CollegialConv2D(12, 3, cardinality=4, shared_input=True),
    "conv_ntk": lambda: CollegialConv2D(
        12, (3, 1), cardinality=2, parameterization="ntk", activation="relu", dilation_rate=2
    ),
    "dense": lambda: CollegialDense(12, cardinality=4, activation="relu"),
    "dense_ntk": lambda: CollegialDense(12, 2, parameterization="ntk", use_bias=False),
    "dense_shared": lambda: CollegialDense(12, cardinality=4, shared_input=True),
    "dense_regularised": lambda: CollegialDense(
        12, 4, kernel_regularizer="l2", bias_initializer="ones", kernel_constraint="max_norm"
    ),
    "aggregate": lambda: Aggregate(4),
}
every_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


@every_layer
def test_config_round_trip(build):
    layer = build()
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert (
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(layer)
        ).get_config()
        == config
    )


@every_layer
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_every_policy_computes_and_has_gradients(build, policy):
    layer = build()
    layer = type(layer).from_config({**layer.get_config(), "dtype": policy})
    x = tf.random.stateless_normal((2, 7, 7, 8), (1, 2))
    with tf.GradientTape() as tape:
        y = layer(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    policy = keras.DTypePolicy(policy)
    assert y.dtype == policy.compute_dtype
    for weight, gradient in zip(
        layer.trainable_weights,
        tape.gradient(loss, [w.value for w in layer.trainable_weights]),
        strict=True,
    ):
        assert weight.dtype == policy.variable_dtype
        assert np.isfinite(gradient.numpy()).all()
        assert np.abs(gradient.numpy()).max() > 0


@every_layer
def test_symbolic_shapes_are_the_computed_ones_for_any_batch(build):
    layer = build()
    symbolic = layer(keras.KerasTensor((None, 7, 9, 8)))
    for batch in (1, 3):
        computed = layer(tf.zeros((batch, 7, 9, 8)))
        assert tuple(symbolic.shape) == (None, *computed.shape[1:])
        assert layer.compute_output_shape((None, 7, 9, 8)) == tuple(symbolic.shape)


@pytest.mark.parametrize("build", [LAYERS["dense"], LAYERS["dense_ntk"], LAYERS["aggregate"]])
def test_dense_and_aggregate_take_any_leading_axes(build):
    layer = build()
    x = tf.random.stateless_normal((2, 3, 5, 8), (1, 2))
    flat = layer(tf.reshape(x, (30, 8)))
    np.testing.assert_allclose(tf.reshape(layer(x), flat.shape), flat, rtol=1e-5, atol=1e-6)


@every_layer
def test_dynamic_batch_and_size_in_a_graph(build):
    layer = build()
    x = tf.random.stateless_normal((3, 7, 7, 8), (1, 2))
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 8))])
    np.testing.assert_allclose(traced(x), layer(x), rtol=1e-5, atol=1e-6)


def test_conv_is_keras_grouped_convolution():
    x = tf.random.stateless_normal((2, 9, 9, 12), (1, 2))
    options = {"strides": 2, "padding": "same", "activation": "relu"}
    ours = CollegialConv2D(20, 3, cardinality=4, bias_initializer="ones", **options)
    theirs = keras.layers.Conv2D(20, 3, groups=4, **options)
    gradients = []
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(y**3)
        gradients.append([y, *tape.gradient(loss, [w.value for w in layer.trainable_weights])])
    for a, b in zip(*gradients, strict=True):
        # Float32 sums in two orders, relative to the largest value.
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def test_dense_is_block_diagonal():
    layer = CollegialDense(12, cardinality=4)
    x = tf.random.stateless_normal((5, 8), (1, 2))
    y = layer(x)
    whole = np.zeros((8, 12))
    for path in range(4):
        whole[2 * path : 2 * path + 2, 3 * path : 3 * path + 3] = layer.kernel.numpy()[path]
    np.testing.assert_allclose(y, x.numpy() @ whole, rtol=1e-5, atol=1e-6)


def test_one_path_is_keras_dense():
    layer = CollegialDense(3, activation="relu", bias_initializer="ones")
    x = tf.random.stateless_normal((5, 8), (1, 2))
    layer(x)
    dense = keras.layers.Dense(3, activation="relu")
    dense.build(x.shape)
    dense.set_weights(layer.get_weights())
    np.testing.assert_array_equal(layer(x), dense(x))


def test_low_rank_adaptation_is_that_of_keras_dense(rng):
    """Two paths are two layers of Keras: the same outputs after the same steps of training."""
    x, y = rng.normal(size=(6, 8)).astype("float32"), rng.normal(size=(6, 6)).astype("float32")
    ours = CollegialDense(6, cardinality=2)
    ours.build(x.shape)
    parts = [keras.layers.Dense(3) for _ in range(2)]
    for path, part in enumerate(parts):
        part.build((6, 4))
        part.set_weights([ours.kernel.numpy()[path], np.zeros(3)])
    for layer in (ours, *parts):
        layer.enable_lora(2, lora_alpha=3.0)
    for path, part in enumerate(parts):
        part.lora_kernel_a.assign(ours.lora_kernel_a.numpy()[path])
    assert [v.name for v in ours.trainable_variables] == [
        v.name for v in parts[0].trainable_variables
    ]

    def trained(layer, x, y):
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        # The mean is of twice as many numbers where both paths are together.
        model.compile(keras.optimizers.SGD(0.01 * y.shape[1]), "mse")
        model.fit(x, y, batch_size=6, epochs=5, verbose=0)
        return model.predict(x, verbose=0)

    expected = [
        trained(part, x[:, 4 * path : 4 * path + 4], y[:, 3 * path : 3 * path + 3])
        for path, part in enumerate(parts)
    ]
    np.testing.assert_allclose(trained(ours, x, y), np.hstack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"cardinality": 1}, {"shared_input": True}, {"aggregate": True}]
)
def test_low_rank_parts_begin_at_zero_whatever_the_layer_reads(options, rng):
    layer = CollegialDense(6, **{"cardinality": 2, **options})
    x = rng.normal(size=(3, 8)).astype("float32")
    before = layer(x).numpy()
    layer.enable_lora(2)
    np.testing.assert_array_equal(layer(x), before)
    layer.lora_kernel_b.assign(rng.normal(size=layer.lora_kernel_b.shape))
    assert abs(layer(x).numpy() - before).max() > 0


def test_what_low_rank_adaptation_learnt_is_saved(tmp_path, rng):
    x = rng.normal(size=(6, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), CollegialDense(6, cardinality=2, lora_rank=2)])
    model.layers[0].lora_kernel_b.assign(rng.normal(size=(2, 2, 3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    assert loaded.layers[0].lora_rank == 2


def test_aggregate_is_the_sum_over_the_root_of_the_number():
    x = np.arange(24, dtype="float32").reshape(2, 12)
    expected = x.reshape(2, 4, 3).sum(axis=1) / 2
    np.testing.assert_allclose(Aggregate(4)(x), expected)
    first = x.T[None]  # Channels on axis 1.
    np.testing.assert_allclose(Aggregate(4, axis=1)(first)[0], expected.T)


# Initial weights. ----------------------------------------------------------------------------


def moments(values):
    """Second and fourth moment, each with its standard error."""
    squares, fourths = values**2, values**4
    root = math.sqrt(values.size)
    return squares.mean(), squares.std() / root, fourths.mean(), fourths.std() / root


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize(
    ("build", "shape", "fan_in"),
    [
        (lambda **o: CollegialConv2D(400, 3, cardinality=10, **o), (1, 8, 8, 300), 270),
        (lambda **o: CollegialDense(2000, cardinality=10, **o), (1, 500), 50),
        (lambda **o: CollegialDense(2000, cardinality=10, shared_input=True, **o), (1, 50), 50),
    ],
    ids=["conv", "dense", "shared"],
)
def test_weights_are_untruncated_normals_of_variance_gain_over_the_paths_fan_in(
    build, shape, fan_in, gain
):
    keras.utils.set_random_seed(0)
    layer = build(gain=gain)
    layer.build(shape)
    assert layer.fan_in == fan_in
    weights = layer.kernel.numpy().ravel() * math.sqrt(fan_in / gain)
    second, second_error, fourth, fourth_error = moments(weights)
    # Five standard errors; a truncated normal's fourth moment would be 40 away.
    assert abs(second - 1) < 5 * second_error
    assert abs(fourth - 3) < 5 * fourth_error


@pytest.mark.parametrize("name", ["conv", "dense"])
def test_both_parameterisations_are_one_function_at_initialisation(name):
    x = tf.random.stateless_normal((3, 6, 6, 8), (1, 2))
    build = {
        "conv": lambda **o: CollegialConv2D(12, 3, cardinality=4, **o),
        "dense": lambda **o: CollegialDense(12, cardinality=4, **o),
    }[name]
    standard, ntk = build(), build(parameterization="ntk")
    standard.build(x.shape)
    ntk.build(x.shape)
    scale = math.sqrt(2 / ntk.fan_in)
    standard.kernel.assign(scale * ntk.kernel)
    np.testing.assert_allclose(standard(x), ntk(x), rtol=1e-4, atol=1e-5)
    # Unit normals: the scale is in the forward pass.
    second, error, *_ = moments(ntk.kernel.numpy().ravel())
    assert abs(second - 1) < 5 * error


def test_paths_are_independent_even_with_an_integer_seed():
    layer = CollegialDense(12, 4, kernel_initializer=kernel_initializer(seed=3))
    layer.build((None, 8))
    paths = layer.kernel.numpy()
    assert len({path.tobytes() for path in paths}) == 4


def test_the_same_seed_gives_the_same_weights():
    kernels = []
    for _ in range(2):
        layer = CollegialConv2D(12, 3, cardinality=4, kernel_initializer=kernel_initializer(seed=3))
        layer.build((None, 8, 8, 8))
        kernels.append(layer.kernel.numpy())
    np.testing.assert_array_equal(*kernels)


def test_any_initializer_sees_one_path():
    layer = CollegialDense(12, 4, kernel_initializer=keras.initializers.Orthogonal(seed=1))
    layer.build((None, 12))
    for path in layer.kernel.numpy():
        np.testing.assert_allclose(path @ path.T, np.eye(3), atol=1e-5)
    seen = []

    def recorded(shape, dtype=None):
        seen.append(tuple(shape))
        return ops.zeros(shape, dtype)

    for_each_path(recorded, 5, (3, 3, 2, 4), ops.stack)((5, 3, 3, 2, 4))
    assert seen == [(3, 3, 2, 4)] * 5


# Saving. -------------------------------------------------------------------------------------

LOAD = """
import sys, numpy as np
import ce_keras            # nothing else of ours
import keras
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


def test_keras_file_loads_in_a_fresh_process_that_only_imports_the_package(tmp_path, rng):
    image = keras.Input((8, 8, 3))
    x = CollegialConv2D(8, 3, cardinality=2, shared_input=True, activation="relu")(image)
    x = CollegialConv2D(8, 3, cardinality=2, parameterization="ntk")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = CollegialDense(6, cardinality=2)(x)
    model = keras.Model(image, Aggregate(2)(x))
    batch = rng.standard_normal((4, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", batch)
    model.save(tmp_path / "model.keras")
    files = [str(tmp_path / name) for name in ("model.keras", "x.npy", "y.npy")]
    fresh.run(["-c", LOAD, *files])
    ours = model.predict(batch, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), ours, rtol=1e-5, atol=1e-6)


def test_saved_model_export_has_no_xla_op_and_equal_outputs(tmp_path, rng):
    model = keras.Sequential([keras.Input((8, 8, 6)), CollegialConv2D(6, 3, cardinality=3)])
    model.export(tmp_path / "saved", verbose=False)
    content = (tmp_path / "saved" / "saved_model.pb").read_bytes()
    assert b"XlaMustCompile" not in content.replace(b"_XlaMustCompile\x12\x02(\x00", b"")
    batch = rng.standard_normal((2, 8, 8, 6)).astype("float32")
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(batch), model(batch), rtol=1e-5, atol=1e-6)


def test_the_summary_of_a_model_shows_the_paths():
    model = keras.Sequential([keras.Input((8, 8, 6))])
    model.add(CollegialConv2D(12, 3, cardinality=3))
    model.add(CollegialConv2D(12, 3, cardinality=3))
    model.add(CollegialDense(8, 4, aggregate=True))
    model.add(CollegialDense(8, 4, name="mine"))
    lines = []
    model.summary(print_fn=lines.append, line_length=100)
    names = [layer.name for layer in model.layers]
    assert names[0].startswith("collegial_conv2d_3x4d")
    assert names[1].startswith("collegial_conv2d_3x4d_")
    assert names[2].startswith("collegial_dense_4x8d")
    assert names[3] == "mine"
    assert all(name in "".join(lines) for name in names)


# Bad input. ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CollegialConv2D(10, 3, cardinality=3), "filters, cardinality: got 10, 3"),
        (lambda: CollegialConv2D(10, 3, cardinality=0), "cardinality: got 0"),
        (lambda: CollegialConv2D(10, 3, groups=2), "groups: this layer calls it `cardinality`"),
        (lambda: CollegialConv2D(10, 3, implementation="xla"), "implementation: got 'xla'"),
        (lambda: CollegialConv2D(10, 3, parameterization="mup"), "parameterization: got 'mup'"),
        (lambda: CollegialDense(10, cardinality=3), "units, cardinality: got 10, 3"),
        (lambda: CollegialDense(10, 2)(tf.ones((1, 5))), "2 paths, which must divide"),
        (lambda: Aggregate(0), "cardinality: got 0"),
        (lambda: Aggregate(3)(tf.ones((1, 5))), "sums 3 paths, which must divide axis -1"),
    ],
)
def test_bad_input_says_what_would_be_right(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shared", [False, True])
def test_a_constraint_and_a_penalty_are_each_paths_own(shared):
    layer = CollegialDense(
        12, 4, kernel_constraint="unit_norm", kernel_regularizer="l2", shared_input=shared
    )
    layer.build((None, 8))
    kernel = layer.kernel.constraint(layer.kernel.value).numpy()
    columns = kernel if shared else np.moveaxis(kernel, 0, 1).reshape(2, 12)
    np.testing.assert_allclose((columns**2).sum(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(layer.losses[0], 0.01 * (layer.kernel.numpy() ** 2).sum(), rtol=1e-5)


def test_a_penalty_of_a_matrix_is_summed_over_the_paths():
    penalty = keras.regularizers.OrthogonalRegularizer(0.1)
    layer = CollegialDense(12, 4, kernel_regularizer=penalty)
    layer.build((None, 8))
    expected = sum(penalty(path) for path in layer.kernel.value)
    np.testing.assert_allclose(layer.losses[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (lambda: CollegialConv2D(8, 3, cardinality=2.0), None, "cardinality: got 2.0"),
        (lambda: CollegialConv2D(8, 3, cardinality=2), (None, 9, 9, None), "2 paths.*channels"),
        (lambda: CollegialConv2D(8, 3, cardinality=2), (None, 9, 9, 5), "2 paths.*channels"),
        (lambda: Aggregate(2.0), None, "cardinality: got 2.0"),
        (lambda: Aggregate(2, axis=7), (None, 4), "must divide axis 7"),
    ],
)
def test_what_does_not_fit_is_named(build, shape, message):
    with pytest.raises(ValueError, match=message):
        build().build(shape)


def test_positional_arguments_are_those_of_conv2d():
    assert CollegialConv2D(8, 3, 2).strides == (2, 2)


# Quantisation. -------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_int8_is_keras_own_of_every_path(parameterization, rng, tmp_path):
    x = tf.constant(rng.normal(size=(7, 5, 16)), tf.float32)
    layer = CollegialDense(24, 4, parameterization=parameterization, use_bias=False)
    model = keras.Sequential([keras.Input((5, 16)), layer])
    exact, kernels = model(x), layer.kernel.numpy()
    layer.quantize("int8")
    paths = []
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours = model(x)
        for images, kernel in zip(tf.split(x, 4, -1), kernels, strict=True):
            one = keras.layers.Dense(6, use_bias=False)
            one.build((None, 4))
            one.set_weights([kernel])
            one.quantize("int8")
            paths.append(one(images))
        theirs = tf.concat(paths, -1)
        if parameterization == "ntk":
            theirs *= math.sqrt(2 / 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    gradients = [tape.gradient(each, x) for each in (ours, theirs)]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-5)
    # Steps of 1/127 of the largest: a uniform error of a third of that, in weights and inputs.
    assert np.std(ours - exact) < 0.02 * np.std(exact)
    assert layer._kernel.dtype == "int8"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), ours)


def test_layers_that_cannot_be_quantised_say_why():
    convolution = CollegialConv2D(4, 3, cardinality=2, name="conv")
    model = keras.Sequential([keras.Input((4, 4, 2)), convolution, CollegialDense(4, 2, name="d")])
    with pytest.warns(UserWarning, match="quanti") as said:
        model.quantize("int4")
    words = " ".join(str(each.message) for each in said)
    assert "'conv' keeps its floats, as every convolution does in Keras' quantize" in words
    assert "'d' keeps its floats: it is quantised in mode 'int8'" in words
