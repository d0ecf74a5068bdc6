"""A model keeps its engine, and gets another one when a setting has changed."""

import collections
import gc
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from kernel_models import agree, sequential

from ce_keras.ntk import (
    empirical_ntk,
)


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
    for step in range(1, 13):  # More than there are engines kept.
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
        value = value[0] if isinstance(value, list | tuple | collections.deque) else value
        if isinstance(value, Holder):
            return x * value.factor
        return value(x) if callable(value) else x * keras.ops.convert_to_tensor(value, x.dtype)


def change_in_place(layer):
    layer.value[0] = 3.0


class Slotted:
    """An object without a dictionary of its attributes."""

    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


class OfAClass:
    """An object whose setting is its class'."""

    factor = 2.0

    def __call__(self, x):
        return x * self.factor


def closing_over(setting):
    """A function with a setting of its own."""

    def scaled(x):
        return x * setting["factor"]

    scaled.setting = setting
    return scaled


CHANGES = {
    "a closure's value": (
        closing_over({"factor": 2.0}),
        lambda layer: layer.value.setting.update(factor=3.0),
    ),
    "a slot": (Slotted(2.0), lambda layer: setattr(layer.value, "factor", 3.0)),
    "a class' attribute": (OfAClass(), lambda _: setattr(OfAClass, "factor", 3.0)),
    "a queue in place": (collections.deque([2.0]), change_in_place),
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
def test_changed_settings_of_every_form_are_noticed(name, rng):
    value, change = CHANGES[name]
    layer = Holding(value)
    model = sequential((3,), layers.Dense(5), layer, layers.Dense(1))
    x = rng.normal(size=(4, 3)).astype("float32")
    for _ in range(2):  # As it comes, and traced.
        agree(model, x)
    change(layer)
    agree(model, x)


def test_statistics_that_are_adapted_again_are_noticed(rng):
    normalization = layers.Normalization()
    normalization.adapt(rng.normal(size=(50, 3)))
    model = sequential((3,), normalization, layers.Dense(5, "tanh"), layers.Dense(1))
    x = rng.normal(size=(4, 3)).astype("float32")
    for _ in range(2):
        agree(model, x)
    normalization.adapt(3 + 5 * rng.normal(size=(50, 3)))
    agree(model, x)


def test_a_changed_activation_object_or_list_of_the_model_is_noticed(rng):
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


def test_a_model_that_has_changed_gets_another_engine(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x)
    model.layers[0].activation = keras.activations.tanh
    agree(model, x)
    model.add(layers.Reshape((1, 2)))
    assert empirical_ntk(model, x).shape == (5, 5, 1, 1)


def test_threads_share_a_model(rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(2)])
    sizes = range(2, 10)
    x = rng.normal(size=(10, 4)).astype("float32")
    with ThreadPoolExecutor(4) as pool:
        kernels = list(pool.map(lambda n: empirical_ntk(model, x[:n]), sizes))
    whole = empirical_ntk(model, x, engine="tape")
    for n, kernel in zip(sizes, kernels, strict=True):
        np.testing.assert_allclose(kernel, whole[:n, :n], rtol=1e-4, atol=1e-5)


def test_a_layer_may_keep_a_tensor_of_its_last_call(rng):
    """Tracing leaves a tensor without values in the layer, and another one each time."""

    class Keeping(layers.Dense):
        def call(self, x, training=None):
            self.last = super().call(x, training)
            return self.last

    model = sequential((3,), Keeping(4, activation="tanh"), layers.Dense(2))
    x = rng.normal(size=(4, 3)).astype("float32")
    kernels = [empirical_ntk(model, x) for _ in range(4)]
    for kernel in kernels:
        np.testing.assert_allclose(kernel, kernels[0], rtol=1e-5)
    agree(model, x)
