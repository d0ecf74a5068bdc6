"""Training: real images, the input pipeline, and the loop around `fit`.

Reading images needs only NumPy; the loop loads Keras the first time it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ce_keras.training.data import (
    FASHION_CLASSES,
    Images,
    balanced,
    load_fashion_mnist,
    pipeline,
    read_idx,
    shift_and_flip,
    write_idx,
)

if TYPE_CHECKING:
    from ce_keras.training.loop import ProgressBar, StepTimer

__all__ = [
    "FASHION_CLASSES",
    "Images",
    "ProgressBar",
    "StepTimer",
    "balanced",
    "load_fashion_mnist",
    "pipeline",
    "read_idx",
    "shift_and_flip",
    "write_idx",
]


def __getattr__(name: str) -> Any:
    if name in ("ProgressBar", "StepTimer"):
        return getattr(importlib.import_module("ce_keras.training.loop"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
