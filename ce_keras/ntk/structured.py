"""The kernel layer by layer: one forward and one backward pass, and each layer's contribution.

1. *Record* (`ce_keras.ntk.recording`): the forward pass hands over the input of every layer, the
   backward pass the cotangents of its output.
2. *Contract* (`ce_keras.ntk.layer_rules`, `ce_keras.ntk.contractions`): from both follows what the
   layer's variables add to the kernel, without a jacobian of the model.
3. *Verify*, once and before the rest: on a few examples, every variable's contribution is compared
   with autodiff's. Rules see only the layers that have one. A variable that is used anywhere else,
   by a custom layer or a second time past its layer, would miss a part of its contribution; and a
   layer whose first axis is not the examples would have its gradients in the wrong rows. Such
   variables are left to autodiff.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.keras_internals import all_layers
from ce_keras.ntk.autodiff import TapeEngine
from ce_keras.ntk.axes import OutputAxes, examples_of, number_of_examples, only_output
from ce_keras.ntk.contractions import Contribution, at_least_single, merged, sum_in_turn
from ce_keras.ntk.recording import BatchAxisError, Recorder

# Graphs that an engine keeps, each for one number of examples.
_MOST_GRAPHS = 8

# Examples that rules are verified on. One alone may leave a layer dead, and has no other row that
# its gradient could be taken for.
_VERIFIED_ON = 3


class StructuredEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: the entries of the kernel that are asked for.
        examples: inputs, on a few of which the rules are verified.

    Attributes:
        by_tape: the variables that are left to autodiff.
        numbers_per_example: about how many numbers are held for one example.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes, examples: Any
    ) -> None:
        self.axes = axes
        self._recorder = Recorder(model, variables)
        self.by_tape, numbers = verify(model, variables, self._recorder, examples)
        self.numbers_per_example = max(1, axes.total * numbers)
        self._tape = TapeEngine(model, variables, axes)
        # A factor that a graph does not know. What follows from constants alone, like the last
        # layer's cotangents, would be computed when the graph is made, and kept.
        self._one = tf.Variable(1.0, trainable=False)
        # One for each number of examples, of which the last ones used are kept.
        self._graph_for = functools.lru_cache(_MOST_GRAPHS)(
            lambda *_: tf.function(self._kernel, autograph=False)
        )
        self._is_first = True

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """Return the kernel, axes in public order; `x2` is `None` for `x1` again.

        The first kernel of one output is computed without a graph: tracing takes a second or more,
        which pays from the second kernel on. All is done by autodiff where the model treats this
        number of examples otherwise than those of the verification.
        """
        as_graph = not self._is_first or self.axes.total > 1
        self._is_first = False
        sizes = [None if x is None else number_of_examples(x) for x in (x1, x2)]
        compute = self._graph_for(*sizes) if as_graph else self._kernel
        try:
            return compute(x1, x2)
        except BatchAxisError:
            return self._tape.kernel(x1, x2)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        first = self._contributions(x1)
        second = None if x2 is None else self._contributions(x2)
        pairs = ((a, a) for a in first) if second is None else zip(first, second, strict=True)
        kernel = sum_in_turn(a.gram(b, self.axes.same_examples) for a, b in pairs)
        if kernel is None:  # The model does not use these variables.
            sizes = [number_of_examples(x) for x in (x1, x1 if x2 is None else x2)]
            return tf.zeros(self.axes.kernel_shape(*sizes), self.axes.dtype)
        return self.axes.restore(kernel / self.axes.counts[0])

    def _contributions(self, x: Any) -> Iterator[Contribution]:
        def arrange(outputs: Any) -> Any:
            return self.axes.arrange(outputs) * tf.cast(self._one, outputs.dtype)

        for layer in self._recorder.contributions(x, arrange, self.axes.counts, self.by_tape):
            yield from merged([contribution for _, contribution in layer])


def verify(
    model: keras.Model, variables: Sequence[Any], recorder: Recorder, examples: Any
) -> tuple[list[Any], int]:
    """Return the variables whose contribution is not what autodiff says, and the memory of all.

    Every entry of each variable's own kernel is compared, for one random combination of the
    outputs of each example, with all variables a little off their values.

    Args:
        model: a built Keras model.
        variables: those whose contributions are wanted.
        recorder: of their contributions; it learns which layers have the examples first.
        examples: inputs, at least one.

    Returns:
        The variables to leave to autodiff; and how many numbers the contributions of one output
        hold for one example.
    """
    examples = distinct_examples(examples, _VERIFIED_ON)
    # Two batch sizes: an axis that is as long as one of them is not as long as the other.
    recorder.find_batch_first_layers(examples_of(examples, slice(_VERIFIED_ON - 1)))
    perturbed = _perturbed(model)
    everywhere = [(v, perturbed[id(v)]) for v in model.trainable_variables]
    own = [tf.convert_to_tensor(perturbed.get(id(v), v.value)) for v in variables]

    def combinations(values: Sequence[Any]) -> Any:
        mapping = [*everywhere, *zip(variables, values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping):
            return _combined(only_output(model(examples, training=False)))[:, 0]

    expected = _kernels_by_autodiff(combinations, own)
    with keras.StatelessScope(state_mapping=everywhere):
        contributions = recorder.batch_first_contributions(examples, _combined)
    found = np.zeros_like(expected)
    for index, variable in enumerate(variables):
        if contribution := contributions.get(id(variable)):
            found[index] = contribution.gram(contribution).numpy()[0, 0, :, 0]
    half = any(layer.compute_dtype.endswith("16") for layer in all_layers(model))
    tolerance = 3e-2 if half else 1e-3
    largest = abs(expected).max(axis=(1, 2))
    gap = abs(found - expected).max(axis=(1, 2))
    wrong = gap > tolerance * largest + 1e-6 * tolerance * largest.sum()
    held = sum(each.held for each in contributions.values())
    working = max((each.working for each in contributions.values()), default=0)
    by_tape = [v for v, is_wrong in zip(variables, wrong, strict=True) if is_wrong]
    return by_tape, (held + working) // _VERIFIED_ON


def _combined(outputs: Any) -> Any:
    """Return one random combination of the outputs of every example, `(examples, 1)`."""
    weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    flat = tf.reshape(tf.cast(outputs, tf.float32) * weights, [outputs.shape[0], -1])
    return tf.reduce_sum(flat, axis=1, keepdims=True)


def _perturbed(model: keras.Model) -> dict[int, Any]:
    """Return the values of every trainable variable, a little off, by the variable's identity.

    A gate that starts at zero hides what is behind it.
    """
    found = {}
    for index, variable in enumerate(model.trainable_variables):
        values = at_least_single(tf.convert_to_tensor(variable.value))
        off = 0.1 * tf.sqrt(tf.reduce_mean(values**2)) + 0.1
        noise = tf.random.stateless_normal(values.shape, (0, index), dtype=values.dtype)
        found[id(variable)] = tf.cast(values + off * noise, variable.dtype)
    return found


def _kernels_by_autodiff(
    function: Callable[[Sequence[Any]], Any], values: Sequence[Any]
) -> np.ndarray:
    """Return the kernel of each value's gradients, `(values, examples, examples)`.

    Its entries follow from the squared lengths of the gradients of single examples and of sums of
    two. Lengths are taken as gradients are found, so that no more than one is held: with all of
    them, the benchmark's dense network needs 1.6 times the memory.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        handles = [tf.zeros([], at_least_single(value).dtype) for value in values]
        tape.watch(handles)
        results = function([_with_handle(*each) for each in zip(handles, values, strict=True)])
        count = results.shape[0]
        pairs = [*itertools.combinations_with_replacement(range(count), 2)]
        sums = [results[i] if i == j else results[i] + results[j] for i, j in pairs]
    kernels = np.zeros((len(values), count, count))
    for (i, j), each in zip(pairs, sums, strict=True):
        squares = tape.gradient(each, handles, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        kernels[:, i, j] = [float(square) for square in squares]
    for i, j in itertools.combinations(range(count), 2):  # |a + b|^2 = |a|^2 + |b|^2 + 2 a b
        kernels[:, i, j] = (kernels[:, i, j] - kernels[:, i, i] - kernels[:, j, j]) / 2
        kernels[:, j, i] = kernels[:, i, j]
    return kernels


def _with_handle(handle: Any, value: Any) -> Any:
    """Return the value as a function of a number, whose gradient is its own, squared and summed."""

    @tf.custom_gradient
    def unchanged(_: Any) -> Any:
        return value, lambda gradient: tf.reduce_sum(
            at_least_single(tf.convert_to_tensor(gradient)) ** 2
        )

    return unchanged(handle)


def distinct_examples(x: Any, count: int) -> Any:
    """Return `count` examples that differ from each other where that can be had.

    They are taken from `x`; where its examples are too few or equal, the values of one are rolled
    along its last axis, so that they stay the values of an example: word numbers, pixels, words.
    """
    chosen: list[Any] = []
    rows = number_of_examples(x)
    # From all over: examples are often sorted.
    few, more = (np.linspace(0, rows - 1, number).astype(int).tolist() for number in (count, 9))
    own = (examples_of(x, slice(start, start + 1)) for start in dict.fromkeys(few + more))
    for candidate in itertools.chain(own, _rolled(examples_of(x, slice(1)))):
        if not any(_equal(candidate, other) for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    chosen += [chosen[0]] * (count - len(chosen))
    return tf.nest.map_structure(lambda *tensors: tf.concat(tensors, 0), *chosen)


def _rolled(example: Any) -> Iterator[Any]:
    """Give an example rolled along its last axis by one place, by two, and so on."""
    lengths = [tensor.shape[-1] for tensor in tf.nest.flatten(example) if tensor.shape.rank > 1]
    for shift in range(1, min(max(lengths, default=1), 10)):
        yield tf.nest.map_structure(
            lambda tensor, by=shift: tf.roll(tensor, by, -1) if tensor.shape.rank > 1 else tensor,
            example,
        )


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    return all(bool(tf.reduce_all(tf.equal(a, b))) for a, b in pairs)
