"""What no rule covers is found on a few examples, and left to autodiff."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from kernel_models import agree, flat, inputs, ours, plain_loop, sequential, shaken

from ce_keras.ntk import NTKRegressor, empirical_ntk, ntk_vector_product
from ce_keras.ntk.structured import distinct_examples


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


class TokenAndPosition(layers.Layer):
    """Its position table has as many rows as there are positions: first axis, four."""

    def __init__(self, length=4):
        super().__init__()
        self.length = length
        self.token, self.position = layers.Embedding(7, 3), layers.Embedding(length, 3)

    def call(self, x):
        return self.token(x) + self.position(keras.ops.arange(self.length))


class Prototypes(layers.Layer):
    """A few learnt rows go through the same dense layer as the examples."""

    def __init__(self, count=4):
        super().__init__()
        self.count = count

    def build(self, shape):
        self.rows = self.add_weight(shape=(self.count, shape[-1]), initializer="normal")
        self.dense = layers.Dense(3, "tanh")
        self.dense.build(shape)

    def call(self, x):
        return keras.ops.matmul(self.dense(x), keras.ops.transpose(self.dense(self.rows)))


class OnePosition(layers.Layer):
    """A position table of shape (1, positions, channels): as many as one example."""

    def build(self, shape):
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="normal")
        self.dense = layers.Dense(shape[-1], "tanh")
        self.dense.build(shape)

    def call(self, x):
        return x + self.dense(self.table)


class Flipped(layers.Layer):
    """Examples in the opposite order: each is alone still, but in another row."""

    def call(self, x):
        return keras.ops.flip(x, 0)


class Rowwise(layers.Layer):
    """Time-major inside: the first axis is the time."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(5, "tanh")

    def call(self, x):
        return keras.ops.transpose(self.dense(keras.ops.transpose(x, (1, 0, 2))), (1, 0, 2))


FIRST_AXES = {
    "position table": ((4,), [TokenAndPosition(), layers.Flatten()]),
    "learnt rows": ((3,), [Prototypes()]),
    "one position": ((4, 3), [OnePosition(), layers.Flatten()]),
    "opposite order": ((3,), [Flipped(), layers.Dense(4, "tanh"), Flipped()]),
    "time-major": ((4, 3), [Rowwise(), layers.Flatten()]),
    # As long as the batch that the layers are traced with.
    "position table of 2": ((2,), [TokenAndPosition(2), layers.Flatten()]),
    "two learnt rows": ((3,), [Prototypes(2)]),
    "time-major of 2": ((2, 3), [Rowwise(), layers.Flatten()]),
    # As long as the one that they are verified with.
    "time-major of 3": ((3, 3), [Rowwise(), layers.Flatten()]),
}


@pytest.mark.parametrize("name", FIRST_AXES)
def test_a_first_axis_as_long_as_the_batch_is_not_taken_for_the_examples(name, rng):
    shape, stack = FIRST_AXES[name]
    words = name.startswith("position table")
    model = keras.Sequential(
        [keras.Input(shape, dtype="int32" if words else "float32"), *stack, layers.Dense(2)]
    )
    draw = (lambda n: rng.integers(0, 7, (n, *shape)).astype("int32")) if words else None
    x = draw(7) if draw else rng.normal(size=(7, *shape)).astype("float32")
    for count in (1, 4, 7, 4):  # The first call with one example, as some people begin.
        agree(model, x[:count])
        agree(model, x[:count], x2=x[:4])
        agree(model, x[:count], x2=x[7 - count :], trace_axes=(), diagonal_axes=(0,))


def test_every_layer_inside_a_loop_over_time_is_counted(rng):
    class Stepwise(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.head = layers.Dense(3, "tanh"), layers.Dense(2)

        def call(self, x):
            steps = keras.ops.map(self.dense, keras.ops.transpose(x, (1, 0, 2)))
            return self.head(keras.ops.sum(steps, axis=0))

    model, x = Stepwise(), rng.normal(size=(4, 2, 5)).astype("float32")
    for _ in range(2):  # As it comes, and traced.
        agree(model, x, trace_axes=())
        agree(model, x)


def test_a_model_that_treats_larger_batches_otherwise_is_left_to_the_tape(rng):
    class ByBatch(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, "tanh")

        def call(self, x):
            if x.shape[0] is None or x.shape[0] < 5:
                return self.dense(x)
            return self.dense(x[None])[0]

    model = keras.Sequential([keras.Input((3,)), ByBatch(), layers.Dense(2)])
    x = rng.normal(size=(6, 3)).astype("float32")
    agree(model, x[:4])
    agree(model, x)


def test_examples_are_verified_all_over_the_data(rng):
    class Rectified(layers.Layer):
        """Uses another layer's kernel where the first number is positive."""

        def __init__(self, tied):
            super().__init__()
            self.tied = tied

        def call(self, x):
            positive = keras.ops.cast(x[:, :1] > 0, x.dtype)
            return self.tied(x) + positive * keras.ops.tanh(x @ self.tied.kernel)

    model = sequential((3,), Rectified(layers.Dense(4)), layers.Dense(2))
    x = rng.normal(size=(9, 3)).astype("float32")
    agree(model, x[np.argsort(x[:, 0])])


def test_examples_that_are_equal_are_told_apart_by_others(rng):
    model = keras.Sequential(
        [keras.Input((3,)), Flipped(), layers.Dense(4, "tanh"), Flipped(), layers.Dense(2)]
    )
    x = rng.normal(size=(4, 3)).astype("float32")
    agree(model, np.repeat(x[:1], 4, 0))
    agree(model, x)


def test_distinct_examples_are_values_of_examples():
    x = np.array([[3, 1, 2], [3, 1, 2]])
    found = distinct_examples(tf.constant(x), 3).numpy().tolist()
    assert found == [[3, 1, 2], [2, 3, 1], [1, 2, 3]]
    words = distinct_examples(tf.constant(["one word"]), 3)
    assert words.numpy().tolist() == [b"one word"] * 3


@pytest.mark.parametrize("trace", [(-1,), ()])
def test_weights_that_are_made_at_the_first_call_are_in_the_first_kernel(trace, rng):
    x = rng.normal(size=(4, 3)).astype("float32")

    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = layers.Dense(4, "tanh"), layers.Dense(2)

        def call(self, x):
            return self.last(self.first(x))

    activated = layers.Dense(5, activation=layers.PReLU("ones"))
    for model in (sequential((3,), activated, layers.Dense(2)), Unbuilt()):
        first = empirical_ntk(model, x, trace_axes=trace)
        np.testing.assert_allclose(empirical_ntk(model, x, trace_axes=trace), first, rtol=1e-5)
        agree(model, x, trace_axes=trace)


def test_an_engine_is_not_used_again_for_another_setting(rng):
    class Scaled(layers.Layer):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.factor = 1.0

        def call(self, x):
            return x * self.factor

    model = sequential((3,), layers.Dense(5), Scaled(), layers.Dense(2))
    x = rng.normal(size=(4, 3)).astype("float32")
    for step in range(1, 31):
        model.layers[0].activation = lambda z, step=step: z * step
        gc.collect()
        agree(model, x)
    for step in range(1, 4):
        model.layers[1].factor = float(step)
        agree(model, x)
    assert len(vars(model)["_ce_keras_kernels"]) <= 8


class Holder:
    """An object with a setting, which can be called too."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class Holding(layers.Layer):
    """A layer of which `value` says what it does, in one of many forms."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self._hidden = None

    def call(self, x):
        value = self._hidden or self.value
        if isinstance(value, dict):
            value = value["factor"]
        value = value[0] if isinstance(value, list | tuple) else value
        if isinstance(value, Holder):
            return x * value.factor
        return value(x) if callable(value) else x * keras.ops.convert_to_tensor(value, x.dtype)


def change_in_place(layer):
    layer.value[0] = 3.0


CHANGES = {
    "a list": ([2.0], lambda layer: setattr(layer, "value", [3.0])),
    "a list in place": ([2.0], change_in_place),
    "a tuple of functions": ((abs,), lambda layer: setattr(layer, "value", (tf.tanh,))),
    "a dictionary": ({"factor": 2.0}, lambda layer: layer.value.update({"factor": 3.0})),
    "an array": (np.array(2.0), lambda layer: setattr(layer, "value", np.array(3.0))),
    "an array in place": (np.array([2.0]), change_in_place),
    "a tensor": (tf.constant(2.0), lambda layer: setattr(layer, "value", tf.constant(3.0))),
    "an object's attribute": (Holder(2.0), lambda layer: setattr(layer.value, "factor", 3.0)),
    "a private attribute": (2.0, lambda layer: setattr(layer, "_hidden", 3.0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_of_every_form_are_seen(name, rng):
    value, change = CHANGES[name]
    layer = Holding(value)
    model = sequential((3,), layers.Dense(5), layer, layers.Dense(1))
    x = rng.normal(size=(4, 3)).astype("float32")
    for _ in range(2):  # As it comes, and traced.
        agree(model, x)
    change(layer)
    agree(model, x)


def test_statistics_that_are_adapted_again_are_seen(rng):
    normalization = layers.Normalization()
    normalization.adapt(rng.normal(size=(50, 3)))
    model = sequential((3,), normalization, layers.Dense(5, "tanh"), layers.Dense(1))
    x = rng.normal(size=(4, 3)).astype("float32")
    for _ in range(2):
        agree(model, x)
    normalization.adapt(3 + 5 * rng.normal(size=(50, 3)))
    agree(model, x)


def test_an_activation_object_and_a_model_s_own_list_are_seen(rng):
    class Listed(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = layers.Dense(4, Holder(2.0)), layers.Dense(1)
            self.activations = [keras.ops.tanh]

        def call(self, x):
            return self.last(self.activations[0](self.first(x)))

    model, x = Listed(), rng.normal(size=(4, 3)).astype("float32")
    for _ in range(2):
        agree(model, x)
    model.activations[0] = keras.ops.relu
    agree(model, x)
    model.first.activation.factor = 5.0
    agree(model, x)


def test_a_model_that_has_not_changed_keeps_its_engine(rng):
    model = sequential((3,), layers.Dense(5, "relu"), layers.BatchNormalization(), layers.Dense(2))
    model.compile("sgd", "mse")
    x = rng.normal(size=(4, 3)).astype("float32")
    for _ in range(3):
        empirical_ntk(model, x)
        model.fit(x, np.zeros((4, 2)), verbose=0)
        model.predict(x, verbose=0)
    assert len(vars(model)["_ce_keras_kernels"]) == 1


def test_a_text_model_is_done_by_tape_and_said_once(caplog):
    words = layers.TextVectorization(output_sequence_length=2)
    words.adapt(["a b", "c d e"])
    model = keras.Sequential(
        [keras.Input((), dtype="string"), words, *flat(layers.Embedding(10, 3))]
    )
    for _ in range(2):
        agree(model, np.array(["a b", "c e", "d"]))
    (record,) = ours(caplog)
    assert "by tape" in record.getMessage()
    with pytest.raises(ValueError, match=r"engine: .* cannot be computed layer by layer"):
        empirical_ntk(model, np.array(["a b", "c e", "d"]), engine="structured")


@pytest.mark.parametrize("pack", [lambda y: {"out": y}, lambda y: [y]])
def test_one_output_inside_a_structure_is_that_output(pack, rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, pack(layers.Dense(2)(inputs)))
    x = rng.normal(size=(4, 3)).astype("float32")
    agree(model, x)
    product = ntk_vector_product(model, x, np.ones((4, 2)))
    full = empirical_ntk(model, x, trace_axes=())
    np.testing.assert_allclose(product, np.einsum("nmop->no", full), rtol=1e-5)
    assert NTKRegressor(model).fit(x, np.ones((4, 2))).predict(x).shape == (4, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tf.data.Dataset.range(3), "x1: got a tf.data.Dataset"),
        (np.full((4, 3), np.nan), "x1: 12 of its 12 numbers are infinite or NaN"),
        (np.ones((4, 3), complex), "x1: has complex numbers"),
        ("abc", "x1: got shapes"),
        (None, "x1: got None"),
        (np.ones((0, 3)), "x1: got shapes"),
    ],
)
def test_inputs_that_are_none_are_refused_by_name(wrong, message):
    model = sequential((3,), layers.Dense(2))
    for function in (empirical_ntk, lambda *a: ntk_vector_product(*a, np.ones((4, 2)))):
        with pytest.raises(ValueError, match=message):
            function(model, wrong)
    with pytest.raises(ValueError, match=message.replace("x1", "x")):
        NTKRegressor(model).fit(wrong, np.ones((4, 2)))
