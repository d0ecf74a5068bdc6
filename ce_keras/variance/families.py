"""The networks that Algorithm 1 draws: a family of Keras models, one for each width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.checks import brief, called, function, positive_int, real_array
from ce_keras.geometry import Module, Stack

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class NetworkFamily:
    """Networks of one architecture, by width.

    Attributes:
        name: its name in reports.
        width: the baseline's width.
        inverse_fan_in: S of Eq. 9 for an array of widths.
        input_shape: shape of one example.
        build: a function from a width to a Keras network.
        stack: a function from a width to a stack of layers, if the network is one.
    """

    name: str
    width: int
    inverse_fan_in: Callable[[np.ndarray], np.ndarray]
    input_shape: tuple[int, ...]
    build: Callable[[int], keras.Model]
    stack: Callable[[Any], Stack] | None = None


def family_of(module: Module | Callable[[int], keras.Model], width: int | None) -> NetworkFamily:
    """Return the network family of `fit_alpha`'s arguments.

    Raises:
        ValueError: for anything that is neither a module nor a function that builds Keras models
            of one input and one output, a module that is not described as a stack, a function
            without a width, or a width for a module.
    """
    if isinstance(module, Module):
        return _of_module(module, width)
    wanted = "a ce_keras.geometry.Module, or a function from a width to a Keras model"
    return _of_function(function("module", module, wanted), width)


def _of_module(module: Module, width: int | None) -> NetworkFamily:
    if width is not None:
        raise ValueError(f"width: got {brief(width)}; {module.name!r} has its own: {module.width}")
    if module.stack is None:
        raise ValueError(
            f"module: {module.name!r} is not described as a stack of ReLU layers (`stack`): "
            "kernels of it cannot be drawn; give a function from a width to a Keras model"
        )
    stack = module.stack

    def build(n: int) -> keras.Model:
        from ce_keras.variance.networks import stack_model

        return stack_model(stack(n))

    base = stack(module.width)
    shape = (base.positions, base.inputs)
    return NetworkFamily(module.name, module.width, module.inverse_fan_in, shape, build, stack)


def _of_function(build_one: Callable[[int], keras.Model], width: int | None) -> NetworkFamily:
    if width is None:
        raise ValueError("width: needed with a function: the width of the baseline")
    name = getattr(build_one, "__name__", type(build_one).__name__)

    def build(n: int) -> keras.Model:
        import keras

        model = called("module", build_one, n)
        if not isinstance(model, keras.Model):
            raise ValueError(f"module: {name}({n}) gave {brief(model)}; it must be a Keras model")
        if len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
            raise ValueError(
                f"module: {name}({n}) must be a functional model, or a sequential one with an "
                "Input, of one input and one output"
            )
        return model

    def inverse_fan_in(widths: np.ndarray) -> np.ndarray:
        from ce_keras.layers.layer_table import inverse_fan_in as of_model

        return np.array([of_model(build(int(n))) for n in widths])

    width = positive_int("width", width)
    shape = build(width).inputs[0].shape[1:]
    return NetworkFamily(name, width, inverse_fan_in, tuple(shape), build)


def inputs_of(family: NetworkFamily, x1: Any, x2: Any, rng: np.random.Generator) -> np.ndarray:
    """Return the one or two given inputs, shape `(p, ...)`, or a Gaussian one.

    Raises:
        ValueError: for inputs of another shape, or a shape that is not known.
    """
    shape = family.input_shape
    if x1 is None and x2 is not None:
        raise ValueError("x1: needed too, since x2 is given")
    if x1 is None:
        if None in shape:
            raise ValueError(f"x1: needed, since an input of shape {shape} has no fixed size")
        return rng.standard_normal((1, *shape))
    given = {"x1": real_array("x1", x1)}
    if x2 is not None:
        given["x2"] = real_array("x2", x2)
    for name, x in given.items():
        # The one position of a fully connected stack may be left out.
        own = (1, *x.shape) if family.stack and shape[0] == 1 and x.ndim == 1 else x.shape
        fits = len(own) == len(shape) and all(
            size in (None, side) for side, size in zip(own, shape, strict=True)
        )
        if not fits or x.size != given["x1"].size:
            raise ValueError(f"{name}: got shape {x.shape}; it must be {shape}")
        if family.stack and not x.any():
            raise ValueError(f"{name}: is zero; without biases, so are the outputs and the kernel")
    known = given["x1"].shape if None in shape else shape
    return np.stack([x.reshape(known) for x in given.values()])
