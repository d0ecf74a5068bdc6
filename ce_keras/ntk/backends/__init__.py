"""Differentiation and compilation by each backend of Keras, behind one interface.

The rest of `ce_keras.ntk` is arithmetic in `keras.ops`. All modules
here have the same functions, and

- `AUTODIFF`, the name of its automatic differentiation, for messages;
- `ERRORS`, its own exceptions for inputs that a model does not take, and `OUT_OF_MEMORY`, those of
  them that say that memory ran out;
- `VARIABLES`, its own types of variables, whose values compiled functions read anew;
- `EAGER_FIRST`, true where compiling pays from the second kernel on.

`from_numpy` returns an array that nobody writes to later as a tensor, if possible on its memory.

`cotangents` calls `forward(watch)`, which runs a model, passes every output of a layer through
`watch`, and returns a vector of `outputs` numbers and a list of tensors to keep. It returns the
derivatives of the vector by every watched tensor, `(outputs, *tensor)`, and what was kept.
`forward` may be called twice. `vectorised` is false where TensorFlow must not vectorise it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras


class _Backend:
    """The module of Keras' backend, imported when it is first used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_module(), name)


@functools.cache
def _module() -> Any:
    """Return the module of Keras' backend.

    Raises:
        ValueError: for a backend that does not differentiate.
    """
    name = keras.backend.backend()
    if name not in ("tensorflow", "jax", "torch"):
        raise ValueError(
            f"backend: Keras runs on {name}; kernels of models need TensorFlow, JAX or PyTorch"
        )
    return importlib.import_module(f"{__name__}.{name}")


backend: Any = _Backend()


def of_values(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return a function that takes, before its arguments, the values of the model's variables."""

    def pure(values: Sequence[Any], *arguments: Any) -> Any:
        with keras.StatelessScope(list(zip(model.variables, values, strict=True))):
            return function(*arguments)

    return pure


def once(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return a function of tensors in the form in which a single call is quickest."""
    return function if backend.EAGER_FIRST else backend.compiled(function, model)
