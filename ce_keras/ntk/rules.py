"""What each layer knows: where to take its backward signal, and its variables' shares.

A rule runs its layer's own forward pass up to the activation, hands that to `record`, and applies
the activation. Later the backward signal there is turned into a share of each variable. Signals
have the shape `(traced, diagonal, paired, examples, ...)` (see `ce_keras.ntk.axes`). All shapes are
known: the engine traces for one number of examples.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from ce_keras.layers import (
    CollegialConv2D,
    CollegialDense,
    CollegialLayerNormalization,
    FusedBatchNormalization,
)
from ce_keras.layers.grouped_conv import ConvSpec, choose, grouped_conv
from ce_keras.ntk.shares import Gradients, Late, Lookups, Products, Share, now, wide

# Rows of a matrix that keep a core busy.
_ENOUGH = 192

Shares = list[tuple[Any, Share]]
#: Takes a tensor and what turns its signal into shares; gives the tensor, now watched.
Record = Callable[[Any, Callable[[Any], Shares]], Any]
#: Takes the layer, its own `call`, its input and `record`; gives the layer's output.
Rule = Callable[[Any, Callable[..., Any], Any, Record], Any]


def rule_of(layer: Any) -> Rule | None:
    """The rule for a layer, or `None` where there is none and the tape must do it.

    A subclass that computes something else has no rule of its parent's.
    """
    for kind, rule in _RULES.items():
        if isinstance(layer, kind) and type(layer).call is kind.call and _plain(layer):
            return rule
    return None


def _plain(layer: Any) -> bool:
    """Whether the layer trains its own kernel, in the layout that rules read."""
    return (
        getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", None) != "channels_first"
    )


# Linear maps -------------------------------------------------------------------------------------


def _dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    def shares(signal: Any) -> Shares:
        return _kernel_and_bias(layer, [_inputs(x)], _signals(signal), signal)

    return _linear(layer, call, x, record, shares)


def _collegial_dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    groups = 1 if layer.shared_input or layer.aggregate else layer.cardinality
    scale = _scale(layer) / (math.sqrt(layer.cardinality) if layer.aggregate else 1.0)

    def shares(signal: Any) -> Shares:
        a = _inputs(x, groups) * scale
        return _kernel_and_bias(layer, [a], _signals(signal, groups), signal)

    return _linear(layer, call, x, record, shares)


def _einsum_dense(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    inputs, kernel, outputs = _labels(layer.equation, len(x.shape))
    example = inputs[0]
    positions = [label for label in inputs[1:] if label in outputs and label not in kernel]
    groups = [label for label in inputs if label in outputs and label in kernel]
    summed = [label for label in inputs if label not in outputs]
    made = [label for label in outputs if label not in inputs]

    def shares(signal: Any) -> Shares:
        a = _gathered(wide(x), inputs, [example, positions, groups, summed])
        b = _gathered(signal, "012" + outputs, ["0", "1", "2", example, positions, groups, made])
        return _kernel_and_bias(layer, [a], b, signal)

    return _linear(layer, call, x, record, shares)


def _labels(equation: str, rank: int) -> tuple[str, str, str]:
    """The three terms of an EinsumDense equation, with letters for an ellipsis."""
    inputs, kernel, outputs = equation.replace("->", ",").replace(" ", "").split(",")
    unused = (letter for letter in string.ascii_letters if letter not in equation)
    more = "".join(itertools.islice(unused, rank - len(inputs.replace("...", ""))))
    return inputs.replace("...", more), kernel, outputs.replace("...", more)


def _gathered(x: Any, labels: str, groups: Sequence[Sequence[str]]) -> Any:
    """Axes brought together: one for each group of labels."""
    order = [labels.index(label) for group in groups for label in group]
    sizes = [math.prod(x.shape[labels.index(label)] for label in group) for group in groups]
    return tf.reshape(tf.transpose(x, order), sizes)


def _convolution(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    def shares(signal: Any) -> Shares:
        scale = _scale(layer) if isinstance(layer, CollegialConv2D) else 1.0
        a = _grouped(_patches(scale * wide(x), layer), layer.groups)
        return _kernel_and_bias(layer, a, _signals(signal, layer.groups), signal)

    if by_groups(layer):
        # Only the base class calls `convolution_op`.
        of_base = functools.partial(layers.Conv2D.call, layer)
        with replaced(layer, convolution_op=_convolution_by_groups(layer)):
            return _linear(layer, of_base, x, record, shares)
    return _linear(layer, call, x, record, shares)


def by_groups(layer: Any) -> bool:
    """Whether the layer's rule takes a way forward of its own: Keras' grouped convolutions.

    Keras compiles them by XLA, slow to run backwards on a CPU. And where the backward pass is
    vectorised it is not compiled, which few of them survive.
    """
    grouped = isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D) and layer.groups > 1
    return grouped and not isinstance(layer, CollegialConv2D)


def _convolution_by_groups(layer: Any) -> Callable[[Any, Any], Any]:
    spec = ConvSpec.of(layer)
    causal = spec.padding == "causal"
    if causal:
        spec = spec._replace(padding="valid")

    def convolve(x: Any, kernel: Any) -> Any:
        if causal:
            x = tf.pad(x, [(0, 0), (spec.dilation[0] * (spec.kernel_size[0] - 1), 0), (0, 0)])
        kernel = tf.convert_to_tensor(kernel, x.dtype)
        return grouped_conv(x, kernel, spec, choose(spec, x.dtype.name))

    return convolve


def _depthwise(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    groups = x.shape[-1]

    def shares(signal: Any) -> Shares:
        a = _grouped(_patches(wide(x), layer), groups)
        return _kernel_and_bias(layer, a, _signals(signal, groups), signal)

    return _linear(layer, call, x, record, shares)


def _separable(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    del call  # Between its two maps there is no place to record.
    groups = x.shape[-1]

    def depthwise_shares(signal: Any) -> Shares:
        a = _grouped(_patches(wide(x), layer), groups)
        return [(layer.depthwise_kernel, Products(a, _signals(signal, groups)))]

    def pointwise_shares(signal: Any) -> Shares:
        share = Products([_inputs(middle)], _signals(signal))
        return [(layer.pointwise_kernel, share), *_bias(layer, signal)]

    middle = keras.ops.depthwise_conv(
        x,
        layer.depthwise_kernel,
        layer.strides,
        layer.padding,
        layer.data_format,
        layer.dilation_rate,
    )
    middle = record(middle, depthwise_shares)
    output = keras.ops.conv(middle, layer.pointwise_kernel, 1, "valid", layer.data_format)
    if layer.bias is not None:
        output = output + keras.ops.cast(layer.bias, output.dtype)
    return _activation(layer)(record(output, pointwise_shares))


def _transposed(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    def shares(signal: Any) -> Shares:
        # Backwards it is a convolution: every input pixel meets a patch of the signal.
        places = _patches(tf.reshape(signal, [-1, *signal.shape[4:]]), layer)
        seen = tf.stack([now(place) for place in places], axis=2)
        b = tf.reshape(seen, [*signal.shape[:4], seen.shape[1], 1, -1])
        return [(layer.kernel, Products([_inputs(x)], b)), *_bias(layer, signal)]

    return _linear(layer, call, x, record, shares)


def _patches(x: Any, layer: Any) -> list[Late]:
    """What each place of a kernel sees, `(examples, positions, channels)`."""
    kernel, strides = tuple(layer.kernel_size), tuple(layer.strides)
    dilation = tuple(layer.dilation_rate)
    pads, outs = [], []
    for side, k, step, gap in zip(x.shape[1:-1], kernel, strides, dilation, strict=True):
        reach = gap * (k - 1) + 1
        if layer.padding == "same":
            out = -(-side // step)
            total = max((out - 1) * step + reach - side, 0)
            pads.append((total // 2, total - total // 2))
        elif layer.padding == "causal":
            out = (side - 1) // step + 1
            pads.append((reach - 1, 0))
        else:
            out = (side - reach) // step + 1
            pads.append((0, 0))
        outs.append(out)
    if any(map(any, pads)):
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    shape = (x.shape[0], math.prod(outs), x.shape[-1])

    def seen(offset: Sequence[int]) -> Any:
        window = [
            slice(gap * at, gap * at + step * (out - 1) + 1, step)
            for at, gap, step, out in zip(offset, dilation, strides, outs, strict=True)
        ]
        return tf.reshape(x[(slice(None), *window)], shape)

    offsets = itertools.product(*map(range, kernel))
    return [Late(shape, functools.partial(seen, offset)) for offset in offsets]


def _grouped(places: Sequence[Late], groups: int) -> list[Late]:
    """What the places of a kernel see, in parts of the fan-in `(examples, positions, groups, f)`.

    As few places in a part as make matrix products efficient: all of them are a large copy.
    """
    examples, positions, channels = places[0].shape
    shape = (examples, positions, groups, channels // groups)
    size = -(-_ENOUGH // shape[-1])

    def part(some: Sequence[Late]) -> Any:
        apart = [tf.reshape(now(place), shape) for place in some]
        return tf.concat(apart, -1) if len(apart) > 1 else apart[0]

    parts = (places[at : at + size] for at in range(0, len(places), size))
    return [
        Late((*shape[:-1], len(some) * shape[-1]), functools.partial(part, some)) for some in parts
    ]


# Normalisation and tables ------------------------------------------------------------------------


def _batch_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis = layer.axis % len(x.shape)
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]
    mean, variance = (
        tf.reshape(tf.cast(moment.value, x.dtype), shape)
        for moment in (layer.moving_mean, layer.moving_variance)
    )
    normal = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
    return _scale_and_shift(layer, call(x), normal, [axis], record)


def _layer_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = [axis % len(x.shape) for axis in axes]
    normal = _normal(wide(x), axes, layer)
    return _scale_and_shift(layer, call(x), normal, axes, record)


def _collegial_layer_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis, paths = len(x.shape) - 1, layer.cardinality
    apart = tf.reshape(wide(x), [*x.shape[:-1], paths, x.shape[-1] // paths])
    normal = tf.reshape(_normal(apart, [axis + 1], layer), x.shape)
    return _scale_and_shift(layer, call(x), normal, [axis], record)


def _group_norm(layer: Any, call: Callable[..., Any], x: Any, record: Record) -> Any:
    axis = layer.axis % len(x.shape)
    groups = x.shape[axis] if layer.groups == -1 else layer.groups
    sizes = [*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]]
    apart = tf.reshape(wide(x), sizes)
    reduced = [at for at in range(1, len(sizes)) if at != axis]
    normal = tf.reshape(_normal(apart, reduced, layer), x.shape)
    return _scale_and_shift(layer, call(x), normal, [axis], record)


def _normal(x: Any, axes: list[int], layer: Any) -> Any:
    """Of mean 0 and variance 1 over the axes."""
    mean, variance = tf.nn.moments(x, axes, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + layer.epsilon)


def _scale_and_shift(layer: Any, output: Any, normal: Any, kept: list[int], record: Record) -> Any:
    """Of a normalisation: the scale meets the normal values, the shift meets ones."""

    def shares(signal: Any) -> Shares:
        summed = [axis + 3 for axis in range(1, len(normal.shape)) if axis not in kept]
        factors = {"gamma": wide(normal), "beta": 1.0}
        return [
            (variable, _gradients(tf.reduce_sum(signal * factor, summed)))
            for name, factor in factors.items()
            if (variable := getattr(layer, name, None)) is not None
        ]

    return record(output, shares)


def _embedding(layer: Any, call: Callable[..., Any], ids: Any, record: Record) -> Any:
    def shares(signal: Any) -> Shares:
        rows = tf.reshape(tf.cast(ids, tf.int32), [ids.shape[0], -1])
        b = tf.reshape(signal, [*signal.shape[:4], rows.shape[1], layer.output_dim])
        return [(layer.embeddings, Lookups(rows, b))]

    return record(call(ids), shares)


# What rules share --------------------------------------------------------------------------------


def _linear(layer: Any, call: Callable[..., Any], x: Any, record: Record, shares: Any) -> Any:
    """The layer's own forward pass, recorded before its activation."""
    activate = _activation(layer)
    with replaced(layer, activation=None):
        output = call(x)
    return activate(record(output, shares))


def _activation(layer: Any) -> Callable[[Any], Any]:
    return (lambda y: y) if layer.activation is None else layer.activation


@contextlib.contextmanager
def replaced(layer: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of one object replaced for a while, past the tracking that Keras does."""
    names = vars(layer)
    kept = {name: names[name] for name in attributes if name in names}
    names.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del names[name]
        names.update(kept)


def _kernel_and_bias(layer: Any, a: Sequence[Any], b: Any, signal: Any) -> Shares:
    """The shares of a linear map's two variables; of vectors, a bias is the weight of a one."""
    kernel, bias = Products(a, b), layer.bias
    outputs = b.shape[-1]
    if bias is not None and outputs == math.prod(bias.shape) == math.prod(signal.shape[4:]):
        ones = tf.ones([b.shape[3], 1, 1, 1], b.dtype)
        return [(layer.kernel, kernel), (bias, Products([ones], b))]
    return [(layer.kernel, kernel), *_bias(layer, signal)]


def _bias(layer: Any, signal: Any) -> Shares:
    """A bias is added at every position where it has no axis of its own."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        return []
    outputs = signal.shape[4:]
    shape = [1] * (len(outputs) - len(bias.shape)) + list(bias.shape)
    summed = [axis + 4 for axis, size in enumerate(shape) if size != outputs[axis]]
    return [(bias, _gradients(tf.reduce_sum(signal, summed) if summed else signal))]


def _gradients(whole: Any) -> Gradients:
    """Gradients of a whole variable, `(traced, diagonal, paired, examples, ...)`."""
    return Gradients(tf.reshape(whole, [*whole.shape[:4], math.prod(whole.shape[4:])]))


def _inputs(x: Any, groups: int = 1) -> Any:
    """Inputs as `(examples, positions, groups, fan-in)`."""
    between, channels = math.prod(x.shape[1:-1]), x.shape[-1]
    return tf.reshape(wide(x), [x.shape[0], between, groups, channels // groups])


def _signals(signal: Any, groups: int = 1) -> Any:
    """Signals as `(traced, diagonal, paired, examples, positions, groups, outputs)`."""
    between, channels = math.prod(signal.shape[4:-1]), signal.shape[-1]
    return tf.reshape(signal, [*signal.shape[:4], between, groups, channels // groups])


def _scale(layer: Any) -> float:
    """By what the forward pass multiplies the kernel: the NTK parameterisation (Eq. 3)."""
    if layer.parameterization == "standard":
        return 1.0
    return math.sqrt(layer.gain / layer.fan_in)


_RULES: dict[Any, Rule] = {
    layers.Dense: _dense,
    layers.EinsumDense: _einsum_dense,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.DepthwiseConv1D: _depthwise,
    layers.DepthwiseConv2D: _depthwise,
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
