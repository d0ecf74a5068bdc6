"""Kernels of freshly initialised Keras networks: Algorithm 1 for any architecture.

As printed, a Keras network is built for every draw and its kernel taken by `tf.GradientTape`. It
is slow, and is kept as the reference for everything faster. But T draws of a network are the T
paths of a collegial ensemble: one forward and one backward pass through grouped layers give every
path's inputs and output gradients at every layer, and so T kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import ops

from ce_keras.checks import called
from ce_keras.geometry import Stack
from ce_keras.layers import CollegialDense
from ce_keras.layers.ensemble import configuration, rebuilt
from ce_keras.layers.grouping import CannotGroupError, functional, side_by_side
from ce_keras.ntk.autodiff import stateless
from ce_keras.ntk.backends import backend
from ce_keras.ntk.contractions import Gradients
from ce_keras.ntk.recording import Recorder
from ce_keras.variance.closed_form import slopes_of
from ce_keras.variance.initial_values import InitialValues, initial_values

Build = Callable[[], keras.Model]
#: A function from outputs `(networks, ...)` to one number of each network, `(networks,)`.
Readout = Callable[[Any], Any]

# Weights, or activations, that an ensemble has at most: some copies of each are held at a time.
_MOST_NUMBERS = 2**23

# Ensembles that are drawn and computed at a time.
_THREADS = 2


def stack_model(stack: Stack) -> keras.Model:
    """Return a stack as a Keras model from `(batch, positions, inputs)` to `(batch, 1)`.

    Its weights have variance gain / fan_in (Eq. 3).

    >>> stack_model(Stack(inputs=5, positions=9, widths=[3, 4])).output_shape
    (None, 1)
    """
    first, *others = (int(width) for width in stack.widths)

    def hidden(width: int) -> list[Any]:
        return [CollegialDense(width, use_bias=False), _activation_of(stack)]

    return keras.Sequential(
        [
            keras.Input((stack.positions, stack.inputs)),
            *hidden(first),
            # The second layer reads all positions together.
            keras.layers.Flatten(),
            *itertools.chain.from_iterable(map(hidden, others)),
            CollegialDense(1, use_bias=False, gain=1.0),
        ]
    )


def _activation_of(stack: Stack) -> keras.layers.Layer:
    """Return a stack's activation, to a factor: that changes no relative moment of the kernel.

    Raises:
        ValueError: for slopes of different signs, which no layer of Keras has.
    """
    positive, negative = slopes_of(stack.activation)
    # Gaussian weights make no difference between positive and negative inputs.
    small, large = sorted((positive, negative), key=abs)
    slope = small / large
    if slope < 0:
        raise ValueError(
            f"module: its activation has the slopes {positive:g} and {negative:g}; networks are "
            "drawn for slopes of one sign"
        )
    return keras.layers.LeakyReLU(slope) if slope else keras.layers.ReLU()


def middle_unit(outputs: Any) -> Any:
    """Return the first unit at the middle position, whose kernel the paper's constant describes."""
    while len(outputs.shape) > 2:
        outputs = outputs[:, outputs.shape[1] // 2]
    return outputs[:, 0]


def tape_kernels(
    build: Build,
    x: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    readout: Readout = middle_unit,
    ntk: bool = True,
) -> np.ndarray:
    """Return kernels of freshly built networks, one entry of each: Algorithm 1 as printed.

    Args:
        build: a function that returns a Keras network. A model that can be rebuilt from its
            configuration is built once; otherwise every call must draw the weights anew.
        x: one or two inputs, `(p, ...)`.
        draws: number of networks.
        rng: source of the seeds of models that are rebuilt.
        readout: one number of each network's outputs.
        ntk: return the kernel of the NTK parameterisation; otherwise that of the variables.

    Returns:
        K(x[0], x[-1]) of each network, shape `(draws,)`.
    """
    products, moments = [], []
    for model in _networks(build, draws, rng):
        variables = model.trainable_variables
        first, *last = [_gradients(model, variables, example, readout) for example in x]
        pairs = zip(first, last[0] if last else first, strict=True)
        products.append([np.vdot(a, b) for a, b in pairs])
        values = [ops.convert_to_numpy(variable.value) for variable in variables]
        moments.append([(np.mean(value), np.mean(np.square(value))) for value in values])
    mean, square = np.mean(moments, axis=0).T
    return np.array(products) @ (square - mean**2 if ntk else np.ones_like(mean))


def _networks(build: Build, draws: int, rng: np.random.Generator) -> Iterator[keras.Model]:
    """Yield freshly initialised networks, each from the first's configuration with new seeds."""
    template = build()
    config = configuration(template)
    for _ in range(draws):
        yield rebuilt(config, lambda _: int(rng.integers(2**31)), build, template)


def _gradients(
    model: keras.Model, variables: Sequence[Any], example: np.ndarray, readout: Readout
) -> list[Any]:
    """Return the gradients of the read-out at one input."""
    inputs = ops.convert_to_tensor(example[None], model.inputs[0].dtype)

    def value(values: Sequence[Any]) -> Any:
        with stateless(model, variables, values):
            return _read(readout, model(inputs, training=False))

    rows = backend.jacobian(value, [variable.value for variable in variables])
    return [ops.convert_to_numpy(row) for row in rows]


def network_key(model: keras.Model, x: np.ndarray, readout: Readout) -> list[Any]:
    """Return what tells networks apart.

    It is outputs for reproducible weights, the initialisers, and which weights are trained.

    The model's weights are restored.
    """
    config = configuration(model)
    rng = np.random.default_rng(0)
    kept = model.get_weights()
    try:
        model.set_weights([rng.random(weight.shape).astype(weight.dtype) for weight in kept])
        outputs = model(ops.convert_to_tensor(x, model.inputs[0].dtype), training=False)
        read = ops.convert_to_numpy(_read(readout, outputs))
    finally:
        model.set_weights(kept)
    trained = [weight.trainable for weight in model.weights]
    return [[f"{value:.3e}" for value in read], list(_initializers(config)), trained]


def _initializers(config: Any) -> Iterable[Any]:
    """Yield the configurations of all initialisers in that of a model."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config or ()):
        if str(key).endswith("_initializer"):
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from _initializers(value)


def why_not_grouped(build: Build) -> str | None:
    """Return the reason why a network's draws cannot be the paths of an ensemble, or `None`."""
    member = build()
    try:
        initial_values(member, side_by_side(member, 2, kernel_initializer="zeros"))
    except CannotGroupError as error:
        return str(error)
    return None


def ensemble_kernels(
    build: Build,
    x: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    readout: Readout = middle_unit,
    ntk: bool = True,
) -> np.ndarray:
    """Return the same kernels as `tape_kernels`, many networks at a time as paths of one.

    Raises:
        CannotGroupError: for a layer without a grouped form, or with an initialiser of its own.
    """
    member = build()
    most = max(1, _MOST_NUMBERS // _numbers(member))
    # As few ensembles as possible, all of one number of paths: one graph draws them all.
    ensembles = math.ceil(draws / most)
    paths = math.ceil(draws / ensembles)
    network = side_by_side(member, paths, kernel_initializer="zeros")
    values = initial_values(member, network)
    counted = [value for value in values if value.trainable and (value.variance or not ntk)]
    weights = [value.variance if ntk else 1.0 for value in counted]
    drawn = [value for value in values if value.variance]
    function = _products(network, drawn, counted, paths, x, readout)
    products = backend.compiled(function, network)

    def kernels(own: np.random.Generator) -> np.ndarray:
        arrays = [(value.draw(own), value.variable.dtype) for value in drawn]
        new = [ops.cast(backend.from_numpy(array), dtype) for array, dtype in arrays]
        return ops.convert_to_numpy(products(*new)) @ weights

    # Random numbers are drawn by one thread: with one at work, and values copied, a fit of the
    # paper's block takes 1.6 times as long.
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate([*pool.map(kernels, rng.spawn(ensembles))])[:draws]


def _numbers(member: keras.Model) -> int:
    """Return the number of weights of a member, or of its activations if there are more."""
    shapes = [layer.output.shape[1:] for layer in functional(member).layers]
    return max(member.count_params(), sum(math.prod(size or 1 for size in s) for s in shapes))


def _products(
    network: keras.Model,
    drawn: Sequence[InitialValues],
    counted: Sequence[InitialValues],
    paths: int,
    x: np.ndarray,
    readout: Readout,
) -> Callable[..., Any]:
    """Return a function from drawn values to the products of the gradients at both inputs.

    It returns one product for each path and counted variable, `(paths, variables)`.
    """
    variables = [value.variable for value in counted]
    recorder = Recorder(network, variables)

    def read(outputs: Any) -> Any:
        # (*positions, paths * channels) -> (paths, *positions, channels)
        by_member = ops.reshape(outputs[0], [*outputs.shape[1:-1], paths, -1])
        return ops.reshape(ops.sum(_read(readout, ops.moveaxis(by_member, -2, 0))), [1, 1])

    def gradients(example: np.ndarray) -> dict[int, Any]:
        one = ops.convert_to_tensor(example[None], network.inputs[0].dtype)
        return recorder.by_variable(one, read, recorder.without_rule)

    def products(*values: Any) -> Any:
        with stateless(network, [value.variable for value in drawn], values):
            first = gradients(x[0])
            last = first if len(x) == 1 else gradients(x[-1])
        return ops.stack([_by_path(value, first, last, paths) for value in counted], 1)

    return products


def _by_path(value: InitialValues, first: dict[int, Any], last: dict[int, Any], paths: int) -> Any:
    """Return each path's inner product of a variable's gradients, `(paths,)`."""
    one, two = first[id(value.variable)], last[id(value.variable)]
    if isinstance(one, Gradients) and value.axis:
        one, two = (Gradients(_paths_first(each.j, value, paths)) for each in (one, two))
    return one.by_path(two, paths)


def _paths_first(gradient: Any, value: InitialValues, paths: int) -> Any:
    """Return a gradient of shape `(before, paths * after)` as `(paths, before, after)`."""
    before = math.prod(value.variable.shape[: value.axis])
    return ops.swapaxes(ops.reshape(gradient, [before, paths, -1]), 0, 1)


def _read(readout: Readout, outputs: Any) -> Any:
    """Return the read-out of several networks, one number of each."""
    read = called("readout", readout, outputs)
    if read is None:
        raise ValueError("readout: gave None; it must be a number of each network")
    read = ops.convert_to_tensor(read)
    if tuple(read.shape) != tuple(outputs.shape[:1]):
        raise ValueError(
            f"readout: gave shape {tuple(read.shape)} for outputs {tuple(outputs.shape)}; it must "
            f"be a number of each network: {tuple(outputs.shape[:1])}"
        )
    return read
