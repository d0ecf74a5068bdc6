"""Initial weights for many networks at once, by the laws of Keras' initialisers.

Keras draws one variable at a time. Most of its initialisers draw every number alike, with a spread
that follows from the shape of one network's variable: then all networks' numbers are one draw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import initializers

from ce_keras.layers import CollegialConv2D, CollegialDense
from ce_keras.layers.ensemble import reseed
from ce_keras.layers.grouping import CannotGroupError, functional, path_axis
from ce_keras.layers.initializers import CONSTANTS

# Numbers that one generator draws: few enough to stay in a core's cache.
_PIECE = 2**18

# Keras divides by this, so that a normal cut off at two has the standard deviation asked for.
_CUT_OFF = 0.87962566103423978


class InitialValues:
    """How a variable starts that holds those of all paths of an ensemble.

    Args:
        variable: what is drawn into.
        path_shape: the shape of what its initialiser draws: of one path's variable.
        initializer: by which that one is drawn, one of Keras' own.
        trainable: whether it counts in the kernel.
        axis: along which axis the paths lie, `None` for one.

    Attributes:
        variable, trainable, axis: as given.
        variance: of each number; 0 for those that start at a constant, which they then have.
    """

    def __init__(
        self,
        variable: Any,
        path_shape: Sequence[int],
        initializer: Any,
        trainable: bool = True,
        axis: int | None = None,
    ) -> None:
        self.variable = variable
        self.trainable = trainable
        self.axis = axis
        self._path_shape = tuple(path_shape)
        self._initializer = initializer
        self._law = _law(initializer, self._path_shape)
        if isinstance(initializer, CONSTANTS):
            self.variance = 0.0
            variable.assign(initializer(tuple(variable.shape), dtype=variable.dtype))
        elif self._law is not None:
            self.variance = self._law[0] ** 2
        else:
            # As it is for the orthogonal initialiser, whose numbers know of each other.
            rng = np.random.default_rng(0)
            count = -(-10_000 // math.prod(path_shape))
            self.variance = float(np.var([self._draw_one(rng) for _ in range(count)]))

    def draw(self, rng: np.random.Generator) -> None:
        """Give the variable new values."""
        if not self.variance:
            return
        whole = tuple(self.variable.shape)
        if self._law is not None:
            deviation, mean, fill = self._law
            values = np.empty(whole, np.float32)
            _in_pieces(values.reshape(-1), rng, deviation, mean, fill)
        else:
            paths = math.prod(whole) // math.prod(self._path_shape)
            join = np.stack if len(whole) > len(self._path_shape) else np.concatenate
            axis = path_axis(self._path_shape, whole) or 0
            values = join([self._draw_one(rng) for _ in range(paths)], axis)
        self.variable.assign(values)

    def _draw_one(self, rng: np.random.Generator) -> np.ndarray:
        config = initializers.serialize(self._initializer)
        reseed(config, lambda _: int(rng.integers(2**31)))
        return np.asarray(initializers.deserialize(config)(self._path_shape, dtype="float32"))


def initial_values(member: keras.Model, network: keras.Model) -> list[InitialValues]:
    """How every variable of `network` starts, which is many of `member` side by side.

    Raises:
        CannotGroupError: for an initialiser that is not one of Keras' own.
    """
    return [
        InitialValues(
            whole,
            _path_shape(layer, own),
            _initializer_of(layer, own),
            own.trainable,
            path_axis(own.shape, whole.shape),
        )
        for layer in functional(member).layers
        if layer.weights
        for own, whole in zip(layer.weights, network.get_layer(layer.name).weights, strict=True)
    ]


def _path_shape(layer: Any, variable: Any) -> tuple[int, ...]:
    """The shape that the initialiser sees: layers with paths initialise each by itself."""
    if variable.name == "kernel" and isinstance(layer, CollegialDense):
        return layer.fan_in, layer.units // (1 if layer.aggregate else layer.cardinality)
    if variable.name == "kernel" and isinstance(layer, CollegialConv2D):
        return (*variable.shape[:-1], layer.filters // layer.cardinality)
    return tuple(variable.shape)


def _initializer_of(layer: Any, variable: Any) -> Any:
    """Keras' layers keep the initialiser of a variable beside it, under the variable's name."""
    initializer = getattr(layer, f"{variable.name}_initializer", None)
    if getattr(initializers, type(initializer).__name__, None) is not type(initializer):
        raise CannotGroupError(
            f"the initialiser of {variable.path!r} is not one of Keras' own ({initializer})"
        )
    return initializer


# Laws --------------------------------------------------------------------------------------------

#: Standard deviation, mean, and what fills an array with numbers of deviation 1 and mean 0.
_Law = tuple[float, float, Callable[[np.random.Generator, np.ndarray], None]]


def _law(initializer: Any, shape: Sequence[int]) -> _Law | None:
    """The law of an initialiser that draws every number alike."""
    kind = type(initializer)
    if kind is initializers.RandomNormal:
        return initializer.stddev, initializer.mean, _normal
    if kind is initializers.TruncatedNormal:
        return _CUT_OFF * initializer.stddev, initializer.mean, _truncated
    if kind is initializers.RandomUniform:
        low, high = initializer.minval, initializer.maxval
        return (high - low) / math.sqrt(12), (low + high) / 2, _uniform
    if isinstance(initializer, initializers.VarianceScaling):
        fan_in, fan_out = _fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
        fill = {"truncated_normal": _truncated, "uniform": _uniform}
        deviation = math.sqrt(initializer.scale / max(1.0, fan))
        return deviation, 0.0, fill.get(initializer.distribution, _normal)
    return None


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out, as Keras' initialisers read them off a shape."""
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def _normal(rng: np.random.Generator, out: np.ndarray) -> None:
    rng.standard_normal(out=out, dtype=np.float32)


def _uniform(rng: np.random.Generator, out: np.ndarray) -> None:
    rng.random(out=out, dtype=np.float32)
    out -= 0.5
    out *= math.sqrt(12)


def _truncated(rng: np.random.Generator, out: np.ndarray) -> None:
    _normal(rng, out)
    outside = np.flatnonzero(abs(out) > 2)
    while outside.size:
        out[outside] = rng.standard_normal(outside.size, dtype=np.float32)
        outside = outside[abs(out[outside]) > 2]
    out /= _CUT_OFF


def _in_pieces(
    out: np.ndarray,
    rng: np.random.Generator,
    deviation: float,
    mean: float,
    fill: Callable[[np.random.Generator, np.ndarray], None],
) -> None:
    """Fill an array on all cores: a generator for each piece, so that their number is no matter."""
    pieces = [out[start : start + _PIECE] for start in range(0, out.size, _PIECE)]

    def filled(piece: np.ndarray, own: np.random.Generator) -> None:
        fill(own, piece)
        piece *= np.float32(deviation)
        if mean:
            piece += np.float32(mean)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(filled, pieces, rng.spawn(len(pieces))))
