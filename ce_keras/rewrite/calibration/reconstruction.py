"""Train the layers of a chain together: block reconstruction, without labels.

Least squares fits one layer after another, each to the model's own outputs of its units. A chain
of narrow paths cannot give all of those; but its layers can make up for each other's errors, so
that the chain's output comes nearer to the model's (Li et al., BRECQ, 2021). That is no linear
problem, and a few steps of Adam solve it well enough.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from ce_keras.layers.keras_internals import replaced_attributes
from ce_keras.rewrite.calibration.layers import Pair, normalisation, update_statistics
from ce_keras.rewrite.chains import Chain

logger = logging.getLogger("ce_keras")

#: Passes over the images, and steps, at most.
_PASSES = 12
_STEPS = 200

# So few steps are quicker as they come than traced: twelve of ResNet50's sixteen chains take 28 s
# for 44.
FEW_STEPS = 16

#: The first step of Adam, which falls to zero as a cosine.
_RATE = 1e-3

# Relative errors below this are of rounding: the paths are as wide as the model's.
_EXACT = 1e-4


def passes(pair: Pair) -> int:
    """Return the number of passes over the images that a chain is trained for."""
    return max(1, min(_PASSES, _STEPS // len(pair.batches)))


def exits(pair: Pair, chain: Chain, new: dict[int, Any]) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a chain in the model and in the new one, one for each call.

    They are those of a batch normalisation behind it, if that is fitted with it. A shortcut that is
    added to them is left out.
    """
    layer = chain.linear[-1].layer
    ends = ((pair.old.graph, layer), (pair.new.graph, new[id(layer)]))
    old, found = (
        [(normalisation(graph, call) or call).outputs[0] for call in graph.calls_of(end)]
        for graph, end in ends
    )
    return old, found


def reconstruct(
    pair: Pair,
    chain: Chain,
    new: dict[int, Any],
    error: Callable[[], float],
    advance: Callable[[int], object],
) -> None:
    """Train what took a chain's place to give the chain's outputs, where that helps.

    Args:
        pair: the activations of both models.
        chain: of the trained model; its new layers are calibrated.
        new: by the identity of a layer of the model, what took its place.
        error: returns the distance of the new outputs from the wanted ones, on images held out.
            Where training does not reduce it, the weights are restored.
        advance: called with the number of passes that are done.
    """
    wanted, given = exits(pair, chain, new)
    entry, last = chain.linear[0].layer, chain.linear[-1].layer
    read = [pair.new.graph.read_by(new[id(entry)], tensor) for tensor in given]
    paths = _Paths(keras.Function(read[0], given[0]), new[id(last)].dtype_policy)
    with _as_logits([last, new[id(last)]], calls=len(wanted)):
        before = error()
        # The user may have frozen all layers.
        if not (before > _EXACT and paths.trainable_variables and _differentiates()):
            advance(passes(pair))
            return
        weights = paths.get_weights()
        with _gradients_of(paths):
            _train(paths, pair, wanted, read, advance)
        if error() < before:
            update_statistics(pair, paths.parts)
        else:
            paths.set_weights(weights)


def _train(
    paths: _Paths,
    pair: Pair,
    wanted: list[Any],
    read: list[Any],
    advance: Callable[[int], object],
) -> None:
    """Train by Adam, its rate falling to zero, on the squared error of every call's outputs."""
    steps = passes(pair) * len(pair.batches) * len(wanted)
    rate = keras.optimizers.schedules.CosineDecay(_RATE, steps)
    # Compiling by XLA would take longer than so short a training; and of a few images, tracing.
    jit = "auto" if keras.backend.backend() == "jax" else False
    eager = keras.backend.backend() == "tensorflow" and steps <= FEW_STEPS
    # With a name: the user's next optimizer is not to be the second.
    adam = keras.optimizers.Adam(rate, name="reconstruction")
    paths.compile(adam, "mse", jit_compile=jit, run_eagerly=eager)
    targets = functools.partial(pair.old.values, wanted, pair.batches)
    kept = list(targets()) if pair.old.fit_memory(wanted, pair.batches) else None
    shards = _shards()
    for _ in range(passes(pair)):
        inputs = pair.new.values(read, pair.batches)
        for batch in zip(inputs, kept or targets(), strict=True):
            for x, y in zip(*batch, strict=True):
                if rows := len(x) // shards * shards:
                    paths.train_on_batch(x[:rows], y[:rows])
        advance(1)


class _Paths(keras.Model):
    """A part of the new model, from a tensor of its graph to another.

    Attributes:
        parts: its layers.
    """

    def __init__(self, function: keras.Function, policy: Any) -> None:
        super().__init__(name="paths", dtype=policy)
        self.autocast = False  # Its layers cast their inputs themselves.
        self._function = function
        operations = [getattr(each, "operation", None) for each in function.operations]
        self.parts = [each for each in operations if isinstance(each, keras.layers.Layer)]

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
def _as_logits(layers: Sequence[Any], calls: int) -> Iterator[None]:
    """Let layers give their outputs before a softmax, which would hide differences.

    Not where they are called again: the later calls may read what the first gives.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if calls == 1 and getattr(layer, "activation", None) is keras.activations.softmax:
                stack.enter_context(replaced_attributes(layer, activation=None))
        yield


# Backends -----------------------------------------------------------------------------------------


def _shards() -> int:
    """Return the number of devices that a batch is shared by: it must be a multiple of that."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else math.prod(distribution.device_mesh.shape)


def _differentiates() -> bool:
    """Return whether gradients can be taken here, and warn where not."""
    if keras.backend.backend() == "torch":
        import torch

        if torch.is_inference_mode_enabled():
            logger.warning("init='calibrated': layers are not trained together in inference_mode")
            return False
    return True


@contextlib.contextmanager
def _gradients_of(paths: keras.Model) -> Iterator[None]:
    """Let PyTorch record gradients, also where the caller does not, and keep none of them."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.enable_grad():
        yield
    paths.zero_grad()
