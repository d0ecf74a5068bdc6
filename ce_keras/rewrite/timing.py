"""Measured times of training steps and of inference, of whole models and of their blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from ce_keras.geometry import Design
from ce_keras.latency import Block, Phase, Table, Timing
from ce_keras.layers.keras_internals import all_layers, replaced_attributes
from ce_keras.progress import progress
from ce_keras.rewrite.building import rebuilt
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.decisions import Family

# Steps of each model that are timed; models take turns.
_STEPS = 5

# Rounds over the designs of a block: at least and at most so many, within so many seconds.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 7, 2.0

# Seconds that steps of the whole model take together, each time that they have their turn.
_SHORT = 0.5

# Drawing the weights of hundreds of paths would take a tenth of the time.
_KERNEL = keras.initializers.Constant(0.01)

# Widths of paths that blocks are timed at, as far as they are at most half the baseline's: as many
# paths as have the baseline's parameters. Of the first width it is half as many: they are the
# slowest.
_WIDTHS = (3, 8, 16, 32, 64, 128)

# The width among them that is timed at two cardinalities, and the fraction of the other.
_TWICE, _FEWER = 8, 1 / 4

# The width that is timed with channels that are no multiple of 8, as those of the others are.
_ODD = 11


def measure_table(model: keras.Model, family: Family, timing: Timing) -> Table:
    """Return the measured times of a model and of the blocks of one of its families.

    Every kind of block is timed by itself at several designs, as whole steps that take turns, less
    the time of a step of nothing. The model's own steps are timed in between, so that the machine
    drifts for all.

    Raises:
        ValueError: for inputs that are no numbers of fixed sizes, or layers that are shared.
    """
    check_measurable("budget", model)
    for chain in family.chains:
        layer = chain.linear[0].layer
        if None in layer.input.shape[1:]:
            raise ValueError(
                f"budget: {chain.layers[0]!r} reads inputs of shape {tuple(layer.input.shape)}; a "
                "time needs fixed sizes: give them to the Input of the model that it is in"
            )
    designs = grid(family)
    kinds: Counter[Any] = Counter()
    for chain in family.chains:
        kinds[_kind(chain)] += chain.calls
    by_kind = {_kind(chain): chain for chain in family.chains}
    copy, _ = rebuilt(model, compiled=False)
    step = step_of(copy, timing.batch, timing.phase)
    seconds_of(step)
    whole: list[float] = []
    blocks = []
    for kind, chain in progress(by_kind.items(), desc="times of blocks", delay=1):
        whole += _several_seconds(step, -(-_STEPS // len(by_kind)))
        times = _block_seconds(chain, family, designs, timing)
        factor = max(chain.widths) / family.width
        blocks.append(Block(kinds[kind], [list(each) for each in designs], times, factor))
    return Table(whole, blocks)


def grid(family: Family) -> list[Design]:
    """Return the designs to time: paths of about the baseline's size, and one path alone.

    The baseline is the last.
    """
    whole = family.cost("params", family.width)
    half = max(1, family.width // 2)
    widths = [width for width in _WIDTHS if width <= half] or [1]

    def affordable(width: int) -> float:
        return whole / family.cost("params", width)

    def aligned(width: int, fraction: float = 1) -> Design:
        return Design(_multiple(fraction * affordable(width), 8 // math.gcd(8, width)), width)

    found = [aligned(n, 1 / 2 if n == _WIDTHS[0] else 1) for n in widths]
    found.append(aligned(min(_TWICE, widths[-1]), _FEWER))
    odd = min(_ODD, half - 1 + half % 2)
    found.append(Design(2 * int(affordable(odd) / 2) + 1, odd))
    found += [Design(1, half), Design(1, family.width)]
    return list(dict.fromkeys(found))


def _multiple(number: float, unit: int) -> int:
    """Return the nearest multiple of a unit that is not zero."""
    return max(1, round(number / unit)) * unit


def _kind(chain: Chain) -> tuple[Any, ...]:
    """Return what two blocks of equal times have in common."""
    linear = [
        (type(each.layer).__name__, each.inputs, each.outputs, each.pixels, each.positions)
        for each in chain.linear
    ]
    between = [(type(each.layer).__name__, each.shapes) for each in chain.intermediate]
    return (*linear, *between, tuple(chain.linear[0].layer.input.shape))


def _block_seconds(
    chain: Chain, family: Family, designs: Sequence[Design], timing: Timing
) -> list[list[float]]:
    """Return the seconds of several steps of a chain with the paths of each design."""
    nothing = keras.layers.Identity(dtype=chain.linear[0].layer.compute_dtype)
    like = chain.linear[0].layer.input
    paths = [nothing, *(_paths(chain, family, design) for design in designs)]
    models = [_as_inside_a_model(each, like) for each in paths]
    steps = [step_of(model, timing.batch, timing.phase) for model in models]
    times: list[list[float]] = [[] for _ in steps]
    with _no_advice():
        for step in steps:
            step()
    begun = time.perf_counter()
    for count in range(_MOST_ROUNDS):
        if count >= _ROUNDS and time.perf_counter() - begun > _SECONDS:
            break
        for step, seconds in zip(steps, times, strict=True):
            seconds.append(seconds_of(step))
    empty, *blocks = times
    # Noise may not leave a block without any time.
    nothing_takes = min(statistics.median(empty), 0.9 * min(map(min, blocks)))
    return [[seconds - nothing_takes for seconds in each] for each in blocks]


def _several_seconds(step: Callable[[], Any], least: int) -> list[float]:
    """Return the seconds of so many steps, or of more if they take less than half a second."""
    times: list[float] = []
    while len(times) < least or sum(times) < _SHORT:
        times.append(seconds_of(step))
    return times


def _paths(chain: Chain, family: Family, design: Design) -> keras.Model:
    """Return a chain by itself, with the paths of a design, of equal weights."""
    alone = keras.Model(chain.linear[0].layer.input, chain.linear[-1].layer.output)
    of_chain = dataclasses.replace(family, chains=(chain,))
    changed = [] if design == (1, family.width) else [(of_chain, _Timed(design))]
    with contextlib.ExitStack() as stack:
        for layer in all_layers(alone):
            if hasattr(layer, "kernel_initializer"):
                stack.enter_context(replaced_attributes(layer, kernel_initializer=_KERNEL))
        return rebuilt(alone, changed, compiled=False)[0]


def _as_inside_a_model(paths: Callable[[Any], Any], like: Any) -> keras.Model:
    """Return a model of some layers whose step does what theirs is inside a larger model.

    Gradients go on to what is before them, here a number that is added; outputs are not copied.
    """
    inputs = keras.Input(batch_shape=like.shape, dtype=like.dtype)
    outputs = paths(_Shift(dtype=like.dtype)(inputs))
    return keras.Model(inputs, ops.mean(outputs, axis=tuple(range(1, len(outputs.shape)))))


class _Shift(keras.layers.Layer):
    """Adds a trainable number."""

    def build(self, input_shape: Any) -> None:
        del input_shape
        self.shift = self.add_weight(name="shift", shape=(), initializer="zeros")

    def call(self, x: Any) -> Any:
        """Return the inputs plus the number."""
        return x + self.shift


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
            seconds.append(seconds_of(step))
    return times


def seconds_of(step: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


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
    inputs, targets = keras.tree.map_structure(ops.convert_to_tensor, (inputs, targets))
    if phase == "infer":
        return lambda: copy.predict_on_batch(inputs)
    return lambda: copy.train_on_batch(inputs, targets)
