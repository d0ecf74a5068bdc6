"""What goes into `fit`: a clock for its steps and a progress bar for the whole run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import keras

from ce_keras.checks import positive_int, text, whole_number
from ce_keras.progress import progress


class StepTimer(keras.callbacks.Callback):
    """Times every training step.

    Args:
        skip: leading steps that do not count: the first compiles.

    Attributes:
        seconds: how long each step took.
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
        """Seconds per step, the leading steps left out unless there are no others."""
        return statistics.median(self.seconds[self.skip :] or self.seconds)


class ProgressBar(keras.callbacks.Callback):
    """One bar on standard error for a whole run of `fit`, with the loss and the time left.

    Args:
        title: what is being trained.
        steps: training steps of the whole run.
    """

    def __init__(self, title: str, steps: int) -> None:
        text("title", title)
        positive_int("steps", steps)
        super().__init__()
        self.title = title
        self.steps = steps

    def on_train_begin(self, logs: Any = None) -> None:
        self._bar = progress(total=self.steps, desc=self.title, unit="step")

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        self._bar.update()

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.close()
