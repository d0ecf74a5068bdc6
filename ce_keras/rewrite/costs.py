"""The costs of a Keras model: parameters, FLOPs, and the time of a training step."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ce_keras.layers.flops import flops, parameters
from ce_keras.rewrite.report import Costs

logger = logging.getLogger("ce_keras")

_STEPS = 5


def costs_of(model: keras.Model) -> Costs:
    """Return a model's parameters, and its FLOPs if they are known."""
    try:
        work = flops(model)
    except ValueError as error:
        logger.info("FLOPs of %s are not known: %s", model.name, error)
        work = None
    return Costs(parameters(model), work)


def step_seconds(models: Sequence[keras.Model], batch_size: int) -> list[float]:
    """Return the median seconds of a training step of each model, on random inputs.

    A step is a forward and a backward pass and the update, as `fit` compiles it. Models take
    turns; they are compiled and trained.
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
    inputs = [
        np.zeros((batch_size, *tensor.shape[1:]), tensor.dtype)
        if "int" in str(tensor.dtype)
        else rng.standard_normal((batch_size, *tensor.shape[1:])).astype(np.float32)
        for tensor in copy.inputs
    ]
    # Any loss will do whose gradient is not zero.
    targets = [
        np.zeros([batch_size, *(1 if size is None else size for size in tensor.shape[1:])])
        for tensor in copy.outputs
    ]
    copy.compile("sgd", ["mse"] * len(targets))
    return lambda: copy.train_on_batch(inputs, targets)
