"""Train the layers of a chain together: block reconstruction, without labels.

Least squares fits one layer after another, each to the model's own outputs of its units. A chain
of narrow paths cannot give all of those; but its layers can make up for each other's errors, so
that the chain's output comes nearer to the model's (Li et al., BRECQ, 2021). That is no linear
problem, and a few steps of Adam solve it well enough.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from ce_keras.layers.keras_internals import replaced_attributes
from ce_keras.rewrite.calibration.layers import Pair, normalisation
from ce_keras.rewrite.chains import Chain

#: Passes over the images, and steps, at most.
_PASSES = 12
_STEPS = 200

#: The first step of Adam, which falls to zero as a cosine.
_RATE = 1e-3

# Relative errors below this are of rounding: the paths are as wide as the model's.
_EXACT = 1e-4


def passes(pair: Pair) -> int:
    """Return the number of passes over the images that a chain is trained for."""
    return max(1, min(_PASSES, _STEPS // len(pair.batches)))


def reconstruct(
    pair: Pair,
    chain: Chain,
    new: dict[int, Any],
    error: Callable[[], float],
    after_pass: Callable[[], object],
) -> None:
    """Train what took a chain's place to give the chain's outputs, where that helps.

    Outputs are compared before the last layer's activation: a softmax would hide differences.

    Args:
        pair: the activations of both models.
        chain: of the trained model; its new layers are calibrated.
        new: by the identity of a layer of the model, what took its place.
        error: returns the distance of the new outputs from the wanted ones, on images held out.
            Where training does not reduce it, the weights are restored.
        after_pass: called after every pass over the images.
    """
    entry, old_exit = chain.linear[0].layer, chain.linear[-1].layer
    new_exit = new[id(old_exit)]
    wanted = [output_of(pair.old.graph, call) for call in pair.old.graph.calls_of(old_exit)]
    given = [output_of(pair.new.graph, call) for call in pair.new.graph.calls_of(new_exit)]
    read = [pair.new.graph.read_by(new[id(entry)], tensor) for tensor in given]
    paths = _Paths(keras.Function(read[0], given[0]))
    with _without_activation(old_exit), _without_activation(new_exit):
        before = error()
        if not before > _EXACT or not paths.trainable_variables:  # The user froze them.
            return
        weights = paths.get_weights()
        _train(paths, pair, wanted, read, after_pass)
        if not error() < before:
            paths.set_weights(weights)


def _train(
    paths: keras.Model,
    pair: Pair,
    wanted: list[Any],
    read: list[Any],
    after_pass: Callable[[], object],
) -> None:
    """Train by Adam, its rate falling to zero, on the squared error of every call's outputs."""
    steps = passes(pair) * len(pair.batches) * len(wanted)
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_RATE, steps))
    # Compiling by XLA would take longer than so short a training.
    jit = "auto" if keras.backend.backend() == "jax" else False
    paths.compile(adam, "mse", jit_compile=jit)
    targets = functools.partial(pair.old.values, wanted, pair.batches)
    kept = list(targets()) if pair.old.fit_memory(wanted, pair.batches) else None
    for _ in range(passes(pair)):
        inputs = pair.new.values(read, pair.batches)
        for batch in zip(inputs, kept or targets(), strict=True):
            for x, y in zip(*batch, strict=True):
                paths.train_on_batch(x, y)
        after_pass()


def output_of(graph: Any, call: Any) -> Any:
    """Return what a layer gives, behind the batch normalisation that is fitted with it."""
    return (normalisation(graph, call) or call).outputs[0]


class _Paths(keras.Model):
    """A part of the new model, from a tensor of its graph to another."""

    def __init__(self, function: keras.Function) -> None:
        super().__init__(name="paths")
        self._function = function
        operations = [getattr(each, "operation", None) for each in function.operations]
        self._parts = [each for each in operations if isinstance(each, keras.layers.Layer)]

    @property
    def losses(self) -> list[Any]:
        """No regulariser of a layer: the model's outputs are wanted, not small weights."""
        return []

    def __call__(self, x: Any, training: bool | None = None) -> Any:
        """Compute in inference mode: statistics of a batch are not those of the images."""
        del training
        return super().__call__(x, training=False)

    def call(self, x: Any, training: bool | None = None) -> Any:
        del training
        # Keras adds losses up in single precision, and fails for others.
        return keras.ops.cast(self._function(x), "float32")


@contextlib.contextmanager
def _without_activation(layer: Any) -> Iterator[None]:
    """Let a layer give its outputs before the activation."""
    if getattr(layer, "activation", None) is None:
        yield
    else:
        with replaced_attributes(layer, activation=None):
            yield
