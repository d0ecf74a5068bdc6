"""Differentiation by `tf.GradientTape`, compilation by `tf.function`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

AUTODIFF = "tape"
ERRORS = (tf.errors.OpError,)
OUT_OF_MEMORY = (tf.errors.ResourceExhaustedError,)
VARIABLES = (tf.Variable,)
# Tracing takes a second or more.
EAGER_FIRST = True


def compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return the function of tensors, compiled where that pays."""
    del model
    return tf.function(function, autograph=False)


def from_numpy(array: np.ndarray) -> Any:
    """Return a tensor of an array that nobody writes to later, where possible on its memory."""
    if array.ctypes.data % 64:
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def is_symbolic(tensor: Any) -> bool:
    """Return whether a tensor is of a trace, and has no values."""
    return tf.is_symbolic_tensor(tensor)


def has_values(tensor: Any) -> bool:
    """Return whether a tensor has values that can be read: handles of lookup tables have none."""
    return tensor.dtype != tf.resource


def traced(function: Callable[..., Any], x: Any) -> Any:
    """Run a function on tensors like `x`."""
    specs = keras.tree.map_structure(lambda each: tf.TensorSpec(each.shape, each.dtype), x)
    outputs = tf.function(function, autograph=False).get_concrete_function(specs)
    shape = outputs.structured_outputs.shape
    if not shape.is_fully_defined():
        raise ValueError(f"the shape of its outputs is only known to be {shape}")


def trace_state() -> Any:
    """Return a value that is another one inside a traced loop."""
    return tf.compat.v1.get_default_graph()


def in_turn(tensors: Iterator[Any]) -> Iterator[Any]:
    """Give tensors of which each is begun when the one before is finished."""
    finished: list[Any] = []
    while True:
        with tf.control_dependencies(finished):
            tensor = next(tensors, None)
        if tensor is None:
            return
        yield tensor
        finished = [tensor]


def cotangents(
    forward: Callable[[Callable[[Any], Any]], Any], outputs: int, vectorised: bool = True
) -> tuple[list[Any], Any]:
    """Return the derivatives by what `forward` watches, and what it keeps."""
    points: list[Any] = []
    # A tape that is read once frees what it has read.
    with tf.GradientTape(persistent=outputs > 1, watch_accessed_variables=False) as tape:

        def watch(tensor: Any) -> Any:
            tape.watch(tensor)
            points.append(tensor)
            return tensor

        total, kept = forward(watch)
        total = total * tf.cast(_one(), total.dtype)
    zero = tf.UnconnectedGradients.ZERO
    if outputs == 1:
        return tape.gradient(total, points, unconnected_gradients=zero), kept
    if tf.executing_eagerly():  # Vectorising is tracing, which takes longer than a few passes.
        rows = [
            tape.gradient(total, points, one_hot, unconnected_gradients=zero)
            for one_hot in tf.eye(outputs, dtype=total.dtype)
        ]
        return [
            tf.stack([tf.convert_to_tensor(x) for x in each]) for each in zip(*rows, strict=True)
        ], kept
    found = tape.jacobian(
        total, points, unconnected_gradients=zero, experimental_use_pfor=vectorised
    )
    return found, kept


@functools.cache
def _one() -> tf.Variable:
    """Return a factor that a graph does not know.

    What follows from constants alone, like the cotangents of the last layer, would be computed
    when the graph is made, and kept.
    """
    with tf.init_scope():
        return tf.Variable(1.0, trainable=False)


def jacobian(function: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> list[Any]:
    """Return the jacobian of a vector by each value, row after row.

    `tape.jacobian` fails where a variable is of half precision and the outputs are not; and
    vectorised, it is wrong through Keras' grouped convolutions.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = function(values)

    def gradients(one_hot: Any) -> list[Any]:
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(outputs, values, one_hot, unconnected_gradients=zero)
        # A table's gradient comes as rows.
        return [_at_least_single(tf.convert_to_tensor(gradient)) for gradient in found]

    one_hots = tf.eye(outputs.shape[0], dtype=outputs.dtype)
    if outputs.shape[0] == 1:
        return [gradient[None] for gradient in gradients(one_hots[0])]
    specs = [tf.TensorSpec(value.shape, _at_least_single(value).dtype) for value in values]
    return tf.map_fn(gradients, one_hots, fn_output_signature=specs)


def _at_least_single(x: Any) -> Any:
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def jvp(function: Callable[..., Any], values: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the derivative of a function along tangents."""
    with tf.autodiff.ForwardAccumulator(values, tangents) as forward:
        outputs = function(values)
    return forward.jvp(outputs, unconnected_gradients="zero")


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Return a context in which products are not rounded to fewer digits."""
    setting = tf.config.experimental
    before = setting.tensor_float_32_execution_enabled()
    setting.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        setting.enable_tensor_float_32_execution(before)
