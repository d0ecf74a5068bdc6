"""Refit one linear layer, and the batch normalisation behind it, to the trained model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ce_keras.rewrite.calibration.graph import Activations, FlatGraph
from ce_keras.rewrite.calibration.solve import (
    LeastSquares,
    drawn_positions,
    patches_at,
    penalty_of,
    values_at,
    windows,
)
from ce_keras.rewrite.graph import Call
from ce_keras.rewrite.splitting import Channels

#: Rows of each regression, but never fewer than so many times its inputs.
ROWS = 40_000
TIMES_INPUTS = 10


class Pair(NamedTuple):
    """The activations of the trained model and of the new one, on the same batches."""

    old: Activations
    new: Activations
    batches: Sequence[int]
    rng: np.random.Generator

    def values(self, old: list[Any], new: list[Any]) -> Iterator[tuple[list[np.ndarray], ...]]:
        """Yield the values of tensors of both graphs, batch by batch."""
        yield from zip(
            self.old.values(old, self.batches), self.new.values(new, self.batches), strict=True
        )


def refit(pair: Pair, old_layer: Any, new_layer: Any, outputs: Channels) -> None:
    """Give a layer the weights that bring its outputs nearest to the trained model's.

    One regression for each element of `outputs`: from an equal part of the new layer's inputs to
    these outputs of the old layer, before its activation. With a batch normalisation behind, its
    output is the target, and it gets the new outputs' statistics.
    """
    fit = _Refit(pair, old_layer, new_layer, outputs)
    for batch in pair.values(fit.old_tensors, fit.new_tensors):
        fit.add(*batch)
    fit.assign()


class _Refit:
    """The regressions for one layer."""

    def __init__(self, pair: Pair, old_layer: Any, new_layer: Any, outputs: Channels) -> None:
        self._pair, self._old, self._new, self._outputs = pair, old_layer, new_layer, outputs
        self._old_calls = pair.old.graph.calls_of(old_layer)
        self._new_calls = pair.new.graph.calls_of(new_layer)
        self._linear = _is_linear(old_layer)
        old = normalisation(pair.old.graph, self._old_calls[0])
        new = normalisation(pair.new.graph, self._new_calls[0])
        self._norms = None if old is None or new is None else (old, new)
        targets = [call.outputs[0] if self._linear else call.inputs[0] for call in self._old_calls]
        if self._norms:
            targets = [self._norms[0].outputs[0]]
        self.old_tensors = targets
        self.new_tensors = [call.inputs[0] for call in self._new_calls]
        centred = bool(old_layer.use_bias) or bool(self._norms)
        self._sums = [LeastSquares(centred) for _ in outputs]
        inputs = int(np.prod(new_layer.kernel.shape[:-1]))
        rows = max(ROWS, TIMES_INPUTS * inputs)
        images = pair.new.images(pair.batches) * len(self._new_calls)
        self._positions = -(-rows // images)

    def add(self, old: list[np.ndarray], new: list[np.ndarray]) -> None:
        """Add a batch of activations."""
        for index in range(len(self._new_calls)):
            view = windows(new[index], self._new)
            where = drawn_positions(view, self._positions, self._pair.rng)
            x = patches_at(view, where)
            if self._linear:
                y = values_at(old[index], where)
            else:
                read = patches_at(windows(old[index], self._old), where)
                kernel = keras.ops.convert_to_numpy(self._old.kernel)
                y = read.reshape(*read.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])
                y += keras.ops.convert_to_numpy(self._old.bias) if self._old.use_bias else 0
            y = y.reshape(-1, y.shape[-1])
            parts = np.split(x, len(self._sums), axis=-1)
            for sums, part, own in zip(self._sums, parts, self._outputs, strict=True):
                sums.add(part.reshape(len(y), -1), y[:, own])

    def assign(self) -> None:
        """Solve, and assign the weights."""
        starts = zip(self._sums, self._start(), strict=True)
        solved = [sums.solve(start) for sums, start in starts]
        kernels, biases = map(list, zip(*solved, strict=True))
        if self._norms:
            kernels = self._normalised(kernels, biases)
            biases = [np.zeros_like(bias) for bias in biases]
        layer, shape = self._new, tuple(self._new.kernel.shape)
        if len(shape) > len(self._old.kernel.shape):  # Dense paths have an axis of their own.
            kernel = np.stack(kernels)
        else:
            kernel = np.concatenate([each.reshape(*shape[:-1], -1) for each in kernels], axis=-1)
        if getattr(layer, "aggregate", False):
            kernel = kernel * np.sqrt(layer.cardinality)  # Its forward pass divides by that.
        layer.kernel.assign(kernel.reshape(shape))
        if layer.use_bias:
            layer.bias.assign(np.concatenate(biases))

    def _start(self) -> list[np.ndarray]:
        """Return the weights of each regression that the layer begins with.

        Where these already give the outputs, as paths as wide as the model's do, they stay.
        """
        kernel = keras.ops.convert_to_numpy(self._new.kernel).astype(np.float64)
        if getattr(self._new, "aggregate", False):
            kernel = kernel / np.sqrt(self._new.cardinality)
        has_axis = kernel.ndim > len(self._old.kernel.shape)  # Of dense paths.
        if self._norms:
            scale = fused_scale(self._norms[1].operation)
            kernel = kernel * (scale.reshape(len(kernel), 1, -1) if has_axis else scale)
        if has_axis:
            return list(kernel)
        parts = np.split(kernel, len(self._sums), axis=-1)
        return [part.reshape(-1, part.shape[-1]) for part in parts]

    def _normalised(self, targets: list[np.ndarray], biases: list[np.ndarray]) -> list[np.ndarray]:
        """Return kernels as large as the old, and let the normalisation do the rest.

        Its statistics are those of the new outputs, as training will find them, and its scale and
        offset give the wanted function.
        """
        assert self._norms is not None
        norm = self._norms[1].operation
        kernel = keras.ops.convert_to_numpy(self._old.kernel)
        lengths = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
        found: dict[str, list[np.ndarray]] = {}
        kernels = []
        for sums, target, bias, own in zip(self._sums, targets, biases, self._outputs, strict=True):
            length = np.linalg.norm(target, axis=0)
            scale = np.where(length > 0, lengths[own] / np.where(length > 0, length, 1), 1)
            kernels.append(target * scale)
            mean = sums.mean @ kernels[-1]
            # As matrices: an einsum of three is ten times as slow. Rounding may leave -0.
            variance = np.maximum(((sums.covariance @ kernels[-1]) * kernels[-1]).sum(0), 0)
            std = np.sqrt(variance + norm.epsilon)
            # A unit that is always the same has no scale to undo.
            gamma = np.where(scale > 0, std / np.where(scale > 0, scale, 1), 0)
            values = (gamma, bias + sums.mean @ target, mean, variance)
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            for name, value in zip(names, values, strict=True):
                found.setdefault(name, []).append(value)
        for weight in norm.weights:
            weight.assign(np.concatenate(found[weight.name]))
        return kernels


def refit_normalisation(pair: Pair, old_norm: Any, new_norm: Any, channels: np.ndarray) -> None:
    """Give a batch normalisation the statistics of its inputs in the new model.

    Its scale and offset, if it has both, bring its outputs nearest to the trained model's. Without
    them, a channel keeps the statistics that it has where those bring it nearer.

    Args:
        pair: the activations.
        old_norm: of the trained model.
        new_norm: the layer in its place.
        channels: of the trained model's, one for each channel of the new layer.
    """
    olds, news = pair.old.graph.calls_of(old_norm), pair.new.graph.calls_of(new_norm)
    tensors = ([call.outputs[0] for call in olds], [call.inputs[0] for call in news])
    sums: list[np.ndarray] = []
    for batch in pair.values(*tensors):
        for wanted, value in zip(*batch, strict=True):
            x = value.reshape(-1, value.shape[-1]).astype(np.float64)
            y = wanted.reshape(-1, wanted.shape[-1])[:, channels]
            terms = (np.array(len(x)), x.sum(0), (x**2).sum(0), y.sum(0), (x * y).sum(0))
            sums = [a + b for a, b in zip(sums, terms, strict=True)] if sums else list(terms)
    count, *totals = sums
    mean, squares, goal, products = (total / count for total in totals)
    variance = np.maximum(squares - mean**2, 0)
    if new_norm.scale and new_norm.center:
        start = fused_scale(new_norm)
        # An input that is always the same keeps its scale.
        change = products - mean * goal - variance * start
        slope = start + change / (variance + penalty_of(variance))
        new_norm.gamma.assign(slope * np.sqrt(variance + new_norm.epsilon))
        new_norm.beta.assign(goal)
    else:
        mean, variance = _nearer_statistics(new_norm, mean, variance, goal, products)
    new_norm.moving_mean.assign(mean)
    new_norm.moving_variance.assign(variance)


def _nearer_statistics(
    norm: Any, mean: np.ndarray, variance: np.ndarray, goal: np.ndarray, products: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs' statistics, or of a channel that they take further away, its own.

    Args:
        norm: as it is, with statistics of its own.
        mean: of its inputs.
        variance: of its inputs.
        goal: mean of the wanted outputs.
        products: mean of the inputs times the wanted outputs.
    """
    begun, spread = map(keras.ops.convert_to_numpy, (norm.moving_mean, norm.moving_variance))
    offset = keras.ops.convert_to_numpy(norm.beta) if norm.center else 0.0

    def excess(slope: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the squared error of every channel, but for what does not depend on these."""
        moved = slope * (mean - at) + offset
        linear = slope * (products - mean * goal) + moved * goal
        return slope**2 * variance + moved**2 - 2 * linear

    start = fused_scale(norm)
    fitted = start * np.sqrt((spread + norm.epsilon) / (variance + norm.epsilon))
    better = excess(fitted, mean) < excess(start, begun)
    return np.where(better, mean, begun), np.where(better, variance, spread)


def update_statistics(pair: Pair, layers: Sequence[Any]) -> None:
    """Give batch normalisations the statistics of their inputs, as training will find them.

    Their scales and offsets change too, so that their functions stay. One without is left alone.
    """
    norms = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center
    ]
    if not norms:
        return
    calls = [(norm, call) for norm in norms for call in pair.new.graph.calls_of(norm)]
    sums: dict[int, list[Any]] = {id(norm): [0, 0.0, 0.0] for norm in norms}
    for values in pair.new.values([call.inputs[0] for _, call in calls], pair.batches):
        for (norm, _), value in zip(calls, values, strict=True):
            channels = np.moveaxis(value, norm.axis, -1)
            rows = channels.reshape(-1, channels.shape[-1]).astype(np.float64)
            terms = (len(rows), rows.sum(0), (rows**2).sum(0))
            sums[id(norm)] = [a + b for a, b in zip(sums[id(norm)], terms, strict=True)]
    for norm in norms:
        count, total, squares = sums[id(norm)]
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        factor = fused_scale(norm)
        offset = keras.ops.convert_to_numpy(norm.moving_mean) - mean
        norm.beta.assign(keras.ops.convert_to_numpy(norm.beta) - factor * offset)
        norm.gamma.assign(factor * np.sqrt(variance + norm.epsilon))
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)


# What follows a layer -----------------------------------------------------------------------------


def normalisation(graph: FlatGraph, call: Call) -> Call | None:
    """Return the batch normalisation that alone reads what a linear layer gives, if there is one.

    The two are fitted together.
    """
    if not _is_linear(call.operation) or len(graph.calls_of(call.operation)) > 1:
        return None
    reader = graph.only_reader(call)
    if reader is None or not isinstance(reader.operation, keras.layers.BatchNormalization):
        return None
    if len(graph.calls_of(reader.operation)) > 1:  # It normalises something else too.
        return None
    axis, last = reader.operation.axis, len(call.outputs[0].shape) - 1
    can_scale = reader.operation.scale and reader.operation.center
    return reader if axis in (-1, last) and can_scale else None


def fused_scale(norm: Any) -> np.ndarray:
    """Return the factors by which a batch normalisation multiplies its inputs."""
    variance = keras.ops.convert_to_numpy(norm.moving_variance)
    gamma = keras.ops.convert_to_numpy(norm.gamma) if norm.scale else 1.0
    return gamma / np.sqrt(variance + norm.epsilon)


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)
