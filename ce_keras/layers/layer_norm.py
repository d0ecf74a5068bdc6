"""Layer normalisation of every path by itself."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ce_keras.checks import positive_int


@keras.saving.register_keras_serializable(package="ce_keras")
class CollegialLayerNormalization(keras.layers.LayerNormalization):
    """Layer normalisation over the channels of each of `cardinality` paths.

    Args:
        cardinality: the number of paths; divides the last axis.
        options: those of `keras.layers.LayerNormalization`; its `axis` is the last.

    Input and output are `(..., cardinality * n)`. Scale and shift are `(cardinality * n,)`.

    Raises:
        ValueError: if the channels cannot be divided among the paths, or for another axis.

    >>> x = ops.convert_to_tensor([[1.0, 3.0, 10.0, 30.0]])
    >>> y = CollegialLayerNormalization(2, epsilon=0.0)(x)
    >>> ops.convert_to_numpy(y).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(self, cardinality: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if self.axis not in (-1, [-1]):
            raise ValueError(f"axis: got {self.axis}; paths lie along the last axis, -1")
        self.cardinality = positive_int("cardinality", cardinality)

    def build(self, input_shape: Any) -> None:
        if input_shape[-1] is None or input_shape[-1] % self.cardinality:
            raise ValueError(
                f"inputs: {self.name!r} has {self.cardinality} paths, which must divide the last "
                f"axis of its input; got shape {tuple(input_shape)}"
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        # Half precision cannot hold the squares: the moments are taken in float32.
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, dtype)
        shape = ops.shape(x)
        paths = ops.reshape(
            x, (*shape[:-1], self.cardinality, inputs.shape[-1] // self.cardinality)
        )
        mean, variance = ops.moments(paths, axes=-1, keepdims=True)
        # As Keras has it, `rms_scaling` divides by the standard deviation, and keeps the mean.
        centred = paths if self.rms_scaling else paths - mean
        normal = centred * ops.rsqrt(variance + self.epsilon)
        outputs = ops.reshape(normal, shape)
        if self.gamma is not None:
            outputs = outputs * ops.cast(self.gamma, dtype)
        if self.beta is not None:
            outputs = outputs + ops.cast(self.beta, dtype)
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cardinality": self.cardinality}
