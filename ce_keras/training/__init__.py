"""Training: real images, the input pipeline, and the loop around `fit`."""

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
