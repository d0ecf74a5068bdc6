"""Differentiation by `jax.vjp`, compilation by `jax.jit`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import keras

from ce_keras.ntk.backends import of_values

AUTODIFF = "autodiff"
ERRORS = (jax.errors.JaxRuntimeError,)
OUT_OF_MEMORY = ()  # JAX has one class of errors for all that fails while it runs.
VARIABLES = ()
# Operation by operation, each is compiled by itself.
EAGER_FIRST = False

from_numpy = keras.ops.convert_to_tensor


def compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return the function of tensors, compiled where that pays."""
    pure = jax.jit(of_values(function, model))
    return lambda *arguments: pure([variable.value for variable in model.variables], *arguments)


def is_symbolic(tensor: Any) -> bool:
    """Return whether a tensor is of a trace, and has no values."""
    return isinstance(tensor, jax.core.Tracer)


def has_values(tensor: Any) -> bool:
    """Return whether a tensor has values that can be read."""
    return not is_symbolic(tensor)


def traced(function: Callable[..., Any], x: Any) -> Any:
    """Run a function on tensors like `x`."""
    jax.eval_shape(function, x)


def trace_state() -> Any:
    """Return a value that is another one inside a traced loop."""
    return jax.extend.core.get_opaque_trace_state(convention="flax")


def in_turn(tensors: Iterator[Any]) -> Iterator[Any]:
    """Give tensors of which each is begun when the one before is finished."""
    return tensors  # XLA orders what it compiles so as to need little memory.


def cotangents(
    forward: Callable[[Callable[[Any], Any]], Any], outputs: int, vectorised: bool = True
) -> tuple[list[Any], Any]:
    """Return the derivatives by what `forward` watches, and what it keeps."""
    del vectorised
    points: list[Any] = []

    def note(tensor: Any) -> Any:
        points.append(jax.ShapeDtypeStruct(tensor.shape, tensor.dtype))
        return tensor

    jax.eval_shape(lambda: forward(note)[0])

    def probed(zeros: list[Any]) -> Any:
        left = iter(zeros)
        return forward(lambda tensor: tensor + next(left))

    zeros = [jnp.zeros(point.shape, point.dtype) for point in points]
    total, pullback, kept = jax.vjp(probed, zeros, has_aux=True)
    one_hots = jnp.eye(outputs, dtype=total.dtype)
    found = pullback(one_hots[0]) if outputs == 1 else jax.vmap(pullback)(one_hots)
    return found[0], kept


def jacobian(function: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> list[Any]:
    """Return the jacobian of a vector by each value, row after row.

    `jax.jacrev` would hold the backward passes of all rows at once.
    """
    outputs, pullback = jax.vjp(function, list(values))
    one_hots = jnp.eye(len(outputs), dtype=outputs.dtype)
    if len(outputs) == 1:  # A map is compiled anew at every call.
        return [row[None] for row in pullback(one_hots[0])[0]]
    return jax.lax.map(lambda one_hot: pullback(one_hot)[0], one_hots)


def jvp(function: Callable[..., Any], values: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the derivative of a function along tangents."""
    return jax.jvp(function, (list(values),), (list(tangents),))[1]


def full_precision() -> contextlib.AbstractContextManager[None]:
    """Return a context in which products are not rounded to fewer digits."""
    return jax.default_matmul_precision("highest")
