"""A model's graph without nested models, and activations computed from a kept place of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from ce_keras.layers.functional import inputs_of_call, is_functional, runs_its_graph
from ce_keras.layers.keras_internals import run_through
from ce_keras.rewrite.graph import Call

#: Bytes of activations that are kept in memory, for each of the two models.
MOST_KEPT = 2**30


class _Runs(keras.Operation):
    """Runs an operation of the model, in a copy of its graph: the model's own gets no new nodes."""

    def __init__(self, operation: Any, name: str) -> None:
        super().__init__(name=name)
        self.operation = operation

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.operation.compute_output_spec(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.operation(*args, **kwargs)


class FlatGraph:
    """The calls of a functional model and of all models inside it, first to last.

    A model inside whose `call` is a user's own is one call, as of a layer.

    Attributes:
        calls: each with the tensors that it reads and gives.
        inputs: the model's input tensors.
        outputs: the model's output tensors.
    """

    def __init__(self, model: keras.Model) -> None:
        self.calls: list[Call] = []
        self.inputs = [
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in model.inputs
        ]
        plain = keras.Model(model.inputs, model.outputs)
        self.outputs = keras.tree.flatten(run_through(plain, self.inputs, self._record))
        self._readers: dict[int, list[int]] = {}
        for position, call in enumerate(self.calls):
            for tensor in call.inputs:
                self._readers.setdefault(id(tensor), []).append(position)

    def calls_of(self, layer: Any) -> list[Call]:
        """Return the calls of a layer, first to last."""
        return [call for call in self.calls if call.operation is layer]

    def read_by(self, layer: Any, tensor: Any) -> Any:
        """Return the tensor that a layer reads in the call of it from which `tensor` comes."""
        made_by = {id(output): call for call in self.calls for output in call.outputs}
        waiting = [tensor]
        while (call := made_by[id(waiting.pop())]).operation is not layer:
            waiting += call.inputs
        return call.inputs[0]

    def only_reader(self, call: Call) -> Call | None:
        """Return the one call that reads what `call` gives; `None` if there are others or none."""
        (tensor, *more) = call.outputs
        readers = self._readers.get(id(tensor), [])
        if more or len(readers) != 1 or any(tensor is output for output in self.outputs):
            return None
        return self.calls[readers[0]]

    def needed_from(self, layer: Any) -> list[Any]:
        """Return the tensors from which everything from a layer's first call on is computed."""
        start = next(i for i, call in enumerate(self.calls) if call.operation is layer)
        made = [*self.inputs, *(tensor for call in self.calls[:start] for tensor in call.outputs)]
        outputs = {id(tensor) for tensor in self.outputs}

        def is_needed(tensor: Any) -> bool:
            readers = self._readers.get(id(tensor), [])
            return id(tensor) in outputs or any(position >= start for position in readers)

        return [tensor for tensor in made if is_needed(tensor)]

    def _record(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if is_functional(operation) and runs_its_graph(operation):
            if isinstance(operation, keras.Sequential):
                operation = keras.Model(operation.inputs[0], operation.outputs[0])
            return run_through(operation, inputs_of_call(operation, args, kwargs), self._record)
        outputs = _Runs(operation, f"call_{len(self.calls)}")(*args, **kwargs)
        read = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        self.calls.append(Call(operation, read, keras.tree.flatten(outputs)))
        return outputs


class Activations:
    """Activations of a model on images, batch by batch, from a place of its graph that moves on.

    Args:
        model: functional.
        batches: for every batch, an array for each of the model's inputs.

    Attributes:
        graph: whose tensors can be asked for.
    """

    def __init__(self, model: keras.Model, batches: Sequence[list[np.ndarray]]) -> None:
        self.graph = FlatGraph(model)
        self._known = self.graph.inputs
        self._values = list(batches)

    def values(self, tensors: Sequence[Any], batches: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Yield the values of tensors of the graph, for each of these batches."""
        function = keras.Function(self._known, list(tensors))
        for number in batches:
            known = [
                keras.ops.convert_to_tensor(value, dtype=tensor.dtype)
                for value, tensor in zip(self._values[number], self._known, strict=True)
            ]
            yield [keras.ops.convert_to_numpy(output) for output in function(known)]

    def images(self, batches: Sequence[int]) -> int:
        """Return the number of images in these batches."""
        return sum(len(self._values[number][0]) for number in batches)

    def fit_memory(self, tensors: Sequence[Any], batches: Sequence[int]) -> bool:
        """Return whether the values of these tensors can be kept."""
        sizes = [math.prod(size or 1 for size in tensor.shape[1:]) for tensor in tensors]
        unknown = any(None in tensor.shape[1:] for tensor in tensors)
        return not unknown and 4 * self.images(batches) * sum(sizes) <= MOST_KEPT

    def advance(self, layer: Any) -> None:
        """Keep what is needed from a layer's first call on, if memory allows.

        Whatever lies before must not change any more.
        """
        needed = self.graph.needed_from(layer)
        if self.fit_memory(needed, range(len(self._values))):
            for number, values in enumerate(self.values(needed, range(len(self._values)))):
                self._values[number] = values  # What was kept before is let go.
            self._known = needed
