"""The grouped convolution, computed in the way that is correct and fastest on each backend.

*native* hands the grouped kernel to the backend's own convolution. *split* cuts input and kernel
into the groups and runs one convolution each; it is correct everywhere. Keras itself compiles every
grouped convolution on TensorFlow with XLA, whose backward pass on a CPU is slower by two orders of
magnitude.

Which of the two a layer uses is decided once for its data type and geometry:

- TensorFlow: native, if a probe of a few pixels shows that its gradients are there and agree with
  the split form's. They are missing on CPU in float64, and wherever oneDNN is switched off. A row
  is convolved as an image of one line; volumes are split, since there is no native form of them.
- JAX: native on an accelerator; split on a CPU, where XLA's backward pass is the slow one.
- PyTorch: native.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

Implementation = Literal["native", "split"]

logger = logging.getLogger("ce_keras")


class ConvSpec(NamedTuple):
    """The settings of a grouped convolution.

    Attributes:
        groups: independent groups of channels.
        kernel_size: height and width of the kernel; one number for a row, three for a volume.
        strides: steps between output pixels, down and across.
        padding: `"same"` or `"valid"`.
        dilation: steps between kernel pixels, down and across.
        data_format: `"channels_last"` or `"channels_first"`.
    """

    groups: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: str = "valid"
    dilation: tuple[int, ...] = (1, 1)
    data_format: str = "channels_last"

    @classmethod
    def of(cls, layer: Any) -> ConvSpec:
        """Return the settings of a Keras layer."""
        return cls(
            layer.groups,
            tuple(layer.kernel_size),
            tuple(layer.strides),
            layer.padding,
            tuple(layer.dilation_rate),
            layer.data_format,
        )

    @property
    def channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1


def grouped_conv(x: Any, kernel: Any, spec: ConvSpec, implementation: Implementation) -> Any:
    """Convolve each group of channels with its own slice of the kernel.

    Args:
        x: images, `(batch, height, width, groups * inputs)`, or channels first.
        kernel: `(kernel_h, kernel_w, inputs, groups * outputs)`, group after group.
        spec: the convolution.
        implementation: how it is computed; see `choose`.

    Returns:
        `(batch, new_height, new_width, groups * outputs)`, or channels first.
    """
    if x.shape[0] == 0:  # TensorFlow gives the input's shape, or an error.
        one = ops.zeros((1, *x.shape[1:]), x.dtype)
        return grouped_conv(ops.concatenate([x, one]), kernel, spec, implementation)[:0]
    if implementation == "split":
        return _split(x, kernel, spec)
    if keras.backend.backend() != "tensorflow":
        return _conv(x, kernel, spec)
    if len(spec.kernel_size) == 1:
        return _tensorflow_row(x, kernel, spec)
    return _tensorflow_native(x, kernel, spec)


@functools.cache
def choose(spec: ConvSpec, dtype: str) -> Implementation:
    """Return the implementation that is correct and fastest here; found once and logged."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        chosen, why = _probe_tensorflow(spec, dtype)
    elif backend == "jax":
        import jax

        device = jax.default_backend()
        chosen, why = ("split" if device == "cpu" else "native"), f"JAX on {device}"
    else:
        chosen, why = "native", backend
    logger.info("grouped convolution %s in %s: %s (%s)", spec, dtype, chosen, why)
    return chosen


def _conv(x: Any, kernel: Any, spec: ConvSpec) -> Any:
    return ops.conv(
        x,
        kernel,
        strides=spec.strides,
        padding=spec.padding,
        data_format=spec.data_format,
        dilation_rate=spec.dilation,
    )


def _split(x: Any, kernel: Any, spec: ConvSpec) -> Any:
    inputs = ops.split(x, spec.groups, axis=spec.channel_axis)
    kernels = ops.split(kernel, spec.groups, axis=-1)
    outputs = [_conv(a, b, spec) for a, b in zip(inputs, kernels, strict=True)]
    return ops.concatenate(outputs, axis=spec.channel_axis)


class _TensorFlowConv:
    """`tf.raw_ops`' convolution and its two gradients, for the groups of a spec together."""

    def __init__(self, spec: ConvSpec) -> None:
        import tensorflow as tf

        self.ops = tf.raw_ops
        self.shape = tf.shape
        self.settings: dict[str, Any] = {"padding": spec.padding.upper()}
        if spec.data_format == "channels_last":
            self.settings.update(strides=(1, *spec.strides, 1), dilations=(1, *spec.dilation, 1))
        else:
            self.settings.update(strides=(1, 1, *spec.strides), dilations=(1, 1, *spec.dilation))
            self.settings.update(data_format="NCHW")

    def forward(self, x: Any, kernel: Any, upstream: Any = None) -> Any:
        del upstream  # The gradients need one; all three can be called alike.
        return self.ops.Conv2D(input=x, filter=kernel, **self.settings)

    def input_gradient(self, x: Any, kernel: Any, upstream: Any) -> Any:
        return self.ops.Conv2DBackpropInput(
            input_sizes=self.shape(x), filter=kernel, out_backprop=upstream, **self.settings
        )

    def kernel_gradient(self, x: Any, kernel: Any, upstream: Any) -> Any:
        return self.ops.Conv2DBackpropFilter(
            input=x, filter_sizes=self.shape(kernel), out_backprop=upstream, **self.settings
        )


def _tensorflow_native(x: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Compute TensorFlow's own grouped convolution, with a gradient that can be vectorised.

    `tf.GradientTape.jacobian` and `tf.vectorized_map` turn the gradient for a kernel into one
    larger convolution where the input is the same for all. That rule ignores groups: the result is
    silently wrong. Where the input varies with the output gradient, TensorFlow loops instead. So
    the input is made to depend on it in every graph, since any of them may be vectorised later.
    """
    import tensorflow as tf

    conv = _TensorFlowConv(spec)

    @tf.custom_gradient
    def convolve(x: Any, kernel: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            varying = x if tf.executing_eagerly() else _tied(x, upstream)
            return (
                conv.input_gradient(x, kernel, upstream),
                conv.kernel_gradient(varying, kernel, upstream),
            )

        return conv.forward(x, kernel), gradient

    return convolve(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))


def _tensorflow_row(x: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Convolve a row as an image of one line, which is what oneDNN has the fast operations for.

    The line lies across, but down for one channel a group: forward and backward that is 1.4 to 13
    times faster than the other way (but 0.9 times, for one channel a group and 3 pixels).
    """
    down = kernel.shape[-2] == 1 and kernel.shape[-1] == spec.groups
    axis = int(down) + (1 if spec.channel_axis == -1 else 2)
    image = _tensorflow_native(
        ops.expand_dims(x, axis), ops.expand_dims(kernel, int(down)), _as_image(spec, down)
    )
    return ops.squeeze(image, axis)


def _as_image(spec: ConvSpec, down: bool = False) -> ConvSpec:
    def beside(size: tuple[int, ...]) -> tuple[int, ...]:
        return (*size, 1) if down else (1, *size)

    return spec._replace(
        kernel_size=beside(spec.kernel_size),
        strides=beside(spec.strides),
        dilation=beside(spec.dilation),
    )


def _tied(x: Any, other: Any) -> Any:
    """Return `x`, made to depend on `other`: none of its examples are joined to those of `x`."""
    import tensorflow as tf

    nothing = tf.reshape(other[:0], tf.concat([[0], tf.shape(x)[1:]], 0))
    return tf.concat([x, nothing], 0)


def _probe_tensorflow(spec: ConvSpec, dtype: str) -> tuple[Implementation, str]:
    """Run a two-group miniature of the convolution both ways, forward and backward."""
    import tensorflow as tf

    if len(spec.kernel_size) == 1:
        spec = _as_image(spec)
    if len(spec.kernel_size) == 3:
        return "split", "native is of images and rows"
    spec = spec._replace(groups=2)
    conv = _TensorFlowConv(spec)
    # The smallest image that the kernel visits more than once, down and across.
    size = tuple(
        gap * (kernel - 1) + 1 + step
        for kernel, step, gap in zip(spec.kernel_size, spec.strides, spec.dilation, strict=True)
    )
    shape = (1, *size, 4) if spec.channel_axis == -1 else (1, 4, *size)
    rng = np.random.default_rng(0)

    def draw(shape: Any) -> Any:
        # Sums of so few of these are exact in every floating type: the two must agree to the bit.
        return tf.constant(rng.integers(-1, 2, size=shape), dtype)

    def split(value: Any, axis: int) -> Any:
        return tf.split(value, spec.groups, axis=axis)

    # Lifted out of any graph that is being traced: the answer is needed now.
    with tf.init_scope():
        x, kernel = draw(shape), draw((*spec.kernel_size, 2, 4))
        try:
            upstream = draw(conv.forward(x, kernel).shape)
            channels = spec.channel_axis
            groups = [split(x, channels), split(kernel, -1), split(upstream, channels)]
            for function, axis in (
                (conv.forward, channels),
                (conv.input_gradient, channels),
                (conv.kernel_gradient, -1),
            ):
                together = function(x, kernel, upstream)
                apart = tf.concat(list(map(function, *groups)), axis)
                if not bool(tf.reduce_all(together == apart)):
                    return "split", "native disagrees with split"
        except tf.errors.OpError as error:
            return "split", f"not native: {error.message.split('}} ')[-1]}"
    return "native", "native agrees with split, forward and backward"
