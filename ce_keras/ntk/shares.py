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

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from ce_keras.ntk.pairs import MANY, Pairs

# Pairs of positions: a quarter of a gigabyte.
_MOST_PAIRS = 2**26

# Numbers in a row whose products are sums for several cores.
_LONG = 2**11

# Numbers in a row that are summed at once: of a few rows, products of millions are summed one after
# another, and so lose a decimal of single precision for every tenfold.
_MOST_SUMMED = 2**18

# Numbers in many rows, of whose products a half saved is worth two multiplications more. (Below,
# halves take up to a sixth longer; at twice as many, a twentieth to an eighth less.)
_WORTH_HALVING = 2**20


class Share(Protocol):
    """What a variable adds to the kernel: a few tensors."""

    @property
    def held(self) -> int:
        """How many numbers its signals have: those of all variables are held together."""

    @property
    def working(self) -> int:
        """How many more its part of the kernel takes while it is computed."""

    def join(self, other: Any) -> Share:
        """The share of a variable that is used in both ways."""

    def gram(self, other: Any, pairs: Pairs) -> Any:
        """The part of the kernel, traces summed: `(d, r, n, s, m)`.

        Args:
            other: the same variable's share for the second inputs.
            pairs: which pairs of outputs; of equal examples alone: `(d, r, n, s)`.
        """


class Late(NamedTuple):
    """A tensor of known shape that is made when it is needed, not kept until then."""

    shape: Sequence[int]
    make: Callable[[], Any]


def now(tensor: Any) -> Any:
    """The tensor itself."""
    return tensor.make() if isinstance(tensor, Late) else tensor


def _one_after_the_other(first: Any, second: Any) -> Late:
    """The positions of both."""
    n, p, *others = first.shape
    shape = [n, p + second.shape[1], *others]
    return Late(shape, lambda: tf.concat([now(first), now(second)], 1))


class Gradients(NamedTuple):
    """The gradients themselves: `j`, of shape `(t, d, r, n, k)`."""

    j: Any

    @property
    def held(self) -> int:
        """See `Share`."""
        return math.prod(self.j.shape)

    @property
    def working(self) -> int:
        """See `Share`: none."""
        return 0

    def join(self, other: Gradients) -> Gradients:
        """A variable that is used twice has the sum of both uses."""
        return Gradients(self.j + other.j)

    def gram(self, other: Gradients, pairs: Pairs) -> Any:
        """The variable's part of the kernel, see `Share`."""
        return _inner_products(self.j, other.j, pairs)

    def by_path(self, other: Gradients, paths: int) -> Any:
        """Of one example and output, each path's inner product: `(paths,)`.

        Paths lie one after another along the parameters.
        """
        return tf.reduce_sum(tf.reshape(self.j * other.j, [paths, -1]), 1)


class Products(NamedTuple):
    """Sums over positions of outer products: inputs and signals.

    `a` is the inputs, in parts of the fan-in (the places of a convolution's kernel), each of shape
    `(n, p, g, f)`, and some of them `Late`; `b` is `(t, d, r, n, p, g, c)`.
    """

    a: Sequence[Any]
    b: Any

    @property
    def held(self) -> int:
        """See `Share`."""
        return math.prod(self.b.shape)

    @property
    def working(self) -> int:
        """See `Share`: a part of the inputs, and its gradients."""
        n, *_, f = self.a[0].shape
        gradients = math.prod(self.b.shape[:3]) * n * f * math.prod(self.b.shape[-2:])
        return math.prod(self.a[0].shape) + gradients

    def join(self, other: Products) -> Products:
        """A layer that is applied twice is applied at more positions."""
        a = [_one_after_the_other(*pair) for pair in zip(self.a, other.a, strict=True)]
        return Products(a, tf.concat([self.b, other.b], 4))

    def gram(self, other: Products, pairs: Pairs) -> Any:
        """The variable's part of the kernel, see `Share`."""
        if self.a[0].shape[1:3] == other.a[0].shape[1:3] == (1, 1):
            return self._gram_of_vectors(other, pairs)
        if self._fewer_by_position(other, pairs):
            return self._gram_by_position(other, pairs)
        mirrored = other is self

        def terms() -> Iterator[Any]:
            for mine, its in zip(self.a, other.a, strict=True):
                j = self._gradients(mine)
                yield _inner_products(j, j if mirrored else other._gradients(its), pairs)

        return one_by_one(terms())

    def _gram_of_vectors(self, other: Products, pairs: Pairs) -> Any:
        """One position, one group: a dense layer. Plain matrix products."""
        signals, *inputs = self._as_vectors()
        its, *others = (signals, *inputs) if other is self else other._as_vectors()
        every = Pairs(pairs.same_examples)
        products = [_inner_products(a, b, every) for a, b in zip(inputs, others, strict=True)]
        return _inner_products(signals, its, pairs) * tf.add_n(products)

    def by_path(self, other: Products, paths: int) -> Any:
        """Of one example and output, each path's inner product: `(paths,)`.

        Paths lie one after another along the groups; along the outputs, where all have one input.
        """
        signals, its = (self._signals_by_path(paths), other._signals_by_path(paths))
        # Inputs are the path's own, or, in the first layer of an ensemble, everybody's.
        pairs = [
            (tf.transpose(now(one)[0], [1, 0, 2]), tf.transpose(now(two)[0], [1, 0, 2]))
            for one, two in zip(self.a, other.a, strict=True)
        ]
        p, c = signals.shape[1:]
        f = sum(one.shape[-1] for one, _ in pairs)
        if p * (f + c) <= f * c:
            inputs = tf.add_n([tf.matmul(one, two, transpose_b=True) for one, two in pairs])
            products = inputs * tf.matmul(signals, its, transpose_b=True)
        else:
            products = tf.concat(
                [
                    tf.matmul(one, signals, transpose_a=True)
                    * tf.matmul(two, its, transpose_a=True)
                    for one, two in pairs
                ],
                1,
            )
        return tf.reduce_sum(tf.reshape(products, [paths, -1]), 1)

    def _signals_by_path(self, paths: int) -> Any:
        """The signals of one example, `(groups, p, c)`: a path has one group or several."""
        p, g, c = self.b.shape[-3:]
        groups = max(g, paths)
        return tf.transpose(tf.reshape(self.b, [p, groups, g * c // groups]), [1, 0, 2])

    def _as_vectors(self) -> list[Any]:
        """The signals and the parts of the inputs, each `(t, d, r, n, k)`."""
        b = tf.reshape(self.b, [*self.b.shape[:4], self.b.shape[-1]])
        return [b, *(tf.reshape(now(part), [1, 1, 1, *part.shape[::3]]) for part in self.a)]

    def _fewer_by_position(self, other: Products, pairs: Pairs) -> bool:
        """Whether products of all pairs of positions make for fewer operations than gradients."""
        n, p, g, _ = self.a[0].shape
        m, q, *_ = other.a[0].shape
        t, d, r, *_, c = self.b.shape
        f = sum(part.shape[-1] for part in self.a)
        met = pairs.met * n * m * d * r * r
        by_position = n * m * p * q * g * f + met * t * p * q * g * c
        by_gradient = (n * p + m * q) / 2 * t * d * r * g * f * c + met * t * g * f * c
        # Products of all pairs of positions are held at once.
        return by_position <= by_gradient and n * m * p * q * g * d * r * r <= _MOST_PAIRS

    def _gram_by_position(self, other: Products, pairs: Pairs) -> Any:
        same = pairs.same_examples

        def terms() -> Iterator[Any]:
            for mine, its in zip(self.a, other.a, strict=True):
                one = now(mine)
                yield _einsum("npgf,mqgf->gnpmq", same, one, one if its is mine else now(its))

        inputs = one_by_one(terms())

        def product(one: Any, two: Any) -> Any:
            signals = _einsum("tdrnpgc,tdsmqgc->gdrsnpmq", same, one, two)
            return _einsum("gnpmq,gdrsnpmq->drnsm", same, inputs, signals)

        return pairs.products(product, self.b, other.b)

    def _gradients(self, a: Any) -> Any:
        """The sum over positions carried out, for one part of the fan-in: `(t, d, r, n, k)`."""
        t, d, r, n, _, g, c = self.b.shape
        # Groups before positions: then it is one matrix product for each example and group.
        a = tf.transpose(now(a), [0, 2, 3, 1]) if g > 1 else now(a)[:, :, 0][:, None]
        b = (
            tf.transpose(self.b, [0, 1, 2, 3, 5, 4, 6])
            if g > 1
            else self.b[..., 0, :][:, :, :, :, None]
        )
        j = tf.matmul(a, b, transpose_a=g == 1)
        return tf.reshape(j, [t, d, r, n, g * a.shape[-2 if g > 1 else -1] * c])


class Lookups(NamedTuple):
    """As `Products`, where inputs are rows of a table: `ids` `(n, p)`, `b` `(t, d, r, n, p, c)`.

    Never as gradients: those have a number for every row of the table.
    """

    ids: Any
    b: Any

    @property
    def held(self) -> int:
        """See `Share`."""
        return math.prod(self.b.shape)

    @property
    def working(self) -> int:
        """See `Share`: none."""
        return 0

    def join(self, other: Lookups) -> Lookups:
        """A table that is read twice is read at more positions."""
        return Lookups(tf.concat([self.ids, other.ids], 1), tf.concat([self.b, other.b], 4))

    def gram(self, other: Any, pairs: Pairs) -> Any:
        """The variable's part of the kernel, see `Share`."""
        (n, p), (m, q) = self.ids.shape, other.ids.shape
        if pairs.same_examples:
            equal = tf.cast(self.ids[:, :, None] == other.ids[:, None], self.b.dtype)
            signals = _einsum("tdrnpc,tdsmqc->drsnpmq", True, self.b, other.b)
            return _einsum("npmq,drsnpmq->drnsm", True, equal, signals)

        def product(one: Any, two: Any) -> Any:
            # All pairs of positions are held at once, of a few examples at a time.
            size = max(1, _MOST_PAIRS // (p * m * q * math.prod(one.shape[1:3]) * two.shape[2]))
            parts: list[Any] = []
            for start in range(0, n, size):
                rows = slice(start, min(start + size, n))
                with tf.control_dependencies(parts[-1:]):
                    equal = tf.cast(self.ids[rows, :, None, None] == other.ids, one.dtype)
                    signals = tf.einsum("tdrnpc,tdsmqc->drsnpmq", one[:, :, :, rows], two)
                    parts.append(tf.einsum("npmq,drsnpmq->drnsm", equal, signals))
            return tf.concat(parts, axis=2)

        return pairs.products(product, self.b, other.b)


def together(shares: Sequence[Share]) -> list[Share]:
    """A layer's shares, those with the same signals as one: their products are most of the work."""
    found: list[Share] = []
    for share in shares:
        last = found[-1] if found else None
        if isinstance(share, Products) and isinstance(last, Products) and share.b is last.b:
            found[-1] = Products([*last.a, *share.a], last.b)
        else:
            found.append(share)
    return found


def _inner_products(first: Any, second: Any, pairs: Pairs) -> Any:
    """tdrnk, tdsmk -> drnsm, of these pairs."""
    if pairs.same_examples:
        return _einsum("tdrnk,tdsmk->drnsm", True, first, second)
    return pairs.products(_all_inner_products, first, second)


def _all_inner_products(first: Any, second: Any) -> Any:
    """tdrnk, tdsmk -> drnsm, without a copy of either as a whole."""
    t, d, r, n, k = first.shape
    s, m = second.shape[2:4]
    if k > _MOST_SUMMED:
        return one_by_one(_products_of_pieces(first, second))
    # Of a plain product only rows are dealt out to the cores, not a long sum.
    plain = t == d == 1 and r * n < MANY and k < _LONG
    shape = [k] if plain else [t, d, k]
    one = tf.reshape(first, [*shape[:-1], r * n, k])
    two = one if second is first else tf.reshape(second, [*shape[:-1], s * m, k])
    products = _products_of_rows(one, two)
    if not plain:
        products = products[0] if t == 1 else tf.reduce_sum(products, 0)
    return tf.reshape(products, [d, r, n, s, m])


def _products_of_pieces(first: Any, second: Any) -> Iterator[Any]:
    for start in range(0, first.shape[-1], _MOST_SUMMED):
        piece = first[..., start : start + _MOST_SUMMED]
        its = piece if second is first else second[..., start : start + _MOST_SUMMED]
        yield _all_inner_products(piece, its)


def _products_of_rows(one: Any, two: Any) -> Any:
    """The product one @ two^T."""
    count, length = one.shape[-2:]
    if two is one and count >= 2 * MANY and count * length >= _WORTH_HALVING:
        return _symmetric_products(one)
    return tf.matmul(one, two, transpose_b=True)


def _symmetric_products(rows: Any) -> Any:
    """The product rows @ rows^T; of what is below the diagonal, only a little is computed."""
    half = rows.shape[-2] // 2
    above, below = rows[..., :half, :], rows[..., half:, :]
    beside = tf.matmul(above, below, transpose_b=True)
    halves = [
        tf.concat([_products_of_rows(above, above), beside], -1),
        tf.concat([tf.linalg.matrix_transpose(beside), _products_of_rows(below, below)], -1),
    ]
    return tf.concat(halves, -2)


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


def one_by_one(terms: Iterator[Any]) -> Any | None:
    """The sum, each term begun when the ones before are done: they need not be held together.

    `None` if there is no term. A compiled graph keeps no such order: only small ones are.
    """
    total = next(terms, None)
    if total is None:
        return None
    while True:
        with tf.control_dependencies([total]):
            term = next(terms, None)
        if term is None:
            return total
        total = total + term


def wide(x: Any) -> Any:
    """In at least single precision."""
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
