"""Training: recipes, datasets, and runs that resume where they were stopped.

Recipes and images in memory need only NumPy; the names that train load TensorFlow when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ce_keras.lazy import lazy_names
from ce_keras.training.images import (
    FASHION_CLASSES,
    Images,
    balanced,
    load_fashion_mnist,
    read_idx,
    write_idx,
)
from ce_keras.training.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from ce_keras.training.callbacks import StepTimer
    from ce_keras.training.exporting import export
    from ce_keras.training.input_pipeline import pipeline, shift_and_flip
    from ce_keras.training.interruption import Preempted
    from ce_keras.training.optimizer import CoupledSGD, OneCycleSchedule, StepSchedule
    from ce_keras.training.run import evaluate, plan, train
    from ce_keras.training.trainer import DivergedError

__all__ = [
    "FASHION_CLASSES",
    "CoupledSGD",
    "DivergedError",
    "Images",
    "OneCycleSchedule",
    "Preempted",
    "Recipe",
    "StepSchedule",
    "StepTimer",
    "balanced",
    "evaluate",
    "export",
    "load_fashion_mnist",
    "pipeline",
    "plan",
    "read_idx",
    "read_recipe",
    "shift_and_flip",
    "train",
    "write_idx",
]

_LAZY = {
    "CoupledSGD": "optimizer",
    "DivergedError": "trainer",
    "OneCycleSchedule": "optimizer",
    "Preempted": "interruption",
    "StepSchedule": "optimizer",
    "StepTimer": "callbacks",
    "evaluate": "run",
    "export": "exporting",
    "pipeline": "input_pipeline",
    "plan": "run",
    "shift_and_flip": "input_pipeline",
    "train": "run",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
