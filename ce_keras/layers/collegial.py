"""Convolutions of a collegial ensemble: paths side by side, and their sum (Fig. 1).

The m paths of an ensemble lie one after another along the channel axis, path by path: channels
`j * n` to `(j + 1) * n - 1` are path j's. So any layer that treats channels alike (normalisation,
activation, pooling) works on an ensemble as it is.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import initializers, ops

from ce_keras.checks import (
    Parameterization,
    boolean,
    brief,
    checked_parameterization,
    finite_number,
    keras_object,
    one_of,
    positive_int,
    sequence_of,
    whole_number,
)
from ce_keras.layers.grouped_conv import ConvSpec, Implementation, choose, grouped_conv
from ce_keras.layers.initializers import for_each_path, kernel_initializer

register = keras.saving.register_keras_serializable(package="ce_keras")


@register
class CollegialConv2D(keras.layers.Conv2D):
    """A convolution of `cardinality` independent paths: `Conv2D(groups=cardinality)`.

    It computes what `keras.layers.Conv2D` does and has its arguments, but never by Keras' route
    through XLA, initialises each path as if it were alone, and has the parameterisation of the
    paper's theory as an option.

    Args:
        filters: output channels of all paths together, as in `Conv2D`.
        kernel_size: an integer or a pair.
        strides: an integer or a pair.
        cardinality: the number of paths; divides input channels and `filters`.
        shared_input: every path reads all input channels, as in the first layer of an ensemble.
            It is then one plain convolution; only its initial weights know of the paths.
        parameterization: `"standard"`: weights of variance `gain / fan_in`. `"ntk"`: unit normal
            weights, scaled by `sqrt(gain / fan_in)` in the forward pass (Eq. 3). `fan_in` is
            that of one path.
        gain: 2 before a ReLU, 1 before a linear output.
        implementation: `"native"`, `"split"`, or `"auto"` for the one that is correct and fastest
            here (see `ce_keras.layers.grouped_conv`); `layer.chosen_implementation` tells which.
        kernel_initializer: replaces the one that `parameterization` implies.
        **options: the other arguments of `keras.layers.Conv2D`, except `groups`.

    Input and output are `(batch, height, width, channels)`, or channels first where the backend
    takes that.

    Raises:
        ValueError: if channels cannot be divided among the paths, or for an unknown option.

    >>> layer = CollegialConv2D(40, 3, cardinality=4, padding="same")
    >>> y = layer(ops.ones((2, 8, 8, 20)))
    >>> tuple(y.shape), tuple(layer.kernel.shape)
    ((2, 8, 8, 40), (3, 3, 5, 40))
    """

    kernel_initializer: Any

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = (1, 1),
        *,
        cardinality: int = 1,
        shared_input: bool = False,
        parameterization: Parameterization = "standard",
        gain: float = 2.0,
        implementation: Implementation | str = "auto",
        kernel_initializer: Any = None,
        **options: Any,
    ) -> None:
        if "groups" in options:
            raise ValueError("groups: this layer calls it `cardinality`")
        one_of("implementation", implementation, ("auto", "native", "split"))
        boolean("shared_input", shared_input)
        _check_sides("kernel_size", kernel_size)
        _check_sides("strides", strides)
        if kernel_initializer is not None:
            keras_object("kernel_initializer", kernel_initializer, initializers.get)
        check_paths("filters", filters, cardinality)
        if kernel_initializer is None:
            kernel_initializer = default_initializer(parameterization, gain)
        options["name"] = options.get("name") or default_name(
            self, cardinality, filters // cardinality
        )
        super().__init__(
            filters,
            kernel_size,
            strides,
            groups=1 if shared_input else cardinality,
            kernel_initializer=kernel_initializer,
            **options,
        )
        self.cardinality = cardinality
        self.shared_input = shared_input
        self.implementation: Any = implementation
        self.parameterization = checked_parameterization(parameterization)
        self.gain = finite_number("gain", gain, above=0)

    @property
    def chosen_implementation(self) -> Implementation:
        """The way the layer computes: `"native"` or `"split"`."""
        if self.implementation == "auto":
            return choose(ConvSpec.of(self), keras.backend.standardize_dtype(self.compute_dtype))
        return self.implementation

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"inputs: {self.name!r} has {self.groups} paths, which must divide the channels of "
                f"its input; got shape {tuple(input_shape)}"
            )
        inputs = channels // self.groups
        self.fan_in = math.prod(self.kernel_size) * inputs
        path_shape = (*self.kernel_size, inputs, self.filters // self.cardinality)
        own = self.kernel_initializer
        self.kernel_initializer = for_each_path(own, self.cardinality, path_shape, join_channels)
        try:
            super().build(input_shape)
        finally:
            self.kernel_initializer = own  # What `get_config` saves.

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if (scale := ntk_scale(self)) != 1:
            kernel = ops.multiply(kernel, scale)
        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        return grouped_conv(inputs, kernel, ConvSpec.of(self), self.chosen_implementation)

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Raise `NotImplementedError`, from which `Model.quantize` makes a warning and goes on."""
        del mode, type_check, config
        raise NotImplementedError(
            f"{self.name!r} keeps its floats, as every convolution does in Keras' quantize; export "
            "the model to LiteRT or ONNX, whose converters quantise convolutions"
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["groups"]
        return {**config, **own_config(self), "implementation": self.implementation}


@register
class Aggregate(keras.layers.Layer):
    """The sum of the paths, divided by the square root of their number (Eq. 4).

    Args:
        cardinality: the number of paths; divides the channels.
        axis: the channel axis.

    Input is `(..., cardinality * n, ...)`, output `(..., n, ...)` with `n` on `axis`.

    Raises:
        ValueError: if the channels cannot be divided among the paths.

    >>> ops.convert_to_numpy(Aggregate(4)(ops.ones((1, 12)))).tolist()
    [[2.0, 2.0, 2.0]]
    """

    def __init__(self, cardinality: int, axis: int = -1, **options: Any) -> None:
        whole_number("axis", axis)
        super().__init__(**options)
        self.supports_masking = True
        self.cardinality = positive_int("cardinality", cardinality)
        self.axis = axis

    def build(self, input_shape: Any) -> None:
        known = -len(input_shape) <= self.axis < len(input_shape)
        if not known or (input_shape[self.axis] or 1) % self.cardinality:
            raise ValueError(
                f"inputs: {self.name!r} sums {self.cardinality} paths, which must divide axis "
                f"{self.axis} of its input; got shape {tuple(input_shape)}"
            )

    def call(self, inputs: Any) -> Any:
        return aggregate(inputs, self.cardinality, self.axis)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        axis = self.axis % len(input_shape)
        width = input_shape[axis] // self.cardinality
        return (*input_shape[:axis], width, *input_shape[axis + 1 :])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cardinality": self.cardinality, "axis": self.axis}


def aggregate(paths: Any, cardinality: int, axis: int = -1) -> Any:
    """Sum the paths of a tensor, as the layer `Aggregate` does."""
    axis %= len(paths.shape)
    shape = ops.shape(paths)
    width = paths.shape[axis] // cardinality
    apart = ops.reshape(paths, (*shape[:axis], cardinality, width, *shape[axis + 1 :]))
    return ops.sum(apart, axis=axis) / math.sqrt(cardinality)


#: The largest kernel or stride that is accepted.
_MOST_SIDE = 2**12


def _check_sides(argument: str, sides: Any) -> None:
    """Raise `ValueError` unless it is one side, or two, each a whole number of 1 or more."""
    listed = sides if isinstance(sides, list | tuple) else (sides, sides)
    found = sequence_of(argument, listed, lambda name, each: positive_int(name, each, _MOST_SIDE))
    if len(found) != 2:
        raise ValueError(f"{argument}: got {brief(sides)}; it must be a whole number, or two")


def check_paths(argument: str, size: Any, cardinality: Any) -> None:
    """Raise `ValueError` unless `cardinality` divides `size`, the value of `argument`."""
    if positive_int(argument, size) % positive_int("cardinality", cardinality):
        raise ValueError(
            f"{argument}, cardinality: got {size}, {cardinality}; cardinality must divide "
            f"{argument}"
        )


def default_initializer(parameterization: str, gain: float) -> keras.initializers.Initializer:
    """Return the initializer that a parameterisation implies, once that is checked."""
    return kernel_initializer(checked_parameterization(parameterization), gain)


def ntk_scale(layer: Any) -> float:
    """Return what the forward pass of the NTK parameterisation scales a kernel by (Eq. 3)."""
    ntk = layer.parameterization == "ntk"
    return math.sqrt(layer.gain / layer.fan_in) if ntk else 1.0


def default_name(layer: Any, cardinality: int, width: int) -> str | None:
    """Return a default name that shows the paths, such as `collegial_dense_8x25d`.

    `model.summary()` prints a layer's name, class, shape and parameters, and nothing that a class
    could add to.
    """
    words = {"CollegialConv2D": "collegial_conv2d", "CollegialDense": "collegial_dense"}
    word = words.get(type(layer).__name__)
    if cardinality == 1 or word is None:
        return None
    name = f"{word}_{cardinality}x{width}d"
    number = keras.backend.get_uid(name)
    return name if number == 1 else f"{name}_{number - 1}"


def own_config(layer: Any) -> dict[str, Any]:
    """Return the configuration that a layer of paths adds to Keras' own."""
    names = ("cardinality", "shared_input", "parameterization", "gain")
    return {name: getattr(layer, name) for name in names}


def join_channels(paths: list[Any]) -> Any:
    """Return kernels side by side, as one whose last axis has the channels of all."""
    return ops.concatenate(paths, axis=-1)
