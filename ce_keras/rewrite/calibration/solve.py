"""Ridge regression in closed form, from Gram matrices that are summed over batches."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Added to the diagonal of the Gram matrix, over the mean of that diagonal.
RIDGE = 1e-3

#: Of data that cannot be calibrated on.
NOT_FINITE = "the model's activations are infinite, NaN or too large on some of the images"


class LeastSquares:
    """The weights and intercepts that bring `x @ weights + intercepts` nearest to `y`.

    Args:
        centred: whether there are intercepts; without, `mean` and `covariance` are about zero.

    Attributes:
        rows: number of rows added.

    >>> sums = LeastSquares(centred=True)
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> sums.add(x, x @ [[1.0], [2.0]] + 3)
    >>> weights, intercepts = sums.solve(ridge=0)
    >>> weights.round(6).tolist(), intercepts.round(6).tolist()
    ([[1.0], [2.0]], [3.0])
    """

    def __init__(self, centred: bool) -> None:
        self.rows = 0
        self._centred = centred
        self._sums: list[np.ndarray] = []

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows of inputs and of targets.

        Raises:
            ValueError: where they, or their products, are not finite.
        """
        self.rows += len(x)
        with np.errstate(over="ignore", invalid="ignore"):
            # Products in single precision are exact enough for a ridge; their sums need more.
            terms = (x.T @ x, x.T @ y, x.sum(0), y.sum(0))
        before = self._sums or [np.zeros(())] * len(terms)
        self._sums = [total + term for total, term in zip(before, terms, strict=True)]
        if not all(np.isfinite(each).all() for each in self._sums):
            raise ValueError(f"data: {NOT_FINITE}")

    @property
    def mean(self) -> np.ndarray:
        """The mean of `x`."""
        return self._sums[2] / self.rows * self._centred

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of `x`; its second moments, if not centred."""
        return self._sums[0] / self.rows - np.outer(self.mean, self.mean)

    def solve(
        self, start: np.ndarray | float = 0.0, ridge: float = RIDGE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights, `(inputs, targets)`, and the intercepts, `(targets,)`.

        Args:
            start: weights that the ridge pulls towards.
            ridge: how strongly.
        """
        goal = self._sums[3] / self.rows * self._centred
        gram = self.covariance
        start = np.broadcast_to(start, (len(gram), len(goal)))
        cross = self._sums[1] / self.rows - np.outer(self.mean, goal) - gram @ start
        penalty = penalty_of(np.diag(gram), ridge) * np.eye(len(gram))
        weights = start + np.linalg.solve(gram + penalty, cross)
        return weights, goal - self.mean @ weights


def penalty_of(variances: np.ndarray, ridge: float = RIDGE) -> float:
    """Return what is added to the variances of inputs."""
    # Inputs that are always zero would leave the matrix singular.
    return ridge * variances.mean() + np.finfo(np.float32).tiny


def windows(x: np.ndarray, layer: Any) -> np.ndarray:
    """Return what a linear layer reads for each output, as a view of `x` or of a padded copy.

    Returns:
        `(batch, rows, columns, channels, *sides of the kernel)`; a dense layer has one column, and
        a kernel of one pixel.
    """
    if not hasattr(layer, "kernel_size"):
        return x.reshape(len(x), -1, 1, x.shape[-1], 1, 1)
    sides, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    extent = [(side - 1) * step + 1 for side, step in zip(sides, dilation, strict=True)]
    if layer.padding == "same":
        sizes = zip(x.shape[1:3], strides, extent, strict=True)
        totals = [max((-(-size // s) - 1) * s + e - size, 0) for size, s, e in sizes]
        margins = [(total // 2, total - total // 2) for total in totals]
        x = np.pad(x, ((0, 0), *margins, (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=(1, 2))
    return view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]


def drawn_positions(view: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return up to `count` of the positions of `windows`, counted row by row, in order."""
    total = view.shape[1] * view.shape[2]
    return np.sort(rng.choice(total, min(count, total), replace=False))


def patches_at(view: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return `windows` at positions: `(batch, positions, pixels, channels)`, in single precision.

    Pixels are in the order of the layer's kernel.
    """
    chosen = view[:, where // view.shape[2], where % view.shape[2]].astype(np.float32)
    return chosen.reshape(*chosen.shape[:3], -1).swapaxes(2, 3)


def values_at(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return a layer's output at positions: `(batch, positions, channels)`."""
    return x.reshape(len(x), -1, x.shape[-1])[:, where].astype(np.float32)
