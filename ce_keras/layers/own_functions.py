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
    """Give a copy the functions of a user's own in whose place it has Keras' of the same name.

    Others that the original made for itself, which may read its variables, stay its own.
    """
    if type(old) is not type(new):
        return
    for key, value in vars(old).items():
        found = vars(new).get(key)
        if _is_own(value) and isinstance(found, types.FunctionType) and not _is_own(found):
            setattr(new, key, value)


def _is_own(value: Any) -> bool:
    if not isinstance(value, types.FunctionType):
        return False
    return not (value.__module__ or "").startswith("keras.")
