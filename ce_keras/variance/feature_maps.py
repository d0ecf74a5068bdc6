"""Measurement of the correlation of neighbouring positions on a network's feature maps."""

from __future__ import annotations

import fnmatch
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.checks import brief, positive_int, real_array, text
from ce_keras.progress import progress
from ce_keras.variance.correlation import MeasuredCorrelation

if TYPE_CHECKING:
    import keras


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
        images: inputs of the model, `(count, height, width, channels)`.
        layers: pattern of the names of the blocks' first convolutions, by default those of the zoo
            and of `keras.applications`' ResNets: `conv2_block1_1_conv`.
        kernel_size: side of the k x k convolution that follows them.
        batch_size: images at a time.

    Raises:
        ValueError: for a model without such layers, or images that it does not take.

    >>> images = np.random.default_rng(0).normal(size=(4, 28, 28, 1))
    >>> measured = measure_correlation("resnext11", images)
    >>> len(measured.stages), measured.first.shape
    (3, (9, 9))
    """
    import keras

    text("layers", layers)
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
    # `Sequential` keeps a list of its one input, which would ask for lists in calls.
    given = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    inputs = keras.Model(given, [layer.input for layer in chosen])
    sums = [np.zeros((kernel_size**2,) * 2) for _ in chosen]
    starts = range(0, len(images), batch_size)
    for start in progress(starts, desc="correlation", unit="batch", delay=1, leave=False):
        batch = images[start : start + batch_size]
        maps = keras.tree.flatten(inputs(batch, training=untrained))
        for index, x in enumerate(maps):
            sums[index] += _gram_of_patches(keras.ops.convert_to_numpy(x), kernel_size)
    for layer, gram in zip(chosen, sums, strict=True):
        if not np.trace(gram) > 0:
            raise ValueError(f"images: with them, all inputs of {layer.name!r} are zero")
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
    """Return the products of all pairs of positions, summed over all patches, `(k^2, k^2)`."""
    _, height, width, channels = x.shape
    rows, columns = height - kernel_size + 1, width - kernel_size + 1
    if min(rows, columns) < 1:
        # Such a map has no whole patch: its mean square stands for all products.
        return np.full((kernel_size**2,) * 2, float((x.astype(np.float64) ** 2).sum() / channels))
    patches = [
        x[:, top : top + rows, left : left + columns].reshape(-1)
        for top, left in itertools.product(range(kernel_size), repeat=2)
    ]
    stacked = np.stack(patches)
    return (stacked @ stacked.T).astype(np.float64) / channels
