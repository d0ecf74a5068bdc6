"""Compute any Keras model's grouped convolutions and normalisations by the fast operations.

Exported as `ce_keras.layers.accelerate`. Nothing here changes what a model computes.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras

from ce_keras.checks import boolean
from ce_keras.layers.keras_internals import all_layers
from ce_keras.layers.replacements import (
    NAMED_LIKE_KERAS,
    REPLACEMENTS,
    become,
    is_candidate,
    why_not,
)
from ce_keras.rewrite.building import check_copies, compile_like, rebuilt
from ce_keras.rewrite.graph import check_functional, models_in

logger = logging.getLogger("ce_keras")


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` did with a model; `str` of it is the report.

    Attributes:
        model: the model's name.
        replaced: name and former class of the layers that compute by a faster operation now.
        left: name, class and reason of the other layers of those kinds.
        unsaved: names of replaced layers that another layer, or a model of a class of its own,
            makes: after saving and loading, these are Keras' own layers again.
    """

    model: str
    replaced: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str, str], ...]
    unsaved: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = Counter(kind for _, kind in self.replaced)
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        lines = [f"{self.model}: {done or 'nothing'} replaced"]
        reasons = Counter((kind, why) for _, kind, why in self.left)
        lines += [f"  left: {count} {kind}: {why}" for (kind, why), count in reasons.items()]
        if not kinds and not reasons:
            lines[0] += "; it has no convolution with groups, and no normalisation of images"
        if self.unsaved:
            lines.append(
                f"  {len(self.unsaved)} of them, such as {self.unsaved[0]!r}, are made by other "
                "layers or by the model's class: once saved and loaded, accelerate it again"
            )
        return "\n".join(lines)


def accelerate(model: keras.Model, *, verbose: bool = False) -> keras.Model:
    """Return a copy of a Keras model that computes the same, faster.

    Convolutions with groups and batch normalisations of images compute by other operations, at any
    depth of the model: `Conv2D` becomes `CollegialConv2D`, `Conv1D` and `Conv3D` become
    `GroupedConv1D` and `GroupedConv3D`, and `BatchNormalization` becomes
    `FusedBatchNormalization`. On TensorFlow Keras compiles every grouped convolution by XLA, whose
    backward pass on a CPU is slower by two orders of magnitude.

    Args:
        model: functional, or sequential with a known input, of any origin: a ResNeXt, RegNet or
            ShuffleNet of somebody else's, or a backbone of KerasHub.
        verbose: print the report, which is logged as well.

    Returns:
        A model with the same inputs, outputs, names, weights, data types and frozen layers;
        compiled, with the same state of the optimizer, if the model was. Layers and weights are
        copies, so each model trains by itself. Its `acceleration` attribute, which is not saved
        with it, says which layers were replaced. Where nothing can be replaced, the model itself
        is returned and the reason is logged.

    Raises:
        ValueError: for a model that is subclassed or has no known input, or a layer that cannot be
            built again from its configuration.

    A file of weights fits only the model it was saved from, because it names layers by their
    classes; `fast.set_weights(model.get_weights())` carries weights over, either way.

    >>> convolution = keras.layers.Conv2D(8, 3, groups=4)
    >>> model = keras.Sequential([keras.Input((9, 9, 8)), convolution], name="model")
    >>> fast = accelerate(model, verbose=True)
    model: 1 Conv2D replaced
    >>> type(fast.layers[0]).__name__
    'CollegialConv2D'
    """
    boolean("verbose", verbose)
    check_functional(
        model,
        ", and Keras cannot copy layers that it sees only inside `call`; accelerate the functional "
        "models in it",
    )
    candidates = [layer for layer in all_layers(model) if is_candidate(layer)]
    left = tuple(
        (each.name, type(each).__name__, why) for each in candidates if (why := why_not(each))
    )
    fast, report = model, Acceleration(model.name, (), left)
    if len(left) < len(candidates):
        fast, replaced, unsaved = _replaced(model)
        report = Acceleration(model.name, replaced, left, unsaved)
        fast.acceleration = report
    logger.info("%s", report)
    if verbose:
        print(report)  # noqa: T201
    return fast


def _replaced(
    model: keras.Model,
) -> tuple[keras.Model, tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return a copy with our layers in it, their names and former classes, and those not saved."""
    check_copies(model)
    fast, plain = _copy(model)
    # Layers that are saved by their own configurations.
    saved = {id(each) for _, inner in models_in(fast) for each in inner.layers} if plain else set()
    replaced, unsaved = [], []
    for layer in all_layers(fast):
        if is_candidate(layer) and not why_not(layer):
            replaced.append((layer.name, type(layer).__name__))
            if id(layer) not in saved:
                unsaved.append(layer.name)
            become(layer, REPLACEMENTS if id(layer) in saved else NAMED_LIKE_KERAS)
    if model.compiled:
        compile_like(model, fast)
        same = type(fast.optimizer) is type(model.optimizer)
        if fast.compiled and same and model.optimizer.built:
            fast.optimizer.build(fast.trainable_variables)
            _assign(model.optimizer.variables, fast.optimizer.variables)
    return fast, tuple(replaced), tuple(unsaved)


def _copy(model: keras.Model) -> tuple[keras.Model, bool]:
    """Return a copy with the same weights, not compiled, and whether its class is one of Keras'."""
    copy, _ = rebuilt(model, compiled=False)
    plain = type(copy) is type(model)
    if not plain:
        # Its class has a constructor of its own, like KerasHub's, and methods to be kept.
        try:
            copy = type(model).from_config(model.get_config())
        except (TypeError, ValueError, NotImplementedError) as error:
            logger.warning(
                "%s is a %s, which cannot be built again from its configuration (%s): its copy is "
                "a plain %s, without what that class overrides",
                *(model.name, type(model).__name__, str(error).partition("\n")[0]),
                type(copy).__name__,
            )
            plain = True
    layers, others = all_layers(model), all_layers(copy)
    if [each.__class__ for each in layers] != [each.__class__ for each in others]:
        raise ValueError(
            f"model: {model.name!r} has layers that its configuration does not make, so it cannot "
            "be copied"
        )
    for layer, other in zip(layers, others, strict=True):
        if other.trainable != layer.trainable:
            other.trainable = layer.trainable
    _assign(model.variables, copy.variables)
    return copy, plain


def _assign(variables: list[Any], others: list[Any]) -> None:
    for variable, other in zip(variables, others, strict=True):
        other.assign(variable)
        if other.trainable != variable.trainable:
            other.trainable = variable.trainable
