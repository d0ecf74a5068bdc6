"""Cotangents are taken where they are needed, of layers that have the examples first."""

import keras
import numpy as np
import pytest
from keras import layers
from kernel_models import agree, flat, inputs, sequential

from ce_keras.ntk import (
    empirical_ntk,
)
from ce_keras.ntk.backends import backend


def test_cotangents_are_only_taken_of_the_layers_asked_for(monkeypatch, rng):
    recorded = []
    cotangents = backend.cotangents

    def counted(*arguments):
        found, kept = cotangents(*arguments)
        recorded.append(len(found))
        return found, kept

    monkeypatch.setattr(backend, "cotangents", counted)
    conv = layers.Conv2D(4, 2, groups=2)
    model = sequential((3, 3, 3), layers.Dense(4), *flat(conv))
    x = inputs(model, 3, rng).astype("float32")
    empirical_ntk(model, x, trace_axes=(), engine="structured", variables=[model.weights[-1]])
    assert set(recorded) == {1}


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
FEW_FIRST_AXES = ("position table", "learnt rows", "opposite order", "time-major of 3")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW_FIRST_AXES else pytest.mark.slow)
        for name in FIRST_AXES
    ],
)
def test_a_first_axis_as_long_as_the_batch_is_not_taken_for_the_examples(name, rng):
    shape, stack = FIRST_AXES[name]
    words = name.startswith("position table")
    model = keras.Sequential(
        [keras.Input(shape, dtype="int32" if words else "float32"), *stack, layers.Dense(2)]
    )
    x = rng.integers(0, 7, (7, *shape)) if words else rng.normal(size=(7, *shape))
    x = x.astype("int32" if words else "float32")
    whole = empirical_ntk(model, x, trace_axes=(), engine="tape")
    traced = np.einsum("nmoo->nm", whole) / 2

    def close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())

    for count in (1, 4, 7, 4):  # The first call with one example, as some people begin.
        first, last = x[:count], x[7 - count :]
        close(empirical_ntk(model, first), traced[:count, :count])
        close(empirical_ntk(model, first, x[:4]), traced[:count, :4])
        pairs = empirical_ntk(model, first, last, trace_axes=(), diagonal_axes=(0,))
        close(pairs, whole[range(count), range(7 - count, 7)])


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


def test_examples_that_are_equal_are_told_apart_by_others(rng):
    model = keras.Sequential(
        [keras.Input((3,)), Flipped(), layers.Dense(4, "tanh"), Flipped(), layers.Dense(2)]
    )
    x = rng.normal(size=(4, 3)).astype("float32")
    agree(model, np.repeat(x[:1], 4, 0))
    agree(model, x)
