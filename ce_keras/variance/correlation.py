"""Correlations of neighbouring positions of feature maps, which the closed form depends on.

The closed form of a bottleneck block needs the Gram matrix of its input at the positions of the
k x k convolution. `ce_keras.variance.measure_correlation` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class MeasuredCorrelation:
    """Correlations at the input of each block of a network.

    Attributes:
        blocks: by the name of the block's first convolution, the mean Gram matrix of its input at
            the positions of a k x k patch, over its mean diagonal, `(k * k, k * k)`.
        stage_of: the stage of each block, counted from 0.
    """

    blocks: dict[str, np.ndarray]
    stage_of: dict[str, int]

    @property
    def stages(self) -> list[np.ndarray]:
        """The mean matrix of the blocks of each stage."""
        count = 1 + max(self.stage_of.values())
        return [
            np.mean([self.blocks[name] for name, its in self.stage_of.items() if its == stage], 0)
            for stage in range(count)
        ]

    @property
    def first(self) -> np.ndarray:
        """The mean matrix of the first stage, whose block decides a search."""
        return self.stages[0]

    def __repr__(self) -> str:
        means = ", ".join(
            f"{name} {mean_correlation(gram):.3f}" for name, gram in self.blocks.items()
        )
        return f"correlation of neighbouring positions: {means}"


def mean_correlation(gram: np.ndarray) -> float:
    """Return the mean correlation of two different positions.

    >>> round(mean_correlation(np.array([[1.0, 0.5], [0.5, 1.0]])), 3)
    0.5
    """
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count - 1) / np.trace(gram))
