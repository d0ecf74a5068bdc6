"""A Keras callback that times training steps."""

from __future__ import annotations

import statistics
import time
from typing import Any

import keras

from ce_keras.checks import whole_number


class StepTimer(keras.callbacks.Callback):
    """Times every training step of `fit`.

    Args:
        skip: leading steps that do not count: the first compiles.

    Attributes:
        seconds: duration of each step.
    """

    def __init__(self, skip: int = 5) -> None:
        whole_number("skip", skip, 0)
        super().__init__()
        self.skip = skip
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._begun)

    @property
    def median(self) -> float:
        """Median seconds per step, without the leading steps unless there are no others."""
        return statistics.median(self.seconds[self.skip :] or self.seconds)
