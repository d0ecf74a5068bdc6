"""Differentiation by `torch.autograd`; nothing is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch

AUTODIFF = "autodiff"
ERRORS = (RuntimeError,)
OUT_OF_MEMORY = (torch.OutOfMemoryError,)
VARIABLES = (torch.nn.Parameter,)
EAGER_FIRST = False

from_numpy = keras.ops.convert_to_tensor


def compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return the function of tensors, compiled where that pays."""
    del model
    return torch.no_grad()(function)  # `cotangents` and `jacobian` record for themselves.


def is_symbolic(tensor: Any) -> bool:
    """Return whether a tensor is of a trace, and has no values."""
    del tensor
    return False


def has_values(tensor: Any) -> bool:
    """Return whether a tensor has values that can be read."""
    del tensor
    return True


def traced(function: Callable[..., Any], x: Any) -> Any:
    """Run a function on tensors like `x`."""
    with torch.no_grad():
        function(x)


def trace_state() -> Any:
    """Return a value that is another one inside a traced loop."""
    return None  # Loops are Python's.


def in_turn(tensors: Iterator[Any]) -> Iterator[Any]:
    """Give tensors of which each is begun when the one before is finished."""
    return tensors


def cotangents(
    forward: Callable[[Callable[[Any], Any]], Any], outputs: int, vectorised: bool = True
) -> tuple[list[Any], Any]:
    """Return the derivatives by what `forward` watches, and what it keeps."""
    del vectorised
    points: list[Any] = []

    def watch(tensor: Any) -> Any:
        points.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
        return points[-1]

    with torch.enable_grad():
        total, kept = forward(watch)
    kept = keras.tree.map_structure(torch.Tensor.detach, kept)
    if not points:
        return [], kept  # PyTorch refuses to differentiate by nothing.
    if outputs == 1:
        return _gradients(total, points, torch.ones_like(total)), kept
    one_hots = torch.eye(outputs, dtype=total.dtype, device=total.device)
    try:
        batched = {"is_grads_batched": True, "retain_graph": True}
        return _gradients(total, points, one_hots, **batched), kept
    except OUT_OF_MEMORY:
        raise
    except RuntimeError:  # An operation that cannot be vectorised.
        rows = [_gradients(total, points, one_hot, retain_graph=True) for one_hot in one_hots]
        return [torch.stack(row) for row in zip(*rows, strict=True)], kept


def jacobian(function: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> list[Any]:
    """Return the jacobian of a vector by each value, row after row."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        outputs = function(leaves)
    one_hots = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    rows = [_gradients(outputs, leaves, one_hot, retain_graph=True) for one_hot in one_hots]
    return [torch.stack(row) for row in zip(*rows, strict=True)]


def _gradients(outputs: Any, by: Sequence[Any], cotangent: Any, **options: Any) -> list[Any]:
    """Return the gradients of `cotangent * outputs`, zeros where nothing is connected."""
    leading = cotangent.shape[: cotangent.ndim - 1]
    if outputs.requires_grad:
        options["allow_unused"] = True
        found = torch.autograd.grad(outputs, by, cotangent, **options)
    else:
        found = (None,) * len(by)
    return [
        torch.zeros((*leading, *x.shape), dtype=x.dtype, device=x.device) if each is None else each
        for x, each in zip(by, found, strict=True)
    ]


def jvp(function: Callable[..., Any], values: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Return the derivative of a function along tangents."""
    with torch.no_grad():
        return torch.func.jvp(function, (list(values),), (list(tangents),))[1]


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Return a context in which products are not rounded to fewer digits."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
