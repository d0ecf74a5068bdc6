"""All members of an ensemble as one network of grouped layers, where their layers allow it."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.collegial import CollegialConv2D, CollegialDense
from ce_keras.layers.layer_norm import CollegialLayerNormalization


class CannotGroupError(Exception):
    """Names the layer that cannot be computed for all members at once, and why."""


def functional(model: keras.Model) -> keras.Model:
    """The model as a functional one of one input and one output, on the same layers.

    Raises:
        CannotGroupError: where there is no such thing.
    """
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise CannotGroupError(
            f"{model.name!r} is not a functional model, or a sequential one with an Input, of one "
            "input and one output"
        )
    return keras.Model(inputs[0], outputs[0], name=model.name)


_ELEMENTWISE = frozenset(
    [
        "linear",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "silu",
        "swish",
        "mish",
        "tanh",
        "sigmoid",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "softplus",
        "softsign",
        "exponential",
        "celu",
        "squareplus",
    ]
)

# Layers that treat every channel alike: on paths side by side they do what they do on one.
_CHANNELWISE: tuple[type, ...] = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.GlobalAveragePooling2D,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.UpSampling2D,
    layers.Rescaling,
)
_BATCH_NORMS = (layers.BatchNormalization, FusedBatchNormalization)
_MERGING = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)


def is_unchanged(operation: Any) -> bool:
    """Return whether it does for paths side by side what it does for one, as it is configured."""
    kinds = (*_CHANNELWISE, *_MERGING, layers.Activation)
    return type(operation) in kinds or _is_elementwise_operation(operation)


# Layers that draw random numbers: members must not share one draw on their shared input.
_RANDOM = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
)


def side_by_side(
    member: keras.Model, cardinality: int, kernel_initializer: Any = None
) -> keras.Model:
    """A network that computes `cardinality` members, path by path along the channels.

    The input is one for all members. Until the first trained layer their activations are too, so
    that layer is simply wider; from there on layers are grouped. Layers keep their names.

    Args:
        member: the network to repeat.
        cardinality: how many times.
        kernel_initializer: replaces the member's own, for whoever assigns weights afterwards.

    Raises:
        CannotGroupError: where a layer of the member has no such form.
    """
    member = functional(member)
    inputs = keras.Input(batch_shape=member.input_shape, dtype=member.inputs[0].dtype)
    shared = {id(inputs)}
    grouped: dict[int, Any] = {}
    reads_shared: dict[int, bool] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        is_shared = all(id(tensor) in shared for tensor in _tensors(args, kwargs))
        if not is_shared:
            # A skip from the input: every path's channels meet it.
            repeat = functools.partial(_repeated, layer, cardinality, shared)
            args, kwargs = keras.tree.map_structure(repeat, (args, kwargs))
        tensors = _tensors(args, kwargs)
        if reads_shared.setdefault(id(layer), is_shared) != is_shared:
            raise CannotGroupError(f"layer {layer.name!r} is applied to the input and elsewhere")
        if id(layer) not in grouped:
            grouped[id(layer)] = widened(layer, cardinality, is_shared, tensors, kernel_initializer)
        elif type(layer) is layers.Flatten:
            raise CannotGroupError(f"layer {layer.name!r} flattens more than one value")
        outputs = grouped[id(layer)](*args, **kwargs)
        if is_shared and not layer.weights:
            shared.update(id(tensor) for tensor in keras.tree.flatten(outputs))
        return outputs

    # Nothing is cloned before it is called: what a layer becomes depends on what it is applied to.
    network = keras.models.clone_model(
        member, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
    )
    if id(network.outputs[0]) in shared:
        raise CannotGroupError("no layer of the member has weights")
    if network.count_params() != cardinality * member.count_params():
        raise CannotGroupError(f"the grouped form of {member.name!r} is not {cardinality} members")
    return network


def _repeated(layer: Any, cardinality: int, shared: set[int], value: Any) -> Any:
    """A tensor that all members share, once for every path, where it meets members' values."""
    if id(value) not in shared:
        return value
    if not isinstance(layer, _MERGING):
        raise CannotGroupError(f"layer {layer.name!r} mixes the input with members' values")
    return keras.ops.tile(value, [1] * (len(value.shape) - 1) + [cardinality])


def _tensors(*arguments: Any) -> list[Any]:
    return [x for x in keras.tree.flatten(arguments) if isinstance(x, keras.KerasTensor)]


def path_axis(member: Sequence[int], whole: Sequence[int]) -> int | None:
    """Along which axis the paths of a grouped weight lie, given the shape of one path's.

    Where the whole has an axis more, that is the first; otherwise it is the one that is longer.
    `None` for one path.
    """
    if len(whole) > len(member):  # A dense kernel: paths have an axis of their own.
        return 0
    for axis, (one, all_paths) in enumerate(zip(member, whole, strict=True)):
        if one != all_paths:
            return axis
    return None


def widened(
    layer: Any,
    cardinality: int,
    shared: bool,
    tensors: list[Any],
    kernel_initializer: Any = None,
) -> Any:
    """The layer that does for all members at once what `layer` does for one.

    Args:
        layer: of one member.
        cardinality: how many members there are.
        shared: whether its inputs are the same for all members.
        tensors: what the new layer will be applied to.
        kernel_initializer: replaces the layer's own.

    Raises:
        CannotGroupError: where there is no such layer.
    """
    kind, shape = type(layer), tensors[0].shape
    if _is_elementwise_operation(layer):
        return layer  # It has no state: it can be applied elsewhere as well.
    config = layer.get_config() if isinstance(layer, layers.Layer) else {}
    if config.get("data_format") == "channels_first":
        raise CannotGroupError(f"layer {layer.name!r} has its channels first")
    if kind in _CHANNELWISE or kind in _MERGING:
        _check_channelwise(layer, config, shared, tensors)
        return kind.from_config(config)
    _check_elementwise(layer, config)
    if callable(getattr(layer, "activation", None)):
        # As it is: by its configuration a function of TensorFlow's would become Keras' own.
        config["activation"] = layer.activation
    if kernel_initializer is not None and "kernel_initializer" in config:
        config["kernel_initializer"] = kernel_initializer
    form = (_FORMS_OF_SHARED if shared else _FORMS).get(kind)
    if form is None:
        raise CannotGroupError(
            f"there is no grouped form of layer {layer.name!r} ({kind.__name__})"
        )
    return form(layer, config, cardinality, shape)


def _check_channelwise(
    layer: Any, config: dict[str, Any], shared: bool, tensors: list[Any]
) -> None:
    """Refuse what would join members: one draw or one merged value for all of them."""
    if shared and type(layer) in _RANDOM:
        raise CannotGroupError(f"layer {layer.name!r} draws noise on the shared input")
    if shared and type(layer) is layers.ActivityRegularization:
        raise CannotGroupError(f"layer {layer.name!r} would count the shared input once")
    if config.get("noise_shape") is not None:
        raise CannotGroupError(f"layer {layer.name!r} shares its noise among channels")
    if not shared and any(np.ndim(config.get(key, 0)) for key in ("scale", "offset")):
        raise CannotGroupError(f"layer {layer.name!r} scales every channel differently")
    if len({tensor.shape[-1] for tensor in tensors}) > 1:
        raise CannotGroupError(f"layer {layer.name!r} merges different numbers of channels")


def _check_elementwise(layer: Any, config: dict[str, Any]) -> None:
    """Refuse activations, penalties and constraints that see more than one element at a time."""
    activation = getattr(layer, "activation", None)
    if not is_elementwise(activation):
        name = getattr(activation, "__name__", None) or getattr(activation, "name", "custom")
        raise CannotGroupError(
            f"the activation of layer {layer.name!r} ({name}) is not known to be elementwise"
        )
    check_penalties(layer, config)


def is_elementwise(activation: Any) -> bool:
    """Return whether an activation is known to treat every number by itself.

    Known are Keras' own functions, those of the same names of `keras.ops`, TensorFlow, JAX and
    PyTorch, and Keras' layers of a fixed activation. A function of one's own can have the name of
    one of these: what counts is that it is the very function.
    """
    if activation is None or type(activation) in (layers.ReLU, layers.LeakyReLU, layers.ELU):
        return True
    if type(activation) is layers.Activation:
        return is_elementwise(activation.activation)
    name = getattr(activation, "__name__", None)
    if name not in _ELEMENTWISE:
        return False
    places = [keras.activations, keras.ops]
    for module in ("tensorflow.nn", "jax.nn", "torch.nn.functional"):
        root, *inner = module.split(".")
        if root in sys.modules:  # Whoever passes its function has imported it.
            places.append(functools.reduce(getattr, inner, sys.modules[root]))
    return any(getattr(place, name, None) is activation for place in places)


def _is_elementwise_operation(operation: Any) -> bool:
    """Return whether it is a call such as `keras.activations.relu(tensor)`, not a layer."""
    names = {name.replace("_", "") for name in _ELEMENTWISE}
    kind = type(operation)
    return (
        isinstance(operation, keras.Operation)
        and not isinstance(operation, layers.Layer)
        and kind.__module__.startswith(("keras.src.ops.", "keras.src.activations."))
        and kind.__name__.lower() in names
    )


def check_penalties(layer: Any, config: dict[str, Any]) -> None:
    """Refuse penalties and constraints that see more than one weight at a time."""
    for key, value in config.items():
        if key.endswith(("_regularizer", "_constraint")) and value is not None:
            name = value.get("class_name") if isinstance(value, dict) else value
            if name not in ("L1", "L2", "L1L2", "NonNeg"):
                raise CannotGroupError(
                    f"the {key} of layer {layer.name!r} ({name}) is not known to be elementwise"
                )


def _same(layer: Any, config: dict[str, Any], cardinality: int, shape: Any) -> Any:
    """A layer that works on every channel by itself as it is."""
    del cardinality, shape
    return type(layer).from_config(config)


def _prelu(layer: Any, config: dict[str, Any], cardinality: int, shape: Any) -> Any:
    if len(shape) - 1 in (config.get("shared_axes") or ()):
        raise CannotGroupError(f"layer {layer.name!r} has one slope for all channels")
    return _same(layer, config, cardinality, shape)


def _flatten_paths(
    layer: Any, config: dict[str, Any], cardinality: int, shape: tuple[int | None, ...]
) -> Any:
    """Flatten each path's pixels by themselves: (h, w, m * n) -> m * (h * w * n)."""
    del config
    if len(shape) == 2:
        return layers.Flatten(name=layer.name, dtype=layer.dtype_policy)
    if None in shape[1:]:
        raise CannotGroupError(f"layer {layer.name!r} flattens a shape that is not known: {shape}")
    pixels, width = math.prod(shape[1:-1]), shape[-1] // cardinality  # type: ignore[arg-type, operator]
    return keras.Sequential(
        [
            layers.Reshape((pixels, cardinality, width), dtype=layer.dtype_policy),
            layers.Permute((2, 1, 3), dtype=layer.dtype_policy),
            layers.Flatten(dtype=layer.dtype_policy),
        ],
        name=layer.name,
    )


def _reshaped_paths(
    layer: Any, config: dict[str, Any], cardinality: int, shape: tuple[int | None, ...]
) -> Any:
    """The same reshape, where the channels stay whole and last."""
    *leading, channels = config["target_shape"]
    if channels == -1 and None not in (*shape[1:], *leading) and -1 not in leading:
        channels = math.prod(shape[1:]) // math.prod(leading) // cardinality  # type: ignore[arg-type]
    if channels * cardinality != shape[-1]:
        raise CannotGroupError(f"layer {layer.name!r} reshapes channels into something else")
    return layers.Reshape.from_config({**config, "target_shape": (*leading, shape[-1])})


def _layer_norm_by_path(
    layer: Any, config: dict[str, Any], cardinality: int, shape: tuple[int | None, ...]
) -> Any:
    """The normalisation of every path by itself, where it is over channels alone."""
    axis = layer.axis if isinstance(layer.axis, int) else list(layer.axis)
    if axis not in (-1, [-1], len(shape) - 1, [len(shape) - 1]) or config.get("rms_scaling"):
        raise CannotGroupError(f"layer {layer.name!r} normalises over more than the channels")
    config.pop("rms_scaling", None)
    own = config.pop("cardinality", 1)
    return CollegialLayerNormalization.from_config(
        {**config, "axis": -1, "cardinality": cardinality * own}
    )


def _batch_norm(layer: Any, config: dict[str, Any], cardinality: int, shape: Any) -> Any:
    del cardinality
    _check_last_axis(layer, shape)
    return type(layer).from_config(config)


def _group_norm(layer: Any, config: dict[str, Any], cardinality: int, shape: Any) -> Any:
    """A path's groups stay its own; -1 is a group for every channel."""
    _check_last_axis(layer, shape)
    return type(layer).from_config({**config, "groups": max(-1, layer.groups * cardinality)})


def _check_last_axis(layer: Any, shape: tuple[int | None, ...]) -> None:
    if layer.axis not in (-1, len(shape) - 1):
        raise CannotGroupError(f"layer {layer.name!r} normalises along axis {layer.axis}")


def _wider(shared: bool, kind: Any) -> Any:
    """What makes all members' dense layers or convolutions one, with its paths side by side."""
    size = "units" if kind is CollegialDense else "filters"

    def wider(layer: Any, config: dict[str, Any], cardinality: int, shape: Any) -> Any:
        del shape
        own = config.pop("groups", None) or config.pop("cardinality", 1)
        if own > 1 and (shared or config.get("shared_input") or config.get("aggregate")):
            raise CannotGroupError(f"layer {layer.name!r} has several paths on one input")
        # Of one path, a sum of paths is that path.
        for option in ("lora_rank", "lora_alpha", "quantization_config", "aggregate"):
            config.pop(option, None)
        config[size] *= cardinality
        return kind.from_config(
            {**config, "cardinality": cardinality * own, "shared_input": shared}
        )

    return wider


_FORMS: dict[type, Any] = {
    **dict.fromkeys((layers.Dense, CollegialDense), _wider(False, CollegialDense)),
    **dict.fromkeys((layers.Conv2D, CollegialConv2D), _wider(False, CollegialConv2D)),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **dict.fromkeys((layers.LayerNormalization, CollegialLayerNormalization), _layer_norm_by_path),
    layers.GroupNormalization: _group_norm,
    layers.Activation: _same,
    layers.PReLU: _prelu,
    layers.Flatten: _flatten_paths,
    layers.Reshape: _reshaped_paths,
}
# On the input that all members share.
_FORMS_OF_SHARED: dict[type, Any] = {
    **dict.fromkeys((layers.Dense, CollegialDense), _wider(True, CollegialDense)),
    **dict.fromkeys((layers.Conv2D, CollegialConv2D), _wider(True, CollegialConv2D)),
    layers.Activation: _same,
    layers.Flatten: _same,
}
