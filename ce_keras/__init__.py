"""Optimal collegial ensembles for Keras: the best cardinality and width, without training one.

>>> import ce_keras
>>> print(ce_keras.search("resnext29", mode="dual").design)
10x10d

Importing it needs only NumPy. The modules that build models load Keras when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ce_keras import geometry, variance
from ce_keras.frontier import Frontier
from ce_keras.geometry import Design
from ce_keras.optimum import search
from ce_keras.registration import register_with_keras
from ce_keras.solution import Curve, Solution
from ce_keras.variance import law

if TYPE_CHECKING:
    from ce_keras import layers, ntk, training, tuner, zoo
    from ce_keras.rewrite import collegialize, inspect

__version__ = "0.2.0"

__all__ = [
    "Curve",
    "Design",
    "Frontier",
    "Solution",
    "collegialize",
    "geometry",
    "inspect",
    "law",
    "layers",
    "ntk",
    "search",
    "training",
    "tuner",
    "variance",
    "zoo",
]

register_with_keras()


def __getattr__(name: str) -> Any:
    if name in ("collegialize", "inspect"):
        return getattr(importlib.import_module(f"{__name__}.rewrite"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
