"""The rule of each kind of layer: how its variables contribute to the NTK.

A rule runs its layer's own forward pass up to the activation, hands that output to `record`, and
applies the activation. Later the cotangents of that output, of shape
`(traced, diagonal, paired, examples, *output)` (see `ce_keras.ntk.axes`), are turned into the
contribution of each variable. All shapes are known: the engine traces for one number of examples.

To add a layer, write its rule and enter it in `_RULES`; `ce_keras.ntk.structured` verifies it on
every model against autodiff.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from ce_keras.layers import (
    CollegialConv2D,
    CollegialDense,
    CollegialLayerNormalization,
    FusedBatchNormalization,
)
from ce_keras.layers.grouped_conv import ConvSpec, choose, grouped_conv
from ce_keras.layers.keras_internals import replaced_attributes
from ce_keras.ntk.contractions import (
    Contribution,
    EmbeddingGradients,
    Gradients,
    LazyTensor,
    OuterProducts,
    at_least_single,
    materialize,
)

#: Variables, and the contribution of each.
Contributions = list[tuple[Any, Contribution]]
#: Turns the cotangents of an output, and tensors that were kept, into contributions.
FromCotangents = Callable[..., Contributions]
#: Takes an output, what is to become of its cotangents, and the tensors that this needs; returns
#: the output, now watched.
Record = Callable[..., Any]
#: Takes the layer, its own `call`, its input and `record`; returns the layer's output.
Rule = Callable[[Any, Callable[..., Any], Any, Record], Any]


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for a layer, or `None` where there is none and the tape must do it.

    A subclass that computes something else does not have its parent's rule.
    """
    for kind, rule in _RULES.items():
        if isinstance(layer, kind) and type(layer).call is kind.call and _is_plain(layer):
            return rule
    return None


def _is_plain(layer: Any) -> bool:
    """Return true for a layer that trains its own kernel, in the layout that rules read."""
    return (
        getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", None) != "channels_first"
    )


# Linear layers -----------------------------------------------------------------------------------


def _dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    def contributions(cotangents: Any, x: Any) -> Contributions:
        return _kernel_and_bias(layer, [_inputs(x)], _by_position(cotangents), cotangents)

    return _linear(layer, call, x, record, contributions)


def _collegial_dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    groups = 1 if layer.shared_input or layer.aggregate else layer.cardinality
    scale = _scale(layer) / (math.sqrt(layer.cardinality) if layer.aggregate else 1.0)

    def contributions(cotangents: Any, x: Any) -> Contributions:
        inputs = _inputs(x, groups) * scale
        return _kernel_and_bias(layer, [inputs], _by_position(cotangents, groups), cotangents)

    return _linear(layer, call, x, record, contributions)


def _einsum_dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    inputs, kernel, outputs = _labels(layer.equation, len(x.shape))
    # Every label is that of the examples, of positions, of groups, of the fan-in or of the outputs.
    example = inputs[0]
    positions = [label for label in inputs[1:] if label in outputs and label not in kernel]
    groups = [label for label in inputs if label in outputs and label in kernel]
    fan_in = [label for label in inputs if label not in outputs]
    made = [label for label in outputs if label not in inputs]

    def contributions(cotangents: Any, x: Any) -> Contributions:
        order = [example, positions, groups]
        ordered_inputs = _gathered(at_least_single(x), inputs, [*order, fan_in])
        ordered = _gathered(cotangents, "012" + outputs, ["0", "1", "2", *order, made])
        return _kernel_and_bias(layer, [ordered_inputs], ordered, cotangents)

    return _linear(layer, call, x, record, contributions)


def _labels(equation: str, rank: int) -> tuple[str, str, str]:
    """Return the three terms of an EinsumDense equation, with letters for an ellipsis."""
    inputs, kernel, outputs = equation.replace("->", ",").replace(" ", "").split(",")
    unused = (letter for letter in string.ascii_letters if letter not in equation)
    ellipsis = "".join(itertools.islice(unused, rank - len(inputs.replace("...", ""))))
    return inputs.replace("...", ellipsis), kernel, outputs.replace("...", ellipsis)


def _gathered(x: Any, labels: str, groups: Sequence[Sequence[str]]) -> Any:
    """Return a tensor with one axis for each group of labels."""
    order = [labels.index(label) for group in groups for label in group]
    sizes = [math.prod(x.shape[labels.index(label)] for label in group) for group in groups]
    return ops.reshape(ops.transpose(x, order), sizes)


def _convolution(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    depthwise = isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D)
    groups = x.shape[-1] if depthwise else layer.groups
    scale = _scale(layer) if isinstance(layer, CollegialConv2D) else 1.0

    def contributions(cotangents: Any, x: Any) -> Contributions:
        inputs = _patches(scale * at_least_single(x), layer, groups)
        return _kernel_and_bias(layer, inputs, _by_position(cotangents, groups), cotangents)

    if convolves_by_groups(layer):
        # Only the base class calls `convolution_op`.
        of_base = functools.partial(layers.Conv2D.call, layer)
        with replaced_attributes(layer, convolution_op=_grouped_convolution(layer)):
            return _linear(layer, of_base, x, record, contributions)
    return _linear(layer, call, x, record, contributions)


def convolves_by_groups(layer: Any) -> bool:
    """Return true for Keras' grouped convolutions, whose rule has a forward pass of its own.

    Keras compiles them by XLA, slow to run backwards on a CPU. And where the backward pass is
    vectorised it is not compiled, and fails for most of them.
    """
    grouped = isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D) and layer.groups > 1
    return grouped and not isinstance(layer, CollegialConv2D)


def _grouped_convolution(layer: Any) -> Callable[[Any, Any], Any]:
    """Return a replacement for the layer's `convolution_op`."""
    spec = ConvSpec.of(layer)
    causal = spec.padding == "causal"
    if causal:
        spec = spec._replace(padding="valid")

    def convolve(x: Any, kernel: Any) -> Any:
        if causal:
            x = ops.pad(x, [(0, 0), (spec.dilation[0] * (spec.kernel_size[0] - 1), 0), (0, 0)])
        dtype = keras.backend.standardize_dtype(x.dtype)
        return grouped_conv(x, ops.convert_to_tensor(kernel, dtype), spec, choose(spec, dtype))

    return convolve


def _separable(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    del call  # Between its two linear layers there is no place to record.
    groups = x.shape[-1]

    def depthwise(cotangents: Any, x: Any) -> Contributions:
        inputs = _patches(at_least_single(x), layer, groups)
        return [(layer.depthwise_kernel, OuterProducts(inputs, _by_position(cotangents, groups)))]

    def pointwise(cotangents: Any, middle: Any) -> Contributions:
        kernel = OuterProducts([_inputs(middle)], _by_position(cotangents))
        return [(layer.pointwise_kernel, kernel), *_bias(layer, cotangents)]

    middle = ops.depthwise_conv(
        x,
        layer.depthwise_kernel,
        layer.strides,
        layer.padding,
        layer.data_format,
        layer.dilation_rate,
    )
    middle = record(middle, depthwise, x)
    output = ops.conv(middle, layer.pointwise_kernel, 1, "valid", layer.data_format)
    if layer.bias is not None:
        output = output + ops.cast(layer.bias, output.dtype)
    return _activation(layer)(record(output, pointwise, middle))


def _transposed(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    def contributions(cotangents: Any, x: Any) -> Contributions:
        t, d, r, n, *image = cotangents.shape
        # Backwards it is a convolution: every input pixel meets a patch of the cotangents.
        places = _patches(ops.reshape(cotangents, [-1, *image]), layer, groups=1)
        patches = ops.concatenate([materialize(place) for place in places], -1)
        patches = ops.reshape(patches, [t, d, r, n, *patches.shape[1:]])
        return [
            (layer.kernel, OuterProducts([_inputs(x)], patches)),
            *_bias(layer, cotangents),
        ]

    return _linear(layer, call, x, record, contributions)


def _patches(x: Any, layer: Any, groups: int) -> list[LazyTensor]:
    """Return the input pixels that each place of a kernel meets, one for every output pixel.

    Each is `(examples, positions, groups, channels / groups)`; a 3 x 3 kernel has nine places. All
    places as one tensor would be a large copy, and are not faster.
    """
    kernel, strides = tuple(layer.kernel_size), tuple(layer.strides)
    dilation = tuple(layer.dilation_rate)
    pads, sizes = [], []
    for side, k, stride, step in zip(x.shape[1:-1], kernel, strides, dilation, strict=True):
        reach = step * (k - 1) + 1
        pad = (0, 0)
        if layer.padding == "same":
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            pad = (total // 2, total - total // 2)
        elif layer.padding == "causal":
            pad = (reach - 1, 0)
        pads.append(pad)
        sizes.append((side + sum(pad) - reach) // stride + 1)
    if any(map(any, pads)):
        x = ops.pad(x, [(0, 0), *pads, (0, 0)])
    shape = (x.shape[0], math.prod(sizes), groups, x.shape[-1] // groups)

    def met_by(place: Sequence[int]) -> Any:
        windows = [
            slice(step * at, step * at + stride * (size - 1) + 1, stride)
            for at, step, stride, size in zip(place, dilation, strides, sizes, strict=True)
        ]
        return ops.reshape(x[(slice(None), *windows)], shape)

    places = itertools.product(*map(range, kernel))
    return [LazyTensor(shape, functools.partial(met_by, place)) for place in places]


# Normalisation and embedding ---------------------------------------------------------------------


def _batch_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis = layer.axis % len(x.shape)
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]

    def normalised(x: Any) -> Any:
        mean, variance = (
            ops.reshape(ops.cast(moment.value, x.dtype), shape)
            for moment in (layer.moving_mean, layer.moving_variance)
        )
        return (x - mean) * ops.rsqrt(variance + layer.epsilon)

    return _scale_and_shift(layer, call, x, normalised, [axis], record)


def _layer_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = [axis % len(x.shape) for axis in axes]
    normalised = functools.partial(_normalised, layer, None, axes)
    return _scale_and_shift(layer, call, x, normalised, axes, record)


def _collegial_layer_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis = len(x.shape) - 1
    by_path = [*x.shape[:-1], layer.cardinality, x.shape[-1] // layer.cardinality]
    normalised = functools.partial(_normalised, layer, by_path, [axis + 1])
    return _scale_and_shift(layer, call, x, normalised, [axis], record)


def _group_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis = layer.axis % len(x.shape)
    groups = x.shape[axis] if layer.groups == -1 else layer.groups
    by_group = [*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]]
    reduced = [each for each in range(1, len(by_group)) if each != axis]
    normalised = functools.partial(_normalised, layer, by_group, reduced)
    return _scale_and_shift(layer, call, x, normalised, [axis], record)


def _normalised(layer: Any, shape: Sequence[int] | None, axes: list[int], x: Any) -> Any:
    """Return a tensor of mean 0 and variance 1 over the axes that it has in another shape.

    With a layer's `rms_scaling`, of its own mean over its own standard deviation.
    """
    apart = x if shape is None else ops.reshape(x, shape)
    mean, variance = ops.moments(apart, axes, keepdims=True)
    centred = apart if getattr(layer, "rms_scaling", False) else apart - mean
    return ops.reshape(centred * ops.rsqrt(variance + layer.epsilon), x.shape)


def _scale_and_shift(
    layer: Any,
    call: Callable[..., Any],
    x: Any,
    normalised: Callable[[Any], Any],
    kept: list[int],
    record: Record,
) -> Any:
    """Record `gamma * normalised(x) + beta`, whose variables have the axes `kept` of the output."""

    def contributions(cotangents: Any, x: Any) -> Contributions:
        summed = [axis + 3 for axis in range(1, len(x.shape)) if axis not in kept]
        gamma, beta = (getattr(layer, name, None) for name in ("gamma", "beta"))
        found: Contributions = []
        if gamma is not None:
            products = cotangents * normalised(at_least_single(x))
            found.append((gamma, _gradients(products, summed)))
        return found if beta is None else [*found, (beta, _gradients(cotangents, summed))]

    return record(call(x), contributions, x)


def _embedding(layer: Any, call: Callable[..., Any], ids: Any, record: Record) -> Any:
    def contributions(cotangents: Any, ids: Any) -> Contributions:
        rows = ops.reshape(ops.cast(ids, "int32"), [ids.shape[0], -1])
        shape = [*cotangents.shape[:4], rows.shape[1], layer.output_dim]
        return [(layer.embeddings, EmbeddingGradients(rows, ops.reshape(cotangents, shape)))]

    return record(call(ids), contributions, ids)


# What several rules need -------------------------------------------------------------------------


def _linear(
    layer: Any, call: Callable[..., Any], x: Any, record: Record, contributions: FromCotangents
) -> Any:
    """Run the layer's own forward pass, recorded before its activation."""
    activation = _activation(layer)
    with replaced_attributes(layer, activation=None):
        output = call(x)
    return activation(record(output, contributions, x))


def _activation(layer: Any) -> Callable[[Any], Any]:
    return (lambda y: y) if layer.activation is None else layer.activation


def _kernel_and_bias(
    layer: Any, inputs: Sequence[Any], ordered: Any, cotangents: Any
) -> Contributions:
    """Return the contributions of a linear layer's two variables.

    Args:
        layer: the layer.
        inputs: as for `OuterProducts`.
        ordered: the cotangents as for `OuterProducts`.
        cotangents: the cotangents as they came.
    """
    kernel, bias = OuterProducts(inputs, ordered), layer.bias
    outputs = ordered.shape[-1]
    if bias is not None and outputs == math.prod(bias.shape) == math.prod(cotangents.shape[4:]):
        # One position: the bias is the weight of an input of ones, and can be merged.
        ones = ops.ones([ordered.shape[3], 1, 1, 1], ordered.dtype)
        return [(layer.kernel, kernel), (bias, OuterProducts([ones], ordered))]
    return [(layer.kernel, kernel), *_bias(layer, cotangents)]


def _bias(layer: Any, cotangents: Any) -> Contributions:
    """Return a bias' contribution: cotangents summed over the axes that the bias does not have."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        return []
    outputs = cotangents.shape[4:]
    shape = [1] * (len(outputs) - len(bias.shape)) + list(bias.shape)
    summed = [axis + 4 for axis, size in enumerate(shape) if size != outputs[axis]]
    return [(bias, _gradients(cotangents, summed))]


def _gradients(products: Any, summed: Sequence[int]) -> Gradients:
    """Return the sums over some axes as gradients, with the axes of the variable as one."""
    gradients = ops.sum(products, tuple(summed)) if summed else products
    shape = gradients.shape
    return Gradients(ops.reshape(gradients, [*shape[:4], math.prod(shape[4:])]))


def _inputs(x: Any, groups: int = 1) -> Any:
    """Return `(examples, *positions, channels)` as `(examples, positions, groups, fan_in)`."""
    n, *positions, channels = x.shape
    return ops.reshape(at_least_single(x), [n, math.prod(positions), groups, channels // groups])


def _by_position(cotangents: Any, groups: int = 1) -> Any:
    """Return cotangents as `(t, d, r, examples, positions, groups, outputs)`."""
    t, d, r, n, *positions, channels = cotangents.shape
    shape = [t, d, r, n, math.prod(positions), groups, channels // groups]
    return ops.reshape(cotangents, shape)


def _scale(layer: Any) -> float:
    """Return the factor of the kernel in the forward pass: the NTK parameterisation (Eq. 3)."""
    if layer.parameterization == "standard":
        return 1.0
    return math.sqrt(layer.gain / layer.fan_in)


_RULES: dict[Any, Rule] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum_dense,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.DepthwiseConv1D: _convolution,
    layers.DepthwiseConv2D: _convolution,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.BatchNormalization: _batch_norm,
    layers.LayerNormalization: _layer_norm,
    layers.GroupNormalization: _group_norm,
    layers.Embedding: _embedding,
    FusedBatchNormalization: _batch_norm,
    CollegialConv2D: _convolution,
    CollegialDense: _collegial_dense,
    CollegialLayerNormalization: _collegial_layer_norm,
}
