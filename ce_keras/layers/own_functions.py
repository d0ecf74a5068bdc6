"""Functions of a user's own in layers, losses and metrics.

A configuration has only a function's name, and for Keras a name is its own function's if it has one
of that name. Copies get the functions themselves.
"""

from __future__ import annotations

import types
from typing import Any


def config_of(layer: Any) -> dict[str, Any]:
    """Return a layer's configuration, with functions of a user's own as they are, not by name."""
    config = layer.get_config()
    for key in config:
        value = getattr(layer, key, None)
        if _is_own(value):
            config[key] = value
    return config


def keep_functions(old: Any, new: Any) -> None:
    """Give a copy the functions of a user's own that the original has as attributes."""
    if type(old) is not type(new):
        return
    for key, value in vars(old).items():
        # Keras puts wrapped methods, such as `build`, beside the attributes.
        if _is_own(value) and not hasattr(type(old), key) and vars(new).get(key) is not value:
            setattr(new, key, value)


def _is_own(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and not value.__module__.startswith("keras.")
