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
from keras import ops

from ce_keras.layers.keras_internals import (
    all_layers,
    own_trainable_variables,
    replaced_attributes,
)
from ce_keras.ntk.autodiff import Arrange, jacobians, stateless
from ce_keras.ntk.axes import number_of_examples, only_output
from ce_keras.ntk.backends import backend
from ce_keras.ntk.contractions import Contribution, at_least_single, sum_of_uses
from ce_keras.ntk.layer_rules import FromCotangents, Rule, convolves_by_groups, rule_of

#: Held while the layers of a model have other methods: no other thread may call it meanwhile.
RECORDING = threading.RLock()


class BatchAxisError(Exception):
    """A layer that has the examples first for other batch sizes does not for this one."""


class RecordedCall(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: the layer.
        shape: of its output before the activation.
        contributions: turns the cotangents of that output, and what the rule has kept, into
            contributions.
    """

    layer: Any
    shape: Sequence[int]
    contributions: FromCotangents


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
        # A layer's rule covers what the layer itself trains: not the slopes of its activation.
        known_variables = {id(v) for layer, _ in known for v in own_trainable_variables(layer)}
        self.without_rule = [v for v in variables if id(v) not in known_variables]
        # Other variables of three or more axes may be kernels of grouped convolutions, whose
        # backward pass through Keras' own code fails where TensorFlow vectorises it.
        self._vectorised = all(
            id(v) in known_variables or len(v.shape) < 3 for v in model.variables
        )
        #: Identities of the layers that have the examples first; `None` before they are sought.
        self._batch_first: set[int] | None = None
        #: Those of them that turned out not to have.
        self._otherwise: set[int] = set()
        #: Variables that are used in two ways whose contributions cannot be joined.
        self._used_in_two_ways: set[int] = set()

    def _is_wanted(self, layer: Any) -> bool:
        return any(id(v) in self._wanted for v in layer.variables)

    def find_batch_first_layers(self, x: Any) -> None:
        """Find the layers whose outputs have the examples first, wherever the model calls them.

        An axis can be as long as the batch by accident: call `batch_first_contributions` for
        another number of examples afterwards. The model is traced, not computed, where the backend
        traces: calls inside a loop show only so.

        Args:
            x: inputs.

        Raises:
            ValueError: if a graph does not know the shape of the outputs.
        """
        examples = number_of_examples(x)
        seen: dict[int, list[bool]] = collections.defaultdict(list)

        def forward(x: Any) -> Any:
            outside = backend.trace_state()

            def note(layer: Any, output: Any, *_: Any) -> Any:
                in_loop = backend.trace_state() != outside
                seen[id(layer)].append(not in_loop and _first_axis(output) == examples)
                return output

            with stateless(self._model), self._calls_by_rule(note):
                return only_output(self._model(x, training=False))

        backend.traced(forward, x)
        self._batch_first = {id(layer) for layer, _ in self._layers if all(seen[id(layer)])}

    def left_out(self) -> set[int]:
        """Return the identities of variables without a rule, or whose layers it does not fit.

        Those are the layers that do not have the examples first, and those that share a variable
        with layers of another kind.
        """
        assert self._batch_first is not None
        unfit = (layer for layer, _ in self._layers if id(layer) not in self._batch_first)
        variables = itertools.chain(self.without_rule, *(layer.variables for layer in unfit))
        return {id(variable) for variable in variables} | self._used_in_two_ways

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
        self, x: Any, arrange: Arrange, by_autodiff: Sequence[Any] = ()
    ) -> dict[int, Contribution]:
        """Return all contributions by the variable's identity, for one output of each example."""
        by_layer = self.contributions(x, arrange, (1, 1, 1), by_autodiff)
        return dict(itertools.chain.from_iterable(by_layer))

    def contributions(
        self, x: Any, arrange: Arrange, counts: Sequence[int], by_autodiff: Sequence[Any]
    ) -> Iterator[Sequence[tuple[int, Contribution]]]:
        """Give every variable's contribution by the variable's identity, layer by layer.

        They are made as they are asked for, and cotangents dropped as they are used: all of them
        at once are many times the kernel.

        Args:
            x: the model's inputs.
            arrange: turns its outputs into the numbers to differentiate, `(examples, total)`.
            counts: the numbers of traced, diagonal and paired outputs.
            by_autodiff: variables whose gradients are to come from autodiff instead.
        """
        calls: list[RecordedCall] = []

        def forward(watch: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
            calls.clear()
            with self._recorded(watch, calls, number_of_examples(x)) as kept:
                outputs = at_least_single(arrange(only_output(self._model(x, training=False))))
            # Examples do not influence each other: the gradient of an output summed over the
            # examples holds every example's own.
            return ops.sum(outputs, axis=0), kept

        cotangents, kept = backend.cotangents(forward, math.prod(counts), self._vectorised)
        if by_autodiff:
            with self._calls_by_rule(lambda *record: record[1]):
                found = jacobians(self._model, x, by_autodiff, arrange, counts)
            yield [(id(v), each) for v, each in zip(by_autodiff, found, strict=True)]
        wanted = self._wanted - {id(variable) for variable in by_autodiff}

        calls_left = collections.Counter(id(v) for call in calls for v in call.layer.variables)
        begun: dict[int, Contribution] = {}
        # Backwards: the last layer's cotangents are the first to be there.
        while calls:
            call = calls.pop()
            own_cotangents = ops.reshape(cotangents.pop(), [*counts, *call.shape])
            for variable, contribution in call.contributions(own_cotangents, *kept.pop()):
                key = id(variable)
                both = sum_of_uses(begun[key], contribution) if key in begun else contribution
                if both is None:
                    self._used_in_two_ways.add(key)
                else:
                    begun[key] = both
            del own_cotangents
            own = list(dict.fromkeys(id(v) for v in call.layer.variables))
            calls_left.subtract(own)
            done = [(key, begun.pop(key)) for key in own if not calls_left[key] and key in begun]
            yield [each for each in done if each[0] in wanted]

    @contextlib.contextmanager
    def _recorded(
        self, watch: Callable[[Any], Any], calls: list[RecordedCall], examples: int
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Record every call of the layers, and what their rules keep, for so many examples."""
        kept: list[tuple[Any, ...]] = []
        outside = backend.trace_state()

        def record(layer: Any, output: Any, contributions: FromCotangents, *keep: Any) -> Any:
            known = self._batch_first
            if not self._is_wanted(layer) or (known is not None and id(layer) not in known):
                return output  # No backward pass need go so far.
            if backend.trace_state() != outside or _first_axis(output) != examples:
                # The tensors of a loop are unknown outside.
                if known is not None:
                    # Keras raises another error of this class, with a longer message.
                    self._otherwise.add(id(layer))
                    raise BatchAxisError(f"{layer.name!r} gives {output.shape} for {examples}")
                return output
            # Kernels are sums of many products: at least in single precision, whatever the model's.
            point = watch(at_least_single(output))
            calls.append(RecordedCall(layer, tuple(point.shape), contributions))
            kept.append(keep)
            return ops.cast(point, output.dtype)

        with self._calls_by_rule(record):
            yield kept

    @contextlib.contextmanager
    def _calls_by_rule(self, record: Callable[..., Any]) -> Iterator[None]:
        """Replace the layers' own `call`s by their rules, which call `record` as they go."""
        with RECORDING, contextlib.ExitStack() as stack:
            for layer, rule in self._layers:
                call = _call_by_rule(layer, rule, functools.partial(record, layer))
                stack.enter_context(replaced_attributes(layer, call=call))
            yield


def _first_axis(tensor: Any) -> int | None:
    """Return the length of the first axis; `None` where there is none, or a graph knows none."""
    return next(iter(tensor.shape), None) if tensor.shape else None


def _call_by_rule(layer: Any, rule: Rule, record: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `call` of the signature of the layer's own."""
    own = layer.call
    # The input has a name of its own in every layer.
    name = next(iter(inspect.signature(own).parameters))

    def call(*arguments: Any, **options: Any) -> Any:
        x, arguments = (
            (options.pop(name), arguments) if name in options else (arguments[0], arguments[1:])
        )
        x = ops.convert_to_tensor(x)
        if keras.backend.is_float_dtype(x.dtype):
            x = ops.cast(x, layer.compute_dtype)
        return rule(layer, lambda x: own(x, *arguments, **options), x, record)

    return functools.wraps(own)(call)
