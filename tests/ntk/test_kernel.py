from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ce_keras import zoo
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
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")  # The type of `keras.Input`.
    yield
    keras.config.set_dtype_policy(before)
    keras.config.set_floatx("float32")


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
    variables = model.trainable_variables if variables is None else variables
    rows = []
    for example in range(len(x)):
        row = []
        for output in range(int(np.prod(model.output_shape[1:]))):
            with tf.GradientTape() as tape:
                value = tf.reshape(model(x[example : example + 1], training=False), [-1])[output]
            gradients = tape.gradient(
                value, [v.value for v in variables], unconnected_gradients="zero"
            )
            row.append(
                np.concatenate([np.ravel(tf.convert_to_tensor(g).numpy()) for g in gradients])
            )
        rows.append(row)
    return np.array(rows)


def ours(caplog):
    return [record for record in caplog.records if record.name == "ce_keras"]


@every_model
def test_structured_is_the_plain_gradient_loop(name, float64, rng, caplog):
    model = shaken(MODELS[name](), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    scale = 1e-10 * abs(np.einsum("nok,nok->n", j1, j1)).max()
    for _ in range(2):  # As it comes, and traced.
        full = empirical_ntk(model, x1, x2, trace_axes=(), engine="structured")
        full = full.reshape(3, 2, j1.shape[1], j1.shape[1])
        np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), atol=scale)
        traced = empirical_ntk(model, x1, engine="structured")
        expected = np.einsum("nok,mok->nm", j1, j1) / j1.shape[1]
        np.testing.assert_allclose(traced, expected, atol=scale)
    assert not ours(caplog), "a rule was not used, or was wrong"


@pytest.mark.parametrize("name", ["dense", "conv2d_grouped", "collegial_conv", "embedding"])
def test_tape_is_the_plain_gradient_loop(name, float64, rng):
    model = shaken(MODELS[name](), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    full = empirical_ntk(model, x1, x2, trace_axes=(), engine="tape")
    np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), rtol=1e-9, atol=1e-9)


@every_model
def test_engines_agree_in_single_precision(name, rng):
    model = shaken(MODELS[name](), rng)
    x = inputs(model, 4, rng).astype("int32" if "embedding" in name else "float32")
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, tape, rtol=1e-4, atol=1e-5 * abs(tape).max())


AXES = [
    ((), ()),
    ((-1,), ()),
    ((1, 2), ()),
    ((), (2,)),
    ((1,), (2,)),
    ((2,), (1,)),
    ((), (1, 2)),
    ((-1,), (0,)),
    ((), (0,)),
    ((1,), (0, 2)),
]


@pytest.mark.parametrize("engine", ["structured", "tape"])
@pytest.mark.parametrize(("trace", "diagonal"), AXES)
def test_axes_are_those_of_the_jacobian(trace, diagonal, engine, float64, rng):
    model = shaken(
        sequential((6, 5), layers.Conv1D(3, 2, activation="tanh"), layers.Conv1D(2, 4)), rng
    )
    assert model.output_shape == (None, 2, 2)
    x1, x2 = inputs(model, 3, rng), inputs(model, 3, rng)
    j1, j2 = (plain_loop(model, x).reshape(3, 2, 2, -1) for x in (x1, x2))
    one, two, kept = "nabk", "mcdk", "nm"
    for axis, (first, second) in enumerate(["ac", "bd"], start=1):
        if axis in diagonal or axis in trace or axis - 3 in trace:
            two = two.replace(second, first)
        if axis in diagonal:
            kept += first
        elif axis not in trace and axis - 3 not in trace:
            kept += first + second
    if 0 in diagonal:
        two, kept = two.replace("m", "n"), kept.replace("m", "")
    expected = np.einsum(f"{one},{two}->{kept}", j1, j2) / 2 ** len(trace)
    kernel = empirical_ntk(model, x1, x2, trace, diagonal, engine=engine)
    np.testing.assert_allclose(kernel, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("trace", "diagonal"), [((-1,), ()), ((), ()), ((), (0,)), ((), (1,))])
def test_blocks_make_the_same_kernel(size, trace, diagonal, float64, rng):
    model = shaken(MODELS["conv2d"](), rng)
    x1, x2 = inputs(model, 5, rng), inputs(model, 5 if diagonal == (0,) else 4, rng)
    for second in (None, x2):
        whole = empirical_ntk(model, x1, second, trace, diagonal)
        blocks = empirical_ntk(model, x1, second, trace, diagonal, batch_size=size)
        np.testing.assert_allclose(blocks, whole, rtol=1e-9, atol=1e-9)


class Custom(layers.Layer):
    """A layer no rule knows, which also uses another layer's kernel."""

    def __init__(self, tied, **options):
        super().__init__(**options)
        self.tied = tied

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="uniform")

    def call(self, x):
        return keras.ops.matmul(x * self.scale, keras.ops.transpose(self.tied.kernel))


class Doubled(layers.Dense):
    """A subclass that computes something else than its parent."""

    def call(self, x):
        return super().call(x) + keras.ops.matmul(x**2, self.kernel)


def test_a_dead_first_example_hides_nothing(float64, rng):
    # On zeros the tied kernel's gradient is zero whichever of its uses is seen.
    tied = layers.Dense(4, "tanh", use_bias=False)
    model = sequential((5,), tied, Custom(tied), layers.Dense(2))
    x = inputs(model, 4, rng)
    x[0] = 0
    jacobian = plain_loop(model, x)
    assert not jacobian[0, :, :20].any()
    kernel = empirical_ntk(model, x, trace_axes=())
    np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian), atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "structured"])
def test_what_rules_do_not_cover_is_done_by_tape_and_said_once(engine, float64, rng, caplog):
    tied = layers.Dense(4, "tanh")
    model = shaken(sequential((5,), tied, Custom(tied), Doubled(3), layers.Dense(2)), rng)
    x = inputs(model, 3, rng)
    jacobian = plain_loop(model, x)
    for _ in range(2):
        kernel = empirical_ntk(model, x, trace_axes=(), engine=engine)
        np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian))
    (record,) = ours(caplog)
    for layer in model.layers[:3]:
        assert layer.name in record.getMessage()
    assert model.layers[3].name not in record.getMessage()


def test_some_variables_only(float64, rng):
    model = shaken(MODELS["residual"](), rng)
    chosen = [model.layers[1].kernel, model.layers[2].gamma]
    x = inputs(model, 3, rng)
    jacobian = plain_loop(model, x, chosen)
    for engine in ("structured", "tape"):
        kernel = empirical_ntk(model, x, trace_axes=(), engine=engine, variables=chosen)
        np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian))


def test_frozen_layers_do_not_count(float64, rng):
    model = shaken(MODELS["dense"](), rng)
    x = inputs(model, 3, rng)
    whole = empirical_ntk(model, x)
    model.layers[0].trainable = False
    jacobian = plain_loop(model, x, model.layers[1].trainable_variables)
    frozen = empirical_ntk(model, x)
    np.testing.assert_allclose(frozen, np.einsum("nok,mok->nm", jacobian, jacobian) / 3)
    assert (abs(whole - frozen) > 1e-6).all()


def test_new_weights_are_seen(float64, rng):
    model = MODELS["dense"]()
    x = inputs(model, 3, rng)
    for _ in range(3):
        shaken(model, rng)
        jacobian = plain_loop(model, x)
        expected = np.einsum("nok,mok->nm", jacobian, jacobian) / 3
        np.testing.assert_allclose(empirical_ntk(model, x), expected)


def test_dropout_and_normalisation_are_in_inference_mode(float64, rng):
    model = shaken(
        sequential((5,), layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5)), rng
    )
    x = inputs(model, 3, rng)
    kernels = [empirical_ntk(model, x) for _ in range(3)]
    np.testing.assert_array_equal(kernels[1], kernels[2])
    np.testing.assert_allclose(kernels[0], kernels[1])


def test_the_model_is_left_as_it_was(rng):
    model = MODELS["conv2d_grouped"]()
    x = inputs(model, 3, rng).astype("float32")
    attributes = [dict(vars(layer)) for layer in model.layers]
    before = model(x).numpy()
    empirical_ntk(model, x)
    assert [set(vars(layer)) for layer in model.layers] == [set(each) for each in attributes]
    assert all(layer.call.__self__ is layer for layer in model.layers)
    np.testing.assert_array_equal(model(x), before)


def test_mixed_precision(rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = shaken(MODELS["residual"](), rng)
    finally:
        keras.config.set_dtype_policy(before)
    x = inputs(model, 3, rng).astype("float32")
    kernel = empirical_ntk(model, x)
    assert kernel.dtype == np.float32
    jacobian = plain_loop(model, x)
    expected = np.einsum("nok,mok->nm", jacobian, jacobian) / 3
    # bfloat16 keeps eight bits.
    np.testing.assert_allclose(kernel, expected, rtol=0.05)


def test_several_inputs_by_name(float64, rng):
    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate()([layers.Dense(3, "tanh")(left), right])
    model = shaken(keras.Model({"left": left, "right": right}, layers.Dense(2)(x)), rng)
    x = {"left": rng.normal(size=(3, 3)), "right": rng.normal(size=(3, 4))}
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    np.testing.assert_allclose(fast, tape, rtol=1e-9)


def test_a_collegial_resnext(rng):
    model = zoo.resnext11(cardinality=2, width=3, seed=0, classifier_activation=None, classes=2)
    x = rng.normal(size=(2, 28, 28, 1)).astype("float32")
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    np.testing.assert_allclose(fast, tape, rtol=1e-3)


class Centred(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0)


def test_inputs_and_outputs_that_no_kernel_is_of(rng):
    image = keras.Input((3,))
    outputs = layers.Dense(2)(image)
    model = keras.Model(image, outputs)
    x = rng.normal(size=(4, 3)).astype("float32")
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match="x1: 1 of its 12 numbers are infinite or NaN"):
        empirical_ntk(model, x)
    with pytest.raises(ValueError, match="x2: 1 of its"):
        empirical_ntk(model, x[:1], x)
    total = keras.Model(image, keras.ops.sum(outputs))
    with pytest.raises(ValueError, match=r"shape \(\) for one example; their first axis must be"):
        empirical_ntk(total, x[:1])


def test_examples_that_interact_are_refused(rng):
    model = sequential((5,), layers.Dense(3), Centred(), layers.Dense(2))
    with pytest.raises(ValueError, match="changes with the other examples of its batch"):
        empirical_ntk(model, rng.normal(size=(4, 5)))
    with pytest.raises(ValueError, match="changes with the other examples of its batch"):
        empirical_ntk(model, rng.normal(size=(1, 5)))


def test_bad_arguments(rng):
    model = sequential((5,), layers.Dense(3), layers.Dense(2))
    other = sequential((5,), layers.Dense(3))
    image = keras.Input((5,))
    two = keras.Model(image, [layers.Dense(2)(image), layers.Dense(3)(image)])
    x = rng.normal(size=(4, 5)).astype("float32")
    for arguments, message in (
        ({"engine": "fast"}, "engine: got 'fast'"),
        ({"trace_axes": (2,)}, "trace_axes: got 2; the output has axes 0 to 1"),
        ({"trace_axes": (0,)}, "axis 0 is that of the examples"),
        ({"trace_axes": (-1,), "diagonal_axes": (1,)}, "in one of them at most"),
        ({"trace_axes": (1, -1)}, "an axis is named twice"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"variables": other.trainable_variables}, "are not variables of"),
        ({"variables": []}, "it must be a list of the model's"),
        ({"variables": 2 * model.trainable_variables}, "one is named twice"),
        ({"variables": [3]}, "are not variables of"),
        ({"x2": x[:3], "diagonal_axes": (0,)}, "x2: has 3 examples where x1 has 4"),
        ({"x1": x[:0]}, "x1: has .* examples"),
        ({"model": two}, "several outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(**{"model": model, "x1": x, **arguments})


def agree(model, x, **options):
    kernels = [empirical_ntk(model, x, engine=engine, **options) for engine in ("auto", "tape")]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-5 * abs(kernels[1]).max())


def test_variables_that_are_not_trained_count_where_they_are_asked_for(rng):
    norm = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), norm, layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x, variables=[norm.moving_mean, norm.gamma])
    agree(model, x, variables=[norm.moving_mean])


def test_variables_that_are_not_used_have_a_kernel_of_zeros(rng):
    spare = layers.Dense(3)
    spare.build((None, 2))

    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.spare = layers.Dense(2), spare

        def call(self, x):
            return self.one(inputs=x)

    model, x = Idle(), rng.normal(size=(3, 4)).astype("float32")
    model(x)
    agree(model, x)
    assert not empirical_ntk(model, x, variables=[spare.kernel]).any()


def test_a_gate_that_starts_at_zero_hides_nothing(rng):
    class Gated(layers.Layer):
        def __init__(self, dense):
            super().__init__()
            self.dense = dense

        def build(self, shape):
            self.gate = self.add_weight(shape=(), initializer="zeros", name="gate")

        def call(self, x):
            return self.dense(x) + self.gate * keras.ops.matmul(x, self.dense.kernel) ** 2

    model = keras.Sequential([keras.Input((4,)), Gated(layers.Dense(5)), layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x)
    model.layers[0].gate.assign(1.0)
    agree(model, x)


def test_a_model_that_was_changed_is_met_anew(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x)
    model.layers[0].activation = keras.activations.tanh
    agree(model, x)
    model.add(layers.Reshape((1, 2)))
    assert empirical_ntk(model, x).shape == (5, 5, 1, 1)


def test_layers_inside_loops_are_left_to_the_tape(rng):
    class Mapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return keras.ops.sum(keras.ops.map(self.dense, x), axis=1)

    model, x = Mapped(), rng.normal(size=(4, 2, 5)).astype("float32")
    model.dense.build((2, 5))
    model(x)
    agree(model, x)


def test_long_texts_are_compared_a_few_at_a_time(rng, monkeypatch):
    ids = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(ids))
    model = keras.Model(ids, layers.Dense(3)(x))
    x1, x2 = (rng.integers(0, 9, (n, 6)) for n in (5, 4))
    whole = empirical_ntk(model, x1, x2, trace_axes=())
    monkeypatch.setattr("ce_keras.ntk.shares._MOST_PAIRS", 2 * 6 * 4 * 6 * 9)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(empirical_ntk(again, x1, x2, trace_axes=()), whole, rtol=1e-5)


def test_threads_share_a_model(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(2)])
    sizes = range(2, 10)
    x = rng.normal(size=(10, 4)).astype("float32")
    with ThreadPoolExecutor(4) as pool:
        kernels = list(pool.map(lambda n: empirical_ntk(model, x[:n]), sizes))
    whole = empirical_ntk(model, x, engine="tape")
    for n, kernel in zip(sizes, kernels, strict=True):
        np.testing.assert_allclose(kernel, whole[:n, :n], rtol=1e-4, atol=1e-5)


def test_kernels_stay_the_same_as_they_are_traced_and_compiled(rng):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(40, "relu"), layers.Dense(3)])
    x = rng.normal(size=(6, 5)).astype("float32")
    for axes in ((-1,), ()):
        kernels = [empirical_ntk(model, x, trace_axes=axes) for _ in range(4)]
        for kernel in kernels[1:]:
            np.testing.assert_allclose(kernel, kernels[0], rtol=1e-4, atol=1e-5)


def test_ids_that_are_not_in_a_table_are_refused_however_often():
    ids = keras.Input((2,), dtype="int32")
    rows = layers.Embedding(5, 3, trainable=False)(ids)
    model = keras.Model(ids, layers.Dense(1)(layers.Flatten()(rows)))
    for _ in range(3):
        empirical_ntk(model, np.array([[0, 1], [2, 3]]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        empirical_ntk(model, np.array([[0, 1], [2, 99]]))
