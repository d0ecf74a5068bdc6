"""Initial weights of many networks at once, with the distributions of Keras' initialisers.

Keras draws one variable at a time. With most of its initialisers every number has the same
distribution, whose scale depends on the shape of one network's variable; then the numbers of all
networks are drawn together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import initializers, ops

from ce_keras.layers import CollegialConv2D, CollegialDense
from ce_keras.layers.ensemble import reseed
from ce_keras.layers.grouping import CannotGroupError, functional, path_axis
from ce_keras.layers.initializers import CONSTANTS

# Keras divides by the standard deviation of a normal distribution cut off at two.
_CUT_OFF = 0.87962566103423978


class InitialValues:
    """The distribution of the initial values of an ensemble's variable, which holds all paths.

    Args:
        variable: the variable to draw for.
        path_shape: the shape that the initialiser sees, of one path's variable.
        initializer: the initialiser of Keras that draws one path's variable.
        trainable: whether the variable contributes to the kernel.
        axis: the axis of the variable along which the paths lie; `None` for one path.

    Attributes:
        variable, trainable, axis: as given.
        variance: of each number; 0 for a constant, which is assigned to the variable.
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
        self._distribution = _distribution(initializer, self._path_shape)
        if isinstance(initializer, CONSTANTS):
            self.variance = 0.0
            variable.assign(initializer(tuple(variable.shape), dtype=variable.dtype))
        elif self._distribution is not None:
            self.variance = self._distribution.std**2
            if not self.variance:
                variable.assign(np.full(variable.shape, self._distribution.mean))
        else:  # The orthogonal initialiser, whose numbers are dependent: their sample variance.
            rng = np.random.default_rng(0)
            count = -(-10_000 // math.prod(path_shape))
            self.variance = float(np.var([self._draw_one(rng) for _ in range(count)]))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return new values of the whole variable."""
        whole = tuple(self.variable.shape)
        if self._distribution is not None:
            return self._distribution.sample(rng, math.prod(whole)).reshape(whole)
        paths = math.prod(whole) // math.prod(self._path_shape)
        join = np.stack if len(whole) > len(self._path_shape) else np.concatenate
        axis = path_axis(self._path_shape, whole) or 0
        return join([self._draw_one(rng) for _ in range(paths)], axis)

    def _draw_one(self, rng: np.random.Generator) -> np.ndarray:
        config = initializers.serialize(self._initializer)
        reseed(config, lambda _: int(rng.integers(2**31)))
        return ops.convert_to_numpy(
            initializers.deserialize(config)(self._path_shape, dtype="float32")
        )


def initial_values(member: keras.Model, network: keras.Model) -> list[InitialValues]:
    """Return the distributions of all variables of `network`, many of `member` side by side.

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
    """Return the shape that the initialiser sees; layers with paths initialise each by itself."""
    if variable.name == "kernel" and isinstance(layer, CollegialDense):
        return layer.fan_in, layer.units // (1 if layer.aggregate else layer.cardinality)
    if variable.name == "kernel" and isinstance(layer, CollegialConv2D):
        return (*variable.shape[:-1], layer.filters // layer.cardinality)
    return tuple(variable.shape)


def _initializer_of(layer: Any, variable: Any) -> Any:
    """Return the initialiser, which Keras' layers keep as `kernel_initializer` and the like."""
    initializer = getattr(layer, f"{variable.name}_initializer", None)
    if getattr(initializers, type(initializer).__name__, None) is not type(initializer):
        raise CannotGroupError(
            f"the initialiser of {variable.path!r} is not one of Keras' own ({initializer})"
        )
    return initializer


class Distribution(NamedTuple):
    """A distribution of independent numbers, by name, mean and standard deviation."""

    name: Literal["normal", "uniform", "truncated_normal"]
    std: float
    mean: float = 0.0

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return random numbers in single precision: 16 random bits each, and a table.

        A whole fit of the paper's block takes 1.6 times longer with NumPy's normal numbers. The
        second moment is exact, the fourth has a relative error of 1e-4.
        """
        table = (_table(self.name) * self.std + self.mean).astype(np.float32)
        found = _aligned(size)
        for part in np.split(found, range(_PART, size, _PART)):
            words = rng.integers(2**64 - 1, size=-(-part.size // 4), dtype=np.uint64, endpoint=True)
            # Without a mode of its own, `take` would buffer the output.
            table.take(words.view(np.uint16)[: part.size], out=part, mode="clip")
        return found


def _aligned(size: int) -> np.ndarray:
    """Return an empty array whose memory TensorFlow can use as it is."""
    room = np.empty(size + 16, np.float32)
    first = -room.ctypes.data % 64 // room.itemsize
    return room[first : first + size]


# Numbers drawn at a time: their random bits stay in the processor's nearest cache.
_PART = 2**15


@functools.cache
def _table(name: str) -> np.ndarray:
    """Return 2^16 numbers of mean 0 and variance 1 that represent a distribution.

    Each is the mean of a normal distribution between two neighbouring of its 2^16 quantiles, which
    is the difference of the density there over the probability between them.
    """
    count = 2**16
    if name == "uniform":
        table = np.arange(count) - (count - 1) / 2
    else:
        normal, cut = NormalDist(), 2.0 if name == "truncated_normal" else math.inf
        probability = np.linspace(normal.cdf(-cut), normal.cdf(cut), count + 1)
        quantiles = np.array([-cut, *map(normal.inv_cdf, probability[1:-1]), cut])
        table = -np.diff(np.exp(-(quantiles**2) / 2))
    return table / table.std()


def _distribution(initializer: Any, shape: Sequence[int]) -> Distribution | None:
    """Return the distribution of an initialiser whose numbers are independent."""
    kind = type(initializer)
    if kind is initializers.RandomNormal:
        return Distribution("normal", initializer.stddev, initializer.mean)
    if kind is initializers.TruncatedNormal:
        return Distribution("truncated_normal", _CUT_OFF * initializer.stddev, initializer.mean)
    if kind is initializers.RandomUniform:
        low, high = initializer.minval, initializer.maxval
        return Distribution("uniform", (high - low) / math.sqrt(12), (low + high) / 2)
    if isinstance(initializer, initializers.VarianceScaling):
        fan_in, fan_out = _fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
        std = math.sqrt(initializer.scale / max(1.0, fan))
        name = initializer.distribution
        return Distribution("normal" if name == "untruncated_normal" else name, std)
    return None


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return fan-in and fan-out of a shape, as Keras' initialisers compute them."""
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]
