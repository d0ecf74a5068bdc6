"""Which entries of a kernel are asked for: the conventions of neural-tangents.

The kernel of outputs of shape `(N, o_1, ..., o_k)` has an entry for every pair of outputs of every
pair of examples. A *traced* axis is averaged over its diagonal; of a *diagonal* axis only equal
indices are kept; any other axis appears twice, side by side: `(N1, N2, o_1, o_1, o_2, o_2, ...)`.
The axis of the examples can be diagonal too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ce_keras.checks import whole_number
from ce_keras.ntk.pairs import moved


class OutputAxes:
    """The axes of a model's output, as (traced, diagonal, paired).

    Args:
        shape: the output's shape, examples first.
        trace_axes: axes to average over; negative ones count from the end.
        diagonal_axes: axes of which only equal indices are kept.
        dtype: of the output.

    Attributes:
        same_examples: whether only pairs of an example with itself are kept.
        counts: how many traced, diagonal and paired outputs there are.
        dtype: of the kernel: at least single precision.

    Raises:
        ValueError: for axes that are not there, are given twice, or a trace over examples.
    """

    def __init__(
        self,
        shape: Sequence[int],
        trace_axes: Sequence[int],
        diagonal_axes: Sequence[int],
        dtype: str = "float32",
    ) -> None:
        traced = _normalised("trace_axes", trace_axes, len(shape))
        diagonal = _normalised("diagonal_axes", diagonal_axes, len(shape))
        if 0 in traced:
            raise ValueError(f"trace_axes: got {trace_axes!r}; axis 0 is that of the examples")
        if traced & diagonal:
            raise ValueError(
                f"trace_axes, diagonal_axes: got {trace_axes!r} and {diagonal_axes!r}; an axis is "
                "in one of them at most"
            )
        outputs = range(1, len(shape))
        self.same_examples = 0 in diagonal
        self._kinds = [
            "traced" if axis in traced else "diagonal" if axis in diagonal else "paired"
            for axis in outputs
        ]
        groups = ("traced", "diagonal", "paired")
        self._order = [axis for kind in groups for axis in outputs if self._kinds[axis - 1] == kind]
        self._sizes = {kind: [shape[axis] for axis in self._axes(kind)] for kind in groups}
        self.dtype = np.dtype("float64" if dtype == "float64" else "float32")
        self.counts = tuple(math.prod(self._sizes[kind]) for kind in groups)

    def _axes(self, kind: str) -> list[int]:
        return [axis + 1 for axis, its in enumerate(self._kinds) if its == kind]

    @property
    def total(self) -> int:
        """How many outputs an example has."""
        return math.prod(self.counts)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two choices of axes the same."""
        return (*self._kinds, *self.counts, self.same_examples)

    def transposed(self, kernel: Any) -> Any:
        """The kernel of the same examples the other way round, as a NumPy array."""
        order, axis = [1, 0], 2
        for kind in self._kinds:
            if kind == "diagonal":
                order.append(axis)
                axis += 1
            elif kind == "paired":
                order += [axis + 1, axis]
                axis += 2
        return kernel.transpose(order)

    def arrange(self, outputs: Any) -> Any:
        """Outputs `(N, o_1, ...)` as `(N, total)`, traced ones outermost, paired innermost."""
        return tf.reshape(moved(outputs, [0, *self._order]), [-1, self.total])

    def kernel_shape(self, first: int, second: int) -> tuple[int, ...]:
        """The kernel's shape for so many examples."""
        sizes = iter(self._sizes["diagonal"])
        paired = iter(self._sizes["paired"])
        shape = [first] if self.same_examples else [first, second]
        for kind in self._kinds:
            if kind == "diagonal":
                shape.append(next(sizes))
            elif kind == "paired":
                shape += 2 * [next(paired)]
        return tuple(shape)

    def restore(self, kernel: Any) -> Any:
        """A kernel `(diagonal, paired, N1, paired[, N2])` in the order it is returned in."""
        diagonal, paired = self._sizes["diagonal"], self._sizes["paired"]
        many, two = len(diagonal), len(paired)
        n, m = kernel.shape[2], kernel.shape[4:]
        kernel = tf.reshape(kernel, [*diagonal, *paired, n, *paired, *m])
        order = [many + two] if self.same_examples else [many + two, many + 2 * two + 1]
        singles = iter(range(many))
        pairs = iter((many + axis, many + two + 1 + axis) for axis in range(two))
        for kind in self._kinds:
            if kind == "diagonal":
                order.append(next(singles))
            elif kind == "paired":
                order += next(pairs)
        return moved(kernel, order)


def only_output(outputs: Any) -> Any:
    """Return the one tensor that a model gives, be it inside a list or a dictionary.

    Raises:
        ValueError: if there are several.
    """
    tensors = tf.nest.flatten(outputs)
    if len(tensors) != 1:
        raise ValueError(
            f"model: it has {len(tensors)} outputs; make a model of the one whose kernel is wanted"
        )
    return tensors[0]


def _normalised(argument: str, axes: Sequence[int], rank: int) -> set[int]:
    found = set()
    for axis in axes:
        index = whole_number(argument, axis)
        if not -rank <= index < rank:
            raise ValueError(f"{argument}: got {axis}; the output has axes 0 to {rank - 1}")
        found.add(index % rank)
    if len(found) < len(axes):
        raise ValueError(f"{argument}: got {axes!r}; an axis is named twice")
    return found
