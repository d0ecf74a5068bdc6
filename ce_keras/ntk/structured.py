"""The kernel layer by layer: one forward and one backward pass, and each layer's share.

The forward pass is the model's own. While it runs, every layer that has a rule (see
`ce_keras.ntk.rules`) hands over its output before the activation; one backward pass for each
output gives the signals there. From a layer's input and its signal follows what its variables add
to the kernel, without forming a jacobian of the model.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.axes import OutputAxes
from ce_keras.ntk.rules import Record, Rule, replaced, rule_of
from ce_keras.ntk.shares import Share, one_by_one, wide
from ce_keras.ntk.tape import gradients_by_tape

Arrange = Callable[[Any], Any]

# Graphs that an engine keeps, each for one number of examples.
_MOST_TRACED = 8

#: Held while the layers of a model are not themselves: no other thread may call it meanwhile.
RECORDING = threading.RLock()


class _Record(NamedTuple):
    """One application of a layer: where its signal is wanted, and what that is turned into."""

    layer: Any
    point: Any
    shares: Callable[[Any], list[tuple[Any, Share]]]


class StructuredEngine:
    """Kernels of one model, for one choice of variables and of output axes.

    Args:
        model: a built Keras model.
        variables: the variables to differentiate by.
        axes: which entries of the kernel are asked for.
        examples: a few inputs to try the rules on: the variables whose share is not the tape's
            are left to the tape.

    Attributes:
        by_tape: the variables that are left to the tape.
        numbers_per_example: about how many numbers are held for one example.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[Any], axes: OutputAxes, examples: Any
    ) -> None:
        self._model = model
        self.axes = axes
        self._wanted = {id(variable): variable for variable in variables}
        self._layers = [
            (layer, rule)
            for layer in leaves(model)
            if (rule := rule_of(layer)) and any(id(v) in self._wanted for v in layer.variables)
        ]
        # A gate that starts at zero hides what is behind it: weights a little off their own.
        with keras.StatelessScope(state_mapping=_perturbed(model)):
            self.by_tape = self._disagreeing(examples)
        self._traced: dict[Any, Any] = {}
        self._fresh = True

    def kernel(self, x1: Any, x2: Any | None) -> Any:
        """The kernel as `OutputAxes.restore` orders it; `x2` is `None` for the same inputs.

        The first kernel of one output is computed as it comes: tracing pays from the second on.
        """
        as_it_comes, self._fresh = self._fresh and self.axes.total == 1, False
        if as_it_comes:
            return self._kernel(x1, x2)
        flat = tf.nest.flatten((x1, x2))
        key = tuple((None if x is None else (x.dtype, *x.shape)) for x in flat)
        # Oldest first: of many sizes only the last few are kept.
        traced = self._traced.pop(key, None) or self._trace((x1, x2))
        self._traced[key] = traced
        if len(self._traced) > _MOST_TRACED:
            del self._traced[next(iter(self._traced))]
        return traced(*[x for x in flat if x is not None])

    def _trace(self, inputs: Any) -> Any:
        """The kernel for inputs of these shapes as a graph, of the inputs that are not `None`."""
        flat = tf.nest.flatten(inputs)

        def compute(*tensors: Any) -> Any:
            given = iter(tensors)
            packed = [None if x is None else next(given) for x in flat]
            return self._kernel(*tf.nest.pack_sequence_as(inputs, packed))

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in flat if x is not None]
        return tf.function(compute, autograph=False).get_concrete_function(*specs)

    def _kernel(self, x1: Any, x2: Any | None) -> Any:
        same = self.axes.same_examples
        first = self._shares(x1, self.axes.arrange, self.axes.counts, self.by_tape)
        if x2 is None:
            pairs = ((share, share) for _, share in first)
        else:
            second = self._shares(x2, self.axes.arrange, self.axes.counts, self.by_tape)
            pairs = ((a, b) for (_, a), (_, b) in zip(first, second, strict=True))
        kernel = one_by_one(a.gram(b, same) for a, b in pairs)
        if kernel is None:  # The model does not use these variables.
            n1, n2 = (tf.nest.flatten(x)[0].shape[0] for x in (x1, x1 if x2 is None else x2))
            return tf.zeros(self.axes.kernel_shape(n1, n2), self.axes.dtype)
        return self.axes.restore(kernel / self.axes.counts[0])

    def _shares(
        self, x: Any, arrange: Arrange, counts: Sequence[int], by_tape: Sequence[Any]
    ) -> Iterator[tuple[int, Share]]:
        """Every variable's share, by the variable's identity, one after another.

        They are made as they are asked for, and signals dropped as they are used: all of them at
        once are many times the kernel.
        """
        # A tape that is read once lets go of what it has read.
        again = bool(by_tape) or math.prod(counts) > 1
        with tf.GradientTape(persistent=again, watch_accessed_variables=False) as tape:
            for variable in by_tape:
                tape.watch(variable.value)
            with self._recorded(tape, tf.nest.flatten(x)[0].shape[0]) as records:
                outputs = wide(arrange(self._model(x, training=False)))
            total = tf.reduce_sum(outputs, axis=0)
        signals = _signals(tape, total, [record.point for record in records], counts)
        rest = gradients_by_tape(tape, outputs, by_tape, counts) if by_tape else []
        del tape, total, outputs
        taped = {id(variable) for variable in by_tape}
        yield from ((id(v), share) for v, share in zip(by_tape, rest, strict=True))

        uses = collections.Counter(id(v) for record in records for v in record.layer.variables)
        begun: dict[int, Share] = {}
        # Backwards: the last layer's signal is the first to be there.
        while records:
            record = records.pop()
            for variable, share in record.shares(signals.pop()):
                key = id(variable)
                begun[key] = begun[key].join(share) if key in begun else share
            for key in {id(v) for v in record.layer.variables}:
                uses[key] -= 1
                if not uses[key] and key in begun:
                    share = begun.pop(key)
                    if key in self._wanted and key not in taped:
                        yield key, share

    @contextlib.contextmanager
    def _recorded(self, tape: tf.GradientTape, examples: int) -> Iterator[list[_Record]]:
        """The layers' own `call`s replaced by their rules, which record as they go."""
        records: list[_Record] = []
        outer = tf.compat.v1.get_default_graph()

        def record(layer: Any, output: Any, shares: Any) -> Any:
            inside = tf.compat.v1.get_default_graph() is not outer
            if inside or output.shape[0] != examples:
                # In a loop, whose tensors nobody outside can have, or not example by example.
                return output
            # In at least single precision, whatever the model's: kernels are sums of many products.
            point = wide(tf.convert_to_tensor(output))
            tape.watch(point)
            records.append(_Record(layer, point, shares))
            return tf.cast(point, output.dtype)

        # Given back only when all layers are themselves again.
        with RECORDING, contextlib.ExitStack() as stack:
            for layer, rule in self._layers:
                by_rule = _by_rule(layer, rule, functools.partial(record, layer))
                stack.enter_context(replaced(layer, call=by_rule))
            yield records

    def _disagreeing(self, examples: Any) -> list[Any]:
        """The variables whose share is not what the tape says, on a few examples.

        Rules see only the layers that have one. A variable that is used anywhere else, by a custom
        layer or a second time past its layer, would be short of a part of its share. What is
        compared is the squared length of the gradient of a random combination of all outputs: by
        the tape, and as the sum of all entries of a kernel.
        """
        variables = list(self._wanted.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable.value)
            outputs = self._model(examples, training=False)
            weights = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
            value = tf.tensordot(tf.cast(outputs, tf.float32), weights, outputs.shape.rank)

        def project(outputs: Any) -> Any:
            flat = tf.reshape(tf.cast(outputs, tf.float32) * weights, [outputs.shape[0], -1])
            return tf.reduce_sum(flat, axis=1, keepdims=True)

        gradients = tape.gradient(
            value,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        expected = [2 * float(tf.nn.l2_loss(wide(tf.convert_to_tensor(g)))) for g in gradients]
        del gradients, tape
        shares = dict(self._shares(examples, project, (1, 1, 1), []))
        numbers = sum(share.held for share in shares.values())
        numbers += max((share.working for share in shares.values()), default=0)
        self.numbers_per_example = max(1, self.axes.total * numbers // outputs.shape[0])
        found = [
            float(tf.reduce_sum(share.gram(share, False))) if (share := shares.get(id(v))) else 0.0
            for v in variables
        ]
        half = any(layer.compute_dtype.endswith("16") for layer in leaves(self._model))
        tolerance = 3e-2 if half else 1e-3
        return [
            variable
            for variable, ours, tapes in zip(variables, found, expected, strict=True)
            if abs(ours - tapes) > tolerance * tapes + 1e-6 * tolerance * sum(expected)
        ]


def _perturbed(model: keras.Model) -> list[tuple[Any, Any]]:
    """The trainable variables, each with values a little off its own."""
    rng = np.random.default_rng(0)
    mapping = []
    for variable in model.trainable_variables:
        values = wide(tf.convert_to_tensor(variable.value))
        off = 0.1 * tf.sqrt(tf.reduce_mean(values**2)) + 0.1
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        mapping.append(
            (variable, tf.cast(values + off * tf.cast(noise, off.dtype), variable.dtype))
        )
    return mapping


def _by_rule(layer: Any, rule: Rule, record: Record) -> Callable[..., Any]:
    own = layer.call
    name = next(iter(inspect.signature(own).parameters))

    def call(*arguments: Any, **options: Any) -> Any:
        # The input has a name of its own in every layer.
        x, arguments = (
            (options.pop(name), arguments) if name in options else (arguments[0], arguments[1:])
        )

        def plain(x: Any) -> Any:
            return own(x, *arguments, **options)

        x = tf.convert_to_tensor(x)
        return rule(
            layer, plain, tf.cast(x, layer.compute_dtype) if x.dtype.is_floating else x, record
        )

    return functools.wraps(own)(call)


def _signals(
    tape: tf.GradientTape, total: Any, points: list[Any], counts: Sequence[int]
) -> list[Any]:
    """d(each output)/d(each point), `(traced, diagonal, paired, examples, ...)`.

    Examples do not meet, so the gradient of an output summed over examples is every example's.
    """
    zero = tf.UnconnectedGradients.ZERO
    if total.shape[0] == 1:
        signals = tape.gradient(total, points, unconnected_gradients=zero)
    else:
        signals = tape.jacobian(total, points, unconnected_gradients=zero)
    return [
        tf.reshape(signal, [*counts, *point.shape])
        for signal, point in zip(signals, points, strict=True)
    ]
