"""The entries of a kernel that are asked for: the conventions of neural-tangents.

The kernel of outputs of shape `(N, o_1, ..., o_k)` has an entry for every two outputs of every two
examples. A *traced* axis is averaged over its diagonal; of a *diagonal* axis only equal indices
are kept; any other axis is *paired* and appears twice, side by side:
`(N1, N2, o_1, o_1, o_2, o_2, ...)`. The axis of the examples can be diagonal too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ce_keras.checks import whole_number

_KINDS = ("traced", "diagonal", "paired")


class OutputAxes:
    """The axes of a model's output, each traced, diagonal or paired.

    Args:
        shape: the output's shape, examples first.
        trace_axes: axes to average over; negative ones count from the end.
        diagonal_axes: axes of which only equal indices are kept.
        dtype: of the output.

    Attributes:
        same_examples: true where each example meets only itself (axis 0 is diagonal).
        counts: the numbers of traced, diagonal and paired outputs.
        total: the number of outputs of an example.
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
        axes = range(1, len(shape))
        self.same_examples = 0 in diagonal
        #: The kind of each output axis, in the order of the output.
        self._kinds = [
            "traced" if axis in traced else "diagonal" if axis in diagonal else "paired"
            for axis in axes
        ]
        #: The output axes, kind by kind.
        self._order = [axis for kind in _KINDS for axis in axes if self._kinds[axis - 1] == kind]
        self._sizes = {
            kind: [shape[axis] for axis in axes if self._kinds[axis - 1] == kind] for kind in _KINDS
        }
        self.counts = tuple(math.prod(self._sizes[kind]) for kind in _KINDS)
        self.total = math.prod(self.counts)
        self.dtype = np.dtype("float64" if dtype == "float64" else "float32")

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that is equal for equal choices of axes."""
        return (*self._kinds, *self.counts, self.same_examples)

    def arrange(self, outputs: Any) -> Any:
        """Return outputs `(N, o_1, ...)` as `(N, traced * diagonal * paired)`, paired innermost."""
        return tf.reshape(tf.transpose(outputs, [0, *self._order]), [-1, self.total])

    def restore(self, kernel: Any) -> Any:
        """Return a kernel `(diagonal, paired, N1, paired[, N2])` with its axes in public order."""
        diagonal, paired = self._sizes["diagonal"], self._sizes["paired"]
        d, p = len(diagonal), len(paired)
        n1, n2 = kernel.shape[2], kernel.shape[4:]
        kernel = tf.reshape(kernel, [*diagonal, *paired, n1, *paired, *n2])
        first_example, second_example = d + p, d + 2 * p + 1
        order = [first_example] if self.same_examples else [first_example, second_example]
        diagonal_axes = iter(range(d))
        paired_axes = iter((d + axis, first_example + 1 + axis) for axis in range(p))
        for kind in self._kinds:
            if kind == "diagonal":
                order.append(next(diagonal_axes))
            elif kind == "paired":
                order += next(paired_axes)
        return tf.transpose(kernel, order)

    def kernel_shape(self, n1: int, n2: int) -> tuple[int, ...]:
        """Return the shape of the kernel of `n1` and `n2` examples."""
        diagonal, paired = iter(self._sizes["diagonal"]), iter(self._sizes["paired"])
        shape = [n1] if self.same_examples else [n1, n2]
        for kind in self._kinds:
            if kind == "diagonal":
                shape.append(next(diagonal))
            elif kind == "paired":
                shape += 2 * [next(paired)]
        return tuple(shape)

    def transposed(self, kernel: np.ndarray) -> np.ndarray:
        """Return K(x2, x1) from K(x1, x2): the examples and every paired axis swapped."""
        order, axis = [1, 0], 2
        for kind in self._kinds:
            if kind == "diagonal":
                order.append(axis)
                axis += 1
            elif kind == "paired":
                order += [axis + 1, axis]
                axis += 2
        return kernel.transpose(order)


def only_output(outputs: Any) -> Any:
    """Return the one tensor that a model gives, also from inside a list or a dictionary.

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
    """Return axes as numbers from 0."""
    found = set()
    for axis in axes:
        index = whole_number(argument, axis)
        if not -rank <= index < rank:
            raise ValueError(f"{argument}: got {axis}; the output has axes 0 to {rank - 1}")
        found.add(index % rank)
    if len(found) < len(axes):
        raise ValueError(f"{argument}: got {axes!r}; an axis is named twice")
    return found
