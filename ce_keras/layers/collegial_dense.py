"""The dense layer of a collegial ensemble: a block-diagonal matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import activations, constraints, initializers, ops, regularizers

from ce_keras.checks import (
    Parameterization,
    boolean,
    checked_parameterization,
    finite_number,
    keras_object,
    positive_int,
)
from ce_keras.layers.collegial import (
    check_paths,
    default_initializer,
    default_name,
    join_channels,
    ntk_scale,
    own_config,
    register,
)
from ce_keras.layers.initializers import for_each_path
from ce_keras.layers.keras_internals import unlocked

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

    It has the arguments and methods of `keras.layers.Dense`; of quantisation, int8.

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
        activation: as in `keras.layers.Dense`, and so are the others: biases, initialisers,
            regularisers and constraints.

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

    dtype_policy: Any
    quantization_config: Any
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
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        parameterization: Parameterization = "standard",
        gain: float = 2.0,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        **options: Any,
    ) -> None:
        flags = {"use_bias": use_bias, "shared_input": shared_input, "aggregate": aggregate}
        for argument, flag in flags.items():
            boolean(argument, flag)
        if aggregate and shared_input:
            raise ValueError("aggregate: paths that are summed cannot also share their input")
        check_paths("units", units, 1 if aggregate else cardinality)
        positive_int("cardinality", cardinality)
        if kernel_initializer is None:
            kernel_initializer = default_initializer(parameterization, gain)
        options.update(
            activation=activation,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
        )
        for argument, value in options.items():
            if read := _READERS.get(argument.rpartition("_")[2]):
                options[argument] = keras_object(argument, value, read)
        width = units if aggregate else units // cardinality
        options["name"] = options.get("name") or default_name(self, cardinality, width)
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
            join = join_channels
        shape = (inputs, self.units) if blocks == 1 else (blocks, *path_shape)
        if self.quantization_mode:
            self.quantized_build(shape, self.quantization_mode, self.quantization_config)
        else:
            draw = for_each_path(self.kernel_initializer, self.cardinality, path_shape, join)
            self._kernel = self.add_weight(
                name="kernel",
                shape=shape,
                initializer=draw,
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
        if self.quantization_mode:
            raise ValueError(f"rank: {self.name!r} is quantised; its kernel has no low-rank part")
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
        paths = tuple(self._kernel.shape)[:-2]  # A kernel of several paths has an axis of them.
        if paths:
            initializer = for_each_path(initializer, paths[0], (inputs, outputs), ops.stack)
        return self.add_weight(
            name=f"lora_kernel_{name}",
            shape=(*paths, inputs, outputs),
            initializer=initializer,
            dtype="float32",
            regularizer=self.kernel_regularizer,
        )

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Keep the kernel as int8, as `keras.layers.Dense.quantize` does; called by a model's.

        Every output of every path has its own scale, and so has every input vector of a path.

        Raises:
            NotImplementedError: for another mode, a weight quantizer of one's own, or a layer with
                a low-rank part. `Model.quantize` makes a warning of it and goes on.
        """
        del type_check
        if mode != "int8" or getattr(config, "weight_quantizer", None) or self.lora_enabled:
            raise NotImplementedError(
                f"{self.name!r} keeps its floats: it is quantised in mode 'int8' with Keras' own "
                "weight quantizer, once a low-rank part is merged by saving and loading the model"
            )
        shape = self._kernel.shape
        kernel, scale = keras.quantizers.abs_max_quantize(self._kernel, axis=-2, to_numpy=True)
        del self._kernel
        self.quantization_config = config
        self.quantized_build(shape, mode, config)
        self._kernel.assign(kernel)
        self.kernel_scale.assign(ops.reshape(scale, (self.units,)))
        self.dtype_policy = keras.dtype_policies.get(f"int8_from_{self.dtype_policy.name}")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        del training
        kernel = self.kernel if self._factor == 1 else ops.multiply(self.kernel, self._factor)
        return self._applied(inputs, lambda x: ops.matmul(x, kernel))

    def _int8_call(self, inputs: Any, training: bool | None = None) -> Any:
        del training
        scale: Any = self.kernel_scale
        if len(self._kernel.shape) == 3:
            scale = ops.reshape(scale, (self.cardinality, 1, -1))

        def product(x: Any) -> Any:
            y = _int8_matmul(x, self._kernel, scale, self.inputs_quantizer, self.compute_dtype)
            return ops.multiply(y, self._factor)

        return self._applied(inputs, product)

    @property
    def _factor(self) -> float:
        """What the forward pass multiplies the kernel by (Eqs. 3 and 4)."""
        return ntk_scale(self) / (math.sqrt(self.cardinality) if self.aggregate else 1)

    def _applied(self, inputs: Any, product: Callable[[Any], Any]) -> Any:
        """Multiply the inputs, path by path, and add the bias."""
        if len(self._kernel.shape) == 2:
            outputs = product(inputs)
        else:
            # Paths first, by hand: an `einsum` over this layout is several times slower, above all
            # in its gradients.
            paths = ops.reshape(inputs, (-1, self.cardinality, self.fan_in))
            outputs = product(ops.transpose(paths, (1, 0, 2)))
            outputs = ops.transpose(outputs, (1, 0, 2))
            outputs = ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "aggregate": self.aggregate, **own_config(self)}


def _path_by_path(function: Any, blocks: int, join: Any) -> Any:
    """Apply a regulariser or constraint of one path's kernel to each path of a kernel."""
    if function is None or blocks == 1:
        return function
    return lambda kernel: join([function(kernel[path]) for path in range(blocks)])


def _int8_matmul(x: Any, kernel: Any, scale: Any, quantizer: Any, dtype: str) -> Any:
    """Multiply by an int8 kernel over a scale; the gradient is that of the rounded kernel."""

    @ops.custom_gradient
    def product(x: Any, kernel: Any, scale: Any) -> Any:
        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            upstream = arguments[0] if upstream is None else upstream
            rounded = ops.divide(ops.cast(kernel, dtype), scale)
            return ops.matmul(upstream, ops.swapaxes(rounded, -1, -2)), None, None

        divisor = scale
        if quantizer:  # There is none if weights alone are to be quantised.
            x, by_vector = quantizer(x, axis=-1)
            divisor = ops.multiply(scale, by_vector)
        return ops.divide(ops.cast(ops.matmul(x, kernel), dtype), divisor), gradient

    return product(x, ops.convert_to_tensor(kernel), ops.convert_to_tensor(scale))
