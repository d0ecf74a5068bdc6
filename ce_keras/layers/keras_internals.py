"""All private names of Keras that this package uses, each behind one function.

They were read in Keras 3.15. Every function says which public way is missing;
`tests/layers/test_keras_internals.py` fails in words once a later Keras has renamed one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np


def all_layers(layer: Any) -> list[Any]:
    """Return a layer and all layers inside it, at any depth, each once.

    Keras 3.15: `Layer._flatten_layers`. `Model.layers` is public, but it lists only the first
    level, and other composites (wrappers, recurrent layers, layers of a user's own) have no such
    list.
    """
    return [each for each in layer._flatten_layers() if isinstance(each, keras.layers.Layer)]


def own_trainable_variables(layer: Any) -> list[Any]:
    """Return the variables that a layer itself made to be trained, frozen or not.

    Keras 3.15: `Layer._trainable_variables`. `Layer.trainable_variables` is public, but it adds
    those of inner layers, and is empty for a frozen layer.
    """
    return layer._trainable_variables


@contextlib.contextmanager
def unlocked(layer: Any) -> Iterator[None]:
    """Let a layer that is built make more variables.

    Keras 3.15: `Layer._tracker.unlock`, as in Keras' own `Dense.enable_lora`. No public call
    unlocks a built layer.
    """
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


@contextlib.contextmanager
def replaced_attributes(layer: Any, **attributes: Any) -> Iterator[None]:
    """Replace attributes of a layer for a while.

    Keras 3.15: `Layer.__setattr__` tracks what it is given, and `Layer.__delattr__` forgets what
    was tracked; there is no public way around either. The instance's `__dict__` is written.
    """
    values = vars(layer)
    kept = {name: values[name] for name in attributes if name in values}
    values.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del values[name]
        values.update(kept)


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return what a model was compiled with, by argument of `compile`.

    Keras 3.15: `Model._compile_config`. `Model.get_compile_config` is public, but it has functions
    by their names alone, and a name that Keras has too is Keras' function.
    """
    return dict(model._compile_config.config)


def function_name(operation: Any) -> str | None:
    """Return the class name of one of Keras' own functions in a graph, such as `"Relu"`.

    `None` for a layer, and for an operation of a user's own. Keras 3.15: functions such as
    `keras.ops.relu` become instances of classes in `keras.src.ops` and `keras.src.activations`,
    which are not exported.
    """
    kind = type(operation)
    if not isinstance(operation, keras.Operation) or isinstance(operation, keras.layers.Layer):
        return None
    own = kind.__module__.startswith(("keras.src.ops.", "keras.src.activations."))
    return kind.__name__ if own else None


def run_through(model: Any, inputs: Any, call: Callable[..., Any]) -> Any:
    """Return a functional model's outputs for inputs, by `call(operation, *args, **kwargs)`.

    Keras 3.15: `Function._run_through_graph`, as in Keras' own `clone_model`, which is public, but
    makes a model of the result: other tensors, unless it begins with inputs of its own.
    """
    return model._run_through_graph(inputs, operation_fn=lambda each: each, call_fn=call)


def learnt_frequencies(layer: Any, count: int) -> np.ndarray | None:
    """Return the inverse document frequencies of a layer's last `count` words.

    `None` where its output mode needs none. Keras 3.15: `TextVectorization._lookup_layer`,
    `_output_mode` and `idf_weights_const`. `get_vocabulary` is public, but `set_vocabulary` also
    asks for the frequencies in the mode `"tf_idf"`, and nothing returns them.
    """
    if getattr(layer, "output_mode", getattr(layer, "_output_mode", None)) != "tf_idf":
        return None
    return np.asarray(getattr(layer, "_lookup_layer", layer).idf_weights_const)[-count:]
