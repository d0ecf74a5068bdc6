"""What one variable adds to the kernel, in the cheapest form its layer allows.

The gradient of an output for a kernel is a sum over positions of outer products, input times
backward signal. So the product of two gradients needs no gradient: it is the product of the
inputs times the product of the signals, summed over pairs of positions. With few positions that
is far cheaper; with many, the gradients themselves are.

Axes, by letter: t, d, r: traced, diagonal and paired outputs (s: the second of a pair); n, m:
examples of the first and the second input; p, q: their positions; g: groups; f: fan-in; c:
outputs of a group; k: the parameters of a variable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

# Pairs of positions: a quarter of a gigabyte.
_MOST_PAIRS = 2**26


class Share(Protocol):
    """What a variable adds to the kernel: a few tensors."""

    def __iter__(self) -> Iterator[Any]:
        """The tensors."""

    def join(self, other: Any) -> Share:
        """The share of a variable that is used in both ways."""

    def cheapest(self) -> Share:
        """The form that makes for the fewest operations."""

    def gram(self, other: Any, same_examples: bool) -> Any:
        """The part of the kernel, traces summed: `(d, r, s, n, m)`.

        Args:
            other: the same variable's share for the second inputs.
            same_examples: only pairs of an example with itself: `(d, r, s, n)`.
        """


class Gradients(NamedTuple):
    """The gradients themselves: `j`, of shape `(t, d, r, n, k)`."""

    j: Any

    def join(self, other: Gradients) -> Gradients:
        """A variable that is used twice has the sum of both uses."""
        return Gradients(self.j + other.j)

    def gram(self, other: Any, same_examples: bool) -> Any:
        """The variable's part of the kernel, see `Share`."""
        return _inner_products(self.j, other.gradients().j, same_examples)

    def gradients(self) -> Gradients:
        """Themselves."""
        return self

    def cheapest(self) -> Gradients:
        """Themselves."""
        return self


class Products(NamedTuple):
    """Sums over positions of outer products: inputs and signals.

    `a` is `(n, p, g, f)`, and `b` is `(t, d, r, n, p, g, c)`.
    """

    a: Any
    b: Any

    def join(self, other: Products) -> Products:
        """A layer that is applied twice is applied at more positions."""
        return Products(tf.concat([self.a, other.a], 1), tf.concat([self.b, other.b], 4))

    def cheapest(self) -> Products | Gradients:
        """As they are, or as gradients, whichever makes for fewer operations."""
        n, p, g, f = self.a.shape
        t, d, r, *_, c = self.b.shape
        pairs = n * n * d * r * r
        as_products = n * n * p * p * g * f + pairs * t * p * p * g * c
        as_gradients = n * t * d * r * p * g * f * c + pairs * t * g * f * c
        # Products of all pairs of positions are held at once.
        if as_products <= as_gradients and n * n * p * p * g * d * r * r <= _MOST_PAIRS:
            return self
        return self.gradients()

    def gradients(self) -> Gradients:
        """The sum over positions carried out."""
        t, d, r, n, _, g, c = self.b.shape
        # Groups before positions: then it is one matrix product for each example and group.
        a = tf.transpose(self.a, [0, 2, 3, 1]) if g > 1 else self.a[:, :, 0][:, None]
        b = (
            tf.transpose(self.b, [0, 1, 2, 3, 5, 4, 6])
            if g > 1
            else self.b[..., 0, :][:, :, :, :, None]
        )
        j = tf.matmul(a, b, transpose_a=g == 1)
        return Gradients(tf.reshape(j, [t, d, r, n, g * a.shape[-2 if g > 1 else -1] * c]))

    def gram(self, other: Any, same_examples: bool) -> Any:
        """The variable's part of the kernel, see `Share`."""
        if isinstance(other, Gradients):
            return self.gradients().gram(other, same_examples)
        if self.a.shape[1:3] == other.a.shape[1:3] == (1, 1):
            # One position, one group: a dense layer. Two plain matrix products.
            a1, a2 = (
                tf.reshape(share.a, [1, 1, 1, *share.a.shape[::3]]) for share in (self, other)
            )
            b1, b2 = (tf.reshape(x.b, [*x.b.shape[:4], x.b.shape[-1]]) for x in (self, other))
            inputs = _inner_products(a1, a2, same_examples)
            return inputs * _inner_products(b1, b2, same_examples)
        inputs = _einsum("npgf,mqgf->gnpmq", same_examples, self.a, other.a)
        signals = _einsum("tdrnpgc,tdsmqgc->gdrsnpmq", same_examples, self.b, other.b)
        return _einsum("gnpmq,gdrsnpmq->drsnm", same_examples, inputs, signals)


class Lookups(NamedTuple):
    """As `Products`, where inputs are rows of a table: `ids` `(n, p)`, `b` `(t, d, r, n, p, c)`."""

    ids: Any
    b: Any

    def join(self, other: Lookups) -> Lookups:
        """A table that is read twice is read at more positions."""
        return Lookups(tf.concat([self.ids, other.ids], 1), tf.concat([self.b, other.b], 4))

    def cheapest(self) -> Lookups:
        """Themselves: the gradients have a number for every row of the table."""
        return self

    def gram(self, other: Any, same_examples: bool) -> Any:
        """The variable's part of the kernel, see `Share`."""
        equal = self.ids[:, :, None, None] == other.ids[None, None]
        if same_examples:
            equal = self.ids[:, :, None] == other.ids[:, None]
        inputs = tf.cast(equal, self.b.dtype)
        signals = _einsum("tdrnpc,tdsmqc->drsnpmq", same_examples, self.b, other.b)
        return _einsum("npmq,drsnpmq->drsnm", same_examples, inputs, signals)


def _inner_products(first: Any, second: Any, same_examples: bool) -> Any:
    """tdrnk, tdsmk -> drsnm, without moving a number of the two: they can be large."""
    t, d, r, n, k = first.shape
    m = second.shape[3]
    if same_examples:
        return _einsum("tdrnk,tdsmk->drsnm", True, first, second)
    if t == d == 1:
        products = tf.matmul(
            tf.reshape(first, [r * n, k]), tf.reshape(second, [r * m, k]), transpose_b=True
        )
    else:
        one, two = tf.reshape(first, [t, d, r * n, k]), tf.reshape(second, [t, d, r * m, k])
        products = tf.reduce_sum(tf.matmul(one, two, transpose_b=True), 0)
    products = tf.reshape(products, [d, r, n, r, m])
    return moved(products, [0, 1, 3, 2, 4])


def _einsum(equation: str, same_examples: bool, *operands: Any) -> Any:
    """The sum for all pairs of examples; for each with itself, m is n."""
    if same_examples:
        inputs, output = equation.split("->")
        output = output.replace("m", "")
        terms = [_without_repeats(term.replace("m", "n")) for term in inputs.split(",")]
        equation = f"{','.join(terms)}->{output}"
    return tf.einsum(equation, *operands)


def _without_repeats(term: str) -> str:
    return "".join(dict.fromkeys(term))


def wide(x: Any) -> Any:
    """In at least single precision."""
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def moved(x: Any, order: list[int]) -> Any:
    """A transposition; where no axis but those of size 1 changes places, only a reshape."""
    large = [axis for axis in order if x.shape[axis] != 1]
    if large == sorted(large):
        return tf.reshape(x, [x.shape[axis] for axis in order])
    return tf.transpose(x, order)
