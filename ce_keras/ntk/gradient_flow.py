"""Training of the linearised model on the mean squared error, in closed form.

Under Keras' `"mse"`, the mean over N examples and O outputs, gradient flow moves the outputs f of
a model whose kernel K does not change by df/dt = -2 / (N O) K (f - y). Plain stochastic gradient
descent on all examples at once follows it: t is the learning rate times the number of steps.
(In neural-tangents the loss is half of that, and t is twice as large.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ce_keras.checks import brief, positive_int, real_array
from ce_keras.ntk.analysis import as_matrix, checked_matrix, rounding_error


def predict(
    kernel_train: np.ndarray,
    kernel_test: np.ndarray,
    y: Any,
    t: Any = None,
    initial_train: Any = 0.0,
    initial_test: Any = 0.0,
) -> np.ndarray:
    """Return the outputs of the linearised model after training for some time.

    f_t(x) = f_0(x) + K(x, X) K^-1 (1 - exp(-2 t K / (N O))) (y - f_0(X)), with K the kernel of the
    training set (Lee et al. 2019, Eq. 11). With outputs of 0 at the beginning, it is the mean over
    infinitely wide networks. Along eigenvectors whose eigenvalue is 0 up to rounding, nothing is
    learnt.

    Args:
        kernel_train: of the training set, `(N, N)`, used for all outputs; or `(N, N, O, O)`.
        kernel_test: of test and training set, `(M, N)` or `(M, N, O, O)`.
        y: targets, `(N, O)`, or `(N,)` for one output.
        t: learning rate times steps of gradient descent on Keras' `"mse"`; or an array of times.
            By default infinity: until training has converged.
        initial_train: the model's outputs for the training set before training, like `y`.
        initial_test: those for the test set.

    Returns:
        `(M, O)`, or `(M,)` for one output; before these, the axes of `t`.

    Raises:
        ValueError: for shapes that do not fit, negative times, and infinite or NaN numbers.

    >>> kernel = np.diag([1.0, 3.0])
    >>> predict(kernel, kernel, [1.0, 1.0], t=1).round(3).tolist()
    [0.632, 0.95]
    >>> predict(kernel, kernel, [1.0, 1.0]).tolist()
    [1.0, 1.0]
    """
    y, between = real_array("y", y), real_array("kernel_test", kernel_test)
    train = checked_matrix("kernel_train", kernel_train)
    paired = np.ndim(kernel_train) == 4
    n, outputs = np.shape(kernel_train)[0], np.shape(kernel_train)[2:3]
    if y.ndim not in (1, 2) or len(y) != n or (paired and y.shape[1:] != outputs):
        raise ValueError(
            f"y: got shape {y.shape}; for a kernel {np.shape(kernel_train)} it must be "
            f"{(n, *outputs) if paired else f'({n},) or ({n}, outputs)'}"
        )
    if between.ndim != np.ndim(kernel_train) or between.shape[1:] != np.shape(kernel_train)[1:]:
        raise ValueError(
            f"kernel_test: got shape {between.shape}; it must be the number of test examples, then "
            f"{np.shape(kernel_train)[1:]}"
        )
    shape = (len(between), *y.shape[1:])
    first = _initial("initial_train", initial_train, y.shape)
    last = _initial("initial_test", initial_test, shape)
    times = _times(t) * 2 / y.size
    if paired:
        between = as_matrix(between)
    values, vectors = np.linalg.eigh(train)
    known = values > rounding_error(kernel_train, values)
    values, vectors = values[known], vectors[:, known]
    rest = vectors.T @ (y - first).reshape(len(train), -1)
    # 1 - exp(-values * t) over values; at infinite times, one over values.
    learnt = -np.expm1(-times[..., None] * values) / values
    change = (between @ vectors) @ (learnt[..., None] * rest)
    return last + change.reshape(*times.shape, *shape)


def max_learning_rate(kernel: np.ndarray, outputs: int | None = None) -> float:
    """Return the learning rate above which gradient descent on the linearised model diverges.

    A step on Keras' `"mse"` multiplies the error along an eigenvector by 1 - 2 rate value / (N O):
    it does not grow for rates up to N O over the largest eigenvalue.

    Args:
        kernel: of the training set, `(N, N)` or `(N, N, O, O)`.
        outputs: O, of a kernel `(N, N)` that is used for all outputs; 1 if not given.

    Raises:
        ValueError: for another shape, a kernel of zeros, or outputs that are not the kernel's.

    >>> max_learning_rate(np.diag([1.0, 4.0]))
    0.5
    """
    matrix = checked_matrix("kernel", kernel)
    own = np.shape(kernel)[2] if np.ndim(kernel) == 4 else None
    if outputs is not None and positive_int("outputs", outputs) != (own or outputs):
        raise ValueError(f"outputs: got {outputs}; the kernel has {own}")
    largest = float(np.linalg.eigvalsh(matrix)[-1])
    if not largest > 0:
        raise ValueError(f"kernel: its largest eigenvalue is {largest:g}; it must be above 0")
    return len(kernel) * (own or outputs or 1) / largest


def _initial(argument: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    value = real_array(argument, value)
    if value.ndim and value.shape != shape:
        raise ValueError(f"{argument}: got shape {value.shape}; it must be {shape}, or a number")
    return value


def _times(t: Any) -> np.ndarray:
    times = np.asarray(np.inf if t is None else t)
    if times.dtype.kind not in "iuf" or not (times >= 0).all():
        raise ValueError(f"t: got {brief(t)}; it must be 0 or more, or an array of such times")
    return times
