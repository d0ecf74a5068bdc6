"""Kernels of given models: which variables count, in which mode, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from kernel_models import MODELS, agree, inputs, plain_loop, sequential, shaken

from ce_keras import zoo
from ce_keras.ntk import empirical_ntk


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


def test_half_precision_throughout(rng, tmp_path):
    """Variables of half precision have gradients too, also by tape."""

    class Scaled(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="uniform")

        def call(self, x):
            return x * self.scale

    for policy in ("bfloat16", "float16"):
        stack = [layers.Dense(6, "tanh", dtype=policy), Scaled(dtype=policy)]
        model = shaken(
            keras.Sequential([keras.Input((5,)), *stack, layers.Dense(2, dtype=policy)]), rng
        )
        x = rng.normal(size=(4, 5)).astype("float32")
        single = keras.Sequential(
            [keras.Input((5,)), layers.Dense(6, "tanh"), Scaled(), layers.Dense(2)]
        )
        single.set_weights([np.asarray(w, "float32") for w in model.get_weights()])
        for axes in ((-1,), ()):
            expected = empirical_ntk(single, x, trace_axes=axes, engine="tape")
            for engine in ("auto", "tape"):
                found = empirical_ntk(model, x, trace_axes=axes, engine=engine).astype("float32")
                np.testing.assert_allclose(found, expected, atol=0.05 * abs(expected).max())
        found = empirical_ntk(model, x, out=tmp_path / f"{policy}.npy")
        assert found.shape == (4, 4)


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
        ({"x1": x[:0]}, r"x1: got shapes \[\(0, 5\)\]"),
        ({"model": two}, "it has 2 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(**{"model": model, "x1": x, **arguments})


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


def test_a_model_that_was_changed_is_met_anew(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x)
    model.layers[0].activation = keras.activations.tanh
    agree(model, x)
    model.add(layers.Reshape((1, 2)))
    assert empirical_ntk(model, x).shape == (5, 5, 1, 1)


def test_long_texts_are_compared_a_few_at_a_time(rng, monkeypatch):
    ids = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(ids))
    model = keras.Model(ids, layers.Dense(3)(x))
    x1, x2 = (rng.integers(0, 9, (n, 6)) for n in (5, 4))
    whole = empirical_ntk(model, x1, x2, trace_axes=())
    monkeypatch.setattr("ce_keras.ntk.contractions._MOST_PAIRS", 2 * 6 * 4 * 6 * 9)
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
