"""Convolutions written out in float64 NumPy: what the layers are held against."""

import math

import numpy as np


def padded(x, kernel_size, strides, padding, dilation):
    """Pad `(batch, height, width, channels)` as TensorFlow's "same" does, or not at all."""
    if padding == "valid":
        return x
    pads = [(0, 0)]
    for size, kernel, step, gap in zip(x.shape[1:3], kernel_size, strides, dilation, strict=True):
        reach = gap * (kernel - 1) + 1
        total = max((math.ceil(size / step) - 1) * step + reach - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)])


def patches(x, kernel_size, strides, padding, dilation):
    """Every patch the kernel sees: `(batch, down, across, kernel_h, kernel_w, channels)`."""
    reach = [gap * (kernel - 1) + 1 for kernel, gap in zip(kernel_size, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(
        padded(x, kernel_size, strides, padding, dilation), reach, axis=(1, 2)
    )
    windows = windows[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return np.moveaxis(windows, 3, -1)


def grouped_conv(x, kernel, groups, strides, padding, dilation):
    """The grouped convolution, in float64, and the sum of the absolute products behind it."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    seen = patches(x, kernel.shape[:2], strides, padding, dilation)
    outputs, magnitudes = [], []
    for part, weights in zip(
        np.split(seen, groups, axis=-1), np.split(kernel, groups, axis=-1), strict=True
    ):
        outputs.append(np.einsum("bxyhwi,hwio->bxyo", part, weights))
        magnitudes.append(np.einsum("bxyhwi,hwio->bxyo", abs(part), abs(weights)))
    return np.concatenate(outputs, -1), np.concatenate(magnitudes, -1)


def kernel_gradient(x, kernel_shape, upstream, groups, strides, padding, dilation):
    """The gradient of `sum(upstream * conv(x, kernel))` for the kernel, and its magnitude."""
    seen = patches(np.asarray(x, np.float64), kernel_shape[:2], strides, padding, dilation)
    upstream = np.asarray(upstream, np.float64)
    gradients, magnitudes = [], []
    for part, above in zip(
        np.split(seen, groups, axis=-1), np.split(upstream, groups, axis=-1), strict=True
    ):
        gradients.append(np.einsum("bxyhwi,bxyo->hwio", part, above))
        magnitudes.append(np.einsum("bxyhwi,bxyo->hwio", abs(part), abs(above)))
    return np.concatenate(gradients, -1), np.concatenate(magnitudes, -1)


def rounding_bound(terms, magnitude, eps=np.finfo(np.float32).eps):
    """How far a sum of `terms` products may be from the truth: Higham's gamma times sum |ab|."""
    return 2 * (terms + 2) * eps * magnitude + np.finfo(np.float32).tiny
