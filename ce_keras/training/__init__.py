"""Training: recipes, real images, and runs that go on where they were stopped.

Recipes and images in memory need only NumPy; what trains loads TensorFlow when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ce_keras.lazy import lazy_names
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
from ce_keras.training.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from ce_keras.training.job import evaluate, export, plan, train
    from ce_keras.training.loop import ProgressBar, StepTimer
    from ce_keras.training.optimizer import CoupledSGD, StepSchedule
    from ce_keras.training.run import DivergedError, Preempted

__all__ = [
    "FASHION_CLASSES",
    "CoupledSGD",
    "DivergedError",
    "Images",
    "Preempted",
    "ProgressBar",
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
    "DivergedError": "run",
    "Preempted": "run",
    "ProgressBar": "loop",
    "StepSchedule": "optimizer",
    "StepTimer": "loop",
    "evaluate": "job",
    "export": "job",
    "plan": "job",
    "train": "job",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
