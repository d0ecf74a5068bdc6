"""Contract what one variable contributes to the NTK, in the cheapest form its layer allows.

The gradient of an output by a kernel is a sum over positions of outer products: input times
cotangent (the gradient of the output by the layer's own output). The inner product of two such
gradients needs neither of them: it is the product of the inputs times the product of the
cotangents, summed over pairs of positions. With few positions that is far cheaper; with many, the
gradients themselves are.

Axes of arrays, by letter: t, d, r: traced, diagonal and paired outputs (s: the second of a pair);
n, m: examples of the first and of the second input; p, q: their positions; g: groups; f: fan-in;
c: outputs of a group; k: the parameters of a variable.

Products are written `a @ b`: on JAX and PyTorch, `keras.ops.matmul` is in single precision at most.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from ce_keras.ntk.backends import backend

# Pairs of positions that are held at once: a quarter of a gigabyte.
_MOST_PAIRS = 2**26

# Parameters that are summed at once. Products of a few rows of millions are summed one after
# another, and lose a decimal of single precision for every tenfold.
_MOST_SUMMED = 2**18


class LazyTensor(NamedTuple):
    """A tensor of known shape that is computed when it is needed, and not kept."""

    shape: Sequence[int]
    compute: Callable[[], Any]


def materialize(tensor: Any) -> Any:
    """Return the values of a tensor that may be lazy."""
    return tensor.compute() if isinstance(tensor, LazyTensor) else tensor


class Contribution(ABC):
    """The gradients of all outputs by one variable, in some form."""

    cotangents: Any

    @property
    def held(self) -> int:
        """Return the number of entries that are held together with those of other variables."""
        return math.prod(self.cotangents.shape)

    @property
    def working(self) -> int:
        """Return the number of entries of the largest temporary array."""
        return 0

    @abstractmethod
    def join(self, other: Any) -> Contribution:
        """Return the contribution of a variable that is used twice, in the same form."""

    @abstractmethod
    def as_gradients(self) -> Gradients | None:
        """Return the gradients themselves; `None` where they would have to be put in order."""

    @abstractmethod
    def gram(self, other: Any, same_examples: bool = False) -> Any:
        """Return the inner products of the gradients, `(d, r, n, s, m)`, traced outputs summed.

        Args:
            other: the contribution of the same variable for the second inputs.
            same_examples: each example meets only itself: `(d, r, n, s)`.
        """


@dataclass(frozen=True, eq=False)
class Gradients(Contribution):
    """Gradients themselves: `j`, of shape `(t, d, r, n, k)`."""

    j: Any

    @property
    def held(self) -> int:
        """Return the number of entries of the gradients."""
        return math.prod(self.j.shape)

    def join(self, other: Gradients) -> Gradients:
        """Return the gradients of a variable that is used twice."""
        return Gradients(self.j + other.j)

    def gram(self, other: Gradients, same_examples: bool = False) -> Any:
        """Return the inner products of the gradients."""
        return _inner_products(self.j, other.j, same_examples)

    def as_gradients(self) -> Gradients:
        """Return the gradients."""
        return self

    def by_path(self, other: Gradients, paths: int) -> Any:
        """Return each path's inner product, `(paths,)`, for one example and output.

        Paths lie one after another along the parameters.
        """
        return ops.sum(ops.reshape(self.j * other.j, [paths, -1]), 1)


@dataclass(frozen=True, eq=False)
class OuterProducts(Contribution):
    """Gradients as sums over positions of outer products.

    Attributes:
        inputs: the layer's inputs in pieces of the fan-in, such as the places of a convolution's
            kernel, each `(n, p, g, f)`; they may be lazy.
        cotangents: of the layer's output, `(t, d, r, n, p, g, c)`.
    """

    inputs: Sequence[Any]
    cotangents: Any

    @property
    def working(self) -> int:
        """Return the number of entries of a piece of the inputs and its gradients."""
        t, d, r, n, _, g, c = self.cotangents.shape
        piece = self.inputs[0].shape
        return math.prod(piece) + t * d * r * n * g * piece[-1] * c

    def join(self, other: OuterProducts) -> OuterProducts:
        """Return both: a layer that is called twice is called at more positions."""
        inputs = [
            _along_positions(one, two) for one, two in zip(self.inputs, other.inputs, strict=True)
        ]
        return OuterProducts(inputs, ops.concatenate([self.cotangents, other.cotangents], 4))

    def as_gradients(self) -> Gradients | None:
        """Return the gradients, if there is one group."""
        if self.inputs[0].shape[2] > 1:
            return None
        return Gradients(ops.concatenate([self._gradients(each) for each in self.inputs], -1))

    def gram(self, other: OuterProducts, same_examples: bool = False) -> Any:
        """Return the inner products of the gradients."""
        if self.inputs[0].shape[1:3] == other.inputs[0].shape[1:3] == (1, 1):
            return self._gram_of_vectors(other, same_examples)
        pieces = zip(self.inputs, other.inputs, strict=True)
        if self._is_cheaper_by_position(other):
            input_products = sum_in_turn(
                _einsum("npgf,mqgf->gnpmq", same_examples, materialize(one), materialize(two))
                for one, two in pieces
            )
            products = _einsum(
                "tdrnpgc,tdsmqgc->gdrsnpmq", same_examples, self.cotangents, other.cotangents
            )
            return _einsum("gnpmq,gdrsnpmq->drnsm", same_examples, input_products, products)

        def terms() -> Iterator[Any]:
            for one, two in pieces:
                j = self._gradients(one)
                yield _inner_products(
                    j, j if other is self else other._gradients(two), same_examples
                )

        return sum_in_turn(terms())

    def _gram_of_vectors(self, other: OuterProducts, same_examples: bool) -> Any:
        """Return the inner products at one position and of one group: a dense layer's.

        Two plain matrix products: 1.7 times as fast as the einsums for any number of positions.
        """
        inputs, cotangents = self._as_vectors()
        others = (inputs, cotangents) if other is self else other._as_vectors()
        other_inputs, other_cotangents = others
        input_products = _inner_products(inputs, other_inputs, same_examples)
        return _inner_products(cotangents, other_cotangents, same_examples) * input_products

    def _as_vectors(self) -> tuple[Any, Any]:
        """Return the inputs `(1, 1, 1, n, f)` and the cotangents `(t, d, r, n, c)`."""
        t, d, r, n, _, _, c = self.cotangents.shape
        inputs = ops.concatenate([materialize(piece) for piece in self.inputs], -1)
        inputs = ops.reshape(inputs, [1, 1, 1, n, inputs.shape[-1]])
        return inputs, ops.reshape(self.cotangents, [t, d, r, n, c])

    def _is_cheaper_by_position(self, other: OuterProducts) -> bool:
        """Compare the multiplications of products by position with those of gradients.

        At four positions of 128 inputs and 256 outputs, products by position take a quarter of the
        time; at 64 positions, gradients do.
        """
        t, d, r, n, p, g, c = self.cotangents.shape
        m, q = other.inputs[0].shape[:2]
        f = sum(piece.shape[-1] for piece in self.inputs)
        kernel = n * m * d * r * r
        by_position = n * m * p * q * g * f + kernel * t * p * q * g * c
        by_gradient = (n * p + m * q) / 2 * t * d * r * g * f * c + kernel * t * g * f * c
        # Products by position are held at once.
        return by_position <= by_gradient and kernel * p * q * g <= _MOST_PAIRS

    def _gradients(self, piece: Any) -> Any:
        """Return the gradients by the weights of one piece of the inputs, `(t, d, r, n, k)`."""
        inputs = ops.transpose(materialize(piece), [0, 2, 3, 1])  # (n, g, f, p)
        cotangents = ops.transpose(self.cotangents, [0, 1, 2, 3, 5, 4, 6])  # (t, d, r, n, g, p, c)
        gradients = inputs @ cotangents  # (t, d, r, n, g, f, c)
        return ops.reshape(gradients, [*self.cotangents.shape[:4], math.prod(gradients.shape[4:])])

    def by_path(self, other: OuterProducts, paths: int) -> Any:
        """Return each path's inner product, `(paths,)`, for one example and output.

        Paths lie one after another along the groups; along the outputs, where all have one input.
        """
        one, two = self._cotangents_by_path(paths), other._cotangents_by_path(paths)
        # Inputs are the path's own, or, in the first layer of an ensemble, everybody's: (g, p, f).
        pieces = [
            (
                ops.transpose(materialize(a)[0], [1, 0, 2]),
                ops.transpose(materialize(b)[0], [1, 0, 2]),
            )
            for a, b in zip(self.inputs, other.inputs, strict=True)
        ]
        p, c = one.shape[1:]
        f = sum(a.shape[-1] for a, _ in pieces)
        if p * (f + c) <= f * c:
            inputs = sum(a @ ops.swapaxes(b, 1, 2) for a, b in pieces)
            products = inputs * (one @ ops.swapaxes(two, 1, 2))
        else:
            gradients = [
                (ops.swapaxes(a, 1, 2) @ one) * (ops.swapaxes(b, 1, 2) @ two) for a, b in pieces
            ]
            products = ops.concatenate(gradients, 1)
        return ops.sum(ops.reshape(products, [paths, -1]), 1)

    def _cotangents_by_path(self, paths: int) -> Any:
        """Return the cotangents of one example, `(groups, p, c)`: a path has one group or more."""
        p, g, c = self.cotangents.shape[-3:]
        groups = max(g, paths)
        return ops.transpose(ops.reshape(self.cotangents, [p, groups, g * c // groups]), [1, 0, 2])


@dataclass(frozen=True, eq=False)
class EmbeddingGradients(Contribution):
    """Gradients by the rows of an embedding that were looked up.

    They are never materialised: they have an entry for every row of the table.

    Attributes:
        ids: the rows, `(n, p)`.
        cotangents: of the layer's output, `(t, d, r, n, p, c)`.
    """

    ids: Any
    cotangents: Any

    def join(self, other: EmbeddingGradients) -> EmbeddingGradients:
        """Return both: a table that is read twice is read at more positions."""
        return EmbeddingGradients(
            ops.concatenate([self.ids, other.ids], 1),
            ops.concatenate([self.cotangents, other.cotangents], 4),
        )

    def as_gradients(self) -> None:
        """Return nothing: they are never materialised."""

    def gram(self, other: EmbeddingGradients, same_examples: bool = False) -> Any:
        """Return the inner products of the gradients."""
        (n, p), (m, q) = self.ids.shape, other.ids.shape
        _, d, r, *_ = self.cotangents.shape
        # All pairs of positions are held at once, of as few examples as fit.
        size = n if same_examples else max(1, _MOST_PAIRS // (d * r * r * p * m * q))

        def rows() -> Iterator[Any]:
            for start in range(0, n, size):
                some = slice(start, min(start + size, n))
                ids, cotangents = self.ids[some], self.cotangents[:, :, :, some]
                if same_examples:
                    equal = ids[:, :, None] == other.ids[:, None]  # (n, p, q)
                else:
                    equal = ids[:, :, None, None] == other.ids  # (n, p, m, q)
                products = _einsum(
                    "tdrnpc,tdsmqc->drsnpmq", same_examples, cotangents, other.cotangents
                )
                equal = ops.cast(equal, products.dtype)
                yield _einsum("npmq,drsnpmq->drnsm", same_examples, equal, products)

        return ops.concatenate(list(backend.in_turn(rows())), axis=2)


def sum_of_uses(first: Contribution, second: Contribution) -> Contribution | None:
    """Return the contribution of a variable that is used in both ways; `None` if none is known."""
    if type(first) is type(second):
        return first.join(second)
    one, two = first.as_gradients(), second.as_gradients()
    return None if one is None or two is None else one.join(two)


def merged(contributions: Sequence[Contribution]) -> list[Contribution]:
    """Return a layer's contributions, those with the same cotangents as one.

    The inner products of the cotangents are most of the work: a dense layer's kernel and bias take
    1.3 times as long one by one.
    """
    found: list[Contribution] = []
    for each in contributions:
        last = found[-1] if found else None
        if (
            isinstance(each, OuterProducts)
            and isinstance(last, OuterProducts)
            and each.cotangents is last.cotangents
        ):
            found[-1] = OuterProducts([*last.inputs, *each.inputs], last.cotangents)
        else:
            found.append(each)
    return found


def sum_in_turn(terms: Iterator[Any]) -> Any | None:
    """Return the sum of terms that are computed one after another; `None` if there are none.

    They need not be held together: of a bottleneck block with ten logits, all terms at once take
    1.13 times the memory; of embeddings of long texts, many times that.
    """
    total = None
    for term in backend.in_turn(terms):
        total = term if total is None else total + term
    return total


def at_least_single(x: Any) -> Any:
    """Return the tensor in single precision if it is in half precision."""
    half = keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if half else x


def _along_positions(one: Any, two: Any) -> LazyTensor:
    """Return the inputs `(n, p, g, f)` of two calls side by side along their positions."""
    n, p, *others = one.shape
    shape = [n, p + two.shape[1], *others]
    return LazyTensor(shape, lambda: ops.concatenate([materialize(one), materialize(two)], 1))


def _inner_products(first: Any, second: Any, same_examples: bool) -> Any:
    """Return the inner products of gradients, tdrnk, tdsmk -> drnsm."""
    if same_examples:
        return _einsum("tdrnk,tdsmk->drnsm", True, first, second)
    t, d, r, n, k = first.shape
    s, m = second.shape[2:4]
    if k > _MOST_SUMMED:
        pieces = (slice(start, start + _MOST_SUMMED) for start in range(0, k, _MOST_SUMMED))
        return sum_in_turn(
            _inner_products(first[..., piece], second[..., piece], False) for piece in pieces
        )
    # An einsum would copy both, to sum over t and k at once.
    rows = ops.reshape(first, [t, d, r * n, k])
    columns = rows if second is first else ops.reshape(second, [t, d, s * m, k])
    products = ops.sum(rows @ ops.swapaxes(columns, -1, -2), 0)
    return ops.reshape(products, [d, r, n, s, m])


def _einsum(equation: str, same_examples: bool, *operands: Any) -> Any:
    """Return the sum for all pairs of examples; for each with itself, m is n."""
    if same_examples:
        inputs, output = equation.split("->")
        terms = [_without_repeats(term.replace("m", "n")) for term in inputs.split(",")]
        equation = f"{','.join(terms)}->{output.replace('m', '')}"
    return ops.einsum(equation, *operands)


def _without_repeats(term: str) -> str:
    return "".join(dict.fromkeys(term))
