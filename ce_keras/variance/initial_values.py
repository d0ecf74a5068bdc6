"""Initial weights for many networks at once, by the laws of Keras' initialisers.

Keras draws one variable at a time. Most of its initialisers draw every number alike, with a spread
that follows from the shape of one network's variable: then all networks' numbers are one draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import initializers

from ce_keras.layers import CollegialConv2D, CollegialDense
from ce_keras.layers.ensemble import reseed
from ce_keras.layers.grouping import CannotGroupError, functional, path_axis
from ce_keras.layers.initializers import CONSTANTS
from ce_keras.variance.random_numbers import CUT_OFF, Quantile, Sheet, normal, truncated, uniform


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
        law: by which every number is drawn alike; `None` where they are not.
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
        self.law = _law(initializer, self._path_shape)
        if isinstance(initializer, CONSTANTS):
            self.variance = 0.0
            variable.assign(initializer(tuple(variable.shape), dtype=variable.dtype))
        elif self.law is not None:
            self.variance = self.law.deviation**2
            if not self.variance:
                variable.assign(np.full(variable.shape, self.law.mean))
        else:
            # As it is for the orthogonal initialiser, whose numbers know of each other.
            rng = np.random.default_rng(0)
            count = -(-10_000 // math.prod(path_shape))
            self.variance = float(np.var([self._draw_one(rng) for _ in range(count)]))

    def initialised(self, rng: np.random.Generator) -> np.ndarray:
        """New values from the initialiser itself, called for every path."""
        whole = tuple(self.variable.shape)
        paths = math.prod(whole) // math.prod(self._path_shape)
        join = np.stack if len(whole) > len(self._path_shape) else np.concatenate
        axis = path_axis(self._path_shape, whole) or 0
        return join([self._draw_one(rng) for _ in range(paths)], axis)

    def _draw_one(self, rng: np.random.Generator) -> np.ndarray:
        config = initializers.serialize(self._initializer)
        reseed(config, lambda _: int(rng.integers(2**31)))
        return np.asarray(initializers.deserialize(config)(self._path_shape, dtype="float32"))


class Draw:
    """New values for all variables of a network at once.

    Args:
        values: of the network's variables; those that start at a constant are left out.

    Attributes:
        variables: what is drawn.
        specs: of the random part, from which the values follow.
    """

    def __init__(self, values: Sequence[InitialValues]) -> None:
        varied = [value for value in values if value.variance]
        self._by_path = [value for value in varied if value.law is None]
        by_quantile: dict[Quantile, list[InitialValues]] = {}
        for value in varied:
            if value.law is not None:
                by_quantile.setdefault(value.law.quantile, []).append(value)
        self._sheets = [_sheet(*each) for each in by_quantile.items()]
        drawn = [*itertools.chain.from_iterable(by_quantile.values()), *self._by_path]
        self.variables = [value.variable for value in drawn]
        own = [tf.TensorSpec(value.variable.shape, tf.float32) for value in self._by_path]
        self.specs = [spec for sheet in self._sheets for spec in sheet.specs] + own

    def random(self, rng: np.random.Generator) -> list[Any]:
        """The random part, by NumPy on one core; `values` is for a graph."""
        own = [tf.convert_to_tensor(value.initialised(rng)) for value in self._by_path]
        return [bits for sheet in self._sheets for bits in sheet.random(rng)] + own

    def values(self, random: Sequence[Any]) -> list[Any]:
        """From that, new values in the order of `variables`."""
        rest = iter(random)
        found = [
            number
            for sheet in self._sheets
            for number in sheet.cut([*itertools.islice(rest, len(sheet.specs))])
        ]
        pairs = zip([*found, *rest], self.variables, strict=True)
        return [tf.cast(value, variable.dtype) for value, variable in pairs]


def _sheet(quantile: Quantile, values: Sequence[InitialValues]) -> Sheet:
    laws = [value.law for value in values if value.law]
    return Sheet(
        quantile,
        [value.variable.shape for value in values],
        [law.deviation for law in laws],
        [law.mean for law in laws],
    )


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


class Law(NamedTuple):
    """Of numbers that are drawn alike: `deviation` times what `quantile` gives, plus `mean`."""

    deviation: float
    mean: float
    quantile: Quantile


def _law(initializer: Any, shape: Sequence[int]) -> Law | None:
    """The law of an initialiser that draws every number alike."""
    kind = type(initializer)
    if kind is initializers.RandomNormal:
        return Law(initializer.stddev, initializer.mean, normal)
    if kind is initializers.TruncatedNormal:
        return Law(CUT_OFF * initializer.stddev, initializer.mean, truncated)
    if kind is initializers.RandomUniform:
        low, high = initializer.minval, initializer.maxval
        return Law((high - low) / math.sqrt(12), (low + high) / 2, uniform)
    if isinstance(initializer, initializers.VarianceScaling):
        fan_in, fan_out = _fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
        quantiles = {"truncated_normal": truncated, "uniform": uniform}
        deviation = math.sqrt(initializer.scale / max(1.0, fan))
        return Law(deviation, 0.0, quantiles.get(initializer.distribution, normal))
    return None


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out, as Keras' initialisers read them off a shape."""
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]
