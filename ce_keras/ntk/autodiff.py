"""The kernel by `tf.GradientTape` jacobians: slow, simple, the reference for the other engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ce_keras.ntk.axes import OutputAxes, only_output
from ce_keras.ntk.contractions import Gradients, at_least_single


class TapeEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: the entries of the kernel that are asked for.

    Attributes:
        numbers_per_example: the number of entries of one example's jacobian.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes) -> None:
        self._model = model
        self._variables = list(variables)
        self.axes = axes
        self.numbers_per_example = axes.total * sum(math.prod(v.shape) for v in variables)

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """Return the kernel, axes in public order; `x2` is `None` for `x1` again."""
        first = self._jacobians(x1)
        second = first if x2 is None else self._jacobians(x2)
        terms = [a.gram(b, self.axes.same_examples) for a, b in zip(first, second, strict=True)]
        return self.axes.restore(tf.add_n(terms) / self.axes.counts[0])

    def _jacobians(self, x: Any) -> list[Gradients]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in self._variables])
            outputs = self.axes.arrange(only_output(self._model(x, training=False)))
            outputs = at_least_single(outputs)
        return jacobians(tape, outputs, self._variables, self.axes.counts)


def jacobians(
    tape: tf.GradientTape, outputs: Any, variables: Sequence[Any], counts: Sequence[int]
) -> list[Gradients]:
    """Return the jacobian of outputs by each variable, one output after another.

    `tape.jacobian` fails where a variable is of half precision and the outputs are not; and
    vectorised, it is wrong through Keras' grouped convolutions.

    Args:
        tape: a persistent tape.
        outputs: as `OutputAxes.arrange` gives them, `(examples, total)`.
        variables: the variables to differentiate by.
        counts: the numbers of traced, diagonal and paired outputs.
    """
    examples, total = outputs.shape
    values = [variable.value for variable in variables]

    def gradients(one_hot: Any) -> list[Any]:
        found = tape.gradient(
            outputs,
            values,
            output_gradients=tf.reshape(one_hot, outputs.shape),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # A table's gradient comes as rows.
        return [at_least_single(tf.convert_to_tensor(gradient)) for gradient in found]

    one_hots = tf.eye(examples * total, dtype=outputs.dtype)
    if examples == total == 1:
        rows = [gradient[None] for gradient in gradients(one_hots)]
    else:
        specs = [tf.TensorSpec(value.shape, at_least_single(value).dtype) for value in values]
        rows = tf.map_fn(gradients, one_hots, fn_output_signature=specs)
    # (examples * total, *variable) to (traced, diagonal, paired, examples, parameters).
    return [
        Gradients(
            tf.reshape(
                tf.transpose(tf.reshape(row, [examples, total, -1]), [1, 0, 2]),
                [*counts, examples, math.prod(variable.shape)],
            )
        )
        for row, variable in zip(rows, variables, strict=True)
    ]


def traced(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """Return a function of tensors as a graph for these shapes."""
    return tf.function(function, autograph=False).get_concrete_function(*specs)
