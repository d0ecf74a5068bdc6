"""Build a model again, with paths in place of chains."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import keras

from ce_keras.geometry import Design
from ce_keras.layers.functional import model_inside, runs_its_graph
from ce_keras.layers.grouping import widened
from ce_keras.layers.keras_internals import all_layers, compile_arguments
from ce_keras.layers.layer_table import LAYERS
from ce_keras.layers.own_functions import config_of, keep_functions
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.decisions import Family
from ce_keras.rewrite.graph import models_in
from ce_keras.rewrite.report import Decision

logger = logging.getLogger("ce_keras")


Decided = Sequence[tuple[Family, Decision]]


class HasDesign(Protocol):
    """An object with a design, such as a `Decision`."""

    @property
    def design(self) -> Design:
        """The design."""


def rebuilt(
    model: keras.Model,
    decided: Sequence[tuple[Family, HasDesign]] = (),
    *,
    compiled: bool = True,
) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """Build a model again, with paths in place of every family's chains, and with new weights.

    Args:
        model: functional.
        decided: families of its chains, each with its design; without any, the result is a copy.
        compiled: whether a model that is compiled is compiled again.

    Returns:
        The new model, and the layers of the old, each with what took its place.

    Raises:
        ValueError: for a model inside whose class has a `call` of its own that a copy would lose.
    """
    new: dict[int, Any] = {}
    for family, decision in decided:
        for chain in family.chains:
            new.update(_paths_for(chain, family, decision))
    ensemble, pairs = _cloned(model, new)
    _check_classes(model, ensemble)
    _carry_flags(model, ensemble, pairs)
    if compiled:
        finish(model, ensemble)
    return ensemble, pairs


def finish(model: keras.Model, ensemble: keras.Model) -> None:
    """Compile an ensemble as its model is, if it is; warn of a class that could not be kept."""
    if type(ensemble) is not type(model):
        logger.warning(
            "%s is a %s: its ensemble is a plain %s, without what that class overrides",
            *(model.name, type(model).__name__, type(ensemble).__name__),
        )
    if model.compiled:
        compile_like(model, ensemble)


def _check_classes(model: keras.Model, ensemble: keras.Model) -> None:
    """Raise where a model inside has lost a `call` of its own, or warn where another method."""
    for old, new in _models_inside(model, ensemble):
        if type(old) is type(new):
            continue
        what = f"{old.name!r}, a {type(old).__name__} inside the model, becomes a plain "
        what += type(new).__name__
        if not runs_its_graph(old):
            raise ValueError(
                f"model: {what}, without the call of its class; give the class no constructor of "
                "its own, or do in the graph what its call does"
            )
        logger.warning("%s, without what its class overrides", what)


def _models_inside(model: Any, ensemble: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the models inside a model, each with its copy; paths may have more inside."""
    copies = dict(models_in(ensemble))
    yield from ((old, copies[name]) for name, old in models_in(model) if name and name in copies)


def _carry_flags(model: Any, ensemble: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Give copies what configurations do not keep: frozen models and variables, `lora_alpha`."""
    for old, new in ((model, ensemble), *_models_inside(model, ensemble)):
        if not old.trainable:
            new.trainable = False
    layers = [pair for pair in pairs if isinstance(pair[0], keras.layers.Layer)]
    for old, new in layers:  # What is frozen may have parts that are not.
        is_copy = type(old) is type(new)
        inside = zip(all_layers(old), all_layers(new), strict=False) if is_copy else [(old, new)]
        for layer, copy in inside:
            if copy.trainable != layer.trainable:
                copy.trainable = layer.trainable
            if getattr(layer, "lora_enabled", False) and copy is not layer:
                copy.lora_alpha = layer.lora_alpha
    for old, new in layers:
        _carry_flags_of_variables(old.variables, new.variables)


def _carry_flags_of_variables(variables: Sequence[Any], others: Sequence[Any]) -> None:
    if [each.name for each in variables] == [each.name for each in others]:
        for variable, other in zip(variables, others, strict=True):
            if other.trainable != variable.trainable:
                other.trainable = variable.trainable


def _cloned(model: keras.Model, new: dict[int, Any]) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """Return a copy with new layers, by the ids of those they replace; and the pairs of layers."""
    pairs: list[tuple[Any, Any]] = []
    wrapped: dict[int, Any] = {}

    def replaced(layer: Any) -> Any:
        inner = model_inside(layer)
        if inner is not None:  # In a wrapper: Keras clones models by itself.
            if id(inner) not in wrapped:
                wrapped[id(inner)] = cloned(inner)
            return type(layer)(**{**layer.get_config(), "layer": wrapped[id(inner)]})
        pairs.append((layer, new[id(layer)] if id(layer) in new else _copied(layer)))
        return pairs[-1][1]

    def cloned(model: Any) -> Any:
        return keras.models.clone_model(
            model, input_tensors=_inputs_like(model), clone_function=replaced, recursive=True
        )

    with _uncompiled(model):
        return cloned(model), pairs


def check_copies(model: keras.Model) -> None:
    """Raise where a layer cannot be built again, before anything is.

    Raises:
        ValueError: with the layer's name.
    """
    parents: Counter[int] = Counter()
    wrapped: dict[int, bool] = {}
    composites: list[tuple[Any, list[Any]]] = []
    for _, each in models_in(model):
        for layer in each.layers:
            inner = model_inside(layer)
            if inner is not layer:
                _copied(layer)
            if inner is not None:
                if wrapped.setdefault(id(inner), inner is not layer) != (inner is not layer):
                    raise ValueError(
                        f"model: {inner.name!r} is applied both at every time step and as it is: "
                        "copies would not share its weights"
                    )
                continue
            members = all_layers(layer)
            parents.update(map(id, members))
            if len(members) > 1:
                composites.append((layer, members))
    for layer, members in composites:
        shared = [member.name for member in members if parents[id(member)] > 1]
        if shared:
            raise ValueError(
                f"model: {shared[0]!r}, inside {layer.name!r}, is used elsewhere too: copies "
                "of both would not share it"
            )


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Keep Keras from compiling what it clones: it fails where it cannot rebuild a loss."""
    compiled = [inner for _, inner in models_in(model) if inner.compiled]
    for inner in compiled:
        inner.compiled = False
    try:
        yield
    finally:
        for inner in compiled:
            inner.compiled = True


def compile_like(model: keras.Model, ensemble: keras.Model) -> None:
    """Compile a model as another is, or warn that Keras cannot."""
    try:
        if type(model).compile is not keras.Model.compile:  # Its arguments are its own.
            ensemble.compile_from_config(model.get_compile_config())
            return
        ensemble.compile(**_compiled_anew(compile_arguments(model)))
        if ensemble.optimizer is not None and ensemble.built:
            ensemble.optimizer.build(ensemble.trainable_variables)
    except (TypeError, ValueError, NotImplementedError) as error:
        logger.warning(
            "%s is returned uncompiled: Keras cannot rebuild what it was compiled with (%s)",
            *(ensemble.name, str(error).partition("\n")[0]),
        )


def _compiled_anew(value: Any) -> Any:
    """Return a copy of what a model was compiled with; functions are themselves.

    Keras would look for them by their names, and find its own of the same name.
    """
    if isinstance(value, dict):
        return {key: _compiled_anew(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_compiled_anew(each) for each in value)
    if isinstance(value, type | keras.losses.Loss) or not hasattr(value, "get_config"):
        return value  # Losses have no state.
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(value))
    keep_functions(value, copy)
    return copy


def _inputs_like(model: keras.Model) -> Any:
    """Return inputs of the same names: left to itself, Keras names them after their tensors."""
    if isinstance(model, keras.Sequential):
        return None
    inputs = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }

    def same(tensor: Any) -> Any:
        layer = inputs[id(tensor)]
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            optional=layer.optional,
            name=layer.name,
        )

    return keras.tree.map_structure(same, model.input)


def _copied(layer: Any) -> Any:
    """Return a fresh layer of the same configuration."""
    if hasattr(layer, "adapt"):
        return layer  # What it learnt is data, not weights.
    try:
        copy = type(layer).from_config(config_of(layer))
    # What Keras, and constructors of one's own, say where a configuration is not enough.
    except (TypeError, ValueError, NotImplementedError) as error:
        if not getattr(layer, "weights", []):
            # A Lambda, say: without weights there is nothing that two models could disturb.
            return layer
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"model: layer {layer.name!r}, a {type(layer).__name__}, cannot be built again from "
            f"its configuration ({reason}); give its class a get_config, "
            "or register it with keras.saving.register_keras_serializable"
        ) from error
    if isinstance(layer, keras.layers.Layer):
        for old, new in zip(all_layers(layer), all_layers(copy), strict=False):
            keep_functions(old, new)
    return copy


def _paths_for(chain: Chain, family: Family, decision: HasDesign) -> dict[int, Any]:
    """Return the layers of a chain as paths side by side, by the ids of those they replace."""
    m, n = decision.design

    def scaled(channels: int, base: int) -> int:
        return channels // base * family.path_width(n, base)

    def path_by_path(shape: Sequence[Any], base: int) -> Any:
        return keras.KerasTensor((*shape[:-1], m * scaled(shape[-1], base)))

    def paths(layer: Any, channels: int, base: int, tensors: list[Any], shared: bool) -> Any:
        """Return m narrow copies of a layer of so many channels, as one layer."""
        config, narrowed = config_of(layer), LAYERS[type(layer)].narrowed
        if narrowed is not None:
            config.update(narrowed(config, channels, scaled(channels, base)))
        if m == 1:  # The model's own layers, narrower.
            return type(layer).from_config(config)
        return widened(type(layer).from_config(config), m, shared, tensors)

    *hidden, last = chain.linear
    summing = LAYERS[type(last.layer)].summing
    assert summing is not None
    summed = _copied(last.layer) if m == 1 else summing(config_of(last.layer), m)
    new: dict[int, Any] = {id(last.layer): summed}
    for index, each in enumerate(hidden):
        shape = (*(None,) * (len(each.layer.output.shape) - 1), each.inputs)
        x = keras.KerasTensor(shape) if index == 0 else path_by_path(shape, each.base)
        new[id(each.layer)] = paths(each.layer, each.outputs, each.outputs, [x], index == 0)
    for layer, channels, shapes, base in chain.intermediate:
        inputs = [path_by_path(shape, base) for shape in shapes]
        new[id(layer)] = paths(layer, channels, base, inputs, False)
    return new
