"""One forward and one backward pass of a model, and from them every variable's share.

The forward pass is the model's own. While it runs, every layer that has a rule (see
`ce_keras.ntk.rules`) hands over its output before the activation; one backward pass for each
output gives the signals there.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.axes import only_output
from ce_keras.ntk.graphs import traced
from ce_keras.ntk.rules import Record, Rule, by_groups, replaced, rule_of
from ce_keras.ntk.shares import Share, wide
from ce_keras.ntk.tape import gradients_by_tape

Arrange = Callable[[Any], Any]

#: Held while the layers of a model are not themselves: no other thread may call it meanwhile.
RECORDING = threading.RLock()


class BatchAxisError(Exception):
    """A layer that was found to put the examples first does not, for this number of them."""


class _Record(NamedTuple):
    """One application of a layer: where its signal is wanted, and what that is turned into."""

    layer: Any
    point: Any
    shares: Callable[[Any], list[tuple[Any, Share]]]


class Recorder:
    """The shares of a model's variables.

    Args:
        model: a built Keras model.
        variables: those whose shares are wanted.

    Attributes:
        without_rule: variables of layers that have none.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any]) -> None:
        self._model = model
        self._wanted = {id(variable) for variable in variables}
        every = [(layer, rule) for layer in leaves(model) if (rule := rule_of(layer))]
        self._layers = [each for each in every if self._is_wanted(each[0]) or by_groups(each[0])]
        ruled = {id(v) for layer, _ in every for v in layer.variables}
        self.without_rule = [v for v in variables if id(v) not in ruled]
        # What may be the kernel of a grouped convolution, whose backward pass through Keras' own
        # code fails where it is vectorised.
        self._vectorised = all(id(v) in ruled or len(v.shape) < 3 for v in model.variables)
        self._by_example: set[int] | None = None
        self._otherwise: set[int] = set()

    def _is_wanted(self, layer: Any) -> bool:
        """Whether a share of any of the layer's variables is."""
        return any(id(v) in self._wanted for v in layer.variables)

    def find_layers_by_example(self, x: Any) -> None:
        """Find the layers whose outputs have the examples first, wherever the model uses them.

        An axis can be as long as the batch by accident: call `verified_shares` for another number
        of examples afterwards. The model is traced, not computed: what is inside a loop shows only
        so.

        Args:
            x: inputs.

        Raises:
            ValueError: if a graph does not know the shape of the outputs.
        """
        flat = tf.nest.flatten(x)
        examples = flat[0].shape[0]
        seen: dict[int, list[bool]] = collections.defaultdict(list)

        def forward(*tensors: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()

            def watch(layer: Any, output: Any, _: Any) -> Any:
                inside = tf.compat.v1.get_default_graph() is not graph
                rank = output.shape.rank
                seen[id(layer)].append(not inside and bool(rank) and output.shape[0] == examples)
                return output

            with self._replaced(watch):
                outputs = self._model(tf.nest.pack_sequence_as(x, tensors), training=False)
            if not only_output(outputs).shape.is_fully_defined():
                raise ValueError(f"the shape of its outputs is only known to be {outputs.shape}")

        traced(forward, [tf.TensorSpec(part.shape, part.dtype) for part in flat])
        ruled = (id(layer) for layer, _ in self._layers)
        self._by_example = {layer for layer in ruled if all(seen[layer])}

    def shares(
        self, x: Any, arrange: Arrange, counts: Sequence[int], by_tape: Sequence[Any]
    ) -> Iterator[Sequence[tuple[int, Share]]]:
        """Every variable's share, by the variable's identity, one layer after another.

        They are made as they are asked for, and signals dropped as they are used: all of them at
        once are many times the kernel.

        Args:
            x: the model's inputs.
            arrange: turns its outputs into the numbers to differentiate, `(examples, total)`.
            counts: how many of them are traced, diagonal and paired.
            by_tape: variables whose gradients the tape is to give.
        """
        # A tape that is read once lets go of what it has read.
        again = bool(by_tape) or math.prod(counts) > 1
        with tf.GradientTape(persistent=again, watch_accessed_variables=False) as tape:
            for variable in by_tape:
                tape.watch(variable.value)
            with self._recorded(tape, tf.nest.flatten(x)[0].shape[0]) as records:
                outputs = wide(arrange(only_output(self._model(x, training=False))))
            total = tf.reduce_sum(outputs, axis=0)
        points = [record.point for record in records]
        signals = _signals(tape, total, points, counts, self._vectorised)
        rest = gradients_by_tape(tape, outputs, by_tape, counts) if by_tape else []
        del tape, total, outputs, points
        taped = {id(variable) for variable in by_tape}
        yield from ([(id(v), share)] for v, share in zip(by_tape, rest, strict=True))

        uses = collections.Counter(id(v) for record in records for v in record.layer.variables)
        begun: dict[int, Share] = {}
        # Backwards: the last layer's signal is the first to be there.
        while records:
            record = records.pop()
            for variable, share in record.shares(signals.pop()):
                key = id(variable)
                begun[key] = begun[key].join(share) if key in begun else share
            own = list(dict.fromkeys(id(v) for v in record.layer.variables))
            uses.subtract(own)
            done = [(key, begun.pop(key)) for key in own if not uses[key] and key in begun]
            yield [each for each in done if each[0] in self._wanted and each[0] not in taped]

    def verified_shares(self, x: Any, arrange: Arrange) -> dict[int, Share]:
        """Return all shares, and leave out the layers that do not put these examples first."""
        while True:
            try:
                return self.by_variable(x, arrange)
            except BatchAxisError:
                assert self._by_example is not None
                self._by_example -= self._otherwise

    def by_variable(
        self, x: Any, arrange: Arrange, by_tape: Sequence[Any] = ()
    ) -> dict[int, Share]:
        """All shares at once, where there is one number of each example to differentiate."""
        found = self.shares(x, arrange, (1, 1, 1), by_tape)
        return dict(itertools.chain.from_iterable(found))

    @contextlib.contextmanager
    def _recorded(self, tape: tf.GradientTape, examples: int) -> Iterator[list[_Record]]:
        """Record every application of the layers to as many examples."""
        records: list[_Record] = []
        outer = tf.compat.v1.get_default_graph()

        def record(layer: Any, output: Any, shares: Any) -> Any:
            known = self._by_example
            if not self._is_wanted(layer) or (known is not None and id(layer) not in known):
                return output  # No signal need go back so far.
            inside = tf.compat.v1.get_default_graph() is not outer
            if inside or output.shape[0] != examples:
                # In a loop, whose tensors nobody outside can have; or not example by example.
                if known is not None:
                    # Keras raises another of this class, with more of a message.
                    self._otherwise.add(id(layer))
                    raise BatchAxisError(f"{layer.name!r} gives {output.shape} for {examples}")
                return output
            # In at least single precision, whatever the model's: kernels are sums of many products.
            point = wide(tf.convert_to_tensor(output))
            tape.watch(point)
            records.append(_Record(layer, point, shares))
            return tf.cast(point, output.dtype)

        with self._replaced(record):
            yield records

    @contextlib.contextmanager
    def _replaced(self, record: Callable[..., Any]) -> Iterator[None]:
        """The layers' own `call`s replaced by their rules, which call `record` as they go."""
        # Given back only when all layers are themselves again.
        with RECORDING, contextlib.ExitStack() as stack:
            for layer, rule in self._layers:
                by_rule = _by_rule(layer, rule, functools.partial(record, layer))
                stack.enter_context(replaced(layer, call=by_rule))
            yield


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
    tape: tf.GradientTape,
    total: Any,
    points: list[Any],
    counts: Sequence[int],
    vectorised: bool,
) -> list[Any]:
    """d(each output)/d(each point), `(traced, diagonal, paired, examples, ...)`.

    Examples do not meet, so the gradient of an output summed over examples is every example's.
    """
    zero = tf.UnconnectedGradients.ZERO
    if total.shape[0] == 1:
        signals = tape.gradient(total, points, unconnected_gradients=zero)
    else:
        signals = tape.jacobian(
            total, points, unconnected_gradients=zero, experimental_use_pfor=vectorised
        )
    return [
        tf.reshape(signal, [*counts, *point.shape])
        for signal, point in zip(signals, points, strict=True)
    ]
