"""Draws of the tangent kernel of freshly initialised ReLU networks, without building networks.

Given the activations of a layer for p inputs, the forward pass depends on the next weight matrix
only through its p products with them, which are Gaussian vectors. The backward pass depends on the
rest of the matrix only through p more products, with the output gradients. So a draw costs O(p^2 n)
per layer, though the matrix has n^2 weights. For one input, the squared norms alone form a Markov
chain of scalars: O(1) per layer, at any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ce_keras.checks import (
    Parameterization,
    checked_parameterization,
    checked_seed,
    layer_widths,
    positive_int,
    real_array,
)
from ce_keras.variance.closed_form import layer_means

# Numbers in one array of a sampler at a time: half a megabyte stays in the processor's caches.
_CHUNK = 2**17


def generator(seed: Any) -> np.random.Generator:
    """Return NumPy's fastest generator with this seed, or the generator that is given."""
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.Generator(np.random.SFC64(checked_seed(seed)))


def chain_kernels(
    widths: Sequence[int],
    draws: int,
    *,
    parameterization: Parameterization = "ntk",
    inputs: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Draw K_1 ... K_{H+1} of fully connected networks, at one input of mean square 1.

    Args:
        widths: hidden widths, first to last.
        draws: number of networks.
        parameterization: `"ntk"` or `"standard"`.
        inputs: size of the input; only the standard parameterisation needs it.
        seed: for reproducible draws, or a generator.

    Returns:
        An array of shape `(draws, H + 1)`: the contribution of each weight matrix to the kernel.

    Raises:
        ValueError: as `ce_keras.variance.closed_form.kernel_moments` does.

    >>> chain_kernels([100] * 3, draws=5, seed=0).shape
    (5, 4)
    """
    n = layer_widths("widths", widths)
    if inputs is not None:
        positive_int("inputs", inputs)
    scale = layer_means(n, parameterization, inputs)
    rng = generator(seed)
    kernels = np.empty((positive_int("draws", draws), len(n) + 1))
    for part in _chunks(draws, 1):
        kernels[part] = _chain(n, part.stop - part.start, rng)
    return kernels * scale


def _chain(n: list[int], draws: int, rng: np.random.Generator) -> np.ndarray:
    # a and b are the squared norms of the activations and the output gradients, K_l = a b, in
    # units where a_0 = 2 |x|^2 / n_0 = 2, so that E[K_l] = 1 for every matrix.
    active = [rng.binomial(width, 0.5, draws) for width in n]
    a = [np.full(draws, 2.0)]
    for width, units in zip(n, active, strict=True):
        a.append(a[-1] * (4 / width) * rng.standard_gamma(units / 2))
    squared_output = a[-1] / 2 * rng.standard_normal(draws) ** 2
    b = np.full(draws, 0.5)
    kernels = np.empty((draws, len(n) + 1))
    kernels[:, -1] = a[-1] * b
    for layer in reversed(range(len(n))):
        units = active[layer]
        # The component along the activations is fixed by y . delta = f; the others are free.
        free = 2 * rng.standard_gamma(np.maximum(units - 1, 0) / 2)
        along = np.divide(squared_output, a[layer + 1], out=np.zeros(draws), where=a[layer + 1] > 0)
        b = (2 / n[layer]) * (along + b * free)
        kernels[:, layer] = a[layer] * b
    return kernels


def stack_kernels(
    x: np.ndarray,
    widths: Sequence[int],
    draws: int,
    *,
    parameterization: Parameterization = "ntk",
    seed: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Draw the kernel among several inputs, for a stack of ReLU layers and one output.

    The stack is fully connected, or begins with a layer that is applied at several positions whose
    activations the second layer reads together. In the bottleneck block, read at one pixel, the
    first 1x1 convolution has the nine positions of the 3x3 one.

    Args:
        x: the inputs, `(p, features)`, or `(p, positions, features)`.
        widths: hidden widths, first to last.
        draws: number of networks.
        parameterization: `"ntk"`, or `"standard"`.
        seed: for reproducible draws, or a generator.

    Returns:
        An array of shape `(draws, p, p)`.

    Raises:
        ValueError: for inputs of another rank, widths or draws below 1.

    >>> stack_kernels(np.eye(2, 10), [30, 20], draws=5, seed=0).shape
    (5, 2, 2)
    """
    x = real_array("x", x)
    if x.ndim not in (2, 3) or not x.size:
        raise ValueError(f"x: got shape {x.shape}; it must be (p, features), or with positions")
    # In single precision, squares of very large or small numbers would not be finite.
    exponent = int(np.frexp(abs(x).max())[1])
    x = np.ldexp(x.reshape(x.shape[0], -1, x.shape[-1]), -exponent)
    n = layer_widths("widths", widths)
    ntk = checked_parameterization(parameterization) == "ntk"
    rng = generator(seed)
    kernels = np.empty((positive_int("draws", draws), len(x), len(x)))
    for part in _chunks(draws, len(x) * max(x.shape[1] * n[0], *n)):
        kernels[part] = _stack(x, n, part.stop - part.start, ntk, rng)
    return np.ldexp(kernels, 2 * exponent)


def _stack(
    x: np.ndarray, n: list[int], draws: int, ntk: bool, rng: np.random.Generator
) -> np.ndarray:
    p, positions, features = x.shape

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((draws, *shape), dtype=np.float32)

    # Forward. The first layer is applied to every input at every position.
    vectors = x.reshape(1, p * positions, features)
    first = _orthonormal(vectors.astype(np.float32))[1]
    scale = np.sqrt(2 / features)
    h = (scale * first @ normal(p * positions, n[0])).reshape(draws, p, positions * n[0])
    masks, bases, coefficients, along = [h > 0], [], [], []
    for width in [*n[1:], 1]:
        basis, coefficient = _orthonormal(h * masks[-1])
        bases.append(basis)
        coefficients.append(coefficient)
        along.append(normal(p, width))
        gain = 2 if len(along) < len(n) else 1
        h = np.sqrt(gain / basis.shape[-1]) * coefficient @ along[-1]
        masks.append(h > 0)

    # Backward, from the cotangent 1 of the output.
    kernels = np.zeros((draws, p, p))
    cotangent = np.ones((draws, p, 1), dtype=np.float32)
    for layer in reversed(range(len(n))):
        basis, fan_in = bases[layer], bases[layer].shape[-1]
        gain = 2 if layer < len(n) - 1 else 1
        scale = gain / fan_in if ntk else 1.0
        kernels += scale * _gram(coefficients[layer]) * _gram(cotangent)
        free = _orthonormal(cotangent)[1] @ normal(p, fan_in)
        free -= (free @ basis.swapaxes(1, 2)) @ basis
        fixed = (cotangent @ along[layer].swapaxes(1, 2)) @ basis
        cotangent = np.sqrt(gain / fan_in, dtype=np.float32) * (free + fixed) * masks[layer]

    at_positions = cotangent.reshape(draws, p * positions, n[0])
    products = _gram(at_positions) * (vectors[0] @ vectors[0].T)
    # (draws, input, position, input, position) -> (draws, input, input)
    products = products.reshape(draws, p, positions, p, positions).sum(axis=(2, 4))
    return kernels + (2 / features if ntk else 1.0) * products


def _gram(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.swapaxes(1, 2)


def _orthonormal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return basis and coefficients of each draw by Gram-Schmidt: rows = coefficients @ basis.

    `rows` has shape `(draws, p, n)`. A row that is a combination of the ones before it, such as a
    row of zeros, gets a basis vector of zeros.
    """
    draws, p, _ = rows.shape
    basis = np.zeros_like(rows)
    coefficients = np.zeros((draws, p, p), rows.dtype)
    for i in range(p):
        rest = rows[:, i]
        size = np.sqrt(np.einsum("tn,tn->t", rest, rest))
        for j in range(i):
            along = np.einsum("tn,tn->t", rest, basis[:, j])
            coefficients[:, i, j] = along
            rest = rest - along[:, None] * basis[:, j]
        norm = np.sqrt(np.einsum("tn,tn->t", rest, rest))
        independent = norm > 1e-5 * size
        coefficients[:, i, i] = np.where(independent, norm, 0)
        np.divide(rest, norm[:, None], out=basis[:, i], where=independent[:, None])
    return basis, coefficients


def _chunks(draws: int, numbers: int) -> list[slice]:
    size = max(1, _CHUNK // numbers)
    return [slice(start, min(start + size, draws)) for start in range(0, draws, size)]
