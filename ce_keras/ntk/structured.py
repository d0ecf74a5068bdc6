"""The kernel layer by layer: one forward and one backward pass, and each layer's share.

From a layer's input and its backward signal (see `ce_keras.ntk.records`) follows what its variables
add to the kernel, without forming a jacobian of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from ce_keras.ntk.axes import OutputAxes
from ce_keras.ntk.graphs import compiled, traced
from ce_keras.ntk.pairs import Pairs
from ce_keras.ntk.records import BatchAxisError, Recorder
from ce_keras.ntk.shares import Share, one_by_one, together
from ce_keras.ntk.tape import TapeEngine
from ce_keras.ntk.verification import verify

# Graphs that an engine keeps, each for one number of examples.
_MOST_GRAPHS = 8


class StructuredEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: which entries of the kernel are asked for.
        examples: inputs, on a few of which the rules are verified: the variables whose
            contribution is not what autodiff says are left to it.

    Attributes:
        by_tape: the variables that are left to the tape.
        numbers_per_example: about how many numbers are held for one example.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes, examples: Any
    ) -> None:
        self.axes = axes
        # A graph does not know its value. What follows from constants alone, like the last layer's
        # signals, would be computed when the graph is made, and kept.
        self._one = tf.Variable(1.0, trainable=False)
        self._recorder = Recorder(model, variables)
        self.by_tape, numbers = verify(model, variables, self._recorder, examples)
        self.numbers_per_example = max(1, axes.total * numbers)
        self._tape = TapeEngine(model, variables, axes)
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self._fresh = True

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """The kernel as `OutputAxes.restore` orders it; `x2` is `None` for the same inputs.

        The first kernel of one output is computed as it comes: tracing pays later on. Where the
        model treats this number of examples otherwise than those of the verification, all is done
        by autodiff.
        """
        try:
            return self._eager_or_traced(x1, x2)
        except BatchAxisError:
            return self._tape.kernel(x1, x2)

    def _eager_or_traced(self, x1: Any, x2: Any | None) -> Any:
        as_it_comes, self._fresh = self._fresh and self.axes.total == 1, False
        if as_it_comes:
            return self._kernel(x1, x2)
        flat = [x for x in tf.nest.flatten((x1, x2)) if x is not None]
        key = (x2 is None, *((x.dtype, *x.shape) for x in flat))
        # Oldest first: of many sizes only the last few are kept.
        graph = self._graphs.pop(key, None) or self._trace((x1, x2))
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph(*flat)

    def _trace(self, inputs: Any) -> Callable[..., Any]:
        """The kernel for inputs of these shapes as a graph, of the inputs that are not `None`."""
        flat = tf.nest.flatten(inputs)

        def compute(*tensors: Any) -> Any:
            given = iter(tensors)
            packed = [None if x is None else next(given) for x in flat]
            return self._kernel(*tf.nest.pack_sequence_as(inputs, packed))

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in flat if x is not None]
        return compiled(traced(compute, specs), specs)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        def arrange(outputs: Any) -> Any:
            return self.axes.arrange(outputs) * tf.cast(self._one, outputs.dtype)

        def shares(x: Any) -> Iterator[Share]:
            for layer in self._recorder.shares(x, arrange, self.axes.counts, self.by_tape):
                yield from together([share for _, share in layer])

        first = shares(x1)
        both = ((a, a) for a in first) if x2 is None else zip(first, shares(x2), strict=True)
        pairs = self._pairs(x1, x2)
        kernel = one_by_one(a.gram(b, pairs) for a, b in both)
        if kernel is None:  # The model does not use these variables.
            n1, n2 = (tf.nest.flatten(x)[0].shape[0] for x in (x1, x1 if x2 is None else x2))
            return tf.zeros(self.axes.kernel_shape(n1, n2), self.axes.dtype)
        return self.axes.restore(pairs.whole(kernel / self.axes.counts[0]))

    def _pairs(self, x1: Any, x2: Any | None) -> Pairs:
        _, diagonal, paired = self.axes.counts
        if x2 is None and diagonal == 1 and not self.axes.same_examples:
            return Pairs.symmetric(paired, tf.nest.flatten(x1)[0].shape[0])
        return Pairs(self.axes.same_examples)
