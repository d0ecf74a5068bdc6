"""Which pairs of outputs meet: all, equal examples, or of a symmetric kernel a little over half."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

#: Rows of a matrix that are many: they keep all cores busy.
MANY = 128

# Of nine parts 56 % of all pairs meet; of more, hardly fewer.
_MOST_PARTS = 9


class Pairs(NamedTuple):
    """The pairs of outputs, of first and of second inputs, whose kernel is computed.

    Attributes:
        same_examples: only pairs of an example with itself.
        parts: of a symmetric kernel, the paired outputs are taken in so many parts, of which every
            two meet once. One part: every pair is computed.
    """

    same_examples: bool = False
    parts: int = 1

    @classmethod
    def symmetric(cls, outputs: int, examples: int) -> Pairs:
        """Those of inputs with themselves, with so many paired outputs of each example."""
        divisors = (p for p in range(1, _MOST_PARTS + 1) if outputs % p == 0)
        return cls(parts=max((p for p in divisors if outputs // p * examples >= MANY), default=1))

    @property
    def met(self) -> float:
        """Which fraction of all pairs of outputs is computed."""
        return (self.parts + 1) / (2 * self.parts)

    def products(self, product: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
        """The products of all pairs, `(d, r, n, s, m)`; of parts, with `s` for those met by any.

        Args:
            product: `(t, d, r, n, ...)` and `(t, d, s, m, ...)` to `(d, r, n, s, m)`.
            first: signals or gradients, `(t, d, r, n, ...)`.
            second: those of the second inputs; of parts, the same.
        """
        if self.parts == 1:
            return product(first, second)
        t, d, r, *others = range(len(first.shape))
        by_output = moved(first, [r, t, d, *others])  # Along the first axis, parts are no copies.
        starts = range(0, first.shape[r], first.shape[r] // self.parts)
        later = [moved(by_output[start:], [1, 2, 0, *others]) for start in starts]
        own = [moved(by_output[start:][: starts.step], [1, 2, 0, *others]) for start in starts]
        return tf.concat([product(*each) for each in zip(own, later, strict=True)], 3)

    def whole(self, kernel: Any) -> Any:
        """A sum of such products with every pair in its place, `(d, r, n, s, m)`."""
        if self.parts == 1:
            return kernel
        met = list(itertools.combinations_with_replacement(range(self.parts), 2))
        found = dict(zip(met, tf.split(kernel, len(met), 3), strict=True))
        mirrored = {(j, i): tf.transpose(block, [0, 3, 4, 1, 2]) for (i, j), block in found.items()}
        blocks = mirrored | found
        every = range(self.parts)
        rows = [tf.concat([blocks[i, j] for j in every], 3) for i in every]
        return tf.concat(rows, 1)


def moved(x: Any, order: list[int]) -> Any:
    """A transposition; where no axis but those of size 1 changes places, only a reshape."""
    large = [axis for axis in order if x.shape[axis] != 1]
    if large == sorted(large):
        return tf.reshape(x, [x.shape[axis] for axis in order])
    return tf.transpose(x, order)
