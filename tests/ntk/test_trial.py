"""What no rule covers is found on a few examples, and left to the tape."""

import keras
import numpy as np
import pytest
from keras import layers
from kernel_models import agree, inputs, ours, plain_loop, sequential, shaken

from ce_keras.ntk import empirical_ntk


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
