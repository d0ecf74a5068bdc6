"""Eq. 4 for any member network: m independent copies, summed, divided by sqrt(m)."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from ce_keras.layers.collegial import Aggregate, CollegialConv2D, CollegialDense, register
from ce_keras.layers.initializers import path_seed

logger = logging.getLogger("ce_keras")


@register
class CollegialEnsemble(layers.Layer):
    """`cardinality` independently initialised members, trained as one model (Eq. 4).

    The ensemble's output is the sum of the members' outputs over `sqrt(cardinality)`. Where the
    member's layers allow it, all members are one network of grouped layers, computed at once
    (`ensemble.grouped` is true); otherwise they are copies, computed one after another, and
    `ensemble.why_copies` names the layer that stands in the way.

    Args:
        build_member: a function without arguments that returns a functional or sequential Keras
            model of one input and one output; or such a model, as a template. Its weights are not
            used: every member draws its own.
        cardinality: the number of members.
        grouped: `False` forces copies, `True` raises where the members cannot be grouped, and
            `None` groups them if it can.

    Input is a member's input, output has the shape of a member's output.

    Raises:
        ValueError: for a member that is not a functional or sequential model of one input and one
            output, or one that cannot be grouped where that is asked for.

    >>> def build_member():
    ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5, "relu"),
    ...                              keras.layers.Dense(2)])
    >>> ensemble = CollegialEnsemble(build_member, cardinality=4)
    >>> ensemble.grouped, tuple(ensemble(ops.ones((3, 8))).shape)
    (True, (3, 2))
    """

    def __init__(
        self,
        build_member: keras.Model | Callable[[], keras.Model],
        cardinality: int,
        grouped: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if cardinality < 1:
            raise ValueError(f"cardinality: got {cardinality}; it must be 1 or more")
        template = build_member if isinstance(build_member, keras.Model) else build_member()
        template = _functional(template)
        self.cardinality = cardinality
        self.why_copies: str | None = None
        self._asked_grouped = grouped
        self._member_config = keras.saving.serialize_keras_object(template)
        self._output_shape = template.output_shape
        self._trained = [layer.name for layer in template.layers if layer.weights]
        if grouped is not False:
            try:
                self.paths = _side_by_side(template, cardinality)
            except _CannotGroupError as error:
                if grouped:
                    raise ValueError(f"grouped: members cannot be grouped: {error}") from None
                self.why_copies = str(error)
                logger.info("collegial ensemble of %s: copies, because %s", template.name, error)
        self.grouped = bool(grouped is not False and self.why_copies is None)
        if self.grouped:
            self.aggregate = Aggregate(cardinality)
        else:
            self.members = [self._copy(path) for path in range(cardinality)]

    def build(self, input_shape: Any) -> None:
        del input_shape  # The members were built with the shape of their own input.
        if self.grouped:
            self.aggregate.build(self.paths.output_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.grouped:
            return self.aggregate(self.paths(inputs, training=training))
        outputs = [member(inputs, training=training) for member in self.members]
        return sum(outputs[1:], outputs[0]) / math.sqrt(self.cardinality)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (input_shape[0], *self._output_shape[1:])

    def get_member(self, path: int) -> keras.Model:
        """Member `path` as a Keras model of its own, with a copy of its weights."""
        member = self._copy(0)
        if not self.grouped:
            member.set_weights(self.members[path].get_weights())
        for own, whole, index in self._places(member, path):
            own.assign(ops.convert_to_numpy(whole)[index])
        return member

    def set_member(self, path: int, member: keras.Model) -> None:
        """Give member `path` the weights of a model with a member's layers."""
        if not self.grouped:
            self.members[path].set_weights(member.get_weights())
        for own, whole, index in self._places(member, path):
            values = ops.convert_to_numpy(whole).copy()
            values[index] = ops.convert_to_numpy(own)
            whole.assign(values)

    def _places(self, member: keras.Model, path: int) -> list[tuple[Any, Any, Any]]:
        """A member's weights, each with the grouped weight that holds it, and where in that."""
        if not self.grouped:
            return []
        trained = [layer for layer in _functional(member).layers if layer.weights]
        return [
            (own, whole, _path_index(tuple(own.shape), tuple(whole.shape), path))
            for layer, name in zip(trained, self._trained, strict=True)
            for own, whole in zip(layer.weights, self.paths.get_layer(name).weights, strict=True)
        ]

    def _copy(self, path: int) -> keras.Model:
        config = copy.deepcopy(self._member_config)
        _reseed(config, path)
        config["config"]["name"] = f"member_{path}"
        return keras.saving.deserialize_keras_object(config)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "build_member": self._member_config,
            "cardinality": self.cardinality,
            "grouped": self._asked_grouped,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CollegialEnsemble:
        # A copy, because Keras empties the configuration that it builds a model from.
        member = keras.saving.deserialize_keras_object(copy.deepcopy(config["build_member"]))
        return cls(**{**config, "build_member": member})


def _functional(model: Any) -> keras.Model:
    """The model as a functional one of one input and one output, on the same layers.

    Raises `ValueError` where there is no such thing, saying what is wanted.
    """
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    if not isinstance(model, keras.Model) or len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"build_member: got {model!r}; a member is a functional model, or a sequential one "
            "with an Input, of one input and one output"
        )
    return keras.Model(inputs[0], outputs[0], name=model.name)


def _reseed(config: Any, path: int) -> None:
    """Give every integer seed in a serialised model a value of the path's own, in place."""
    if path == 0:
        return
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key == "seed" and isinstance(value, int):
            config[key] = path_seed(value, path)
        elif isinstance(value, dict | list):
            _reseed(value, path)


def _path_index(
    member: tuple[int, ...], whole: tuple[int, ...], path: int
) -> tuple[slice | int, ...]:
    """Where one path's weight lies in the ensemble's: a slice of the one axis that is longer."""
    if len(whole) > len(member):  # A dense kernel: paths have an axis of their own.
        return (path,)
    for axis, (one, all_paths) in enumerate(zip(member, whole, strict=True)):
        if one != all_paths:
            return (slice(None),) * axis + (slice(path * one, (path + 1) * one),)
    return (slice(None),)


# Grouping --------------------------------------------------------------------------------------


class _CannotGroupError(Exception):
    """Names the layer that cannot be computed for all members at once, and why."""


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
_MERGING = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
# Layers that draw random numbers: members must not share one draw on their shared input.
_RANDOM = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise)


def _side_by_side(member: keras.Model, cardinality: int) -> keras.Model:
    """A network that computes `cardinality` members, path by path along the channels.

    The input is one for all members. Until the first trained layer their activations are too, so
    that layer is simply wider; from there on layers are grouped. Layers keep their names.
    """
    inputs = keras.Input(batch_shape=member.input_shape, dtype=member.inputs[0].dtype)
    shared = {id(inputs)}
    grouped: dict[int, Any] = {}
    reads_shared: dict[int, bool] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [
            tensor
            for tensor in keras.tree.flatten((args, kwargs))
            if isinstance(tensor, keras.KerasTensor)
        ]
        is_shared = id(tensors[0]) in shared
        for tensor in tensors:
            if (id(tensor) in shared) != is_shared:
                raise _CannotGroupError(
                    f"layer {layer.name!r} mixes the input with members' values"
                )
        if reads_shared.setdefault(id(layer), is_shared) != is_shared:
            raise _CannotGroupError(f"layer {layer.name!r} is applied to the input and elsewhere")
        if id(layer) not in grouped:
            grouped[id(layer)] = _widened(layer, cardinality, is_shared, tensors[0].shape)
        outputs = grouped[id(layer)](*args, **kwargs)
        if is_shared and not layer.weights:
            shared.update(id(tensor) for tensor in keras.tree.flatten(outputs))
        return outputs

    # Nothing is cloned before it is called: what a layer becomes depends on what it is applied to.
    network = keras.models.clone_model(
        member, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
    )
    if id(network.outputs[0]) in shared:
        raise _CannotGroupError("no layer of the member has weights")
    return network


def _widened(layer: Any, cardinality: int, shared: bool, shape: tuple[int | None, ...]) -> Any:
    """The layer that does for all members at once what `layer` does for one."""
    kind = type(layer)
    config = layer.get_config() if isinstance(layer, layers.Layer) else {}
    if config.get("data_format") == "channels_first":
        raise _CannotGroupError(f"layer {layer.name!r} has its channels first")
    if kind in _CHANNELWISE or kind in _MERGING:
        if shared and kind in _RANDOM:
            raise _CannotGroupError(f"layer {layer.name!r} draws noise on the shared input")
        return kind.from_config(config)
    if kind is layers.Flatten:
        return kind.from_config(config) if shared else _flatten_paths(layer, cardinality, shape)

    _check_activation(layer, config)
    if kind is layers.Activation:
        return kind.from_config(config)
    if kind is layers.BatchNormalization and not shared and layer.axis in (-1, len(shape) - 1):
        return kind.from_config(config)
    if kind in (layers.Dense, CollegialDense):
        return _wider(CollegialDense, layer, config, cardinality, shared)
    if kind in (layers.Conv2D, CollegialConv2D):
        return _wider(CollegialConv2D, layer, config, cardinality, shared)
    raise _CannotGroupError(f"there is no grouped form of layer {layer.name!r} ({kind.__name__})")


def _check_activation(layer: Any, config: dict[str, Any]) -> None:
    activation = config.get("activation", "linear")
    if activation not in _ELEMENTWISE:
        raise _CannotGroupError(
            f"the activation of layer {layer.name!r} ({activation}) is not known to be elementwise"
        )


def _flatten_paths(layer: Any, cardinality: int, shape: tuple[int | None, ...]) -> Any:
    """Flatten each path's pixels by themselves: (h, w, m * n) -> m * (h * w * n)."""
    if len(shape) == 2:
        return layers.Flatten(name=layer.name)
    if None in shape[1:]:
        raise _CannotGroupError(f"layer {layer.name!r} flattens a shape that is not known: {shape}")
    pixels, width = math.prod(shape[1:-1]), shape[-1] // cardinality  # type: ignore[arg-type, operator]
    return keras.Sequential(
        [
            layers.Reshape((pixels, cardinality, width)),
            layers.Permute((2, 1, 3)),
            layers.Flatten(),
        ],
        name=layer.name,
    )


def _wider(kind: Any, layer: Any, config: dict[str, Any], cardinality: int, shared: bool) -> Any:
    """All members' dense layers or convolutions as one, with its paths side by side."""
    size = "units" if kind is CollegialDense else "filters"
    own = config.pop("groups", None) or config.pop("cardinality", 1)
    if shared and own > 1:
        raise _CannotGroupError(f"layer {layer.name!r} has several paths on the shared input")
    for option in ("lora_rank", "lora_alpha", "quantization_config"):
        config.pop(option, None)
    config[size] *= cardinality
    return kind.from_config({**config, "cardinality": cardinality * own, "shared_input": shared})
