"""Initial weights: untruncated normals, drawn for each path on its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from ce_keras.checks import Parameterization, checked_parameterization, finite_number

#: Initialisers that draw nothing.
CONSTANTS = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
)


def kernel_initializer(
    parameterization: Parameterization = "standard", gain: float = 2.0, seed: int | None = None
) -> keras.initializers.Initializer:
    """Return the initializer that a parameterisation stands for.

    Args:
        parameterization: `"standard"`: variance `gain / fan_in`. `"ntk"`: unit normal, for a
            layer that scales by `sqrt(gain / fan_in)` in its forward pass (Eq. 3).
        gain: 2 before a ReLU, 1 before a linear output.
        seed: for reproducible weights.

    Raises:
        ValueError: for an unknown parameterisation, or a gain that is not above 0.

    Both are not truncated: Keras' `he_normal` is, which changes the fourth moment of the weights
    and with it the variance of the kernel.
    """
    finite_number("gain", gain, above=0)
    if checked_parameterization(parameterization) == "ntk":
        return keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return keras.initializers.VarianceScaling(gain, "fan_in", "untruncated_normal", seed=seed)


def for_each_path(
    initializer: Callable[..., Any],
    cardinality: int,
    path_shape: Sequence[int],
    join: Callable[[list[Any]], Any],
) -> Callable[..., Any]:
    """Return an initializer of a whole kernel that draws every path as if it were alone.

    Args:
        initializer: of one path's kernel, whose shape it is given: fan-in, fan-out and
            orthogonality are a path's own.
        cardinality: the number of paths.
        path_shape: shape of one path's kernel.
        join: makes the whole kernel of the list of the paths'.
    """

    def initialize(shape: Sequence[int], dtype: Any = None) -> Any:
        if isinstance(initializer, CONSTANTS):
            return initializer(shape, dtype=dtype)
        draws = [
            reseeded(initializer, path)(path_shape, dtype=dtype) for path in range(cardinality)
        ]
        return join(draws)

    return initialize


def reseeded(initializer: Callable[..., Any], path: int) -> Callable[..., Any]:
    """Return the initializer with another seed for each path: an integer seed repeats itself."""
    seed = getattr(initializer, "seed", None)
    if path == 0 or not isinstance(seed, int):
        return initializer
    config = initializer.get_config()  # type: ignore[attr-defined]
    return type(initializer).from_config({**config, "seed": path_seed(seed, path)})  # type: ignore[attr-defined]


def path_seed(seed: int, path: int) -> int:
    """Return an independent seed for a path, from the seed of the first."""
    return int(np.random.SeedSequence((seed % 2**32, path)).generate_state(1)[0] >> 1)


@keras.saving.register_keras_serializable(package="ce_keras")
class SummedPaths(keras.initializers.Initializer):
    """The initializer of a layer that sums paths: each as if alone, then scaled as in Eq. 4.

    Args:
        initializer: of one path's kernel.
        cardinality: the number of paths; divides the kernel's inputs, its last axis but one.

    >>> one = keras.initializers.Ones()
    >>> keras.ops.convert_to_numpy(SummedPaths(one, 4)((8, 1)))[:, 0].tolist()[:3]
    [0.5, 0.5, 0.5]
    """

    def __init__(self, initializer: Any, cardinality: int) -> None:
        self.initializer = keras.initializers.get(initializer)
        self.cardinality = cardinality

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        *kernel, inputs, outputs = shape
        path = (*kernel, inputs // self.cardinality, outputs)
        join = functools.partial(keras.ops.concatenate, axis=-2)
        draw = for_each_path(self.initializer, self.cardinality, path, join)
        return draw(shape, dtype=dtype) / math.sqrt(self.cardinality)

    def get_config(self) -> dict[str, Any]:
        return {
            "initializer": keras.initializers.serialize(self.initializer),
            "cardinality": self.cardinality,
        }
