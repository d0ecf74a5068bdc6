"""Measured times of training steps and of inference, of whole models and of their blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ce_keras.geometry import Design
from ce_keras.latency import Block, Phase, Table, Timing
from ce_keras.progress import progress
from ce_keras.rewrite.building import rebuilt
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.decisions import Family

# Steps of each model that are timed; models take turns.
_STEPS = 5

# Widths of paths that blocks are timed at, below the baseline's: multiples of 8, which processors
# favour, and others.
_WIDTHS = (3, 5, 8, 11, 16, 27, 32, 64, 70, 128, 180)

# The width among them that is timed at two cardinalities, and the fraction of the other.
_TWICE, _FEWER = 11, 1 / 4


def measure_table(model: keras.Model, family: Family, timing: Timing) -> Table:
    """Return the measured times of a model and of the blocks of one of its families.

    Every kind of block is timed by itself at several designs, as whole steps that take turns.

    Raises:
        ValueError: for inputs that are no numbers of fixed sizes, or layers that are shared.
    """
    check_measurable("budget", model)
    designs = grid(family)
    kinds: Counter[Any] = Counter()
    for chain in family.chains:
        kinds[_kind(chain)] += chain.calls
    blocks = []
    by_kind = {_kind(chain): chain for chain in family.chains}
    bar = progress(by_kind.items(), desc="times of blocks", delay=1)
    for kind, chain in bar:
        models = [_block(chain, family, design) for design in designs]
        times = all_seconds(models, timing.batch, timing.phase)
        factor = max(chain.widths) / family.width
        blocks.append(Block(kinds[kind], [list(each) for each in designs], times, factor))
    copy, _ = rebuilt(model, compiled=False)
    (whole,) = all_seconds([copy], timing.batch, timing.phase)
    return Table(whole, blocks)


def grid(family: Family) -> list[Design]:
    """Return the designs to time: of about the baseline's size, the baseline last."""
    whole = family.cost("params", family.width)
    widths = [width for width in _WIDTHS if width <= family.width / 2] or [1]
    found = []
    for width in widths:
        m = max(1, round(whole / family.cost("params", width)))
        found.append(Design(m, width))
        if width == min(_TWICE, widths[-1]) and m > 1:
            found.append(Design(max(1, round(m * _FEWER)), width))
    return [*found, Design(1, family.width)]


def _kind(chain: Chain) -> tuple[Any, ...]:
    """Return what two blocks of equal times have in common."""
    linear = [
        (type(each.layer).__name__, each.inputs, each.outputs, each.pixels, each.positions)
        for each in chain.linear
    ]
    between = [(type(each.layer).__name__, each.shapes) for each in chain.intermediate]
    return (*linear, *between, tuple(chain.linear[0].layer.input.shape))


def _block(chain: Chain, family: Family, design: Design) -> keras.Model:
    """Return a chain by itself, with the paths of a design."""
    first, last = chain.linear[0].layer, chain.linear[-1].layer
    alone = keras.Model(first.input, last.output)
    if design == (1, family.width):
        return rebuilt(alone, compiled=False)[0]
    of_chain = dataclasses.replace(family, chains=(chain,))
    return rebuilt(alone, [(of_chain, _Timed(design))], compiled=False)[0]


class _Timed(NamedTuple):
    """A design in the place of a decision."""

    design: Design


# Steps -------------------------------------------------------------------------------------------


def step_seconds(models: Sequence[keras.Model], batch: int, phase: Phase = "train") -> list[float]:
    """Return the median seconds of a step of each model; see `all_seconds`."""
    return [statistics.median(seconds) for seconds in all_seconds(models, batch, phase)]


def all_seconds(
    models: Sequence[keras.Model], batch: int, phase: Phase = "train"
) -> list[list[float]]:
    """Return the seconds of several steps of each model, on random inputs.

    A training step is a forward and a backward pass and the update, as `fit` compiles it. Models
    take turns; they are compiled and trained.
    """
    steps = [step_of(model, batch, phase) for model in models]
    with _no_advice():
        for step in steps:
            step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(_STEPS):
        for step, seconds in zip(steps, times, strict=True):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    return times


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Mute TensorFlow's warning that several models were traced one after the other."""
    tensorflow = logging.getLogger("tensorflow")
    level = tensorflow.level
    tensorflow.setLevel(logging.ERROR)
    try:
        yield
    finally:
        tensorflow.setLevel(level)


def check_measurable(argument: str, model: keras.Model) -> None:
    """Raise if a model's steps cannot be timed.

    Raises:
        ValueError: for inputs of text, or without a fixed size.
    """
    for tensor in model.inputs:
        if None in tensor.shape[1:] or "string" in str(tensor.dtype):
            raise ValueError(
                f"{argument}: the input {tensor.name!r} of {model.name!r} is {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}; a time needs numbers of fixed sizes"
            )


def step_of(model: keras.Model, batch: int, phase: Phase = "train") -> Callable[[], Any]:
    """Return a function that takes a step of a model on random inputs, and so trains it."""
    copy = keras.Model(model.inputs, model.outputs)
    rng = np.random.default_rng(0)
    inputs = [
        np.zeros((batch, *tensor.shape[1:]), tensor.dtype)
        if "int" in str(tensor.dtype)
        else rng.standard_normal((batch, *tensor.shape[1:])).astype(np.float32)
        for tensor in copy.inputs
    ]
    # Any loss will do whose gradient is not zero.
    targets = [
        np.zeros([batch, *(1 if size is None else size for size in tensor.shape[1:])])
        for tensor in copy.outputs
    ]
    copy.compile("sgd", ["mse"] * len(targets))
    if phase == "infer":
        return lambda: copy.predict_on_batch(inputs)
    return lambda: copy.train_on_batch(inputs, targets)
