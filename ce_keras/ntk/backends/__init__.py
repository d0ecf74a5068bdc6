"""Differentiation and compilation by each backend of Keras, behind one interface.

The rest of `ce_keras.ntk` is arithmetic in `keras.ops`. All modules
here have the same functions, and

- `AUTODIFF`, the name of its automatic differentiation, for messages;
- `ERRORS`, its own exceptions for inputs that a model does not take;
- `VARIABLES`, its own types of variables, whose values compiled functions read anew;
- `EAGER_FIRST`, true where compiling pays from the second kernel on.

`cotangents` calls `forward(watch)`, which runs a model, passes every output of a layer through
`watch`, and returns a vector of `outputs` numbers and a list of tensors to keep. It returns the
derivatives of the vector by every watched tensor, `(outputs, *tensor)`, and what was kept.
`forward` may be called twice. `vectorised` is false where TensorFlow must not vectorise it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras

_NAME = keras.backend.backend()
if _NAME not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        f"backend: Keras runs on {_NAME}; kernels of models need TensorFlow, JAX or PyTorch"
    )

backend: Any = importlib.import_module(f"{__name__}.{_NAME}")


def once(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Return a function of tensors in the form in which a single call is quickest."""
    return function if backend.EAGER_FIRST else backend.compiled(function, model)
