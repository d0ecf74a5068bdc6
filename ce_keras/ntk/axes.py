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
from keras import ops, tree

from ce_keras.checks import whole_number


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
        key: equal for equal choices of axes.
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
        self.same_examples = 0 in diagonal
        paired = set(range(len(shape))) - traced - diagonal
        kinds = [sorted(kind - {0}) for kind in (traced, diagonal, paired)]
        self._output_order = [axis for kind in kinds for axis in kind]
        self._shape = tuple(shape)
        # An axis of the kernel is an axis of the output and, for a paired one, the first or the
        # second of it.
        self._public = [
            (axis, which)
            for axis in range(len(shape))
            if axis not in traced
            for which in ((0, 1) if axis in paired else (0,))
        ]
        _, diagonal_outputs, paired_outputs = kinds
        contracted = [
            *((axis, 0) for axis in diagonal_outputs + paired_outputs),
            (0, 0),
            *((axis, 1) for axis in paired_outputs),
            (0, 1),
        ]
        self._contracted = [axis for axis in contracted if axis in self._public]
        self.counts = tuple(math.prod(shape[axis] for axis in kind) for kind in kinds)
        self.total = math.prod(self.counts)
        self.key = (tuple(self._public), tuple(shape[1:]))
        self.dtype = np.dtype("float64" if dtype == "float64" else "float32")

    def arrange(self, outputs: Any) -> Any:
        """Return outputs `(N, o_1, ...)` as `(N, traced * diagonal * paired)`, paired innermost."""
        return ops.reshape(ops.transpose(outputs, [0, *self._output_order]), [-1, self.total])

    def restore(self, kernel: Any) -> Any:
        """Return a kernel `(diagonal, paired, N1, paired[, N2])` with its axes in public order."""
        examples = [*kernel.shape[2:3], *kernel.shape[4:]]
        kernel = ops.reshape(kernel, self._sizes(self._contracted, examples))
        return ops.transpose(kernel, [self._contracted.index(axis) for axis in self._public])

    def kernel_shape(self, n1: int, n2: int) -> tuple[int, ...]:
        """Return the shape of the kernel of `n1` and `n2` examples."""
        return tuple(self._sizes(self._public, [n1, n2]))

    def transposed(self, kernel: np.ndarray) -> np.ndarray:
        """Return K(x2, x1) from K(x1, x2): the examples and every paired axis swapped."""
        swapped = [
            (axis, 1 - which) if (axis, 1) in self._public else (axis, which)
            for axis, which in self._public
        ]
        return kernel.transpose([self._public.index(axis) for axis in swapped])

    def _sizes(self, axes: Sequence[tuple[int, int]], examples: Sequence[int]) -> list[int]:
        return [self._shape[axis] if axis else examples[which] for axis, which in axes]


def only_output(outputs: Any) -> Any:
    """Return the one tensor that a model gives, also from inside a list or a dictionary.

    Raises:
        ValueError: if there are several.
    """
    tensors = tree.flatten(outputs)
    if len(tensors) != 1:
        raise ValueError(
            f"model: it has {len(tensors)} outputs; make a model of the one whose kernel is wanted"
        )
    return tensors[0]


def examples_of(x: Any, rows: slice) -> Any:
    """Return some examples of a structure of inputs."""
    return tree.map_structure(lambda tensor: tensor[rows], x)


def number_of_examples(x: Any) -> int:
    """Return the number of examples of a structure of inputs."""
    return tree.flatten(x)[0].shape[0]


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
