"""Rules are verified against autodiff, which does whatever no rule covers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from kernel_models import agree, flat, inputs, ours, plain_loop, sequential, shaken

from ce_keras.layers.keras_internals import unlocked
from ce_keras.ntk import (
    empirical_ntk,
)
from ce_keras.ntk.structured import distinct_examples


@pytest.mark.parametrize("trace", [(), (1,)])
def test_symmetric_kernels_of_many_outputs_are_the_tapes(trace, float64, rng):
    model = sequential((3,), layers.Dense(24), layers.Reshape((2, 3, 4)), layers.Dense(5))
    x = inputs(model, 30, rng)
    halves, tape = (
        empirical_ntk(model, x, trace_axes=trace, engine=engine)
        for engine in ("structured", "tape")
    )
    np.testing.assert_allclose(halves, tape, rtol=1e-9, atol=1e-9)
    every = empirical_ntk(model, x, x.copy(), trace_axes=trace, engine="structured")
    np.testing.assert_allclose(halves, every, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_kernels_of_many_examples_are_those_of_the_plain_gradient_loop(outputs, float64, rng):
    model = shaken(sequential((2,), layers.Dense(4200, "tanh"), layers.Dense(outputs)), rng)
    x = inputs(model, 260, rng)
    jacobian = plain_loop(model, x)
    kernel = empirical_ntk(model, x, engine="structured")
    np.testing.assert_allclose(kernel, np.einsum("nok,mok->nm", jacobian, jacobian) / outputs)


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


def test_rules_are_verified_although_the_first_example_is_dead(float64, rng):
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
def test_variables_that_no_rule_covers_are_left_to_the_tape(engine, float64, rng, caplog):
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


def test_rules_are_verified_although_a_gate_is_zero(rng):
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


def test_a_slope_that_was_dead_when_rules_were_verified_counts_later(float64, rng):
    hidden = layers.Dense(6, kernel_initializer="ones", bias_initializer="ones")
    model = sequential((4,), hidden, layers.PReLU(), layers.Dense(2))
    x = rng.uniform(0.1, 1, (4, 4))
    agree(model, x)
    hidden.set_weights([rng.normal(size=(4, 6)), np.zeros(6)])
    agree(model, x)


def test_a_slope_of_a_layers_activation_that_was_dead_counts_later(float64, rng):
    hidden = layers.Dense(6, layers.PReLU(), kernel_initializer="ones", bias_initializer="ones")
    model = sequential((4,), hidden, layers.Dense(2))
    x = rng.uniform(0.1, 1, (4, 4))
    agree(model, x)
    kernel, bias, *slope = hidden.get_weights()
    hidden.set_weights([rng.normal(size=kernel.shape), 0 * bias, *slope])
    agree(model, x)


def called_at_many_and_at_one(layer, shape):
    """A layer at several positions, and again at one."""
    x = keras.Input(shape)
    pool = layers.GlobalAveragePooling1D(keepdims=len(shape) > 1 and layer.name == "conv")
    return keras.Model(x, layer(pool(layer(x))))


@pytest.mark.parametrize(
    "layer", [layers.Dense(2, name="dense"), layers.Conv1D(2, 1, name="conv")], ids=str
)
def test_layers_are_called_at_many_positions_and_at_one(layer, float64, rng, caplog):
    agree(called_at_many_and_at_one(layer, (3, 2)), rng.normal(size=(4, 3, 2)))
    assert not caplog.records


def test_a_variable_of_two_kinds_of_layers(float64, rng):
    table, last = layers.Embedding(5, 4), layers.Dense(4, use_bias=False)
    words = keras.Input((3,), dtype="int32")
    found = layers.Dense(5)(layers.GlobalAveragePooling1D()(table(words)))
    last.build((None, 5))
    with unlocked(last):
        last._kernel = table._embeddings
    agree(keras.Model(words, last(found)), rng.integers(0, 5, (4, 3)))


@pytest.mark.parametrize("engine", ["structured", "autodiff"])
def test_layers_of_several_precisions(engine, rng):
    model = sequential((3,), layers.Dense(4, "tanh", dtype="float64"), layers.Dense(2))
    x = rng.normal(size=(4, 3)).astype("float32")
    jacobian = plain_loop(model, x)
    kernel = empirical_ntk(model, x, engine=engine)
    expected = np.einsum("nok,mok->nm", jacobian, jacobian) / 2
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_without_examples_first_that_was_dead_counts_later(float64, rng):
    class Transposed(layers.Layer):
        """Applies a layer to the features, as if they were the examples."""

        def __init__(self, dense):
            super().__init__()
            self.dense = dense
            self.gate = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def build(self, shape):
            self.dense.build((shape[-1], 1))

        def call(self, x):
            columns = keras.ops.reshape(keras.ops.transpose(x), (x.shape[-1], -1, 1))
            return x + self.gate * keras.ops.transpose(self.dense(columns)[..., 0])

    model = sequential((5,), layers.Dense(4), Transposed(layers.Dense(1)), layers.Dense(2))
    x = rng.normal(size=(3, 5))
    agree(model, x)
    model.layers[1].gate.assign(1.0)
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


def test_distinct_examples_are_values_of_examples():
    x = np.array([[3, 1, 2], [3, 1, 2]])
    found = distinct_examples(tf.constant(x), 3).numpy().tolist()
    assert found == [[3, 1, 2], [2, 3, 1], [1, 2, 3]]
    words = distinct_examples(tf.constant(["one word"]), 3)
    assert words.numpy().tolist() == [b"one word"] * 3


def test_a_text_model_is_left_to_the_tape_with_one_warning(caplog):
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


def test_eager_and_traced_kernels_are_the_same(rng):
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
