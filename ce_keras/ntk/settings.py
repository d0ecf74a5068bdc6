"""The settings of a model's layers, such as activations and statistics, as a key for a cache.

A graph keeps the settings that it was traced with: after a change it must be traced again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves

# Attributes that a model has from training, and from us.
_OF_TRAINING = (
    *("_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator", "history"),
    *("optimizer", "stop_evaluating", "stop_predicting", "stop_training", "_ce_keras_kernels"),
)

# Objects within objects that are looked into.
_DEPTH = 4


def settings_of(model: keras.Model) -> tuple[Any, list[Any]]:
    """Return the settings of a model's layers, as a key; and what the key tells apart by identity.

    Numbers, texts, arrays and collections of them count by value; variables, whose values graphs
    read anew, and functions by identity; and other objects by identity and by their attributes.
    """
    layers = leaves(model)
    held: list[Any] = [*layers]
    found = tuple(
        (
            id(layer),
            layer.compute_dtype,
            layer.variable_dtype,
            layer.autocast,
            *_attributes(layer, held, _DEPTH),
        )
        for layer in layers
    )
    return found, held


def bytes_of(tensor: Any) -> bytes | memoryview:
    """Return the values of a tensor, of any type, to be hashed."""
    values = tensor.numpy() if tf.is_tensor(tensor) else np.asarray(tensor)
    if not isinstance(values, np.ndarray) or values.dtype.hasobject:  # Texts.
        return tf.io.serialize_tensor(tensor).numpy()
    return np.ascontiguousarray(values).view(np.uint8).data


@functools.cache
def _usual() -> frozenset[str]:
    """Return the attributes that Keras keeps books in."""
    unit = keras.layers.Dense(1)
    of_keras = [keras.layers.Layer(), keras.Sequential([keras.Input((1,)), unit])]
    image = keras.Input((1,))
    of_keras.append(keras.Model(image, unit(image)))
    return frozenset().union(_OF_TRAINING, *(vars(each) for each in of_keras))


def _attributes(thing: Any, held: list[Any], depth: int) -> tuple[Any, ...]:
    books = _usual() if isinstance(thing, keras.layers.Layer) else ()
    own = [name for name in sorted(vars(thing)) if name not in books]
    return tuple((name, _described(vars(thing)[name], held, depth)) for name in own)


def _described(value: Any, held: list[Any], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value).__name__, value
    held.append(value)
    if depth == 0 or isinstance(value, keras.Variable | tf.Variable | keras.layers.Layer | type):
        return id(value)
    if _is_array(value):
        return str(value.dtype), tuple(value.shape), hash(bytes(bytes_of(value)))
    return id(value), _inside(value, held, depth)


def _is_array(value: Any) -> bool:
    if isinstance(value, np.generic | np.ndarray):
        return True
    # Of a table, the tensor is a handle.
    return tf.is_tensor(value) and hasattr(value, "numpy") and value.dtype != tf.resource


def _inside(value: Any, held: list[Any], depth: int) -> tuple[Any, ...]:
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = itertools.chain.from_iterable(value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
    elif hasattr(value, "__dict__") and not hasattr(value, "__code__"):  # No function.
        return _attributes(value, held, depth - 1)
    return tuple(_described(each, held, depth - 1) for each in parts)
