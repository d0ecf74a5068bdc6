"""One network of grouped layers for all members of an ensemble, where their layers allow it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from ce_keras.layers.keras_internals import function_name
from ce_keras.layers.layer_table import LAYERS, MERGING, CannotGroupError, Member, channelwise
from ce_keras.layers.own_functions import config_of

__all__ = ["CannotGroupError", "functional", "path_axis", "side_by_side", "widened"]

# fmt: off
_ELEMENTWISE = frozenset([
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "mish", "tanh",
    "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "softplus", "softsign", "exponential",
    "celu", "squareplus",
])
# fmt: on


def side_by_side(
    member: keras.Model, cardinality: int, kernel_initializer: Any = None
) -> keras.Model:
    """Return a network that computes `cardinality` members, path by path along the channels.

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


def widened(
    layer: Any, cardinality: int, shared: bool, tensors: list[Any], kernel_initializer: Any = None
) -> Any:
    """Return the layer that does for all members at once what `layer` does for one.

    Args:
        layer: of one member.
        cardinality: how many members there are.
        shared: whether its inputs are the same for all members.
        tensors: what the new layer will be applied to.
        kernel_initializer: replaces the layer's own.

    Raises:
        CannotGroupError: where there is no such layer.
    """
    if _is_elementwise_function(layer):
        return layer  # It has no state: it can be applied elsewhere as well.
    config = config_of(layer) if isinstance(layer, layers.Layer) else {}
    if config.get("data_format") == "channels_first":
        raise CannotGroupError(f"layer {layer.name!r} has its channels first")
    _check_activation(layer)
    check_penalties(layer, config)
    if callable(getattr(layer, "activation", None)):
        # As it is: by its configuration a function of TensorFlow's would become Keras' own.
        config["activation"] = layer.activation
    if kernel_initializer is not None and "kernel_initializer" in config:
        config["kernel_initializer"] = kernel_initializer
    kind = LAYERS.get(type(layer))
    build = kind and (kind.on_shared if shared else kind.on_paths)
    if build is None:
        name = type(layer).__name__
        raise CannotGroupError(f"there is no grouped form of layer {layer.name!r} ({name})")
    return build(Member(layer, config, cardinality, tensors))


def is_unchanged(operation: Any) -> bool:
    """Return whether it does for paths side by side what it does for one, as it is configured."""
    kind = LAYERS.get(type(operation))
    treats_channels_alike = kind is not None and kind.on_paths is channelwise
    return treats_channels_alike or _is_elementwise_function(operation)


def functional(model: keras.Model) -> keras.Model:
    """Return the model as a functional one of one input and one output, on the same layers.

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


def path_axis(member: Sequence[int], whole: Sequence[int]) -> int | None:
    """Return the axis along which the paths of a grouped weight lie; `None` for one path.

    >>> path_axis((5, 3), (4, 5, 3)), path_axis((3, 3, 5, 2), (3, 3, 5, 8))
    (0, 3)

    Args:
        member: shape of one path's weight.
        whole: shape of all paths'. A dense kernel has an axis of paths, its first.
    """
    if len(whole) > len(member):
        return 0
    for axis, (one, all_paths) in enumerate(zip(member, whole, strict=True)):
        if one != all_paths:
            return axis
    return None


def _repeated(layer: Any, cardinality: int, shared: set[int], value: Any) -> Any:
    """Repeat a tensor that all members share for every path, where it meets members' values."""
    if id(value) not in shared:
        return value
    if not isinstance(layer, MERGING):
        raise CannotGroupError(f"layer {layer.name!r} mixes the input with members' values")
    return keras.ops.tile(value, [1] * (len(value.shape) - 1) + [cardinality])


def _tensors(*arguments: Any) -> list[Any]:
    return [x for x in keras.tree.flatten(arguments) if isinstance(x, keras.KerasTensor)]


# Activations and penalties -----------------------------------------------------------------------


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


def check_penalties(layer: Any, config: dict[str, Any]) -> None:
    """Refuse penalties and constraints that see more than one weight at a time."""
    for key, value in config.items():
        if key.endswith(("_regularizer", "_constraint")) and value is not None:
            name = value.get("class_name") if isinstance(value, dict) else value
            if name not in ("L1", "L2", "L1L2", "NonNeg"):
                raise CannotGroupError(
                    f"the {key} of layer {layer.name!r} ({name}) is not known to be elementwise"
                )


def _check_activation(layer: Any) -> None:
    activation = getattr(layer, "activation", None)
    if not is_elementwise(activation):
        name = getattr(activation, "__name__", None) or getattr(activation, "name", "custom")
        raise CannotGroupError(
            f"the activation of layer {layer.name!r} ({name}) is not known to be elementwise"
        )


def _is_elementwise_function(operation: Any) -> bool:
    """Return whether it is a call such as `keras.activations.relu(tensor)`, not a layer."""
    name = function_name(operation)
    return name is not None and name.lower() in {each.replace("_", "") for each in _ELEMENTWISE}
