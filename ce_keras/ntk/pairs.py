"""Which pairs of outputs meet: all, equal examples, or of a symmetric kernel a little over half."""

from __future__ import annotations

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

    def products(self, product: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
        """The products of all pairs, `(d, r, n, s, m)`; of parts, with `d` for pairs of parts.

        Args:
            product: `(t, d, r, n, ...)` and `(t, d, s, m, ...)` to `(d, r, n, s, m)`.
            first: signals or gradients, `(t, d, r, n, ...)`.
            second: those of the second inputs; of parts, the same.
        """
        if self.parts == 1:
            return product(first, second)
        t, _, r, *rest = first.shape
        apart = tf.reshape(first, [t, self.parts, r // self.parts, *rest])
        # Every part meets the one that many further on, in a circle: half way round, all have met.
        turns, odd = divmod(self.parts, 2)
        met = [product(apart, tf.roll(apart, -k, 1) if k else apart) for k in range(turns + odd)]
        if not odd:
            met.append(product(apart[:, :turns], apart[:, turns:]))
        return tf.concat(met, 0)

    def whole(self, kernel: Any) -> Any:
        """A sum of such products with every pair in its place, `(d, r, n, s, m)`."""
        if self.parts == 1:
            return kernel
        blocks = tf.unstack(kernel)
        mirrored = tf.unstack(tf.transpose(kernel, [0, 3, 4, 1, 2]))

        def block(i: int, j: int) -> Any:
            far, back = (j - i) % self.parts, (i - j) % self.parts
            met = far < back or (far == back and i <= j)
            return blocks[far * self.parts + i] if met else mirrored[back * self.parts + j]

        every = range(self.parts)
        rows = [tf.concat([block(i, j) for j in every], 2) for i in every]
        return tf.concat(rows, 0)[None]
