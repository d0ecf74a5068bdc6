"""Whether the rules tell all that a variable does: tried on a few examples, against the tape.

Rules see only the layers that have one. A variable that is used anywhere else, by a custom layer or
a second time past its layer, would be short of a part of its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.pairs import Pairs
from ce_keras.ntk.records import Recorder
from ce_keras.ntk.shares import wide


def trial(
    model: keras.Model, variables: Sequence[Any], recorder: Recorder, examples: Any
) -> tuple[list[Any], int]:
    """The variables whose share is not what the tape says, and what the shares take.

    What is compared is the squared length of the gradient of a random combination of all outputs:
    by the tape, and as the sum of all entries of a kernel.

    Args:
        model: a built Keras model.
        variables: those whose shares are wanted.
        recorder: of their shares.
        examples: a few inputs.

    Returns:
        The variables to leave to the tape; and how many numbers the shares of one output hold, all
        examples together.
    """
    perturbed = _perturbed(model)
    everywhere = [(v, perturbed[id(v)]) for v in model.trainable_variables]

    def combination(values: Sequence[Any]) -> Any:
        mapping = [*everywhere, *zip(variables, values, strict=True)]
        with keras.StatelessScope(state_mapping=mapping):
            return tf.reduce_sum(_combined(model(examples, training=False)))

    own = [tf.convert_to_tensor(perturbed.get(id(v), v.value)) for v in variables]
    expected = _squared_lengths(combination, own)
    with keras.StatelessScope(state_mapping=everywhere):
        shares = recorder.by_variable(examples, _combined)
    found = [
        float(tf.reduce_sum(share.gram(share, Pairs()))) if (share := shares.get(id(v))) else 0.0
        for v in variables
    ]
    half = any(layer.compute_dtype.endswith("16") for layer in leaves(model))
    tolerance = 3e-2 if half else 1e-3
    disagreeing = [
        variable
        for variable, ours, tapes in zip(variables, found, expected, strict=True)
        if abs(ours - tapes) > tolerance * tapes + 1e-6 * tolerance * sum(expected)
    ]
    held = sum(share.held for share in shares.values())
    return disagreeing, held + max((share.working for share in shares.values()), default=0)


def _combined(outputs: Any) -> Any:
    """Of every example one combination of its outputs, `(examples, 1)`."""
    weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    flat = tf.reshape(tf.cast(outputs, tf.float32) * weights, [outputs.shape[0], -1])
    return tf.reduce_sum(flat, axis=1, keepdims=True)


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
