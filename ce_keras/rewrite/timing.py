"""How long a training step of a Keras model takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

_STEPS = 5


def step_seconds(models: Sequence[keras.Model], batch_size: int) -> list[float]:
    """Median seconds of a training step of each model, side by side, on random inputs.

    A step is a forward and a backward pass and the update, as `fit` compiles it. The models are
    compiled and trained.
    """
    steps = [_step(model, batch_size) for model in models]
    for step in steps:
        step()
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(_STEPS):
        for step, seconds in zip(steps, times, strict=True):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    return [statistics.median(seconds) for seconds in times]


def check_measurable(model: keras.Model) -> None:
    """Raise if a model's steps cannot be timed.

    Raises:
        ValueError: for inputs of text, or without a fixed size.
    """
    for tensor in model.inputs:
        if None in tensor.shape[1:] or "string" in str(tensor.dtype):
            raise ValueError(
                f"measure: the input {tensor.name!r} of {model.name!r} is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}; a time needs numbers of fixed sizes"
            )


def _step(model: keras.Model, batch_size: int) -> Any:
    copy = keras.Model(model.inputs, model.outputs)
    rng = np.random.default_rng(0)
    inputs = [_draw(rng, tensor, batch_size) for tensor in copy.inputs]
    # Any loss will do whose gradient is not zero.
    targets = [
        np.zeros([batch_size, *(1 if size is None else size for size in tensor.shape[1:])])
        for tensor in copy.outputs
    ]
    copy.compile("sgd", ["mse"] * len(targets))
    return lambda: copy.train_on_batch(inputs, targets)


def _draw(rng: np.random.Generator, tensor: Any, batch_size: int) -> np.ndarray:
    shape = (batch_size, *tensor.shape[1:])
    if "int" in str(tensor.dtype):
        return np.zeros(shape, tensor.dtype)
    return rng.standard_normal(shape).astype(np.float32)
