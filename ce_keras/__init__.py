"""Optimal collegial ensembles for Keras: the best cardinality and width, without training one.

>>> import ce_keras
>>> print(ce_keras.search("resnext29", mode="dual").design)
10x10d

What is imported here needs only NumPy. `ce_keras.layers`, `ce_keras.zoo` and `ce_keras.training`
load Keras the first time they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

from ce_keras import geometry, law
from ce_keras.geometry import Design
from ce_keras.optimum import Curve, Solution, search

if TYPE_CHECKING:
    from ce_keras import layers, training, zoo

__version__ = "0.1.0"

__all__ = [
    "Curve",
    "Design",
    "Solution",
    "geometry",
    "law",
    "layers",
    "search",
    "training",
    "zoo",
]

_LAZY = {"layers", "training", "zoo"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@wrapt.when_imported("keras")
def _register_layers(_keras: Any) -> None:
    """A model saved with our layers loads after no more than `import ce_keras`."""
    importlib.import_module("ce_keras.layers")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
