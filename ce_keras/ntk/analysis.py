"""Spectrum and alignment of a kernel matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from ce_keras.checks import boolean, brief, real_array

# Rounding of half precision makes a kernel as asymmetric, relative to its largest entry.
_ASYMMETRY = 1e-2


def spectrum(kernel: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a kernel, largest first.

    Args:
        kernel: `(N, N)`, symmetric, or `(N, N, O, O)` as `empirical_ntk(..., trace_axes=())`
            gives it, which is taken as a matrix of N * O rows.

    Raises:
        ValueError: for any other shape, a kernel that is not symmetric, or numbers that are
            infinite or NaN.

    >>> spectrum(np.diag([1.0, 3.0, 2.0])).tolist()
    [3.0, 2.0, 1.0]
    """
    return np.linalg.eigvalsh(checked_matrix("kernel", kernel))[::-1]


def condition_number(kernel: np.ndarray) -> float:
    """Return the largest eigenvalue over the smallest; infinity for a singular kernel.

    Args:
        kernel: as for `spectrum`.

    >>> condition_number(np.diag([1.0, 4.0]))
    4.0
    """
    values = spectrum(kernel)
    is_regular = values[-1] > rounding_error(kernel, values)
    return float(values[0] / values[-1]) if is_regular else np.inf


def rounding_error(kernel: np.ndarray, values: np.ndarray) -> float:
    """Return how far a kernel's eigenvalues may be off by the precision of its numbers."""
    # Whole numbers are as exact as double precision.
    dtype = np.asarray(kernel).dtype
    eps = np.finfo(dtype if dtype.kind == "f" else np.float64).eps
    return float(len(values) * eps * values.max())


def alignment(first: np.ndarray, second: np.ndarray, centred: bool = False) -> float:
    """Return the cosine between two kernels of the same examples as vectors.

    Args:
        first: `(N, N)`.
        second: `(N, N)`.
        centred: subtract each kernel's means in feature space first (centred kernel alignment).

    Raises:
        ValueError: for kernels that are not square and symmetric, not of one size, or zero.

    >>> alignment(np.eye(2), np.ones((2, 2)))
    0.7071067811865475
    """
    first, second = checked_matrix("first", first), checked_matrix("second", second)
    boolean("centred", centred)
    if first.shape != second.shape:
        raise ValueError(
            f"second: got shape {second.shape}; it must be of the first's examples, {first.shape}"
        )
    if centred:
        first, second = _centred(first), _centred(second)
    return float((_of_length_one("first", first) * _of_length_one("second", second)).sum())


def label_alignment(kernel: np.ndarray, labels: Any, centred: bool = True) -> float:
    """Return the alignment of a kernel with the kernel of the labels.

    Args:
        kernel: `(N, N)`.
        labels: class numbers, `(N,)` integers; or targets, `(N,)` or `(N, outputs)`.
        centred: as for `alignment`; without it, large classes dominate.

    Raises:
        ValueError: for a number of labels other than N, or labels that are all alike.

    >>> same_class = np.kron(np.eye(2), np.ones((3, 3)))
    >>> round(label_alignment(same_class, [0, 0, 0, 1, 1, 1]), 12)
    1.0
    """
    matrix = checked_matrix("kernel", kernel)
    boolean("centred", centred)
    targets = real_array("labels", labels)
    if not targets.ndim or not targets.size:
        raise ValueError(f"labels: got {brief(labels)}; it must be one for each example")
    if targets.ndim == 1 and np.issubdtype(np.asarray(labels).dtype, np.integer):
        targets = (targets[:, None] == np.unique(targets)).astype(float)
    targets = targets.reshape(len(targets), -1)
    if len(targets) != len(matrix):
        raise ValueError(f"labels: got {len(targets)}; the kernel is of {len(matrix)} examples")
    if not (np.ptp(targets, axis=0) if centred else targets).any():
        raise ValueError("labels: all are alike; an alignment needs differences")
    return alignment(matrix, targets @ targets.T, centred)


def _of_length_one(argument: str, kernel: np.ndarray) -> np.ndarray:
    """Return a kernel over its norm, whose squares may be beyond double precision."""
    largest = abs(kernel).max()
    if not largest:
        raise ValueError(f"{argument}: is zero (once its means are subtracted, if it is centred)")
    return kernel / largest / np.linalg.norm(kernel / largest)


def _centred(kernel: np.ndarray) -> np.ndarray:
    rows = kernel.mean(axis=0)
    return kernel - rows[None] - rows[:, None] + rows.mean()


def as_matrix(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel `(N1, N2, O, O)` as a matrix `(N1 * O, N2 * O)`."""
    n1, n2, outputs, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * outputs, n2 * outputs)


def checked_matrix(argument: str, kernel: np.ndarray) -> np.ndarray:
    """Return a kernel as a square, symmetric matrix in double precision."""
    kernel = real_array(argument, kernel)
    if kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3]:
        kernel = as_matrix(kernel)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.size:
        raise ValueError(
            f"{argument}: got shape {np.shape(kernel)}; it must be (N, N) or (N, N, O, O)"
        )
    gap = abs(kernel - kernel.T).max()
    if gap > _ASYMMETRY * abs(kernel).max():
        raise ValueError(
            f"{argument}: is not symmetric, by {gap:.3g}; it must be the kernel of examples among "
            "themselves"
        )
    return kernel
