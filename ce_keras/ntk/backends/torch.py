"""Differentiation by `torch.autograd`; operations are recorded by `torch.fx`."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch
from keras import tree
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ce_keras.layers.keras_internals import all_layers
from ce_keras.ntk.backends import of_values

logger = logging.getLogger("ce_keras")

AUTODIFF = "autodiff"
ERRORS = (RuntimeError,)
OUT_OF_MEMORY = (torch.OutOfMemoryError,)
VARIABLES = (torch.nn.Parameter,)
EAGER_FIRST = False

# Calls after which operations are recorded: recording takes as long as about so many.
_CALLS = 30

# `torch.fx` changes `torch.nn.Module` for all threads while it records.
_RECORDING = threading.Lock()

from_numpy = keras.ops.convert_to_tensor


def compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return the function of tensors; after some calls, only its operations are run.

    Keras' own Python between them takes more than half of a small kernel's time. They are recorded
    for every kind of arguments, where all layers are Keras' or this package's: what other code
    reads in Python would be a constant from then on.
    """
    function = torch.no_grad()(function)  # `cotangents` and `jacobian` record for themselves.
    if not _runs_known_code_only(model):
        return function
    calls: collections.Counter[str] = collections.Counter()
    graphs: dict[str, Callable[..., Any]] = {}

    def run(*arguments: Any) -> Any:
        kind = repr(tree.map_structure(_kind, arguments))
        calls[kind] += 1
        if calls[kind] <= _CALLS:
            return function(*arguments)
        values = [variable.value for variable in model.variables]
        if kind not in graphs:
            with _RECORDING:
                if kind not in graphs:
                    graphs[kind] = _recorded(of_values(function, model), values, *arguments) or (
                        lambda _, *arguments: function(*arguments)
                    )
        return graphs[kind](values, *arguments)

    return run


def _kind(tensor: Any) -> Any:
    """Return what the operations on a tensor depend on."""
    if tensor is None:
        return None
    autocast = torch.is_autocast_enabled(tensor.device.type)
    return tuple(tensor.shape), tensor.dtype, tensor.device, autocast


def _runs_known_code_only(model: keras.Model) -> bool:
    """Return whether a model's layers, and what they call, are Keras' or this package's."""

    def is_known(thing: Any) -> bool:
        return (thing.__module__ or "").partition(".")[0] in ("keras", "ce_keras")

    # These run what users give them.
    foreign = (keras.layers.Lambda, keras.layers.TorchModuleWrapper)
    return all(
        is_known(type(layer))
        and not isinstance(layer, foreign)
        and all(is_known(each) for each in vars(layer).values() if callable(each))
        for layer in (model, *all_layers(model))
    )


def _recorded(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any] | None:
    """Return the operations of a function as another one, or `None` where recording fails.

    PyTorch 2.13: `make_fx` is experimental. `torch.compile` and `torch.export`, which are not,
    do not take functions that differentiate.
    """

    def tensors_of(arguments: Any) -> list[Any]:
        return [leaf.contiguous() for leaf in tree.flatten(arguments) if leaf is not None]

    def of_tensors(*tensors: Any) -> Any:
        left = iter(tensors)
        leaves = [None if leaf is None else next(left) for leaf in tree.flatten(arguments)]
        return function(*tree.pack_sequence_as(arguments, leaves))

    # A tensor that is given twice would be taken for one argument.
    distinct = [tensor.detach() for tensor in tensors_of(arguments)]
    try:
        graph = make_fx(of_tensors, tracing_mode="fake")(*distinct)
    except Exception as error:  # Of any kind; if it is not of recording, the function raises it.
        logger.debug("a kernel is not recorded: %s", error)
        return None
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return torch.no_grad()(lambda *arguments: graph(*tensors_of(arguments)))


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
    if len(outputs) > 1 and get_proxy_mode() is not None:
        raise NotImplementedError("every row would be recorded")
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
    # Attention's fast forms have no forward mode.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
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
