"""The kernel by jacobians of the whole model: slow, simple, the reference for the other engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from ce_keras.ntk.axes import OutputAxes, number_of_examples, only_output
from ce_keras.ntk.backends import backend, once
from ce_keras.ntk.contractions import Gradients, at_least_single

#: Turns a model's outputs into the numbers to differentiate, `(examples, total)`.
Arrange = Callable[[Any], Any]


class AutodiffEngine:
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
        self.kernel = once(self._kernel, model)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        """Return the kernel, axes in public order; `x2` is `None` for `x1` again."""
        first = self._jacobians(x1)
        second = first if x2 is None else self._jacobians(x2)
        grams = (a.gram(b, self.axes.same_examples) for a, b in zip(first, second, strict=True))
        kernel = sum(ops.cast(gram, self.axes.dtype.name) for gram in grams)
        return self.axes.restore(kernel / self.axes.counts[0])

    def _jacobians(self, x: Any) -> list[Gradients]:
        return jacobians(self._model, x, self._variables, self.axes.arrange, self.axes.counts)


def jacobians(
    model: keras.Model,
    x: Any,
    variables: Sequence[Any],
    arrange: Arrange,
    counts: Sequence[int],
) -> list[Gradients]:
    """Return the jacobian of a model's outputs by each variable.

    Args:
        model: a built Keras model.
        x: its inputs.
        variables: the variables to differentiate by.
        arrange: turns its outputs into the numbers to differentiate, `(examples, total)`.
        counts: the numbers of traced, diagonal and paired outputs.
    """

    def outputs(values: Sequence[Any]) -> Any:
        with stateless(model, variables, values):
            found = only_output(model(x, training=False))
        return at_least_single(ops.reshape(arrange(found), [-1]))

    rows = backend.jacobian(outputs, [variable.value for variable in variables])
    examples, total = number_of_examples(x), math.prod(counts)
    # (examples * total, *variable) to (traced, diagonal, paired, examples, parameters).
    return [
        Gradients(
            ops.reshape(
                ops.transpose(ops.reshape(row, [examples, total, -1]), [1, 0, 2]),
                [*counts, examples, math.prod(variable.shape)],
            )
        )
        for row, variable in zip(rows, variables, strict=True)
    ]


def stateless(
    model: keras.Model, variables: Sequence[Any] = (), values: Sequence[Any] = ()
) -> keras.StatelessScope:
    """Return a scope in which some of a model's variables have other values.

    The others have their present ones: those of the scope around it, which this one hides.
    """
    mapping = {id(variable): (variable, variable.value) for variable in model.variables}
    mapping.update((id(each[0]), each) for each in zip(variables, values, strict=True))
    return keras.StatelessScope(list(mapping.values()))
