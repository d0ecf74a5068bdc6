"""FLOPs, against matrices counted by hand."""

import math

import keras
import pytest
from keras import layers

from ce_keras.layers.flops import flops


def stack():
    return [layers.Dense(6, "relu"), layers.Dense(5)]


def through(each_layer, x):
    for layer in each_layer:
        x = layer(x)
    return x


PER_ROW = 2 * (4 * 6 + 6 * 5)


@pytest.mark.parametrize("longer_first", [True, False])
def test_a_shared_layer_counts_at_every_call(longer_first):
    shared, row, rows = stack(), keras.Input((4,)), keras.Input((7, 4))
    order = [rows, row] if longer_first else [row, rows]
    model = keras.Model([row, rows], [through(shared, x) for x in order])
    assert flops(model) == 8 * PER_ROW


def test_calls_by_another_model_do_not_count():
    shared, rows = stack(), keras.Input((7, 4))
    keras.Model(rows, through(shared, rows))
    row = keras.Input((4,))
    assert flops(keras.Model(row, through(shared, row))) == PER_ROW


def test_a_model_inside_has_the_sizes_that_it_is_called_with():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    backbone = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    large, small = keras.Input((8, 8, 3)), keras.Input((4, 4, 3))
    together = layers.Add()([backbone(large), backbone(small)])
    model = keras.Model([large, small], layers.Dense(2)(together))
    assert flops(model) == 2 * (27 * 4 * (64 + 16) + 4 * 2)


def inner_of(*shapes):
    """A model of a dense layer for every input, of other sizes."""
    inputs = [keras.Input(shape, name=name) for name, shape in zip("za", shapes, strict=False)]
    outputs = [layers.Dense(2 + i)(x) for i, x in enumerate(inputs)]
    return keras.Model(inputs, outputs)


def test_inputs_of_a_model_inside_are_told_by_their_names():
    inner, few, many = inner_of((3, 4), (9, 4)), keras.Input((3, 4)), keras.Input((9, 4))
    model = keras.Model([few, many], inner({"z": few, "a": many}))
    assert flops(model) == 2 * (3 * 4 * 2 + 9 * 4 * 3)


def test_constants_are_inputs_too():
    inner, x = inner_of((3, 4), (9, 4)), keras.Input((9, 4))
    model = keras.Model(x, inner([keras.ops.zeros((1, 3, 4)), x]))
    assert flops(model) == 2 * (3 * 4 * 2 + 9 * 4 * 3)


def test_a_model_inside_knows_sizes_that_are_not_known_outside():
    inner, x = inner_of((3, 4)), keras.Input((None, 4))
    assert flops(keras.Model(x, inner(x))) == 2 * 3 * 4 * 2


def test_axes_of_length_one_that_keras_takes_away_are_none():
    inner = keras.Sequential([keras.Input((6,)), *stack()])
    x = keras.Input((6, 1))
    assert flops(keras.Model(x, inner(x))) == 2 * (6 * 6 + 6 * 5)


def distributed(times):
    """Apply dense layers at every step of a step."""
    inner = keras.Sequential([keras.Input((4,)), *stack()])
    for _ in range(times):
        inner = layers.TimeDistributed(inner)
    return inner


@pytest.mark.parametrize("steps", [(7,), (3, 5)])
def test_a_time_distributed_model_counts_at_every_step(steps):
    x = keras.Input((*steps, 4))
    model = keras.Model(x, distributed(len(steps))(x))
    assert flops(model) == math.prod(steps) * PER_ROW


def test_a_time_distributed_layer_counts_at_every_step():
    x = keras.Input((7, 4))
    assert flops(keras.Model(x, layers.TimeDistributed(layers.Dense(6))(x))) == 7 * 2 * 4 * 6


def test_an_unknown_number_of_steps_is_refused():
    model = keras.Sequential([keras.Input((None, 4)), layers.TimeDistributed(layers.Dense(5))])
    with pytest.raises(ValueError, match=r"model: dense.* unknown number of steps"):
        flops(model)


class Composite(layers.Layer):
    """Holds a layer, and calls it or not."""

    def __init__(self, inner, calls=True):
        super().__init__()
        self.inner, self.calls = inner, calls

    def call(self, x):
        return self.inner(x) if self.calls else x


def test_a_layer_that_another_refers_to_counts_at_its_own_calls():
    inner, x = keras.Sequential([keras.Input((4,)), *stack()]), keras.Input((4,))
    model = keras.Model(x, [inner(x), Composite(inner, calls=False)(x)])
    assert flops(model) == PER_ROW


@pytest.mark.parametrize("repeated", ["twice", "by step"])
def test_calls_inside_a_layer_of_the_users_own_are_not_guessed(repeated):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(6)])
    x = keras.Input((4,) if repeated == "twice" else (7, 4))
    composite = Composite(inner if repeated == "twice" else layers.TimeDistributed(inner))
    y = composite(x)
    if repeated == "twice":
        y = layers.Add()([y, composite(keras.ops.flip(x, 1))])
    with pytest.raises(ValueError, match=r"FLOPs of dense.* are not known: how often 'composite"):
        flops(keras.Model(x, y))


class WithPenalty(layers.Dense):
    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        return {"penalty": shape[:-1], "y": shape}

    def call(self, x):
        y = super().call(x)
        return {"penalty": keras.ops.mean(y, -1), "y": y}


def test_outputs_of_a_subclass_are_not_guessed():
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="it gives several outputs"):
        flops(keras.Model(x, WithPenalty(3)(x)["y"]))


def test_nothing_is_added_to_the_models_graph():
    shared, row = stack(), keras.Input((4,))
    model = keras.Model(row, through(shared, row))
    flops(model)
    assert shared[0].output is shared[0].output
    assert model.layers[1].output.shape == (None, 6)
