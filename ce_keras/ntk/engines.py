"""Choose the engine of a model's kernels, and keep it with the model for later calls.

Making an engine takes a second or more: rules are verified and graphs traced. It is used again as
long as nothing has changed that a graph has as a constant, such as a layer's activation.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops, tree

from ce_keras.checks import brief, shortened
from ce_keras.layers.keras_internals import all_layers
from ce_keras.ntk.autodiff import AutodiffEngine
from ce_keras.ntk.axes import OutputAxes, examples_of, number_of_examples, only_output
from ce_keras.ntk.backends import backend, once
from ce_keras.ntk.recording import RECORDING
from ce_keras.ntk.structured import StructuredEngine, arrays_of, joined

Engine = Literal["auto", "structured", "autodiff", "tape"]

logger = logging.getLogger("ce_keras")

# The attribute of a model that holds its engines, and how many it keeps: the last ones used.
_ATTRIBUTE = "_ce_keras_kernels"
_MOST_ENGINES = 8

# Attributes that a model has from training, and from us.
_OF_TRAINING = (
    *("_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator", "history"),
    *("optimizer", "stop_evaluating", "stop_predicting", "stop_training", _ATTRIBUTE),
)

# Objects within objects that are looked into for settings.
_DEPTH = 4

# Packages whose classes hold no settings of a user.
_LIBRARIES = frozenset({"keras", "ce_keras", "builtins", "tensorflow", "jax", "torch", "numpy"})


def engine_for(
    model: keras.Model,
    x: Any,
    trace_axes: tuple[int, ...],
    diagonal_axes: tuple[int, ...],
    engine: Engine,
    variables: Sequence[Any] | None,
) -> AutodiffEngine | StructuredEngine:
    """Return the engine for these arguments of `empirical_ntk`, the same one for later calls.

    Raises:
        ValueError: for wrong axes or variables, or a model that has no such kernel.
    """
    if _ATTRIBUTE not in vars(model) or not all(layer.built for layer in all_layers(model)):
        outputs_of("x1", model, examples_of(x, slice(0, 1)))  # Some weights are made by a call.
    engines = vars(model).setdefault(_ATTRIBUTE, {})
    variables = checked_variables(model, variables)
    settings, held = settings_of(model)
    own = (tuple(map(id, variables)), signature_of(x), settings)
    key = (engine, trace_axes, diagonal_axes, *own)
    with RECORDING:  # While rules are verified, layers have other methods.
        # The objects that the key tells apart by identity are held with it: the identity of an
        # object that is gone is given to another.
        found = engines.pop(key, None) or (
            _made(model, x, trace_axes, diagonal_axes, engine, variables),
            held,
        )
        engines[key] = found  # The one used last is last.
        if len(engines) > _MOST_ENGINES:
            del engines[next(iter(engines))]
    return found[0]


def checked_variables(model: keras.Model, variables: Any = None) -> list[Any]:
    """Return the variables to differentiate by, the trainable ones if none are given.

    Raises:
        ValueError: where there are none, or they are not the model's.
    """
    if variables is None and not model.trainable_variables:
        raise ValueError(f"variables: {model.name!r} has no trainable variables")
    chosen = model.trainable_variables if variables is None else _named(model, variables)
    _refuse_wrapped(model, chosen)
    return list(chosen)


def _named(model: keras.Model, variables: Any) -> Sequence[Any]:
    """Return the variables that a caller names. Raise `ValueError` if they are not the model's."""
    if not isinstance(variables, list | tuple) or not variables:
        raise ValueError(
            f"variables: got {brief(variables)}; it must be a list of the model's variables"
        )
    own = {id(variable) for variable in model.variables}
    strangers = [getattr(v, "path", v) for v in variables if id(v) not in own]
    if strangers:
        raise ValueError(f"variables: {strangers} are not variables of {model.name!r}")
    whole = [v.path for v in variables if not keras.backend.is_float_dtype(v.dtype)]
    if whole:
        raise ValueError(f"variables: {whole} are not real numbers, and have no gradient")
    if len({*map(id, variables)}) < len(variables):
        raise ValueError("variables: one is named twice")
    return variables


def _refuse_wrapped(model: keras.Model, variables: Sequence[Any]) -> None:
    """Raise for parameters of a PyTorch module: it keeps its own where Keras gives it other values.

    Their gradients would be zero.
    """
    if keras.backend.backend() != "torch":
        return
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.TorchModuleWrapper):
            own = {id(variable) for variable in layer.variables}
            if any(id(variable) in own for variable in variables):
                raise ValueError(
                    f"variables: those of {layer.name!r} are parameters of a PyTorch module, which "
                    "have no kernel here; freeze the layer, or name the variables of others"
                )


def outputs_of(argument: str, model: keras.Model, x: Any) -> Any:
    """Return a model's outputs in inference mode.

    Raises:
        ValueError: if it does not take the inputs; the message has Keras' own.
    """
    try:
        return model(x, training=False)
    except backend.OUT_OF_MEMORY:
        raise
    except (TypeError, ValueError, *backend.ERRORS) as error:
        shapes = [tuple(tensor.shape) for tensor in tree.flatten(x)]
        raise ValueError(
            f"{argument}: {model.name!r} does not take inputs of shapes {shapes}: "
            f"{shortened(' '.join(str(error).split()), 300)}"
        ) from error


def differentiable(model: keras.Model, outputs: Any) -> str:
    """Return the type of a model's outputs.

    Raises:
        ValueError: for outputs that have no gradient: whole numbers, or none at all.
    """
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    if not keras.backend.is_float_dtype(dtype) or 0 in outputs.shape[1:]:
        raise ValueError(
            f"model: {model.name!r} gives outputs of type {dtype} and shape "
            f"{tuple(outputs.shape)}; a kernel needs real numbers, one or more for each example"
        )
    return dtype


def signature_of(x: Any) -> tuple[Any, ...]:
    """Return the type and shape of an example."""
    return tuple(
        (keras.backend.standardize_dtype(tensor.dtype), *tensor.shape[1:])
        for tensor in tree.flatten(x)
    )


def _made(
    model: keras.Model,
    x: Any,
    trace_axes: tuple[int, ...],
    diagonal_axes: tuple[int, ...],
    engine: Engine,
    variables: list[Any],
) -> AutodiffEngine | StructuredEngine:
    outputs = only_output(outputs_of("x1", model, examples_of(x, slice(0, 1))))
    if not len(outputs.shape) or outputs.shape[0] != 1:
        raise ValueError(
            f"model: {model.name!r} gives outputs of shape {tuple(outputs.shape)} for one example; "
            "their first axis must be the examples"
        )
    dtype = differentiable(model, outputs)
    axes = OutputAxes(outputs.shape, trace_axes, diagonal_axes, dtype)
    _refuse_interaction(model, x)
    if engine in ("autodiff", "tape"):
        return AutodiffEngine(model, variables, axes)
    try:
        made = StructuredEngine(model, variables, axes, x)
    except backend.OUT_OF_MEMORY:
        raise
    except (TypeError, ValueError, NotImplementedError, *backend.ERRORS) as error:
        # No graph of fixed shapes: texts, for instance, are split into an unknown number of words.
        if engine == "structured":
            raise ValueError(
                f"engine: {model.name!r} cannot be computed layer by layer; use "
                f"{backend.AUTODIFF!r}: {error}"
            ) from error
        why = shortened(str(error))
        logger.warning("kernel of %s: by %s, and slowly: %s", model.name, backend.AUTODIFF, why)
        return AutodiffEngine(model, variables, axes)
    if made.by_autodiff:
        logger.warning(
            "kernel of %s: by %s, and slowly, for %s: no rule covers all that these variables do",
            model.name,
            backend.AUTODIFF,
            ", ".join(variable.path for variable in made.by_autodiff),
        )
    return made


def _refuse_interaction(model: keras.Model, x: Any) -> None:
    """Raise if an example's output depends on the other examples of its batch."""
    first, second = arrays_of(x, slice(0, 1)), arrays_of(x, slice(1, 2))
    if not number_of_examples(second):
        second = tree.map_structure(
            lambda array: np.flip(array, -1) if array.ndim > 1 else array, first
        )

    output_of_first = once(lambda x: only_output(model(x, training=False))[0], model)
    alone, together = (
        ops.convert_to_numpy(output_of_first(joined(first, other))).astype(np.float64)
        for other in (first, second)
    )
    gap, size = abs(alone - together).max(), abs(alone).max()
    if gap > 1e-3 * size:
        raise ValueError(
            f"model: an output of {model.name!r} changes with the other examples of its batch (by "
            f"{gap:.3g}, of {size:.3g}); a kernel between examples needs them apart"
        )


def settings_of(model: keras.Model) -> tuple[Any, list[Any]]:
    """Return the settings of a model's layers as a key; and what it tells apart by identity.

    Numbers, texts, arrays and collections of them count by value; variables, whose values graphs
    read anew, and functions by identity; and other objects by identity and by their attributes.
    """
    layers = all_layers(model)
    held: list[Any] = [*layers]
    settings = tuple(
        (
            *(id(layer), layer.compute_dtype, layer.variable_dtype, layer.autocast),
            *_attributes(layer, held, _DEPTH),
        )
        for layer in layers
    )
    return settings, held


def bytes_of(tensor: Any) -> bytes | memoryview:
    """Return the values of a tensor, of any type, to be hashed."""
    values = ops.convert_to_numpy(tensor) if ops.is_tensor(tensor) else np.asarray(tensor)
    if values.dtype.hasobject:  # Texts.
        return repr(values.tolist()).encode()
    return np.ascontiguousarray(values).view(np.uint8).data


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Return the attributes that Keras keeps for itself in layers and models."""
    unit, inputs = keras.layers.Dense(1), keras.Input((1,))
    of_keras = [
        keras.layers.Layer(),
        keras.Sequential([keras.Input((1,)), unit]),
        keras.Model(inputs, unit(inputs)),
    ]
    return frozenset().union(_OF_TRAINING, *(vars(each) for each in of_keras))


def _attributes(thing: Any, held: list[Any], depth: int) -> tuple[Any, ...]:
    skipped = _bookkeeping() if isinstance(thing, keras.layers.Layer) else ()
    values = {name: value for name, value in vars(thing).items() if name not in skipped}
    values = {**_of_classes(type(thing)), **values}
    return tuple((name, _described(values[name], held, depth)) for name in sorted(values))


def _of_classes(kind: type) -> dict[str, Any]:
    """Return the values that a user's class and its bases hold for all their objects."""
    return {
        name: value
        for each in _user_classes(kind)
        for name, value in vars(each).items()
        if not (name.startswith("__") or callable(value) or hasattr(value, "__get__"))
    }


@functools.cache
def _user_classes(kind: type) -> list[type]:
    """Return a class and its bases, the last first, without those of libraries."""
    own = [each for each in kind.__mro__ if each.__module__.split(".")[0] not in _LIBRARIES]
    return own[::-1]


def _closed_over(function: Any) -> Iterator[Any]:
    """Give the values of the variables that a function has from where it was made."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # One that has no value yet.
            yield cell.cell_contents


def _slots_of(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object that has no dictionary of them."""
    names = itertools.chain.from_iterable(
        getattr(each, "__slots__", ()) for each in type(thing).__mro__
    )
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)}


def _described(value: Any, held: list[Any], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value).__name__, value
    held.append(value)
    if depth == 0 or isinstance(
        value, (keras.Variable, keras.layers.Layer, type, *backend.VARIABLES)
    ):
        return id(value)
    # TensorFlow's own test takes 15 microseconds, and would be a quarter of a small kernel's time.
    is_tensor = hasattr(value, "dtype") and ops.is_tensor(value)
    if is_tensor and backend.is_symbolic(value):
        return "traced"  # Left by an earlier trace: nothing can read it, and the next differs.
    has_values = is_tensor and backend.has_values(value)
    if has_values or isinstance(value, np.generic | np.ndarray):
        return str(value.dtype), tuple(value.shape), hash(bytes(bytes_of(value)))
    return id(value), _contents(value, held, depth)


def _contents(value: Any, held: list[Any], depth: int) -> tuple[Any, ...]:
    """Return the elements of a collection, described, or the attributes of an object."""
    elements: Iterable[Any] = ()
    if isinstance(value, Mapping):
        elements = itertools.chain.from_iterable(value.items())
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        elements = value
    elif isinstance(value, functools.partial):
        elements = (value.func, value.args, value.keywords)
    elif hasattr(value, "__code__"):  # A function, and what it was made with.
        keywords = (value.__kwdefaults__ or {}).values()
        elements = (*_closed_over(value), *(value.__defaults__ or ()), *keywords)
    elif hasattr(value, "__dict__"):
        return _attributes(value, held, depth - 1)
    elif not isinstance(value, type):
        elements = itertools.chain.from_iterable(sorted(_slots_of(value).items()))
    return tuple(_described(each, held, depth - 1) for each in elements)
