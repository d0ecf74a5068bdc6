"""How alike neighbouring pixels of feature maps are: what the exact variance of a block depends on.

The closed form of a bottleneck block needs the Gram matrix of its input at the positions of the
k x k convolution. On smooth feature maps all are nearly parallel, and 1 is a fair guess; this
measures it.
"""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.checks import brief, positive_int, real_array, text
from ce_keras.progress import progress

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, eq=False)
class MeasuredCorrelation:
    """Correlations at the input of each block of a network.

    Attributes:
        blocks: by the name of the block's first convolution, the mean Gram matrix of its input at
            the positions of a k x k patch, over its mean diagonal, `(k * k, k * k)`.
        stage_of: the stage that each block is in, counted from 0.
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
        """That of the first stage, whose block a search is about."""
        return self.stages[0]

    def __repr__(self) -> str:
        means = ", ".join(
            f"{name} {mean_correlation(gram):.3f}" for name, gram in self.blocks.items()
        )
        return f"correlation of neighbouring positions: {means}"


def mean_correlation(gram: np.ndarray) -> float:
    """Return the mean of all pairs of different positions, over the mean square.

    >>> round(mean_correlation(np.array([[1.0, 0.5], [0.5, 1.0]])), 3)
    0.5
    """
    count = len(gram)
    return float((gram.sum() - np.trace(gram)) / (count - 1) / np.trace(gram))


def measure_correlation(
    model: keras.Model | str,
    images: Any,
    *,
    layers: str = "*_1_conv",
    kernel_size: int = 3,
    batch_size: int = 32,
) -> MeasuredCorrelation:
    """Measure the correlation of neighbouring positions at the input of a network's blocks.

    Args:
        model: a functional Keras model; or the name of a network of the zoo, which is built
            untrained, with its usual design, and normalises by the statistics of the images.
        images: as the model takes them, `(count, height, width, channels)`.
        layers: pattern of the names of the blocks' first convolutions, by default those of the zoo
            and of `keras.applications`' ResNets: `conv2_block1_1_conv`.
        kernel_size: side of the convolution behind them.
        batch_size: images at a time.

    Raises:
        ValueError: for a model without such layers, or images that it does not take.

    >>> images = np.random.default_rng(0).normal(size=(4, 28, 28, 1))
    >>> measured = measure_correlation("resnext11", images)
    >>> len(measured.stages), measured.first.shape
    (3, (9, 9))
    """
    text("layers", layers)
    import keras

    positive_int("batch_size", batch_size)
    positive_int("kernel_size", kernel_size)
    images = real_array("images", images).astype(np.float32)
    untrained = isinstance(model, str)
    if untrained:
        from ce_keras import zoo

        shape = images.shape[1:] if images.ndim == 4 else None
        model = zoo.create(model, input_shape=shape, include_top=False, seed=0)
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"model: got {brief(model)}; it must be a functional Keras model, or a name"
        )
    chosen = [layer for layer in model.layers if fnmatch.fnmatch(layer.name, layers)]
    if not chosen:
        raise ValueError(f"layers: {model.name!r} has none of the name {layers!r}")
    wanted = model.inputs[0].shape[1:]
    if images.ndim != 4 or len(images) == 0 or images.shape[-1] != wanted[-1]:
        raise ValueError(f"images: got shape {images.shape}; it must be (count, *{wanted})")
    # Of one input the tensor itself, not the list that a Sequential model keeps.
    given = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    inputs = keras.Model(given, [layer.input for layer in chosen])
    sums = [np.zeros((kernel_size**2,) * 2) for _ in chosen]
    starts = range(0, len(images), batch_size)
    for start in progress(starts, desc="correlation", unit="batch", delay=1, leave=False):
        batch = images[start : start + batch_size]
        maps = keras.tree.flatten(inputs(batch, training=untrained))
        for index, x in enumerate(maps):
            sums[index] += _gram_of_patches(keras.ops.convert_to_numpy(x), kernel_size)
    blocks = {
        layer.name: gram * len(gram) / np.trace(gram)
        for layer, gram in zip(chosen, sums, strict=True)
    }
    widths = [layer.filters for layer in chosen]
    stages = [0, *itertools.accumulate(b != a for a, b in itertools.pairwise(widths))]
    return MeasuredCorrelation(
        blocks, {layer.name: int(stage) for layer, stage in zip(chosen, stages, strict=True)}
    )


def _gram_of_patches(x: np.ndarray, kernel_size: int) -> np.ndarray:
    """Return the sum over all whole patches of the products of their positions, `(k^2, k^2)`."""
    _, height, width, channels = x.shape
    rows, columns = height - kernel_size + 1, width - kernel_size + 1
    if min(rows, columns) < 1:
        # Smaller than a patch: what lies outside is padding, and no position at all.
        return np.full((kernel_size**2,) * 2, float((x.astype(np.float64) ** 2).sum() / channels))
    patches = [
        x[:, top : top + rows, left : left + columns].reshape(-1)
        for top, left in itertools.product(range(kernel_size), repeat=2)
    ]
    stacked = np.stack(patches)
    return (stacked @ stacked.T).astype(np.float64) / channels
