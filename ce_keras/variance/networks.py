"""Algorithm 1 with networks: as printed, and with all draws as the paths of one ensemble.

As printed, a Keras network is built for every draw and its kernel taken by `tf.GradientTape`. It
is slow, and kept so: it is what everything faster is held against. But T draws of a network are
the T paths of a collegial ensemble: one forward and one backward pass through grouped layers give
every path's input and signal at every layer, and so T kernels.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from ce_keras.checks import called
from ce_keras.geometry import Stack
from ce_keras.layers import CollegialConv2D, CollegialDense
from ce_keras.layers.ensemble import configuration, rebuilt
from ce_keras.layers.grouping import CannotGroupError, functional, side_by_side
from ce_keras.ntk.autodiff import traced
from ce_keras.ntk.contractions import Gradients
from ce_keras.ntk.recording import Recorder
from ce_keras.variance.initial_values import Draw, InitialValues, initial_values
from ce_keras.variance.random_numbers import BLOCK, PIECE

Build = Callable[[], keras.Model]
Item = TypeVar("Item")
#: What builds networks of one kind, and where their random numbers come from.
Kind = tuple[Build, np.random.Generator]
#: From outputs `(members, ...)` of as many networks to one number of each, `(members,)`.
Readout = Callable[[Any], Any]

# Numbers that the ensembles in work hold, of one kind: some copies of each, a gigabyte in all.
_MOST_HELD = 2**26

# Ensembles in work: one for each core, as far as they can be held, and one whose turn is next.
_AT_ONCE = 1 + min(_MOST_HELD // PIECE, os.cpu_count() or 1)


def stack_model(stack: Stack) -> keras.Model:
    """A stack as a Keras network of one path, with weights of variance gain / fan_in (Eq. 3).

    Args:
        stack: from `Module.stack`.

    Returns:
        A model from `(batch, positions, inputs)` to `(batch, 1)`.

    >>> stack_model(Stack(inputs=5, positions=9, widths=[3, 4])).output_shape
    (None, 1)
    """
    first, *others = (int(width) for width in stack.widths)
    return keras.Sequential(
        [
            keras.Input((stack.positions, stack.inputs)),
            CollegialDense(first, activation="relu", use_bias=False),
            # The second layer sees all positions together.
            keras.layers.Flatten(),
            *(CollegialDense(width, activation="relu", use_bias=False) for width in others),
            CollegialDense(1, use_bias=False, gain=1.0),
        ]
    )


def middle_unit(outputs: Any) -> Any:
    """The first unit at the middle position: the read-out that the paper's constant is for."""
    while outputs.shape.rank > 2:
        outputs = outputs[:, outputs.shape[1] // 2]
    return outputs[:, 0]


def tape_kernels(
    kinds: Iterable[Kind],
    x: np.ndarray,
    draws: int,
    readout: Readout = middle_unit,
    ntk: bool = True,
) -> Generator[np.ndarray]:
    """Kernels of freshly built networks, one entry of each: Algorithm 1 as printed.

    Args:
        kinds: of networks, such as one for each width: what returns a Keras model, and where the
            seeds come from, where the model can be rebuilt from its configuration; otherwise it
            is built each time, and must draw its weights anew.
        x: one or two inputs, `(p, ...)`.
        draws: how many networks of each kind.
        readout: one number of each network's outputs.
        ntk: the kernel of the NTK parameterisation; otherwise that of the variables as they are.

    Yields:
        K(x[0], x[-1]) of each network of a kind, shape `(draws,)`.
    """
    for build, rng in kinds:
        yield _by_tape(_networks(build, draws, rng), x, readout, ntk)


def _by_tape(
    networks: Iterable[keras.Model], x: np.ndarray, readout: Readout, ntk: bool
) -> np.ndarray:
    products, moments = [], []
    for model in networks:
        variables = model.trainable_variables
        gradients = _gradients(model, variables, x, lambda outputs: _read(readout, outputs)[0])
        pairs = zip(gradients[0], gradients[-1], strict=True)
        products.append([float(tf.reduce_sum(a * b)) for a, b in pairs])
        moments.append([(np.mean(v), np.mean(np.square(v))) for v in variables])
    mean, square = np.mean(moments, axis=0).T
    return np.array(products) @ (square - mean**2 if ntk else np.ones_like(mean))


def probe(model: keras.Model, x: np.ndarray, readout: Readout) -> list[Any]:
    """What a network computes with weights that anybody can draw, and how it initialises its own.

    The model's own weights are as they were, afterwards.
    """
    config = configuration(model)
    rng = np.random.default_rng(0)
    kept = model.get_weights()
    try:
        model.set_weights([rng.random(weight.shape).astype(weight.dtype) for weight in kept])
        outputs = model(tf.constant(x, model.inputs[0].dtype), training=False)
        read = np.asarray(_read(readout, outputs))
    finally:
        model.set_weights(kept)
    return [[f"{value:.3e}" for value in read], _initializers(config)]


def _initializers(config: Any) -> list[Any]:
    """All parts of a serialised model that are called initialisers."""
    found: list[Any] = []
    for key, value in config.items() if isinstance(config, dict) else enumerate(config or ()):
        if str(key).endswith("_initializer"):
            found.append(value)
        elif isinstance(value, dict | list | tuple):
            found += _initializers(value)
    return found


def why_not_grouped(build: Build) -> str | None:
    """What keeps the draws of a network from being the paths of one, or `None`."""
    member = build()
    try:
        initial_values(member, side_by_side(member, 2, kernel_initializer="zeros"))
    except CannotGroupError as error:
        return str(error)
    return None


def ensemble_kernels(
    kinds: Iterable[Kind],
    x: np.ndarray,
    draws: int,
    readout: Readout = middle_unit,
    ntk: bool = True,
) -> Generator[np.ndarray]:
    """The same, with many draws as the paths of one network: some million weights at a time.

    Weights are drawn here, by the laws of Keras' initialisers. While networks of one kind are
    drawn, the next kind's are built, traced and begun.

    Args: as in `tape_kernels`.

    Yields:
        K(x[0], x[-1]) of each network of a kind, shape `(draws,)`.

    Raises:
        CannotGroupError: where a layer has no grouped form, or an initialiser of its own.
    """
    pool = ThreadPoolExecutor(_AT_ONCE)
    begun = (_begun(pool, build, x, draws, rng, readout, ntk) for build, rng in kinds)
    try:
        for ensembles in _one_ahead(begun):
            yield np.concatenate([*ensembles])[:draws]
    finally:
        pool.shutdown(cancel_futures=True)


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Each item once the next is made; what keeps that from being made is raised in its turn."""
    item = next(items, None)
    while item is not None:
        failure = None
        try:
            following = next(items, None)
        except Exception as error:
            following, failure = None, error
        yield item
        if failure is not None:
            raise failure
        item = following


def _begun(
    pool: Executor,
    build: Build,
    x: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    readout: Readout,
    ntk: bool,
) -> Iterable[np.ndarray]:
    """The kernels of one ensemble after another, all of which are in work."""
    member = build()
    numbers = _numbers(member)
    most = max(1, _room(member) // numbers)
    # As few ensembles as there must be, of as many paths each.
    ensembles = -(-draws // most)
    paths = -(-draws // ensembles)
    network = side_by_side(member, paths, kernel_initializer="zeros")
    values = initial_values(member, network)
    counted = [value for value in values if value.trainable and (value.variance or not ntk)]
    weights = [value.variance if ntk else 1.0 for value in counted]
    draw = Draw(values)
    turns = threading.Semaphore(max(1, _MOST_HELD // (paths * numbers)))
    products = _products(network, draw, counted, paths, x, readout)
    graph = traced(lambda *random: products(*draw.values(random)), draw.specs)

    def kernels(own: np.random.Generator) -> np.ndarray:
        with turns:
            return graph(*draw.random(own)).numpy() @ weights

    return pool.map(kernels, rng.spawn(ensembles))


def _room(member: keras.Model) -> int:
    """How many numbers an ensemble may hold; each of its variables begins with a block."""
    return PIECE - BLOCK * len(member.weights)


def _numbers(member: keras.Model) -> int:
    """How many a member holds: weights, or what its layers put out."""
    shapes = [layer.output.shape[1:] for layer in functional(member).layers]
    return max(member.count_params(), sum(math.prod(size or 1 for size in s) for s in shapes))


def _products(
    network: keras.Model,
    draw: Draw,
    counted: Sequence[InitialValues],
    paths: int,
    x: np.ndarray,
    readout: Readout,
) -> Callable[..., Any]:
    """From drawn values, of every path and variable the product of the gradients at both inputs."""
    variables = [value.variable for value in counted]
    recorder = Recorder(network, variables)
    by_tape = {id(v) for v in [*recorder.without_rule, *_small_kernels(network)]}
    taped = [variable for variable in variables if id(variable) in by_tape]

    def read(outputs: Any) -> Any:
        by_member = tf.reshape(outputs[0], [*outputs.shape[1:-1], paths, -1])
        rank = by_member.shape.rank
        by_member = tf.transpose(by_member, [rank - 2, *range(rank - 2), rank - 1])
        return tf.reshape(tf.reduce_sum(_read(readout, by_member)), [1, 1])

    def shares(example: np.ndarray) -> dict[int, Any]:
        one = tf.constant(example[None], network.inputs[0].dtype)
        return recorder.by_variable(one, read, taped)

    def products(*values: Any) -> Any:
        mapping = zip(draw.variables, values, strict=True)
        with keras.StatelessScope(state_mapping=mapping):
            first = shares(x[0])
            last = first if len(x) == 1 else shares(x[-1])
        return tf.stack([_by_path(value, first, last, paths) for value in counted], 1)

    return products


def _small_kernels(network: keras.Model) -> list[Any]:
    """Kernels with fewer weights than what they see at all places: cheapest as gradients."""
    return [
        layer.kernel
        for layer in network.layers
        if isinstance(layer, CollegialConv2D)
        and math.prod(layer.kernel_size) > 1
        and None not in layer.output.shape[1:]
        and math.prod(layer.output.shape[1:-1]) > layer.filters // layer.cardinality
    ]


def _by_path(value: InitialValues, first: dict[int, Any], last: dict[int, Any], paths: int) -> Any:
    """Each path's inner product of a variable's gradients, `(paths,)`."""
    one, two = first[id(value.variable)], last[id(value.variable)]
    if isinstance(one, Gradients) and value.axis:
        one, two = (Gradients(_paths_first(each.j, value, paths)) for each in (one, two))
    return one.by_path(two, paths)


def _paths_first(gradient: Any, value: InitialValues, paths: int) -> Any:
    """A gradient with its paths along the first axis."""
    before = math.prod(value.variable.shape[: value.axis])
    return tf.transpose(tf.reshape(gradient, [before, paths, -1]), [1, 0, 2])


def _read(readout: Readout, outputs: Any) -> Any:
    """What is read from the outputs of several networks: a number of each."""
    read = called("readout", readout, outputs)
    if read is None:
        raise ValueError("readout: gave None; it must be a number of each network")
    read = tf.convert_to_tensor(read)
    if read.shape != outputs.shape[:1]:
        raise ValueError(
            f"readout: gave shape {tuple(read.shape)} for outputs {tuple(outputs.shape)}; it must "
            f"be a number of each network: {tuple(outputs.shape[:1])}"
        )
    return read


def _gradients(
    model: keras.Model, variables: Sequence[Any], x: np.ndarray, read: Callable[[Any], Any]
) -> list[list[Any]]:
    """At each input, the gradients of what `read` makes of the outputs."""
    found = []
    for example in x:
        with tf.GradientTape() as tape:
            value = read(model(tf.constant(example[None], model.inputs[0].dtype), training=False))
        gradients = tape.gradient(
            value,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        # Those of tables come as rows.
        found.append([tf.convert_to_tensor(gradient) for gradient in gradients])
    return found


def _networks(build: Build, draws: int, rng: np.random.Generator) -> Iterator[keras.Model]:
    """Freshly initialised networks: each from the configuration of the first, with new seeds."""
    template = build()
    config = configuration(template)
    for _ in range(draws):
        yield rebuilt(config, lambda _: int(rng.integers(2**31)), build, template)
