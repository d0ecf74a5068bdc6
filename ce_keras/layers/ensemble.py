"""Eq. 4 for any member network: m independent copies, summed, divided by sqrt(m)."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras
from keras import layers, ops

from ce_keras.checks import (
    boolean,
    brief,
    called,
    function,
    keras_model,
    positive_int,
    whole_number,
)
from ce_keras.layers.collegial import aggregate, register
from ce_keras.layers.grouping import CannotGroupError, functional, path_axis, side_by_side
from ce_keras.layers.initializers import path_seed
from ce_keras.layers.keras_internals import all_layers, learnt_frequencies

logger = logging.getLogger("ce_keras")

#: The largest cardinality that is accepted.
MOST_MEMBERS = 2**20


@register
class CollegialEnsemble(layers.Layer):
    """`cardinality` independently initialised members, trained as one model (Eq. 4).

    The ensemble's output is the sum of the members' outputs over `sqrt(cardinality)`. Where the
    member's layers allow it, all members are one network of grouped layers, computed at once
    (`ensemble.grouped` is true); otherwise they are copies, computed one after another, and
    `ensemble.why_copies` names the layer that stands in the way.

    Args:
        build_member: a function without arguments that returns a Keras model, or such a model as
            a template, whose weights are not used. Every member draws its own: integer seeds are
            replaced by one of each member's own where the model can be rebuilt from its
            configuration. Where it cannot, the function is called for every member, and must
            draw anew each time.
        cardinality: the number of members.
        grouped: `False` forces copies, `True` raises where the members cannot be grouped, and
            `None` groups them if it can.

    Input is a member's input, output has the shape of a member's output; where a member has
    several of either, so has the ensemble.

    Raises:
        ValueError: for a member that is not a Keras model, one that cannot be grouped where that
            is asked for, or a template that cannot be copied.

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
        self._builder = None if isinstance(build_member, keras.Model) else build_member
        if grouped is not None:
            boolean("grouped", grouped)
        if self._builder is not None:
            function("build_member", self._builder, "a Keras model, or a function that returns one")
        template = build_member if self._builder is None else called("build_member", self._builder)
        if not isinstance(template, keras.Model):
            raise ValueError(
                f"build_member: got {brief(template)}; it must be a Keras model, or a function "
                "without arguments that returns one"
            )
        self.cardinality = positive_int("cardinality", cardinality, MOST_MEMBERS)
        self.why_copies: str | None = None
        self._asked_grouped = grouped
        config = configuration(template)
        # Keras makes a dictionary one that refers to this layer, and its copies copy the layer too.
        self._member_config = None if config is None else MappingProxyType(config)
        if grouped is False:
            self.why_copies = "copies were asked for"
        else:
            self._group(template, required=grouped is True)
        self.grouped = self.why_copies is None
        if not self.grouped:
            self.members = [self._new_member(path, template) for path in range(cardinality)]

    def _group(self, template: keras.Model, required: bool) -> None:
        try:
            self.paths = side_by_side(template, self.cardinality)
        except CannotGroupError as error:
            if required:
                raise ValueError(f"grouped: members cannot be grouped: {error}") from None
            self.why_copies = str(error)
            logger.info("collegial ensemble of %s: copies, because %s", template.name, error)
        else:
            self._trained = [layer.name for layer in functional(template).layers if layer.weights]

    def build(self, input_shape: Any) -> None:
        self._input_shape = input_shape
        for member in () if self.grouped else self.members:
            self._give_weights(member)

    def _give_weights(self, member: keras.Model) -> None:
        """Build a member that is only built by its first call, as subclassed models are."""
        if not member.built:
            member(
                keras.tree.map_shape_structure(
                    lambda shape: keras.KerasTensor(shape, self.compute_dtype), self._input_shape
                )
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.grouped:
            return aggregate(self.paths(inputs, training=training), self.cardinality)
        outputs = [member(inputs, training=training) for member in self.members]
        return keras.tree.map_structure(self._sum, *outputs)

    def _sum(self, *outputs: Any) -> Any:
        return sum(outputs[1:], outputs[0]) / math.sqrt(self.cardinality)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        # By tracing: the data type is the members', whatever the ensemble's own policy.
        return keras.Operation.compute_output_spec(self, inputs, training=training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        if not self.grouped:
            return self.members[0].compute_output_shape(input_shape)
        *others, channels = self.paths.compute_output_shape(input_shape)
        return (*others, channels // self.cardinality)

    def get_member(self, path: int) -> keras.Model:
        """Return member `path` as a Keras model of its own, with a copy of its weights.

        Raises:
            ValueError: for a path that is not 0 to `cardinality - 1`.
        """
        self._check_path(path)
        member = self._new_member(0, None if self.grouped else self.members[0])
        if not self.grouped:
            self._give_weights(member)
            member.set_weights(self.members[path].get_weights())
        for own, whole, index in self._places(member, path):
            own.assign(ops.convert_to_numpy(whole)[index])
        return member

    def set_member(self, path: int, member: keras.Model) -> None:
        """Give member `path` the weights of a model with a member's layers.

        Raises:
            ValueError: for a path that is not 0 to `cardinality - 1`.
        """
        self._check_path(path)
        keras_model("member", member)
        own = [tuple(weight.shape) for weight in self.get_member(path).weights]
        if [tuple(weight.shape) for weight in member.weights] != own:
            raise ValueError(
                f"member: {member.name!r} has other weights than a member of {self.name!r}"
            )
        if not self.grouped:
            self.members[path].set_weights(member.get_weights())
        for own, whole, index in self._places(member, path):
            values = ops.convert_to_numpy(whole).copy()
            values[index] = ops.convert_to_numpy(own)
            whole.assign(values)

    def _check_path(self, path: int) -> None:
        whole_number("path", path)
        if path not in range(self.cardinality):
            raise ValueError(f"path: got {brief(path)}; members are 0 to {self.cardinality - 1}")

    def _places(self, member: keras.Model, path: int) -> list[tuple[Any, Any, Any]]:
        """Return a member's weights, each with the grouped weight that holds it, and its index."""
        if not self.grouped:
            return []
        trained = [layer for layer in functional(member).layers if layer.weights]
        return [
            (own, whole, _path_index(tuple(own.shape), tuple(whole.shape), path))
            for layer, name in zip(trained, self._trained, strict=True)
            for own, whole in zip(layer.weights, self.paths.get_layer(name).weights, strict=True)
        ]

    def _new_member(self, path: int, template: keras.Model | None) -> keras.Model:
        """Return a member with weights of its own: from its configuration, or the function.

        Layers that were adapted to data keep what they have learnt.
        """

        def seed_of(seed: int | None) -> int | None:
            return seed if seed is None or not path else path_seed(seed, path)

        return rebuilt(self._member_config, seed_of, self._builder, template)

    def _saved_config(self) -> dict[str, Any]:
        if self._member_config is None:
            raise ValueError("build_member: Keras cannot write down the configuration of its model")
        return copy.deepcopy(dict(self._member_config))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "build_member": self._saved_config(),
            "cardinality": self.cardinality,
            "grouped": self._asked_grouped,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CollegialEnsemble:
        # A copy, because Keras empties the configuration that it builds a model from.
        member = keras.saving.deserialize_keras_object(copy.deepcopy(config["build_member"]))
        # A file can name any function there is, and the constructor would call it.
        if not isinstance(member, keras.Model):
            raise ValueError(
                f"build_member: got {brief(member)} from a saved configuration; it must be a "
                "Keras model"
            )
        return cls(**{**config, "build_member": member})


def configuration(model: keras.Model) -> dict[str, Any] | None:
    """Return what the model can be rebuilt from, or `None` where its classes do not say."""
    if any(_misnamed(getattr(layer, "activation", None)) for layer in all_layers(model)):
        return None
    try:
        return keras.saving.serialize_keras_object(model)
    except NotImplementedError:  # How Keras says that a class has no `get_config`.
        return None


def _misnamed(activation: Any) -> bool:
    """Return whether Keras would save a user's function as its own of the same name."""
    if not inspect.isfunction(activation) or activation.__name__ == "<lambda>":
        return False
    name = keras.activations.serialize(activation)
    return isinstance(name, str) and keras.activations.get(name) is not activation


def rebuilt(
    config: Mapping[str, Any] | None,
    seed_of: Callable[[int | None], int | None],
    builder: Callable[[], keras.Model] | None,
    template: keras.Model | None = None,
) -> keras.Model:
    """Return a model from its configuration with other seeds, or from a function if need be.

    Args:
        config: from `configuration`.
        seed_of: replaces a seed.
        builder: builds the model where the configuration is not enough.
        template: the model that the configuration is of. Its layers that were adapted to data
            hand on what they have learnt, which no configuration has.

    Raises:
        ValueError: where there is no function either.
    """
    try:
        if template is not None and _is_adapted(template) and template.inputs:
            return _cloned(template, seed_of)
        if config is None:
            raise ValueError("Keras cannot write it down")
        own = copy.deepcopy(dict(config))
        reseed(own, seed_of)
        # What is copied is a model of this process: whoever loaded it has trusted it.
        return keras.saving.deserialize_keras_object(own, safe_mode=False)
    except (TypeError, ValueError) as error:
        if builder is None:
            raise ValueError(
                "build_member: this model cannot be rebuilt from its configuration; give a "
                f"function that builds it, or register its classes with Keras ({error})"
            ) from error
        return builder()


def _is_adapted(model: keras.Model) -> bool:
    return any(hasattr(layer, "adapt") for layer in all_layers(model))


def _cloned(template: keras.Model, seed_of: Callable[[int | None], int | None]) -> keras.Model:
    """Return a model like the template, with what its layers have learnt by `adapt`.

    No configuration has that, and other layers' sizes can depend on it: it is copied before the
    next layer is made.
    """

    def copied(layer: Any) -> Any:
        config = layer.get_config()
        reseed(config, seed_of)
        new = type(layer).from_config(config)
        if hasattr(layer, "adapt"):
            _hand_on(layer, new)
        return new

    return keras.models.clone_model(template, clone_function=copied, recursive=True)


def _hand_on(own: Any, other: Any) -> None:
    """Give a layer what another of the same configuration has learnt by `adapt`."""
    if isinstance(own, layers.Normalization) and own.weights:
        other.build_from_config(own.get_build_config())
        variables: dict[str, Any] = {}
        own.save_own_variables(variables)
        other.load_own_variables(variables)
    if getattr(own, "get_vocabulary", None):
        words = own.get_vocabulary(include_special_tokens=False)
        if len(words):
            other.set_vocabulary(words, learnt_frequencies(own, len(words)))
    if getattr(own, "bin_boundaries", None) is not None:
        other.bin_boundaries, other.summary = own.bin_boundaries, own.summary


def reseed(config: Any, seed_of: Callable[[int | None], int | None]) -> None:
    """Replace every seed in a serialised object, integer or `None`, in place."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if key == "seed" and isinstance(value, int | None):
            config[key] = seed_of(value)
        elif isinstance(value, dict | list):
            reseed(value, seed_of)


def _path_index(
    member: tuple[int, ...], whole: tuple[int, ...], path: int
) -> tuple[slice | int, ...]:
    """Return the index of one path's weight in the ensemble's."""
    axis = path_axis(member, whole)
    if axis is None:
        return (slice(None),) * len(whole)
    if len(whole) > len(member):
        return (path,)
    size = member[axis]
    return (slice(None),) * axis + (slice(path * size, (path + 1) * size),)
