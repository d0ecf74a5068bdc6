"""The layers of a collegial ensemble: paths side by side, and their sum (Fig. 1).

The m paths of an ensemble lie one after another along the channel axis, path by path: channels
`j * n` to `(j + 1) * n - 1` are path j's. So any layer that treats channels alike (normalisation,
activation, pooling) works on an ensemble as it is.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import activations, constraints, initializers, ops, regularizers

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
from ce_keras.layers.keras_internals import unlocked

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
        _check_paths("filters", filters, cardinality)
        if kernel_initializer is None:
            kernel_initializer = _default(parameterization, gain)
        options["name"] = options.get("name") or _name(self, cardinality, filters // cardinality)
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
        self.kernel_initializer = for_each_path(own, self.cardinality, path_shape, _join_channels)
        try:
            super().build(input_shape)
        finally:
            self.kernel_initializer = own  # What `get_config` saves.

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        kernel = _scaled(kernel, self)
        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        return grouped_conv(inputs, kernel, ConvSpec.of(self), self.chosen_implementation)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["groups"]
        return {**config, **_own_config(self), "implementation": self.implementation}


#: Keras' reader of each kind of argument, by the last word of its name.
_READERS = {
    "activation": activations.get,
    "initializer": initializers.get,
    "regularizer": regularizers.get,
    "constraint": constraints.get,
}


@register
class CollegialDense(keras.layers.Dense):
    """A dense layer of `cardinality` independent paths: a block-diagonal matrix.

    It has the arguments and methods of `keras.layers.Dense`, but for quantisation.

    Args:
        units: outputs of all paths together.
        cardinality: the number of paths; divides the inputs and `units`.
        shared_input: every path reads all inputs, as in the first layer of an ensemble.
        aggregate: the last layer of an ensemble: every path gives all `units`, which are summed and
            divided by `sqrt(cardinality)` (Eq. 4). The shift is one for all paths.
        parameterization: as in `CollegialConv2D`.
        gain: as in `CollegialConv2D`.
        lora_rank: adds a low-rank matrix of this rank to every path's kernel, which alone is
            trained, as `enable_lora` does.
        lora_alpha: what the low-rank matrix is multiplied by, over the rank; the rank if not given.
        activation: as in `keras.layers.Dense`.
        use_bias: as in `keras.layers.Dense`.
        kernel_initializer: replaces the one that `parameterization` implies.
        **options: the other arguments of `keras.layers.Dense`.

    Input is `(..., cardinality * inputs)`, output `(..., units)`. The kernel's shape is
    `(cardinality, inputs, units / cardinality)`; with one path, a shared input, or an aggregate,
    `Dense`'s own `(inputs, units)`.

    Raises:
        ValueError: if inputs or units cannot be divided among the paths.

    >>> layer = CollegialDense(12, cardinality=3)
    >>> y = layer(ops.ones((2, 6)))
    >>> tuple(y.shape), tuple(layer.kernel.shape)
    ((2, 12), (3, 2, 4))
    """

    lora_enabled: bool
    lora_rank: int | None
    lora_alpha: float | None

    def __init__(
        self,
        units: int,
        cardinality: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        *,
        shared_input: bool = False,
        aggregate: bool = False,
        parameterization: Parameterization = "standard",
        gain: float = 2.0,
        kernel_initializer: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        **options: Any,
    ) -> None:
        flags = {"use_bias": use_bias, "shared_input": shared_input, "aggregate": aggregate}
        for argument, flag in flags.items():
            boolean(argument, flag)
        if aggregate and shared_input:
            raise ValueError("aggregate: paths that are summed cannot also share their input")
        _check_paths("units", units, 1 if aggregate else cardinality)
        positive_int("cardinality", cardinality)
        if kernel_initializer is None:
            kernel_initializer = _default(parameterization, gain)
        options.update(activation=activation, kernel_initializer=kernel_initializer)
        for argument, value in options.items():
            if read := _READERS.get(argument.rpartition("_")[2]):
                options[argument] = keras_object(argument, value, read)
        width = units if aggregate else units // cardinality
        options["name"] = options.get("name") or _name(self, cardinality, width)
        super().__init__(
            int(units),
            use_bias=use_bias,
            lora_rank=None if lora_rank is None else positive_int("lora_rank", lora_rank),
            lora_alpha=None if lora_alpha is None else finite_number("lora_alpha", lora_alpha),
            **options,
        )
        self.cardinality = cardinality
        self.shared_input = shared_input
        self.aggregate = aggregate
        self.parameterization = checked_parameterization(parameterization)
        self.gain = finite_number("gain", gain, above=0)

    def build(self, input_shape: Any) -> None:
        inputs = input_shape[-1]
        blocks = 1 if self.shared_input else self.cardinality
        if inputs is None or inputs % blocks:
            raise ValueError(
                f"inputs: {self.name!r} has {blocks} paths, which must divide the last axis of "
                f"its input; got shape {tuple(input_shape)}"
            )
        self.fan_in = inputs // blocks
        path_shape = (self.fan_in, self.units // self.cardinality)
        join: Any = ops.stack
        if self.aggregate:
            blocks, path_shape, join = 1, (self.fan_in, self.units), ops.concatenate
        elif blocks == 1:
            join = _join_channels
        self._kernel = self.add_weight(
            name="kernel",
            shape=(inputs, self.units) if blocks == 1 else (blocks, *path_shape),
            initializer=for_each_path(self.kernel_initializer, self.cardinality, path_shape, join),
            regularizer=_path_by_path(self.kernel_regularizer, blocks, sum),
            constraint=_path_by_path(self.kernel_constraint, blocks, ops.stack),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        if self.lora_rank is not None:
            self.enable_lora(self.lora_rank, self.lora_alpha)

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        """Freeze the kernel, and add to every path's a trained matrix of low rank.

        The same as `keras.layers.Dense.enable_lora`. Their sum is what is saved.

        Args:
            rank: of the matrix that is added to each path's kernel.
            lora_alpha: what it is multiplied by, over the rank; the rank if not given.
            a_initializer: of its first factor, for each path as if it were alone.
            b_initializer: of its second factor.

        Raises:
            ValueError: for a layer that is not built, has a constraint on its kernel, or a
                low-rank matrix already.
        """
        rank = positive_int("rank", rank)
        if self.kernel_constraint:
            raise ValueError("kernel_constraint: a kernel with a constraint has no low-rank part")
        if not self.built and not hasattr(self, "_kernel"):
            raise ValueError(f"rank: {self.name!r} is not built yet; call it once first")
        if self.lora_enabled:
            raise ValueError(f"rank: {self.name!r} has a low-rank part already")
        a_initializer = keras_object("a_initializer", a_initializer, initializers.get, False)
        b_initializer = keras_object("b_initializer", b_initializer, initializers.get, False)
        inputs, outputs = self._kernel.shape[-2:]
        with unlocked(self):
            self.lora_kernel_a = self._low_rank_factor("a", a_initializer, inputs, rank)
            self.lora_kernel_b = self._low_rank_factor("b", b_initializer, rank, outputs)
        self._kernel.trainable = False
        self.lora_enabled = True
        self.lora_rank = rank
        self.lora_alpha = rank if lora_alpha is None else finite_number("lora_alpha", lora_alpha)

    def _low_rank_factor(self, name: str, initializer: Any, inputs: int, outputs: int) -> Any:
        paths = self._kernel.shape[:-2]  # A kernel of several paths has an axis of them.
        if paths:
            initializer = for_each_path(initializer, paths[0], (inputs, outputs), ops.stack)
        return self.add_weight(
            name=f"lora_kernel_{name}",
            shape=(*paths, inputs, outputs),
            initializer=initializer,
            dtype="float32",
            regularizer=self.kernel_regularizer,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        del training
        kernel = _scaled(self.kernel, self)
        if self.aggregate:
            kernel = ops.divide(kernel, math.sqrt(self.cardinality))
        if len(kernel.shape) == 2:
            outputs = ops.matmul(inputs, kernel)
        else:
            # Paths first, by hand: an `einsum` over this layout is several times slower, above all
            # in its gradients.
            paths = ops.reshape(inputs, (-1, self.cardinality, self.fan_in))
            outputs = ops.matmul(ops.transpose(paths, (1, 0, 2)), kernel)
            outputs = ops.transpose(outputs, (1, 0, 2))
            outputs = ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "aggregate": self.aggregate, **_own_config(self)}


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


def _check_paths(argument: str, size: Any, cardinality: Any) -> None:
    """Raise `ValueError` unless `cardinality` divides `size`, the value of `argument`."""
    if positive_int(argument, size) % positive_int("cardinality", cardinality):
        raise ValueError(
            f"{argument}, cardinality: got {size}, {cardinality}; cardinality must divide "
            f"{argument}"
        )


def _path_by_path(function: Any, blocks: int, join: Any) -> Any:
    """Apply a regulariser or constraint of one path's kernel to each path of a kernel."""
    if function is None or blocks == 1:
        return function
    return lambda kernel: join([function(kernel[path]) for path in range(blocks)])


def _default(parameterization: str, gain: float) -> keras.initializers.Initializer:
    return kernel_initializer(checked_parameterization(parameterization), gain)


def _scaled(kernel: Any, layer: CollegialConv2D | CollegialDense) -> Any:
    """Return the kernel of the forward pass: the NTK parameterisation scales it here (Eq. 3)."""
    if layer.parameterization == "standard":
        return kernel
    return ops.multiply(kernel, math.sqrt(layer.gain / layer.fan_in))


def _name(layer: Any, cardinality: int, width: int) -> str | None:
    """Return a default name that shows the paths, such as `collegial_dense_8x25d`.

    `model.summary()` prints a layer's name, class, shape and parameters, and nothing that a class
    could add to.
    """
    words = {CollegialConv2D: "collegial_conv2d", CollegialDense: "collegial_dense"}
    if cardinality == 1 or type(layer) not in words:
        return None
    name = f"{words[type(layer)]}_{cardinality}x{width}d"
    number = keras.backend.get_uid(name)
    return name if number == 1 else f"{name}_{number - 1}"


def _own_config(layer: CollegialConv2D | CollegialDense) -> dict[str, Any]:
    names = ("cardinality", "shared_input", "parameterization", "gain")
    return {name: getattr(layer, name) for name in names}


def _join_channels(paths: list[Any]) -> Any:
    return ops.concatenate(paths, axis=-1)
