"""The layers that compute what some of Keras' do, faster, and how a layer becomes one of them."""

from __future__ import annotations

import math
from typing import Any

import keras

from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.collegial import CollegialConv2D, register
from ce_keras.layers.grouped_conv import ConvSpec, choose, grouped_conv


def _convolve(layer: Any, inputs: Any, kernel: Any) -> Any:
    spec = ConvSpec.of(layer)
    if spec.padding == "causal":
        gap = spec.dilation[0] * (spec.kernel_size[0] - 1)
        pads = [[0, 0], [gap, 0], [0, 0]]
        if spec.channel_axis == 1:
            pads = [[0, 0], [0, 0], [gap, 0]]
        inputs, spec = keras.ops.pad(inputs, pads), spec._replace(padding="valid")
    dtype = keras.backend.standardize_dtype(layer.compute_dtype)
    return grouped_conv(inputs, kernel, spec, choose(spec, dtype))


@register
class GroupedConv1D(keras.layers.Conv1D):
    """`keras.layers.Conv1D`, with groups that never go by Keras' route through XLA.

    >>> layer = GroupedConv1D(8, 3, groups=4, padding="causal")
    >>> tuple(layer(keras.ops.ones((2, 10, 8))).shape)
    (2, 10, 8)
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return _convolve(self, inputs, kernel)

    def call(self, inputs: Any) -> Any:
        # `Conv1D.call` has its own convolution; that of its base class calls `convolution_op`.
        return super(keras.layers.Conv1D, self).call(inputs)


@register
class GroupedConv3D(keras.layers.Conv3D):
    """`keras.layers.Conv3D`, with groups that never go by Keras' route through XLA.

    >>> layer = GroupedConv3D(8, 3, groups=4)
    >>> tuple(layer(keras.ops.ones((2, 5, 5, 5, 8))).shape)
    (2, 3, 3, 3, 8)
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return _convolve(self, inputs, kernel)


#: Our class for each of Keras'.
REPLACEMENTS: dict[type, type] = {
    keras.layers.Conv1D: GroupedConv1D,
    keras.layers.Conv2D: CollegialConv2D,
    keras.layers.Conv3D: GroupedConv3D,
    keras.layers.BatchNormalization: FusedBatchNormalization,
}


def _named_like(keras_class: type, ours: type) -> type:
    return register(type(keras_class.__name__, (ours,), {"__module__": __name__}))


#: The same, under the names of Keras' classes. A file of weights calls layers in a list by their
#: classes: where another layer's configuration makes the list, the file must have Keras' names.
NAMED_LIKE_KERAS = {kind: _named_like(kind, ours) for kind, ours in REPLACEMENTS.items()}


def is_candidate(layer: Any) -> bool:
    """Return whether a layer is a grouped convolution, or a normalisation of images, by Keras."""
    kind = next((kind for kind in REPLACEMENTS if isinstance(layer, kind)), None)
    if kind is None or isinstance(layer, REPLACEMENTS[kind]):
        return False
    if kind is keras.layers.BatchNormalization:
        return getattr(layer.input_spec, "ndim", None) == 4
    return layer.groups > 1


def why_not(layer: Any) -> str | None:
    """Return why a candidate stays as it is; `None` if it can become one of ours."""
    if type(layer) not in REPLACEMENTS:
        return "a class of its own, which may compute something else"
    if not layer.built:
        return "not built, so unused"
    backend, dtype = keras.backend.backend(), keras.backend.standardize_dtype(layer.compute_dtype)
    if isinstance(layer, keras.layers.BatchNormalization):
        fuses = FusedBatchNormalization.fuses(layer, dtype)
        return None if fuses else f"{backend} has no fused operation for its options"
    if isinstance(layer, keras.layers.Conv3D) and not _splits_volumes(layer):
        return "splitting it is faster only on a CPU with channels last"
    if backend != "tensorflow" and choose(ConvSpec.of(layer), dtype) == "native":
        return f"Keras' own is the grouped convolution of {backend} already"
    return None


def _splits_volumes(layer: Any) -> bool:
    if layer.data_format != "channels_last":
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def become(layer: Any, classes: dict[type, type]) -> None:
    """Turn a built layer of Keras into ours, with its variables and its place in the graph.

    Its class is exchanged: Keras has no way to put another layer in its place inside a composite
    layer. Ours are subclasses, and all that they add is set here.

    Args:
        layer: for which `why_not` has no reason.
        classes: `REPLACEMENTS` or `NAMED_LIKE_KERAS`.
    """
    if isinstance(layer, keras.layers.Conv2D):
        layer.cardinality = layer.groups
        layer.shared_input = False
        layer.implementation = "auto"
        layer.parameterization = "standard"
        layer.gain = 2.0
        layer.fan_in = math.prod(layer.kernel.shape[:-1])
    object.__setattr__(layer, "__class__", classes[type(layer)])
