"""Kernels of explicitly drawn networks, by backpropagation: what theory is held against."""

import itertools

import numpy as np


def layer_kernels(x, widths, draws, rng, parameterization="ntk"):
    """Each matrix's share of the kernel among inputs `(p, n_0)`: `(draws, H + 1, p, p)`."""
    sizes = [x.shape[-1], *widths, 1]
    gains = [2.0] * len(widths) + [1.0]
    scales = [np.sqrt(gain / n) for gain, n in zip(gains, sizes[:-1], strict=True)]
    weights = [rng.standard_normal((draws, out, n)) for n, out in itertools.pairwise(sizes)]
    activations = [np.broadcast_to(x, (draws, *x.shape))]
    for scale, weight in zip(scales[:-1], weights[:-1], strict=True):
        activations.append(np.maximum(0, scale * activations[-1] @ weight.swapaxes(1, 2)))
    signal = np.ones((draws, len(x), 1))
    kernels = []
    for layer in reversed(range(len(weights))):
        share = gram(activations[layer]) * gram(signal)
        kernels.append(share * (scales[layer] ** 2 if parameterization == "ntk" else 1))
        signal = scales[layer] * signal @ weights[layer]
        if layer:
            signal = signal * (activations[layer] > 0)
    return np.stack(kernels[::-1], axis=1)


def bottleneck_kernels(x, width, draws, rng):
    """The kernel of a 1x1, a 3x3 and a 1x1 convolution at one pixel; `x` is `(p, 9, channels)`."""
    p, positions, channels = x.shape
    first = rng.standard_normal((draws, width, channels))
    second = rng.standard_normal((draws, width, positions * width))
    third = rng.standard_normal((draws, 1, width))
    scales = np.sqrt([2 / channels, 2 / (positions * width), 1 / width])
    below = np.maximum(0, scales[0] * np.einsum("pqc,tnc->tpqn", x, first))
    flat = below.reshape(draws, p, positions * width)
    above = np.maximum(0, scales[1] * flat @ second.swapaxes(1, 2))
    kernel = scales[2] ** 2 * gram(above)
    signal = scales[2] * np.broadcast_to(third, (draws, p, width)) * (above > 0)
    kernel += scales[1] ** 2 * gram(flat) * gram(signal)
    signal = (scales[1] * signal @ second).reshape(below.shape) * (below > 0)
    gradient = scales[0] * np.einsum("tpqn,pqc->tpnc", signal, x)
    return kernel + gram(gradient.reshape(draws, p, -1))


def gram(rows):
    return rows @ rows.swapaxes(-1, -2)


def assert_same_means(first, second, errors=5.0):
    """Equal means to five standard errors: a false alarm once in 1.7 million comparisons."""
    means, variances = zip(
        *((sample.mean(axis=0), sample.var(axis=0) / len(sample)) for sample in (first, second)),
        strict=True,
    )
    assert (abs(means[0] - means[1]) <= errors * np.sqrt(variances[0] + variances[1])).all()


def position_kernels(x, widths, slopes, draws, rng, parameterization="ntk"):
    """Kernels of drawn stacks whose first layer is applied at every position, `(draws, H + 1)`.

    Weights have variance gain / fan_in, where 1 / gain is the mean square of the activation's
    slope; the output's gain is 1. Every gradient is written out.
    """
    positions, channels = x.shape
    gain = 1 / slopes.mean_square
    fan_ins = [channels, positions * widths[0], *widths[1:]]
    gains = [gain] * len(widths) + [1.0]
    weights = [
        rng.normal(0, np.sqrt(g / fan_in), (draws, fan_in, out))
        for g, fan_in, out in zip(gains, fan_ins, [*widths, 1], strict=True)
    ]
    slope, activation = [], []
    h = np.broadcast_to(x, (draws, *x.shape))
    for weight in weights[:-1]:
        z = h @ weight
        slope.append(np.where(z > 0, slopes.positive, slopes.negative))
        h = z * slope[-1]
        if len(slope) == 1:  # The second layer sees all positions together.
            slope[0], h = slope[0].reshape(draws, 1, -1), h.reshape(draws, 1, -1)
        activation.append(h)
    found = np.empty((draws, len(weights)))
    signal = np.ones((draws, 1, 1))
    for layer in reversed(range(1, len(weights))):
        gradient = activation[layer - 1].swapaxes(1, 2) @ signal
        scale = gains[layer] / fan_ins[layer] if parameterization == "ntk" else 1.0
        found[:, layer] = scale * (gradient**2).sum((1, 2))
        signal = signal @ weights[layer].swapaxes(1, 2) * slope[layer - 1]
    gradient = x.T @ signal.reshape(draws, positions, -1)
    scale = gains[0] / fan_ins[0] if parameterization == "ntk" else 1.0
    found[:, 0] = scale * (gradient**2).sum((1, 2))
    return found
