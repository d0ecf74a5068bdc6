"""Batch normalisation by one operation forward and one backward."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ce_keras.layers.collegial import register

#: Types of the images that the fused operations take; their statistics are always float32.
_FUSED_DTYPES = ("float16", "bfloat16", "float32")


@register
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, in training by the backend's fused operation.

    Keras computes the training pass by a dozen operations over the whole feature map, and as many
    backward; TensorFlow and PyTorch have one each. Function, moving statistics, arguments and
    weights are Keras' own. Keras computes whatever the fused operation cannot: masks,
    synchronisation, renormalisation, float64, inputs that are not images, other backends.

    >>> layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    >>> tuple(layer(ops.ones((2, 4, 4, 3)), training=True).shape)
    (2, 4, 4, 3)
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable and mask is None and self._can_fuse(inputs)):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[self.axis]
        gamma = ops.cast(self.gamma, "float32") if self.scale else ops.ones(channels, "float32")
        beta = ops.cast(self.beta, "float32") if self.center else ops.zeros(channels, "float32")
        fused = _torch if keras.backend.backend() == "torch" else _tensorflow
        channels_last = self.axis in (-1, 3)
        outputs, mean, variance = fused(inputs, gamma, beta, self.epsilon, channels_last)
        # The operation estimates the variance of the population; Keras keeps that of the batch.
        count = ops.cast(ops.size(inputs) // channels, "float32")
        variance = variance * ((count - 1) / count)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept = ops.cast(moving, "float32") * self.momentum
            moving.assign(kept + batch * (1 - self.momentum))
        return outputs

    def _can_fuse(self, inputs: Any) -> bool:
        if keras.backend.backend() == "torch" and inputs.numel() == inputs.shape[self.axis]:
            return False  # PyTorch refuses a single value per channel.
        return len(inputs.shape) == 4 and self.fuses(self, inputs.dtype)

    @staticmethod
    def fuses(layer: keras.layers.BatchNormalization, dtype: Any) -> bool:
        """Return whether there is a fused operation for images of a type, with a layer's options.

        Args:
            layer: Keras' layer, or this one.
            dtype: of the images.
        """
        return (
            keras.backend.backend() in ("tensorflow", "torch")
            and layer.axis in (-1, 3, 1)
            and keras.backend.standardize_dtype(dtype) in _FUSED_DTYPES
            and not layer.synchronized
            and not getattr(layer, "renorm", False)
        )


def _tensorflow(x: Any, gamma: Any, beta: Any, epsilon: float, channels_last: bool) -> Any:
    """Return the normalised images, the batch's mean, and the unbiased variance."""
    import tensorflow as tf

    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=tf.zeros(0),
        variance=tf.zeros(0),
        epsilon=epsilon,
        data_format="NHWC" if channels_last else "NCHW",
        is_training=True,
    )
    return outputs, mean, variance


def _torch(x: Any, gamma: Any, beta: Any, epsilon: float, channels_last: bool) -> Any:
    """Return what `_tensorflow` does: at a momentum of 1, running statistics are the batch's."""
    import torch

    mean, variance = torch.zeros_like(gamma), torch.ones_like(beta)
    images = x.permute(0, 3, 1, 2) if channels_last else x
    outputs = torch.nn.functional.batch_norm(
        images, mean, variance, gamma, beta, training=True, momentum=1.0, eps=epsilon
    )
    return outputs.permute(0, 2, 3, 1) if channels_last else outputs, mean, variance
