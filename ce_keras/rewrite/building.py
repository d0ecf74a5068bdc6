"""Builds a model again, with paths in place of chains."""

from __future__ import annotations

import contextlib
import logging
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from ce_keras.geometry import scaled_widths
from ce_keras.layers.collegial import CollegialDense
from ce_keras.layers.grouping import widened
from ce_keras.layers.initializers import SummedPaths
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.families import Answer
from ce_keras.rewrite.graph import is_functional, models_in

logger = logging.getLogger("ce_keras")


class Rebuilt(NamedTuple):
    """A model and what it is made of.

    Attributes:
        model: the new model.
        pairs: the layers of the old, each with what took its place.
    """

    model: keras.Model
    pairs: list[tuple[Any, Any]]


def rebuilt(
    model: keras.Model, answers: Sequence[Answer] = (), *, compiled: bool = True
) -> Rebuilt:
    """The model with every chain's layers in place of the old; without answers, a copy.

    Weights are new. `compiled`: whether a model that is compiled is compiled again.
    """
    pairs: list[tuple[Any, Any]] = []
    new: dict[int, Any] = {}
    for answer in answers:
        for chain in answer.family.chains:
            new.update(_paths_for(chain, answer))

    def replaced(layer: Any) -> Any:
        pairs.append((layer, new[id(layer)] if id(layer) in new else _copied(layer)))
        return pairs[-1][1]

    with _uncompiled(model):
        ensemble = keras.models.clone_model(
            model, input_tensors=_inputs_like(model), clone_function=replaced, recursive=True
        )
    if not model.trainable:  # Of layers it is kept by their configuration.
        ensemble.trainable = False
    if compiled:
        if type(ensemble) is not type(model):
            logger.warning(
                "%s is a %s: its ensemble is a plain %s, without what that class overrides",
                *(model.name, type(model).__name__, type(ensemble).__name__),
            )
        if model.compiled:
            _compile_like(model, ensemble)
    return Rebuilt(ensemble, pairs)


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Keras compiles what it clones, and fails where it cannot rebuild a loss."""
    were = [(inner, inner.compiled) for _, inner in models_in(model)]
    for inner, _ in were:
        inner.compiled = False
    try:
        yield
    finally:
        for inner, compiled in were:
            inner.compiled = compiled


def _compile_like(model: keras.Model, ensemble: keras.Model) -> None:
    try:
        ensemble.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError) as error:
        logger.warning(
            "%s is returned uncompiled: Keras cannot rebuild what it was compiled with (%s)",
            *(ensemble.name, str(error).partition("\n")[0]),
        )


def _inputs_like(model: keras.Model) -> Any:
    """Inputs of the same names: left to itself, Keras names them after their tensors."""
    if isinstance(model, keras.Sequential):
        return None

    def same(tensor: Any) -> Any:
        layer = tensor._keras_history.operation
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            optional=layer.optional,
            name=layer.name,
        )

    return keras.tree.map_structure(same, model.input)


# Copies ------------------------------------------------------------------------------------------


def check_copies(model: keras.Model) -> None:
    """Raise where a layer cannot be built again, before anything is.

    Raises:
        ValueError: with the layer's name.
    """
    parents: Counter[int] = Counter()
    for _, inner in models_in(model):
        for layer in inner.layers:
            if is_functional(layer):
                continue
            _copied(layer)
            members = list(layer._flatten_layers())
            parents.update(map(id, members))
            shared = [member.name for member in members if parents[id(member)] > 1]
            if shared and len(members) > 1:
                raise ValueError(
                    f"model: {shared[0]!r}, inside {layer.name!r}, is used elsewhere too: copies "
                    "of both would not share it"
                )


def _copied(layer: Any) -> Any:
    """A fresh layer of the same configuration."""
    if hasattr(layer, "adapt"):
        return layer  # What it learnt is data, not weights.
    try:
        return type(layer).from_config(_config(layer))
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


def _config(layer: Any) -> dict[str, Any]:
    """A layer's configuration, with functions of one's own as they are, not by name."""
    config = layer.get_config()
    for key in config:
        value = getattr(layer, key, None)
        if isinstance(value, types.FunctionType) and not value.__module__.startswith("keras."):
            config[key] = value
    return config


# Paths -------------------------------------------------------------------------------------------


def _paths_for(chain: Chain, answer: Answer) -> dict[int, Any]:
    """The layers of a chain as paths side by side, by what they replace."""
    m = answer.design.cardinality

    def scaled(size: int | None, base: int) -> int:
        assert size is not None
        (width,) = scaled_widths(answer.design.width, [base], answer.family.width)
        return size // base * int(width)

    def inside(shape: Sequence[int | None], base: int) -> Any:
        return keras.KerasTensor((*shape[:-1], m * scaled(shape[-1], base)))

    *maps, last = chain.maps
    new: dict[int, Any] = {id(last.layer): _exit(last.layer, m, chain.kind)}
    for index, each in enumerate(maps):
        size = "units" if hasattr(each.layer, "units") else "filters"
        config = {**_config(each.layer), size: scaled(each.outputs, each.outputs)}
        narrow = type(each.layer).from_config(config)
        shape = (*(None,) * (len(each.layer.output.shape) - 1), each.inputs)
        x = keras.KerasTensor(shape) if index == 0 else inside(shape, each.base)
        new[id(each.layer)] = widened(narrow, m, index == 0, [x])
    for layer, shapes, base in chain.between:
        config, channels = _config(layer), shapes[0][-1]
        if isinstance(layer, keras.layers.Reshape):
            config["target_shape"] = (*config["target_shape"][:-1], scaled(channels, base))
        if isinstance(layer, keras.layers.GroupNormalization):
            config["groups"] = _groups(config["groups"], channels, scaled(channels, base))
        narrow = type(layer).from_config(config)
        new[id(layer)] = widened(narrow, m, False, [inside(shape, base) for shape in shapes])
    return new


def _groups(groups: int, before: int | None, width: int) -> int:
    """Groups of channels in a path: as many as there can be, none smaller than before."""
    assert before is not None
    size = 1 if groups == -1 else before // groups
    return max(
        count
        for count in range(1, width + 1)
        if width % count == 0 and (count == 1 or width // count >= size)
    )


def _exit(layer: Any, m: int, kind: str) -> Any:
    """The last layer, which sums the paths (Eq. 4)."""
    config = _config(layer)
    if kind == "dense":
        # Without the options of `Dense` that matter only for a model that is trained.
        for unused in ("lora_rank", "lora_alpha", "quantization_config"):
            config.pop(unused, None)
        return CollegialDense.from_config(
            {**config, "cardinality": m, "aggregate": True, "shared_input": False}
        )
    if config.get("parameterization") != "ntk":
        # There the forward pass divides by the fan-in of all paths together.
        config["kernel_initializer"] = SummedPaths(config["kernel_initializer"], m)
    return type(layer).from_config(config)
