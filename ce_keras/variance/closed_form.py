"""Exact moments of the tangent kernel of a ReLU stack at initialisation, at any width.

The stack is Eq. 3's: weights of variance 2 / fan_in before a ReLU and 1 / fan_in before the output,
no biases, one output unit. Its first hidden layer is applied at P positions of the input, and the
second layer reads the activations of all P together. A fully connected network has one position.
In the bottleneck block, read at one pixel, the 1x1 convolution has the nine positions of the 3x3
one. Any number of hidden layers follows. The kernel at one input is a sum of contributions of the
H + 1 weight matrices, K = K_1 + ... + K_{H+1}.

Given a layer's activations, split the next weight matrix into its component along them, which
determines the forward pass, and the independent rest, which only the backward pass depends on.
Because ReLU is homogeneous, the first two moments of the output gradients are those of an isotropic
vector, and the second moments obey a closed recursion. With n_k the widths and
q = E[g^4] / E[g^2]^2 of the slope g (2 for ReLU, whose slope is 0 or 1),

    Q_k = prod_{j >= k} (1 + (3 q - 1) / n_j)
    C_{mm} = Q_m,    C_{lm} = (1 - 1/n_l) C_{l+1,m} + (q / n_l) Q_{l+1}    for 2 <= l < m

are the moments E[K_l K_m] / (E[K_l] E[K_m]) of the matrices above the first hidden layer, given its
activations. The first hidden layer multiplies them by 1 + sigma / n_1, and its own matrix has

    E_{11} = Q_2 (1 + omega / n_1),    E_{1m} = C_{2m} (1 + tau / n_1) + (Q_2 - C_{2m}) r / n_1,

where sigma, tau, omega and r are sums over pairs of positions of expectations of two correlated
normal numbers (`_first_layer`). So every moment is a polynomial in the 1 / n_k. With one position,

    E[K_l K_m] / (E[K_l] E[K_m])
        = prod_k (1 + 5 / n_k) * (1/3 + 2/3 prod_{l <= k < m} (n_k - 1) / (n_k + 5)).

The same holds for every activation that is linear on either side of zero. There is no closed form
for off-diagonal entries, outputs pooled over positions, biases or other activations; use
`ce_keras.variance.fit_alpha` for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ce_keras.checks import (
    MOST_LAYERS,
    Parameterization,
    brief,
    checked_parameterization,
    finite_number,
    layer_widths,
    positive_int,
    real_array,
)

#: Slopes of homogeneous activations for positive and for negative numbers, by Keras' names.
ACTIVATIONS = {"relu": (1.0, 0.0), "leaky_relu": (1.0, 0.2), "linear": (1.0, 1.0)}

#: Name of a homogeneous activation, or its slopes for positive and for negative numbers.
Activation = str | tuple[float, float]


@dataclass(frozen=True, eq=False)
class KernelMoments:
    """The first two moments of K(x, x).

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
    *,
    gram: Any = None,
    activation: Activation = "relu",
) -> KernelMoments:
    """Return the exact moments of the kernel of one network at one input.

    Args:
        widths: hidden widths, first to last.
        parameterization: `"ntk"` or `"standard"`.
        inputs: size of the input at one position; only the standard parameterisation needs it.
        gram: mean products of the input's features at the positions of the first layer,
            x_p . x_q / features, shape `(P, P)`; one position of mean square 1 if not given.
        activation: `"relu"`, `"leaky_relu"`, `"linear"`, or the slopes for positive and for
            negative numbers.

    Raises:
        ValueError: for widths that are not whole numbers of 1 or more, an unknown
            parameterisation, a missing input size, a matrix that is not a Gram matrix, or an
            activation that is not linear on either side of zero.

    >>> moments = kernel_moments([3, 5])
    >>> round(moments.mean, 12), round(moments.second_moment, 12)
    (3.0, 32.0)
    >>> block = kernel_moments([10, 10], gram=gram_of(9, correlation=1.0))
    >>> round(block.relative_variance, 4)
    0.77
    """
    if inputs is not None:
        positive_int("inputs", inputs)
    n = np.array(layer_widths("widths", widths), dtype=float)
    gram = _checked_gram(gram)
    slopes = slopes_of(activation)
    size = float(np.diag(gram).mean())
    mean = size * layer_means(n, parameterization, inputs, len(gram), slopes)
    growth, ratios = _second_moments(n, gram, slopes)
    return KernelMoments(mean, np.exp(growth) * ratios * np.outer(mean, mean))


def relative_variance(widths: Any, gram: Any = None, activation: Activation = "relu") -> np.ndarray:
    """Return Var(K) / E[K]^2 in the NTK parameterisation, for many networks of one depth at once.

    Args:
        widths: hidden widths, shape `(..., H)`, not necessarily whole numbers.
        gram: as in `kernel_moments`.
        activation: as in `kernel_moments`.

    Returns:
        An array of shape `(...)`.

    >>> float(relative_variance(np.array([3, 5])).round(12)) == round(32 / 9 - 1, 12)
    True
    """
    n = np.asarray(widths, dtype=float)
    growth, ratios = _second_moments(n, _checked_gram(gram), slopes_of(activation))
    # exp(growth) * mean - 1 without cancellation where networks are wide. Deep, narrow networks
    # may exceed the range of floats: their variance is returned as infinite.
    with np.errstate(over="ignore"):
        return np.expm1(growth + np.log(ratios.mean(axis=(-2, -1))))


def variance_coefficients(
    ratios: Sequence[float] | np.ndarray, gram: Any = None, activation: Activation = "relu"
) -> np.ndarray:
    """Return c_1, ..., c_H of Var(K) / E[K]^2 = sum_k c_k / n^k, for hidden widths `ratios * n`.

    The variance is a polynomial in 1 / n without a constant term; its degree is the number of
    hidden layers.

    Args:
        ratios: hidden widths over n, first to last; at most eight.
        gram: as in `kernel_moments`.
        activation: as in `kernel_moments`.

    Raises:
        ValueError: for more than eight layers, where interpolation is inaccurate.

    >>> variance_coefficients([1, 1], gram_of(9, 1.0)).round(3).tolist()  # 58/9 and 113/9.
    [6.444, 12.556]
    """
    scale = real_array("ratios", ratios)
    degree = scale.size if scale.ndim == 1 and (scale > 0).all() else 0
    if not 1 <= degree <= MOST_COEFFICIENTS:
        raise ValueError(
            f"ratios: got {degree}; coefficients are known for 1 to {MOST_COEFFICIENTS} layers"
        )
    # Interpolation at Chebyshev nodes in (0, 1) is well conditioned for low degrees.
    x = (1 + np.cos(np.pi * (2 * np.arange(degree) + 1) / (2 * degree))) / 2
    values = relative_variance(scale / x[:, None], gram, activation)
    return np.linalg.solve(x[:, None] ** np.arange(1, degree + 1), values)


#: The largest number of hidden layers whose polynomial is interpolated accurately.
MOST_COEFFICIENTS = 8


def gram_of(positions: int, correlation: Any = 1.0) -> np.ndarray:
    """Return the Gram matrix of positions of mean square 1, `(positions, positions)`.

    Args:
        positions: the number of positions.
        correlation: of every pair of them, from -1 / (positions - 1) to 1; or the matrix of all
            correlations, or of products.

    Raises:
        ValueError: for a number out of its range, or a matrix of another size or that is not a
            Gram matrix.

    >>> gram_of(2, 0.5).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    if np.ndim(correlation) == 0:
        least = -1 / (positions - 1) if positions > 1 else -1
        value = finite_number("correlation", correlation, least, most=1)
        return (1 - value) * np.eye(positions) + value
    gram = _checked_gram(correlation, "correlation")
    if len(gram) != positions:
        raise ValueError(
            f"correlation: got shape {gram.shape}; the first layer is applied at {positions} "
            "positions"
        )
    return gram


class Slopes(NamedTuple):
    """A homogeneous activation: its slope for positive and for negative numbers."""

    positive: float = 1.0
    negative: float = 0.0

    @property
    def mean_square(self) -> float:
        """E[g^2] of the slope g at a symmetric random number."""
        return (self.positive**2 + self.negative**2) / 2

    @property
    def kurtosis(self) -> float:
        """E[g^4] / E[g^2]^2."""
        return (self.positive**4 + self.negative**4) / 2 / self.mean_square**2


def slopes_of(activation: Any) -> Slopes:
    """Return the slopes of an activation that is linear on either side of zero."""
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return Slopes(*ACTIVATIONS[activation])
    if isinstance(activation, tuple | list) and len(activation) == 2:
        slopes = Slopes(*(finite_number("activation", slope) for slope in activation))
        if any(slopes):
            return slopes
    raise ValueError(
        f"activation: got {brief(activation)}; the closed form is for {', '.join(ACTIVATIONS)}, or "
        "two slopes such as (1, 0.1). For others use ce_keras.variance.fit_alpha(build, width=...)"
    )


def _second_moments(
    n: np.ndarray, gram: np.ndarray, slopes: Slopes
) -> tuple[np.ndarray, np.ndarray]:
    """Return log(Q_2) and E[K_l K_m] / (E[K_l] E[K_m]) / Q_2.

    Q_2, a factor of all moments, would overflow for deep, narrow networks. For widths of shape
    `(..., H)` the results have shapes `(...)` and `(..., H + 1, H + 1)`.
    """
    layers = n.shape[-1]
    q = slopes.kurtosis
    growth = 1 + (3 * q - 1) / n
    # C_{lm} / Q_l of the matrices above the first hidden layer, counted from 0; 1 for l = m.
    behind = np.ones((*n.shape[:-1], layers, layers))
    for m in range(1, layers):
        for l in reversed(range(m)):  # noqa: E741 - The formula's letter.
            width = n[..., l + 1]
            ratio = (1 - 1 / width) * behind[..., l + 1, m] + q / width
            behind[..., l, m] = behind[..., m, l] = ratio / growth[..., l + 1]
    omega, sigma, tau, r = _first_layer(gram, slopes)
    first = n[..., 0]
    found = np.empty((*n.shape[:-1], layers + 1, layers + 1))
    found[..., 0, 0] = 1 + omega / first
    found[..., 1:, 1:] = (1 + sigma / first)[..., None, None] * behind
    row = behind[..., 0, :]
    found[..., 0, 1:] = row * (1 + tau / first)[..., None] + (1 - row) * (r / first)[..., None]
    found[..., 1:, 0] = found[..., 0, 1:]
    return np.log(growth[..., 1:]).sum(axis=-1), found


def _first_layer(gram: np.ndarray, slopes: Slopes) -> tuple[float, float, float, float]:
    """Return omega, sigma, tau and r of the first hidden layer.

    The preactivations u, v of two positions p, q are normal, at an angle theta. With g the slope
    and h = g u the activation at each, omega needs E[g_p^2 g_q^2], tau E[h_p^2 g_q^2], sigma
    E[h_p^2 h_q^2] and r E[h_p h_q g_p g_q], each a sum over the four quadrants of (u, v).
    """
    squares = np.diag(gram)
    size = np.sqrt(np.outer(squares, squares))
    cosine = np.divide(gram, size, out=np.zeros_like(gram), where=size > 0).clip(-1, 1)
    angle = np.arccos(cosine)

    def quadrants(moment: Callable[..., Any], opposite: int = 1) -> Any:
        """Sum a moment of the quadrant u, v > 0 over all four; other signs mean pi - theta."""
        same = slopes.positive**4 + slopes.negative**4
        other = 2 * (slopes.positive * slopes.negative) ** 2
        beside = moment(np.pi - angle, -cosine)
        return same * moment(angle, cosine) + opposite * other * beside

    def active(theta: Any, _: Any) -> Any:  # E[1_u 1_v]
        return (np.pi - theta) / (2 * np.pi)

    def square(theta: Any, cos: Any) -> Any:  # E[u^2 1_u 1_v] over its variance
        return (np.pi - theta + np.sin(theta) * cos) / (2 * np.pi)

    def squares_of_both(theta: Any, cos: Any) -> Any:  # E[u^2 v^2 1_u 1_v]
        return (3 * np.sin(theta) * cos + (np.pi - theta) * (1 + 2 * cos**2)) / (2 * np.pi)

    def product(theta: Any, cos: Any) -> Any:  # E[u v 1_u 1_v]
        return (np.sin(theta) + (np.pi - theta) * cos) / (2 * np.pi)

    unit = (squares.sum() * slopes.mean_square) ** 2
    omega = ((size**2 + 2 * gram**2) * quadrants(active)).sum() / unit - 1
    sigma = (size**2 * quadrants(squares_of_both)).sum() / unit - 1
    tau = (size**2 * quadrants(square)).sum() / unit - 1
    r = (gram * size * quadrants(product, -1)).sum() / unit
    return omega, sigma, tau, r


def layer_means(
    n: Sequence[int] | np.ndarray,
    parameterization: str,
    inputs: int | None = None,
    positions: int = 1,
    slopes: Slopes | None = None,
) -> np.ndarray:
    """Return E[K_l] of every weight matrix, at an input of mean square 1."""
    if checked_parameterization(parameterization) == "ntk":
        return np.ones(len(n) + 1)
    if inputs is None:
        raise ValueError(
            "inputs: needed with parameterization='standard': the first matrix's contribution to "
            "the kernel grows with its fan-in"
        )
    fan_in = np.array([positive_int("inputs", inputs), *n], dtype=float)
    fan_in[1] *= positions
    gain = np.full(len(fan_in), 1 / (slopes or Slopes()).mean_square)
    gain[-1] = 1.0
    return fan_in / gain


def _checked_gram(gram: Any, argument: str = "gram") -> np.ndarray:
    """Return a symmetric, positive semidefinite matrix; by default of one position of square 1."""
    if gram is None:
        return np.ones((1, 1))
    matrix = real_array(argument, gram)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] and matrix.size > 0
    if not square or not np.allclose(matrix, matrix.T, atol=1e-8 * abs(matrix).max()):
        raise ValueError(f"{argument}: got shape {matrix.shape}; it must be square and symmetric")
    # Rounding may leave eigenvalues slightly below zero.
    if np.linalg.eigvalsh(matrix)[0] < -1e-6 * np.trace(matrix) or not np.trace(matrix) > 0:
        raise ValueError(f"{argument}: no vectors have these products: it has eigenvalues below 0")
    return matrix


def infinite_width_kernel(x1: np.ndarray, x2: np.ndarray, depth: int) -> np.ndarray:
    """Return the limit of a fully connected ReLU network's kernel at infinite width.

    In the NTK parameterisation, layer by layer by the arc-cosine kernels: with t the angle between
    two inputs' activations, a fraction (1 - t / pi) / 2 of the units is active for both.

    Args:
        x1: inputs, `(p, features)`.
        x2: inputs, `(q, features)`.
        depth: weight matrices (L of the paper): `depth - 1` hidden layers.

    Returns:
        An array of shape `(p, q)`.

    Raises:
        ValueError: for a depth below 1, or inputs that are not two matrices of as many columns.

    >>> x = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> infinite_width_kernel(x, x, depth=4).round(2).tolist()  # The diagonal is depth |x|^2 / 2.
    [[2.0, 0.34], [0.34, 2.0]]
    """
    positive_int("depth", depth, MOST_LAYERS)
    x1, x2 = real_array("x1", x1), real_array("x2", x2)
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1]:
        raise ValueError(
            f"x1, x2: got shapes {x1.shape} and {x2.shape}; they must be (p, features) and "
            "(q, features)"
        )
    scale = 2 / x1.shape[1]
    covariance, kernel = scale * x1 @ x2.T, scale * x1 @ x2.T
    # Weights of variance 2 / fan_in preserve every input's mean square.
    size = scale * np.sqrt((x1**2).sum(1)[:, None] * (x2**2).sum(1))
    for _ in range(depth - 1):
        cosine = np.divide(covariance, size, out=np.zeros_like(size), where=size > 0).clip(-1, 1)
        both_active = 1 - np.arccos(cosine) / np.pi
        covariance = size * np.sqrt(1 - cosine**2) / np.pi + covariance * both_active
        kernel = covariance + kernel * both_active
    return kernel / 2  # The output layer's weights have half the variance of the others.
