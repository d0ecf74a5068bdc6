"""Batch normalisation as one operation forward and one backward, where Keras spells it out."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ce_keras.layers.collegial import register

#: What TensorFlow's fused operation computes in; its statistics are always float32.
_FUSED_DTYPES = ("float16", "bfloat16", "float32")


@register
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, in training on TensorFlow by its fused operation.

    Keras spells the training pass out in a dozen operations over the whole feature map, and as
    many backward. TensorFlow has it in one each. The function, the moving statistics, the
    arguments and the weights are the same; whatever the fused operation does not do (masks,
    synchronisation, renormalisation, float64, inputs that are not images, other backends) is left
    to Keras.

    >>> layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    >>> tuple(layer(ops.ones((2, 4, 4, 3)), training=True).shape)
    (2, 4, 4, 3)
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable and mask is None and self._can_fuse(inputs)):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        data_format = "NHWC" if self.axis in (-1, 3) else "NCHW"
        channels = inputs.shape[self.axis]
        gamma = ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else tf.zeros(channels)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=gamma,
            offset=beta,
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            data_format=data_format,
            is_training=True,
        )
        # The operation estimates the variance of the population; Keras keeps that of the batch.
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance *= (count - 1) / count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept = ops.cast(moving, "float32") * self.momentum
            moving.assign(kept + batch * (1 - self.momentum))
        return outputs

    def _can_fuse(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3, 1)
            and keras.backend.standardize_dtype(inputs.dtype) in _FUSED_DTYPES
            and not self.synchronized
            and not getattr(self, "renorm", False)
        )
