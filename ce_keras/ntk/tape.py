"""The kernel by `tf.GradientTape` jacobians: slow, simple, and what faster engines are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from ce_keras.ntk.axes import OutputAxes, only_output
from ce_keras.ntk.pairs import Pairs
from ce_keras.ntk.shares import Gradients, wide


class TapeEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: which entries of the kernel are asked for.

    Attributes:
        numbers_per_example: how many numbers the gradients of one example have.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes) -> None:
        self._model = model
        self._variables = list(variables)
        self.axes = axes
        self.numbers_per_example = axes.total * sum(math.prod(v.shape) for v in variables)

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """The kernel as `OutputAxes.restore` orders it; `x2` is `None` for the same inputs."""
        first = self._jacobians(x1)
        second = first if x2 is None else self._jacobians(x2)
        pairs = Pairs(self.axes.same_examples)
        terms = [a.gram(b, pairs) for a, b in zip(first, second, strict=True)]
        return self.axes.restore(tf.add_n(terms) / self.axes.counts[0])

    def _jacobians(self, x: Any) -> list[Gradients]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            for variable in self._variables:
                tape.watch(variable.value)
            outputs = wide(self.axes.arrange(only_output(self._model(x, training=False))))
        return gradients_by_tape(tape, outputs, self._variables, self.axes.counts)


def gradients_by_tape(
    tape: tf.GradientTape, outputs: Any, variables: Sequence[Any], counts: Sequence[int]
) -> list[Gradients]:
    """The jacobians of arranged outputs `(N, total)`, one for each variable."""
    examples, total = outputs.shape
    values = [variable.value for variable in variables]
    zero = tf.UnconnectedGradients.ZERO
    if examples == total == 1:
        gradients = tape.gradient(outputs, values, unconnected_gradients=zero)
        jacobians = [tf.convert_to_tensor(gradient) for gradient in gradients]  # A table's: rows.
    elif any(value.dtype.size < 4 for value in values):
        jacobians = _by_rows(tape, outputs, values)
    else:
        # Vectorised, it is wrong through Keras' grouped convolutions.
        jacobians = tape.jacobian(
            outputs, values, unconnected_gradients=zero, experimental_use_pfor=False
        )
    return [
        Gradients(
            tf.reshape(
                tf.transpose(tf.reshape(wide(j), [examples, total, -1]), [1, 0, 2]),
                [*counts, examples, math.prod(variable.shape)],
            )
        )
        for j, variable in zip(jacobians, variables, strict=True)
    ]


def _by_rows(tape: tf.GradientTape, outputs: Any, values: Sequence[Any]) -> list[Any]:
    """Return the jacobians `(N, total, ...)`, an output at a time, in single precision.

    `tape.jacobian` fails where a variable is of half precision and the outputs are not.
    """
    zero = tf.UnconnectedGradients.ZERO

    def row(chosen: Any) -> list[Any]:
        seed = tf.reshape(chosen, outputs.shape)
        gradients = tape.gradient(
            outputs, values, output_gradients=seed, unconnected_gradients=zero
        )
        return [wide(tf.convert_to_tensor(gradient)) for gradient in gradients]

    count = outputs.shape.num_elements()
    kinds = [tf.TensorSpec(value.shape, wide(value).dtype) for value in values]
    return tf.map_fn(row, tf.eye(count, dtype=outputs.dtype), fn_output_signature=kinds)
