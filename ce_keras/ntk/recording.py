"""Record the layer calls of one forward pass, and find the cotangents of all of them at once.

The forward pass is the model's own. While it runs, every layer that has a rule (see
`ce_keras.ntk.layer_rules`) hands over its output before the activation. One backward pass for each
output of the model then gives the cotangents there, and the rules turn those into the contribution
of every variable.
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

from ce_keras.layers.keras_internals import all_layers, replaced_attributes
from ce_keras.ntk.autodiff import jacobians, traced
from ce_keras.ntk.axes import number_of_examples, only_output
from ce_keras.ntk.contractions import Contribution, at_least_single
from ce_keras.ntk.layer_rules import Contributions, Rule, convolves_by_groups, rule_of

#: Turns a model's outputs into the numbers to differentiate, `(examples, total)`.
Arrange = Callable[[Any], Any]

#: Held while the layers of a model have other methods: no other thread may call it meanwhile.
RECORDING = threading.RLock()


class BatchAxisError(Exception):
    """A layer that has the examples first for other batch sizes does not for this one."""


class RecordedCall(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: the layer.
        output: its output before the activation, which the tape watches.
        contributions: what turns the cotangents of that output into contributions.
    """

    layer: Any
    output: Any
    contributions: Callable[[Any], Contributions]


class Recorder:
    """The contributions of a model's variables, by one forward and one backward pass.

    Args:
        model: a built Keras model.
        variables: those whose contributions are wanted.

    Attributes:
        without_rule: variables of layers that have no rule.
    """

    def __init__(self, model: keras.Model, variables: Sequence[Any]) -> None:
        self._model = model
        self._wanted = {id(variable) for variable in variables}
        known = [(layer, rule) for layer in all_layers(model) if (rule := rule_of(layer))]
        self._layers = [
            (layer, rule)
            for layer, rule in known
            if self._is_wanted(layer) or convolves_by_groups(layer)
        ]
        known_variables = {id(v) for layer, _ in known for v in layer.variables}
        self.without_rule = [v for v in variables if id(v) not in known_variables]
        # Other variables of three or more axes may be kernels of grouped convolutions, whose
        # backward pass through Keras' own code fails where it is vectorised.
        self._vectorised = all(
            id(v) in known_variables or len(v.shape) < 3 for v in model.variables
        )
        #: Identities of the layers that have the examples first; `None` before they are sought.
        self._batch_first: set[int] | None = None
        #: Those of them that turned out not to have.
        self._otherwise: set[int] = set()

    def _is_wanted(self, layer: Any) -> bool:
        return any(id(v) in self._wanted for v in layer.variables)

    def find_batch_first_layers(self, x: Any) -> None:
        """Find the layers whose outputs have the examples first, wherever the model calls them.

        An axis can be as long as the batch by accident: call `batch_first_contributions` for
        another number of examples afterwards. The model is traced, not computed: calls inside a
        loop show only so.

        Args:
            x: inputs.

        Raises:
            ValueError: if a graph does not know the shape of the outputs.
        """
        flat = tf.nest.flatten(x)
        examples = number_of_examples(x)
        seen: dict[int, list[bool]] = collections.defaultdict(list)

        def forward(*tensors: Any) -> Any:
            graph = tf.compat.v1.get_default_graph()

            def note(layer: Any, output: Any, _: Any) -> Any:
                in_loop = tf.compat.v1.get_default_graph() is not graph
                rank = output.shape.rank
                seen[id(layer)].append(not in_loop and bool(rank) and output.shape[0] == examples)
                return output

            with self._calls_by_rule(note):
                outputs = self._model(tf.nest.pack_sequence_as(x, tensors), training=False)
            if not only_output(outputs).shape.is_fully_defined():
                raise ValueError(f"the shape of its outputs is only known to be {outputs.shape}")

        traced(forward, [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in flat])
        self._batch_first = {id(layer) for layer, _ in self._layers if all(seen[id(layer)])}

    def batch_first_contributions(self, x: Any, arrange: Arrange) -> dict[int, Contribution]:
        """Return all contributions, without the layers that do not have these examples first.

        Those layers are left out from now on.
        """
        while True:
            try:
                return self.by_variable(x, arrange)
            except BatchAxisError:
                assert self._batch_first is not None
                self._batch_first -= self._otherwise

    def by_variable(
        self, x: Any, arrange: Arrange, by_tape: Sequence[Any] = ()
    ) -> dict[int, Contribution]:
        """Return all contributions by the variable's identity, for one output of each example."""
        by_layer = self.contributions(x, arrange, (1, 1, 1), by_tape)
        return dict(itertools.chain.from_iterable(by_layer))

    def contributions(
        self, x: Any, arrange: Arrange, counts: Sequence[int], by_tape: Sequence[Any]
    ) -> Iterator[Sequence[tuple[int, Contribution]]]:
        """Give every variable's contribution by the variable's identity, layer by layer.

        They are made as they are asked for, and cotangents dropped as they are used: all of them
        at once are many times the kernel.

        Args:
            x: the model's inputs.
            arrange: turns its outputs into the numbers to differentiate, `(examples, total)`.
            counts: the numbers of traced, diagonal and paired outputs.
            by_tape: variables whose gradients are to come from the tape instead.
        """
        # A tape that is read once frees what it has read.
        persistent = bool(by_tape) or math.prod(counts) > 1
        with tf.GradientTape(persistent=persistent, watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in by_tape])
            with self._recorded(tape, number_of_examples(x)) as calls:
                outputs = at_least_single(arrange(only_output(self._model(x, training=False))))
            # Examples do not influence each other: the gradient of an output summed over the
            # examples holds every example's own.
            total = tf.reduce_sum(outputs, axis=0)
        cotangents = self._cotangents(tape, total, [call.output for call in calls], counts)
        rest = jacobians(tape, outputs, by_tape, counts) if by_tape else []
        del tape, total, outputs
        taped = {id(variable) for variable in by_tape}
        yield from ([(id(v), gradients)] for v, gradients in zip(by_tape, rest, strict=True))

        calls_left = collections.Counter(id(v) for call in calls for v in call.layer.variables)
        begun: dict[int, Contribution] = {}
        # Backwards: the last layer's cotangents are the first to be there.
        while calls:
            call = calls.pop()
            for variable, contribution in call.contributions(cotangents.pop()):
                key = id(variable)
                begun[key] = begun[key].join(contribution) if key in begun else contribution
            own = list(dict.fromkeys(id(v) for v in call.layer.variables))
            calls_left.subtract(own)
            done = [(key, begun.pop(key)) for key in own if not calls_left[key] and key in begun]
            yield [each for each in done if each[0] in self._wanted - taped]

    def _cotangents(
        self, tape: tf.GradientTape, total: Any, points: list[Any], counts: Sequence[int]
    ) -> list[Any]:
        """Return the cotangents of each point, `(traced, diagonal, paired, examples, ...)`."""
        zero = tf.UnconnectedGradients.ZERO
        if total.shape[0] == 1:
            found = tape.gradient(total, points, unconnected_gradients=zero)
        else:
            found = tape.jacobian(
                total, points, unconnected_gradients=zero, experimental_use_pfor=self._vectorised
            )
        return [
            tf.reshape(cotangent, [*counts, *point.shape])
            for cotangent, point in zip(found, points, strict=True)
        ]

    @contextlib.contextmanager
    def _recorded(self, tape: tf.GradientTape, examples: int) -> Iterator[list[RecordedCall]]:
        """Record every call of the layers, on a batch of so many examples."""
        calls: list[RecordedCall] = []
        outer = tf.compat.v1.get_default_graph()

        def record(layer: Any, output: Any, contributions: Any) -> Any:
            known = self._batch_first
            if not self._is_wanted(layer) or (known is not None and id(layer) not in known):
                return output  # No backward pass need go so far.
            in_loop = tf.compat.v1.get_default_graph() is not outer
            if in_loop or output.shape[0] != examples:
                # The tensors of a loop are unknown outside.
                if known is not None:
                    # Keras raises another error of this class, with a longer message.
                    self._otherwise.add(id(layer))
                    raise BatchAxisError(f"{layer.name!r} gives {output.shape} for {examples}")
                return output
            # Kernels are sums of many products: at least in single precision, whatever the model's.
            point = at_least_single(tf.convert_to_tensor(output))
            tape.watch(point)
            calls.append(RecordedCall(layer, point, contributions))
            return tf.cast(point, output.dtype)

        with self._calls_by_rule(record):
            yield calls

    @contextlib.contextmanager
    def _calls_by_rule(self, record: Callable[..., Any]) -> Iterator[None]:
        """Replace the layers' own `call`s by their rules, which call `record` as they go."""
        with RECORDING, contextlib.ExitStack() as stack:
            for layer, rule in self._layers:
                call = _call_by_rule(layer, rule, functools.partial(record, layer))
                stack.enter_context(replaced_attributes(layer, call=call))
            yield


def _call_by_rule(layer: Any, rule: Rule, record: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `call` of the signature of the layer's own."""
    own = layer.call
    # The input has a name of its own in every layer.
    name = next(iter(inspect.signature(own).parameters))

    def call(*arguments: Any, **options: Any) -> Any:
        x, arguments = (
            (options.pop(name), arguments) if name in options else (arguments[0], arguments[1:])
        )
        x = tf.convert_to_tensor(x)
        if x.dtype.is_floating:
            x = tf.cast(x, layer.compute_dtype)
        return rule(layer, lambda x: own(x, *arguments, **options), x, record)

    return functools.wraps(own)(call)
