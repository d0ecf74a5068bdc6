"""The tangent kernel of a fully connected ReLU network at initialisation: exact, at any width.

The network is the paper's (Eq. 3): H hidden layers of widths n_1 ... n_H, one output, no biases,
weights of variance 2 / fan_in before a ReLU and 1 / fan_in before the output. Its kernel at one
input x is a sum over the H + 1 weight matrices, K = K_1 + ... + K_{H+1}.

Given the activations of a layer, the next weight matrix has a part along them, which fixes the
forward pass, and an independent rest, which only the backward pass sees. The squared norms of
activations and of backward signals then form a chain of scalars, whose moments close:

    E[K_l K_m] / (E[K_l] E[K_m])
        = prod_k (1 + 5 / n_k) * (1/3 + 2/3 prod_{l <= k < m} (n_k - 1) / (n_k + 5)),

and E[K_l] = |x|^2 / n_0 for every matrix in the NTK parameterisation. In the standard one, K_l is
fan_in_l / gain_l times that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ce_keras.checks import (
    Parameterization,
    brief,
    checked_parameterization,
    positive_int,
    real_array,
)

# Deeper networks are a slip.
_MOST_LAYERS = 10_000


@dataclass(frozen=True, eq=False)
class KernelMoments:
    """The first two moments of K(x, x), for an input of mean square 1 (|x|^2 = n_0).

    Attributes:
        layer_mean: E[K_l] of every weight matrix, shape `(H + 1,)`.
        layer_second_moment: E[K_l K_m], shape `(H + 1, H + 1)`.
    """

    layer_mean: np.ndarray
    layer_second_moment: np.ndarray

    @property
    def mean(self) -> float:
        """E[K]."""
        return float(self.layer_mean.sum())

    @property
    def second_moment(self) -> float:
        """E[K^2]."""
        return float(self.layer_second_moment.sum())

    @property
    def variance(self) -> float:
        """Var(K)."""
        return self.second_moment - self.mean**2

    @property
    def relative_variance(self) -> float:
        """Var(K) / E[K]^2."""
        return self.variance / self.mean**2

    @property
    def layer_variance(self) -> np.ndarray:
        """Var(K_l) of every weight matrix, shape `(H + 1,)`."""
        return np.diag(self.layer_second_moment) - self.layer_mean**2


def kernel_moments(
    widths: Sequence[int],
    parameterization: Parameterization = "ntk",
    inputs: int | None = None,
) -> KernelMoments:
    """The exact moments of the kernel of one network, at one input of mean square 1.

    Args:
        widths: hidden widths, first to last.
        parameterization: `"ntk"` or `"standard"`.
        inputs: size of the input; only the standard parameterisation needs it.

    Raises:
        ValueError: for widths that are not whole numbers of 1 or more, an unknown
            parameterisation, or a missing input size.

    >>> moments = kernel_moments([3, 5])
    >>> round(moments.mean, 12), round(moments.second_moment, 12)
    (3.0, 32.0)
    """
    n = np.array(checked_widths(widths), dtype=float)
    mean = layer_means(n, parameterization, inputs)
    ratio = np.prod(1 + 5 / n) * (1 + 2 * _between(n)) / 3
    return KernelMoments(mean, ratio * np.outer(mean, mean))


def checked_widths(widths: Any) -> list[int]:
    """Return hidden widths as plain `int`s.

    Raises:
        ValueError: unless they are whole numbers of 1 or more, and at least one.
    """
    if isinstance(widths, str | bytes | Mapping) or not isinstance(widths, Iterable):
        raise ValueError(f"widths: got {brief(widths)}; it must be a list of whole numbers")
    found = [positive_int("widths", width) for width in widths]
    if not 1 <= len(found) <= _MOST_LAYERS:
        raise ValueError(f"widths: got {len(found)}; there must be 1 to {_MOST_LAYERS:,} layers")
    return found


def _between(n: np.ndarray) -> np.ndarray:
    """The products of (n_k - 1) / (n_k + 5) over the layers between all pairs of matrices.

    For widths of shape `(..., H)`, an array of shape `(..., H + 1, H + 1)`.
    """
    # By differences of logarithms; of zero, very negative: one unit lets nothing through.
    logarithms = np.log(np.maximum((n - 1) / (n + 5), 1e-300))
    through = np.cumsum(logarithms, axis=-1)
    through = np.concatenate([np.zeros((*n.shape[:-1], 1)), through], axis=-1)
    return np.exp(-abs(through[..., :, None] - through[..., None, :]))


def layer_means(
    n: Sequence[int] | np.ndarray, parameterization: str, inputs: int | None = None
) -> np.ndarray:
    """E[K_l] of every weight matrix, at one input of mean square 1. Arguments as above."""
    if checked_parameterization(parameterization) == "ntk":
        return np.ones(len(n) + 1)
    if inputs is None:
        raise ValueError(
            "inputs: needed with parameterization='standard': the first matrix's share of the "
            "kernel grows with its fan-in"
        )
    fan_in = np.array([positive_int("inputs", inputs), *n])
    gain = np.full(len(fan_in), 2.0)
    gain[-1] = 1.0
    return fan_in / gain


def relative_variance(widths: np.ndarray) -> np.ndarray:
    """Var(K) / E[K]^2 in the NTK parameterisation, for many networks of one depth at once.

    Args:
        widths: hidden widths, shape `(..., H)`.

    Returns:
        An array of shape `(...)`.

    >>> float(relative_variance(np.array([3, 5])).round(12)) == round(32 / 9 - 1, 12)
    True
    """
    n = np.asarray(widths, dtype=float)
    growth = np.log1p(5 / n).sum(axis=-1)
    pairs = (1 + 2 * _between(n).mean(axis=(-2, -1))) / 3
    # exp(growth) * pairs - 1, without losing the small difference of wide networks.
    return np.expm1(growth + np.log(pairs))


def infinite_width_kernel(x1: np.ndarray, x2: np.ndarray, depth: int) -> np.ndarray:
    """The kernel that the network's tends to as its layers widen (NTK parameterisation).

    Layer by layer, by the arc-cosine kernels: with t the angle between two inputs' activations, the
    units active for both are the fraction (1 - t / pi) / 2.

    Args:
        x1: inputs, `(p, features)`.
        x2: inputs, `(q, features)`.
        depth: weight matrices (L of the paper): `depth - 1` hidden layers.

    Returns:
        An array of shape `(p, q)`.

    Raises:
        ValueError: for a depth below 1, or inputs that are not two tables of one number of columns.

    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> infinite_width_kernel(x, x, depth=4).round(2).tolist()  # Its diagonal: depth * |x|^2 / 2.
    [[2.0, 0.34], [0.34, 2.0]]
    """
    positive_int("depth", depth, _MOST_LAYERS)
    x1, x2 = real_array("x1", x1), real_array("x2", x2)
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1]:
        raise ValueError(
            f"x1, x2: got shapes {x1.shape} and {x2.shape}; they must be (p, features) and "
            "(q, features)"
        )
    scale = 2 / x1.shape[1]
    covariance, kernel = scale * x1 @ x2.T, scale * x1 @ x2.T
    # Weights of variance 2 / fan_in keep every input's own mean square as it is.
    size = scale * np.sqrt((x1**2).sum(1)[:, None] * (x2**2).sum(1))
    for _ in range(depth - 1):
        cosine = np.divide(covariance, size, out=np.zeros_like(size), where=size > 0).clip(-1, 1)
        both_active = 1 - np.arccos(cosine) / np.pi
        covariance = size * np.sqrt(1 - cosine**2) / np.pi + covariance * both_active
        kernel = covariance + kernel * both_active
    return kernel / 2  # The output's weights have half the others' variance.


def first_order_alpha(widths: Sequence[float]) -> float:
    """The constant of the exponential law to first order in 1 / width (NTK parameterisation).

    The exponent of E[K^2] / E[K]^2 is the sum over hidden layers of alpha_k / n_k with
    alpha_k = 5 - 8 k (H + 1 - k) / (H + 1)^2; this is their mean, weighed as Eq. 9 weighs layers.
    For equal widths it is 5 - (4/3) (H + 2) / (H + 1).

    >>> [round(first_order_alpha([100.0] * depth), 2) for depth in (2, 5, 6)]
    [3.22, 3.44, 3.48]
    """
    depth = len(widths) + 1
    k = np.arange(1, depth)
    return float(
        np.average(5 - 8 * k * (depth - k) / depth**2, weights=1 / np.asarray(widths, float))
    )
