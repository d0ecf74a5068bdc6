"""The kernel layer by layer: one forward and one backward pass, and each layer's share.

From a layer's input and its backward signal (see `ce_keras.ntk.records`) follows what its variables
add to the kernel, without forming a jacobian of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.axes import OutputAxes
from ce_keras.ntk.graphs import compiled, traced
from ce_keras.ntk.records import Recorder
from ce_keras.ntk.shares import Share, one_by_one, together, wide

# Graphs that an engine keeps, each for one number of examples.
_MOST_GRAPHS = 8


class StructuredEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: which entries of the kernel are asked for.
        examples: a few inputs to try the rules on: the variables whose share is not the tape's
            are left to the tape.

    Attributes:
        by_tape: the variables that are left to the tape.
        numbers_per_example: about how many numbers are held for one example.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes, examples: Any
    ) -> None:
        self._model = model
        self.axes = axes
        self._variables = list(variables)
        # A graph does not know its value. What follows from constants alone, like the last layer's
        # signals, would be computed when the graph is made, and kept.
        self._one = tf.Variable(1.0, trainable=False)
        self._recorder = Recorder(model, variables)
        self.by_tape = self._disagreeing(examples)
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self._fresh = True

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """The kernel as `OutputAxes.restore` orders it; `x2` is `None` for the same inputs.

        The first kernel of one output is computed as it comes: tracing pays later on.
        """
        as_it_comes, self._fresh = self._fresh and self.axes.total == 1, False
        if as_it_comes:
            return self._kernel(x1, x2)
        flat = [x for x in tf.nest.flatten((x1, x2)) if x is not None]
        key = (x2 is None, *((x.dtype, *x.shape) for x in flat))
        # Oldest first: of many sizes only the last few are kept.
        graph = self._graphs.pop(key, None) or self._trace((x1, x2))
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph(*flat)

    def _trace(self, inputs: Any) -> Callable[..., Any]:
        """The kernel for inputs of these shapes as a graph, of the inputs that are not `None`."""
        flat = tf.nest.flatten(inputs)

        def compute(*tensors: Any) -> Any:
            given = iter(tensors)
            packed = [None if x is None else next(given) for x in flat]
            return self._kernel(*tf.nest.pack_sequence_as(inputs, packed))

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in flat if x is not None]
        return compiled(traced(compute, specs), specs)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        same = self.axes.same_examples

        def arrange(outputs: Any) -> Any:
            return self.axes.arrange(outputs) * tf.cast(self._one, outputs.dtype)

        def shares(x: Any) -> Iterator[Share]:
            for layer in self._recorder.shares(x, arrange, self.axes.counts, self.by_tape):
                yield from together([share for _, share in layer])

        first = shares(x1)
        pairs = ((a, a) for a in first) if x2 is None else zip(first, shares(x2), strict=True)
        kernel = one_by_one(a.gram(b, same) for a, b in pairs)
        if kernel is None:  # The model does not use these variables.
            n1, n2 = (tf.nest.flatten(x)[0].shape[0] for x in (x1, x1 if x2 is None else x2))
            return tf.zeros(self.axes.kernel_shape(n1, n2), self.axes.dtype)
        traced_outputs = self.axes.counts[0]
        return self.axes.restore(kernel / traced_outputs if traced_outputs > 1 else kernel)

    def _disagreeing(self, examples: Any) -> list[Any]:
        """The variables whose share is not what the tape says, on a few examples.

        Rules see only the layers that have one. A variable that is used anywhere else, by a custom
        layer or a second time past its layer, would be short of a part of its share. What is
        compared is the squared length of the gradient of a random combination of all outputs: by
        the tape, and as the sum of all entries of a kernel.
        """
        perturbed = _perturbed(self._model)
        values = [perturbed.get(id(v), tf.convert_to_tensor(v.value)) for v in self._variables]
        everywhere = [(v, perturbed[id(v)]) for v in self._model.trainable_variables]

        def project(outputs: Any) -> Any:
            weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
            flat = tf.reshape(tf.cast(outputs, tf.float32) * weights, [outputs.shape[0], -1])
            return tf.reduce_sum(flat, axis=1, keepdims=True)

        def combination(values: Sequence[Any]) -> Any:
            mapping = [*everywhere, *zip(self._variables, values, strict=True)]
            with keras.StatelessScope(state_mapping=mapping):
                return tf.reduce_sum(project(self._model(examples, training=False)))

        expected = _squared_lengths(combination, values)
        with keras.StatelessScope(state_mapping=everywhere):
            shares = dict(
                chain.from_iterable(self._recorder.shares(examples, project, (1, 1, 1), []))
            )
        numbers = sum(share.held for share in shares.values())
        numbers += max((share.working for share in shares.values()), default=0)
        count = tf.nest.flatten(examples)[0].shape[0]
        self.numbers_per_example = max(1, self.axes.total * numbers // count)
        found = [
            float(tf.reduce_sum(share.gram(share, False))) if (share := shares.get(id(v))) else 0.0
            for v in self._variables
        ]
        half = any(layer.compute_dtype.endswith("16") for layer in leaves(self._model))
        tolerance = 3e-2 if half else 1e-3
        return [
            variable
            for variable, ours, tapes in zip(self._variables, found, expected, strict=True)
            if abs(ours - tapes) > tolerance * tapes + 1e-6 * tolerance * sum(expected)
        ]


def _perturbed(model: keras.Model) -> dict[int, Any]:
    """By its identity, every trainable variable's values, a little off its own.

    A gate that starts at zero hides what is behind it.
    """
    found = {}
    for index, variable in enumerate(model.trainable_variables):
        values = wide(tf.convert_to_tensor(variable.value))
        off = 0.1 * tf.sqrt(tf.reduce_mean(values**2)) + 0.1
        noise = tf.random.stateless_normal(values.shape, (0, index), dtype=values.dtype)
        found[id(variable)] = tf.cast(values + off * noise, variable.dtype)
    return found


def _squared_lengths(function: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> list[Any]:
    """The squared length of the function's gradient by each of its values.

    They are taken as the gradients are found, not of all gradients at the end: those are as many
    numbers as the model has weights.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        handles = [tf.zeros([], wide(value).dtype) for value in values]
        tape.watch(handles)
        result = function([_with_handle(*each) for each in zip(handles, values, strict=True)])
    zero = tf.UnconnectedGradients.ZERO
    return [float(length) for length in tape.gradient(result, handles, unconnected_gradients=zero)]


def _with_handle(handle: Any, value: Any) -> Any:
    """The value, as a function of a number: its gradient's squared length is that number's."""

    @tf.custom_gradient
    def unchanged(_: Any) -> Any:
        return value, lambda gradient: tf.reduce_sum(wide(tf.convert_to_tensor(gradient)) ** 2)

    return unchanged(handle)
