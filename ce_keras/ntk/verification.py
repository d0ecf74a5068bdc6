"""Verification of the layer rules against autodiff, on a few examples.

Rules see only the layers that have one. A variable that is used anywhere else, by a custom layer or
a second time past its layer, would miss a part of its contribution; and a layer whose first axis is
not the examples would have its gradients in the wrong rows. Both show in the entries of the
variable's kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.axes import only_output
from ce_keras.ntk.pairs import Pairs
from ce_keras.ntk.records import Recorder
from ce_keras.ntk.shares import wide

# Examples that rules are verified on. One alone may leave a layer dead, and has no other row that
# its gradient could be taken for.
_EXAMPLES = 3


def verify(
    model: keras.Model, variables: Sequence[Any], recorder: Recorder, examples: Any
) -> tuple[list[Any], int]:
    """Return the variables whose contribution is not what autodiff says, and the memory of all.

    Compared is every entry of each variable's own kernel, for one random combination of the
    outputs of each example, with all variables a little off their values.

    Args:
        model: a built Keras model.
        variables: those whose contributions are wanted.
        recorder: of their contributions; it keeps which layers put the examples first.
        examples: inputs, at least one.

    Returns:
        The variables to leave to autodiff; and how many numbers the contributions of one output
        hold for one example.
    """
    examples = distinct_examples(examples, _EXAMPLES)
    # Two sizes of batch: an axis that is as long as one of them is not as long as the other.
    recorder.find_layers_by_example(_rows(examples, _EXAMPLES - 1))
    perturbed = _perturbed(model)
    everywhere = [(v, perturbed[id(v)]) for v in model.trainable_variables]

    def combinations(values: Sequence[Any]) -> Any:
        mapping = [*everywhere, *zip(variables, values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping):
            return _combined(only_output(model(examples, training=False)))[:, 0]

    own = [tf.convert_to_tensor(perturbed.get(id(v), v.value)) for v in variables]
    expected = _kernels_by_autodiff(combinations, own)
    with keras.StatelessScope(state_mapping=everywhere):
        shares = recorder.verified_shares(examples, _combined)
    found = np.zeros_like(expected)
    for index, variable in enumerate(variables):
        if share := shares.get(id(variable)):
            found[index] = share.gram(share, Pairs()).numpy()[0, 0, :, 0]
    half = any(layer.compute_dtype.endswith("16") for layer in leaves(model))
    tolerance = 3e-2 if half else 1e-3
    largest = abs(expected).max(axis=(1, 2))
    gap = abs(found - expected).max(axis=(1, 2))
    wrong = gap > tolerance * largest + 1e-6 * tolerance * largest.sum()
    held = sum(share.held for share in shares.values())
    working = max((share.working for share in shares.values()), default=0)
    by_tape = [v for v, is_wrong in zip(variables, wrong, strict=True) if is_wrong]
    return by_tape, (held + working) // _EXAMPLES


def distinct_examples(x: Any, count: int) -> Any:
    """Return `count` examples that differ from each other where that can be had.

    They are taken from `x`; where its examples are too few or equal, the values of one are moved
    along its last axis, so that they stay the values of an example: word numbers, pixels, words.
    """
    chosen: list[Any] = []
    rows = tf.nest.flatten(x)[0].shape[0]
    # From all over: examples are often sorted.
    few, more = (np.linspace(0, rows - 1, number).astype(int).tolist() for number in (count, 9))
    for candidate in itertools.chain(
        (_rows(x, 1, start) for start in dict.fromkeys(few + more)), _moved_along(_rows(x, 1))
    ):
        if not any(_equal(candidate, other) for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    chosen += [chosen[0]] * (count - len(chosen))
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *chosen)


def _moved_along(example: Any) -> Iterator[Any]:
    longest = max(
        (part.shape[-1] for part in tf.nest.flatten(example) if part.shape.rank > 1), default=1
    )
    for shift in range(1, min(longest, 10)):
        yield tf.nest.map_structure(
            lambda part, by=shift: tf.roll(part, by, -1) if part.shape.rank > 1 else part, example
        )


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    return all(bool(tf.reduce_all(tf.equal(a, b))) for a, b in pairs)


def _rows(x: Any, count: int, start: int = 0) -> Any:
    return tf.nest.map_structure(lambda part: part[start : start + count], x)


def _combined(outputs: Any) -> Any:
    """Return one combination of the outputs of every example, `(examples, 1)`."""
    weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    flat = tf.reshape(tf.cast(outputs, tf.float32) * weights, [outputs.shape[0], -1])
    return tf.reduce_sum(flat, axis=1, keepdims=True)


def _perturbed(model: keras.Model) -> dict[int, Any]:
    """Return the values of every trainable variable, a little off, by the variable's identity.

    A gate that starts at zero hides what is behind it.
    """
    found = {}
    for index, variable in enumerate(model.trainable_variables):
        values = wide(tf.convert_to_tensor(variable.value))
        off = 0.1 * tf.sqrt(tf.reduce_mean(values**2)) + 0.1
        noise = tf.random.stateless_normal(values.shape, (0, index), dtype=values.dtype)
        found[id(variable)] = tf.cast(values + off * noise, variable.dtype)
    return found


def _kernels_by_autodiff(
    function: Callable[[Sequence[Any]], Any], values: Sequence[Any]
) -> np.ndarray:
    """Return the kernel of each value's gradients, `(values, examples, examples)`.

    Entries follow from squared lengths, of the gradients of single examples and of pairs of them:
    those are taken as gradients are found, so that no more than one is held at a time.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        handles = [tf.zeros([], wide(value).dtype) for value in values]
        tape.watch(handles)
        results = function([_with_handle(*each) for each in zip(handles, values, strict=True)])
        count = results.shape[0]
        pairs = [*itertools.combinations_with_replacement(range(count), 2)]
        sums = [results[i] if i == j else results[i] + results[j] for i, j in pairs]
    zero = tf.UnconnectedGradients.ZERO
    lengths = {
        pair: np.array([float(x) for x in tape.gradient(each, handles, unconnected_gradients=zero)])
        for pair, each in zip(pairs, sums, strict=True)
    }
    kernels = np.empty((len(values), count, count))
    for i, j in pairs:
        entry = lengths[i, j]
        if i != j:  # |a + b|^2 = |a|^2 + |b|^2 + 2 a b
            entry = (entry - lengths[i, i] - lengths[j, j]) / 2
        kernels[:, i, j] = kernels[:, j, i] = entry
    return kernels


def _with_handle(handle: Any, value: Any) -> Any:
    """Return the value as a function of a number, whose gradient is its own, squared and summed."""

    @tf.custom_gradient
    def unchanged(_: Any) -> Any:
        return value, lambda gradient: tf.reduce_sum(wide(tf.convert_to_tensor(gradient)) ** 2)

    return unchanged(handle)
