"""Random numbers by the hundred million: of uniform, normal and truncated normal law.

A draw is sixteen random bits a number, and the law's quantile there, or for normal numbers Box's
and Muller's transformation of two. Compiled, that is six times faster than NumPy draws normal
numbers on all cores. So a number has one of 2^16 values, and a pair of normal ones of 2^32: their
second moment is the law's to 1e-5, their fourth to 1e-4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.polynomial import Chebyshev, Polynomial

#: From two rows of random numbers between -1 and 1 to as many of deviation 1 and mean 0.
Quantile = Callable[[Any], Any]

#: Numbers that are drawn at a time: enough to be worth the calls, few enough to hold some at once.
PIECE = 2**23

#: Numbers with one deviation.
BLOCK = 2**10

_BITS = tf.TensorSpec([2, PIECE // 2], tf.int16)

# Where TensorFlow's tensors begin: at a multiple of so many bytes.
_ALIGNED = 64

#: Keras divides by this, so that a normal cut off at two has the standard deviation asked for.
CUT_OFF = 0.87962566103423978


class Sheet:
    """Numbers by one quantile function, drawn in pieces and cut into arrays.

    An array begins with a block, and blocks at addresses where a cut needs no copy.

    Args:
        quantile: of all numbers, before they have their deviation and mean.
        shapes: of the arrays.
        deviations: of each array.
        means: of each array.

    Attributes:
        specs: of the bits of every piece.
    """

    def __init__(
        self,
        quantile: Quantile,
        shapes: Sequence[Sequence[int]],
        deviations: Sequence[float],
        means: Sequence[float],
    ) -> None:
        self._quantile = quantile
        self._shapes = shapes
        self._means = means
        blocks = [-(-math.prod(shape) // BLOCK) for shape in shapes]
        self._begins = [BLOCK * sum(blocks[:at]) for at in range(len(blocks))]
        pieces = -(-BLOCK * sum(blocks) // PIECE)
        by_block = np.zeros(pieces * PIECE // BLOCK, np.float32)
        by_block[: sum(blocks)] = np.repeat(deviations, blocks)
        self._deviations = [tf.constant(piece) for piece in np.split(by_block, pieces)]
        self.specs = [_BITS] * pieces

    def random(self, rng: np.random.Generator) -> list[Any]:
        """Random bits, for every piece two rows of 16-bit integers."""
        return [_bits(rng) for _ in self._deviations]

    def cut(self, bits: Sequence[Any]) -> list[Any]:
        """The numbers of every array."""
        numbers = _numbers(self._quantile)
        pieces = [numbers(*each) for each in zip(bits, self._deviations, strict=True)]
        sheet = pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0)
        found = []
        for begin, shape, mean in zip(self._begins, self._shapes, self._means, strict=True):
            own = tf.reshape(sheet[begin : begin + math.prod(shape)], shape)
            found.append(own + mean if mean else own)
        return found


def _bits(rng: np.random.Generator) -> Any:
    """The bits of a piece: a tensor on the array's own memory, as copies take longer than draws."""
    every = np.iinfo(np.int64)
    room = np.empty(PIECE // 4 + _ALIGNED // 8, np.int64)
    first = -room.ctypes.data % _ALIGNED // 8
    words = room[first : first + PIECE // 4]
    for part in np.split(words, 32):  # Few enough for the nearest cache.
        part[:] = rng.integers(every.min, every.max, part.size, np.int64, endpoint=True)
    bits = words.view(np.int16).reshape(2, PIECE // 2)
    return tf.experimental.dlpack.from_dlpack(bits.__dlpack__())


@functools.cache
def _numbers(quantile: Quantile) -> Callable[[Any, Any], Any]:
    """From the bits of a piece, and the deviation of every block, its numbers: compiled."""

    def numbers(bits: Any, deviation: Any) -> Any:
        # Evenly spread between -1 and 1, both left out.
        between = (tf.cast(tf.reshape(bits, [2, -1, BLOCK]), tf.float32) + 0.5) * 2.0**-15
        return tf.reshape(quantile(between) * tf.reshape(deviation, [2, -1, 1]), [PIECE])

    specs = [_BITS, tf.TensorSpec([PIECE // BLOCK], tf.float32)]
    return tf.function(numbers, autograph=False, jit_compile=True).get_concrete_function(*specs)


def uniform(between: Any) -> Any:
    """Evenly spread."""
    return between * math.sqrt(3)


def truncated(between: Any) -> Any:
    """Normal numbers cut off at two deviations, as Keras draws them."""
    inside = math.erf(math.sqrt(2))  # What is within two deviations.
    return tf.math.erfinv(between * inside) * (math.sqrt(2) / CUT_OFF)


def normal(between: Any) -> Any:
    """Box's and Muller's transformation: the first row gives radii, the second angles.

    The sine of an angle is the cosine a quarter of a turn before it: as one expression for both,
    it is computed in one loop over the numbers.
    """
    radius, angle = tf.unstack(between)
    angle = angle - tf.reshape([0.0, 0.5], [2, 1, 1])  # In half turns.
    angle = tf.where(angle < -1, angle + 2, angle)
    cosine = _polynomial(lambda square: np.cos(np.pi * np.sqrt(square)), angle * angle)
    return tf.sqrt(-2 * tf.math.log(radius / 2 + 0.5)) * cosine


def _polynomial(function: Callable[[np.ndarray], np.ndarray], x: Any) -> Any:
    """A smooth function on [0, 1], to single precision: XLA's own cosine is far slower."""
    fit = Chebyshev.interpolate(function, 6, domain=[0, 1]).convert(kind=Polynomial)
    total, *others = fit.coef[::-1]
    for coefficient in others:
        total = total * x + coefficient
    return total
