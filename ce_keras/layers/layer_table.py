"""The table of the kinds of layers that this package knows: a row a class, in `LAYERS`.

To add a layer, add a row here, and the rule of its kernel to `ce_keras.ntk`. Whatever a row
leaves out is a clear error where it is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.collegial import CollegialConv2D
from ce_keras.layers.collegial_dense import CollegialDense
from ce_keras.layers.initializers import SummedPaths
from ce_keras.layers.keras_internals import all_layers, own_trainable_variables
from ce_keras.layers.layer_norm import CollegialLayerNormalization


class CannotGroupError(Exception):
    """A layer cannot be computed for all paths at once; the message names it, and why."""


class Member(NamedTuple):
    """A layer of one path that all paths are to have.

    Attributes:
        layer: the Keras layer.
        config: its configuration.
        cardinality: how many paths there are.
        tensors: what the layer of all paths will be applied to.
    """

    layer: Any
    config: dict[str, Any]
    cardinality: int
    tensors: list[Any]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of the first tensor."""
        return tuple(self.tensors[0].shape)

    def copied(self, **changes: Any) -> Any:
        """Return a new layer of the same class and configuration but for the changes."""
        return type(self.layer).from_config({**self.config, **changes})

    def cannot(self, reason: str) -> CannotGroupError:
        """Return the error that names the layer."""
        return CannotGroupError(f"layer {self.layer.name!r} {reason}")


Grouped = Callable[[Member], Any]


class LayerKind(NamedTuple):
    """The entries of a kind of layer; `None` for what it has not.

    Attributes:
        fan_ins: returns the fan-in of each linear map of a built layer.
        on_paths: makes the layer of all paths, whose inputs lie path by path.
        on_shared: the same for an input that all paths share.
        summing: makes the layer that ends the paths and sums them (Eq. 4), from the last layer's
            configuration and the cardinality.
        narrowed: returns what changes in the configuration where a layer of so many channels gets
            fewer.
    """

    fan_ins: Callable[[Any], list[float]] | None = None
    on_paths: Grouped | None = None
    on_shared: Grouped | None = None
    summing: Callable[[dict[str, Any], int], Any] | None = None
    narrowed: Callable[[dict[str, Any], int, int], dict[str, Any]] | None = None


# Layers that treat every channel alike ------------------------------------------------------------


def channelwise(one: Member) -> Any:
    """Return a copy: on paths side by side the layer does what it does on one."""
    if one.config.get("noise_shape") is not None:
        raise one.cannot("shares its noise among channels")
    if any(np.ndim(one.config.get(key, 0)) for key in ("scale", "offset")):
        raise one.cannot("scales every channel differently")
    return _merging(one)


def _merging(one: Member) -> Any:
    if len({tensor.shape[-1] for tensor in one.tensors}) > 1:
        raise one.cannot("merges different numbers of channels")
    return one.copied()


def _noise_on_shared(one: Member) -> Any:
    raise one.cannot("draws noise on the shared input")


def _penalty_on_shared(one: Member) -> Any:
    raise one.cannot("would count the shared input once")


def _prelu(one: Member) -> Any:
    if len(one.shape) - 1 in (one.config.get("shared_axes") or ()):
        raise one.cannot("has one slope for all channels")
    return one.copied()


# Shapes ------------------------------------------------------------------------------------------


def _flatten(one: Member) -> Any:
    """Flatten each path's pixels by themselves: (h, w, m * n) -> m * (h * w * n)."""
    options = {"dtype": one.layer.dtype_policy}
    if len(one.shape) == 2:
        return layers.Flatten(name=one.layer.name, **options)
    if None in one.shape[1:]:
        raise one.cannot(f"flattens a shape that is not known: {one.shape}")
    pixels, width = math.prod(one.shape[1:-1]), one.shape[-1] // one.cardinality
    steps = [
        layers.Reshape((pixels, one.cardinality, width), **options),
        layers.Permute((2, 1, 3), **options),
        layers.Flatten(**options),
    ]
    return keras.Sequential(steps, name=one.layer.name)


def _reshape(one: Member) -> Any:
    """Reshape in the same way, where the channels stay whole and last."""
    *leading, channels = one.config["target_shape"]
    if channels == -1 and None not in (*one.shape[1:], *leading) and -1 not in leading:
        channels = math.prod(one.shape[1:]) // math.prod(leading) // one.cardinality
    if channels * one.cardinality != one.shape[-1]:
        raise one.cannot("reshapes channels into something else")
    return one.copied(target_shape=(*leading, one.shape[-1]))


def _narrow_reshape(config: dict[str, Any], channels: int, width: int) -> dict[str, Any]:
    del channels
    return {"target_shape": (*config["target_shape"][:-1], width)}


# Normalisation -----------------------------------------------------------------------------------


def _layer_norm(one: Member) -> Any:
    """Normalise every path by itself, where it is over channels alone."""
    axis, last = one.layer.axis, len(one.shape) - 1
    over_channels = (axis if isinstance(axis, int) else list(axis)) in (-1, [-1], last, [last])
    config = dict(one.config)
    if config.pop("rms_scaling", False) or not over_channels:
        raise one.cannot("normalises over more than the channels")
    config["cardinality"] = one.cardinality * config.get("cardinality", 1)
    return CollegialLayerNormalization.from_config({**config, "axis": -1})


def _batch_norm(one: Member) -> Any:
    if one.layer.axis not in (-1, len(one.shape) - 1):
        raise one.cannot(f"normalises along axis {one.layer.axis}")
    return one.copied()


def _group_norm(one: Member) -> Any:
    """Keep a path's groups its own; -1 is a group for every channel."""
    _batch_norm(one)
    return one.copied(groups=max(-1, one.layer.groups * one.cardinality))


def _narrow_groups(config: dict[str, Any], channels: int, width: int) -> dict[str, Any]:
    """Return as many groups as a path can have, none of fewer channels than before."""
    groups = config["groups"]
    size = 1 if groups == -1 else channels // groups
    counts = (n for n in range(1, width + 1) if width % n == 0 and (n == 1 or width // n >= size))
    return {"groups": max(counts)}


# Linear layers -----------------------------------------------------------------------------------


def _wider(kind: Any, size: str, shared: bool) -> Grouped:
    """Return what makes one layer of `kind` of all paths, whose units are the option `size`."""

    def wider(one: Member) -> Any:
        config = dict(one.config)
        own = config.pop("groups", None) or config.pop("cardinality", 1)
        if own > 1 and (shared or config.get("shared_input") or config.get("aggregate")):
            raise one.cannot("has several paths on one input")
        # Of one path, a sum of paths is that path.
        for option in (*_OF_TRAINED, "aggregate"):
            config.pop(option, None)
        config[size] *= one.cardinality
        return kind.from_config(
            {**config, "cardinality": one.cardinality * own, "shared_input": shared}
        )

    return wider


#: Options of `Dense` that matter only for a model that is trained.
_OF_TRAINED = ("lora_rank", "lora_alpha", "quantization_config")


def _summing_dense(config: dict[str, Any], cardinality: int) -> Any:
    kept = {key: value for key, value in config.items() if key not in _OF_TRAINED}
    own = {"cardinality": cardinality, "aggregate": True, "shared_input": False}
    return CollegialDense.from_config({**kept, **own})


def _summing_conv(kind: Any) -> Callable[[dict[str, Any], int], Any]:
    def summing(config: dict[str, Any], cardinality: int) -> Any:
        if config.get("parameterization") == "ntk":
            return kind.from_config(config)  # It divides by the fan-in of all paths together.
        initializer = SummedPaths(config["kernel_initializer"], cardinality)
        return kind.from_config({**config, "kernel_initializer": initializer})

    return summing


def _narrow_linear(size: str, config: Any, channels: int, width: int) -> dict[str, Any]:
    del config, channels
    return {size: width}


def _forms(kind: Any, size: str, summing: Any) -> dict[str, Any]:
    return {
        "on_paths": _wider(kind, size, shared=False),
        "on_shared": _wider(kind, size, shared=True),
        "summing": summing,
        "narrowed": functools.partial(_narrow_linear, size),
    }


# Fan-ins -----------------------------------------------------------------------------------------


def _kernel_fan_in(layer: Any) -> list[float]:
    return [math.prod(layer.kernel.shape[:-1])]


def _own_fan_in(layer: Any) -> list[float]:
    return [layer.fan_in]


def _transposed_fan_in(layer: Any) -> list[float]:
    """Count the pixels that an output pixel meets: one in `strides` of the kernel's."""
    seen = math.prod(layer.kernel_size) / math.prod(layer.strides)
    return [seen * layer.kernel.shape[-1]]


def _einsum_fan_in(layer: Any) -> list[float]:
    _, kernel, outputs = layer.equation.replace("->", ",").replace(" ", "").split(",")
    sizes = zip(kernel, layer.kernel.shape, strict=True)
    return [math.prod(size for label, size in sizes if label not in outputs)]


def _depthwise_fan_in(layer: Any) -> list[float]:
    return [math.prod(layer.kernel_size)]


def _separable_fan_ins(layer: Any) -> list[float]:
    return [math.prod(layer.kernel_size), layer.pointwise_kernel.shape[-2]]


# The table ---------------------------------------------------------------------------------------

MERGING = (
    *(layers.Add, layers.Subtract, layers.Multiply),
    *(layers.Average, layers.Maximum, layers.Minimum),
)
DENSE = (layers.Dense, CollegialDense)
CONV = (layers.Conv2D, CollegialConv2D)
BY_CHANNEL = (
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
_CHANNELWISE = (
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Activation, layers.Identity),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.ZeroPadding2D, layers.Cropping2D),
    *(layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D),
    *(layers.UpSampling2D, layers.Rescaling),
)
_NOISE = (
    *(layers.Dropout, layers.SpatialDropout2D, layers.AlphaDropout),
    *(layers.GaussianNoise, layers.GaussianDropout),
)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)

_DENSE = _forms(CollegialDense, "units", _summing_dense)
_BATCH_NORM = LayerKind(on_paths=_batch_norm)
_LAYER_NORM = LayerKind(on_paths=_layer_norm)

LAYERS: dict[type, LayerKind] = {
    layers.Dense: LayerKind(_kernel_fan_in, **_DENSE),
    CollegialDense: LayerKind(_own_fan_in, **_DENSE),
    layers.Conv2D: LayerKind(
        _kernel_fan_in, **_forms(CollegialConv2D, "filters", _summing_conv(layers.Conv2D))
    ),
    CollegialConv2D: LayerKind(
        _own_fan_in, **_forms(CollegialConv2D, "filters", _summing_conv(CollegialConv2D))
    ),
    **dict.fromkeys((layers.Conv1D, layers.Conv3D), LayerKind(_kernel_fan_in)),
    **dict.fromkeys(_TRANSPOSED, LayerKind(_transposed_fan_in)),
    **dict.fromkeys(BY_CHANNEL[:2], LayerKind(_depthwise_fan_in)),
    **dict.fromkeys(BY_CHANNEL[2:], LayerKind(_separable_fan_ins)),
    layers.EinsumDense: LayerKind(_einsum_fan_in),
    layers.BatchNormalization: _BATCH_NORM,
    FusedBatchNormalization: _BATCH_NORM,
    layers.LayerNormalization: _LAYER_NORM,
    CollegialLayerNormalization: _LAYER_NORM,
    layers.GroupNormalization: LayerKind(on_paths=_group_norm, narrowed=_narrow_groups),
    **dict.fromkeys(_CHANNELWISE, LayerKind(on_paths=channelwise, on_shared=_merging)),
    **dict.fromkeys(MERGING, LayerKind(on_paths=channelwise, on_shared=_merging)),
    **dict.fromkeys(_NOISE, LayerKind(on_paths=channelwise, on_shared=_noise_on_shared)),
    layers.ActivityRegularization: LayerKind(on_paths=channelwise, on_shared=_penalty_on_shared),
    layers.PReLU: LayerKind(on_paths=_prelu),
    layers.Flatten: LayerKind(on_paths=_flatten, on_shared=_merging),
    layers.Reshape: LayerKind(on_paths=_reshape, narrowed=_narrow_reshape),
}


def fan_ins(layer: Any) -> list[float]:
    """Return the fan-in of each of a built layer's linear maps; none for a layer without.

    Raises:
        ValueError: for a layer with a matrix that is not known here.

    >>> convolution = layers.Conv2D(8, 3, groups=2)
    >>> convolution.build((None, 5, 5, 10))
    >>> fan_ins(convolution), fan_ins(layers.ReLU())
    ([45], [])
    """
    for kind in type(layer).__mro__:
        if kind in LAYERS and (read := LAYERS[kind].fan_ins) is not None:
            return read(layer)
    matrices = [v.path for v in own_trainable_variables(layer) if len(v.shape) > 1]
    if matrices and not isinstance(layer, (layers.Embedding, layers.PReLU)):
        raise ValueError(
            f"module: the fan-in of {matrices[0]!r} in a {type(layer).__name__} is not known; "
            "describe the module with ce_keras.geometry.Module instead"
        )
    return []


def inverse_fan_in(model: keras.Model) -> float:
    """Return S of Eq. 9 for a built model: the sum of 1 / fan_in over its linear maps.

    Frozen maps count, since the kernel is made of them too; one that is applied twice counts once.

    >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(1)])
    >>> inverse_fan_in(model) == 1 / 4 + 1 / 5
    True
    """
    return sum(1 / n for layer in all_layers(model) for n in fan_ins(layer))
