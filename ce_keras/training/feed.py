"""Batches of a recipe's images, of which every replica gets its part.

What a batch holds depends on the recipe, the seed and the step alone: not on how many devices or
machines share it, and not on where a run went on.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ce_keras.progress import progress
from ce_keras.training import augment
from ce_keras.training.data import steady
from ce_keras.training.recipe import Recipe
from ce_keras.training.sources import Arrays, Examples, Source
from ce_keras.zoo.images import IMAGENET

#: The label of an image that is there only because a part may not be empty.
NOTHING = -1

# Batches prepared ahead.
_AHEAD = 2

# Images read at once to find their mean.
_READ = 1000


class Part(NamedTuple):
    """The replicas that one process feeds: from `first` up to `last`, of all `of`.

    Replica k has the rows `n k // of` to `n (k + 1) // of` of a batch of n.
    """

    first: int = 0
    last: int = 1
    of: int = 1

    def rows(self, n: Any) -> tuple[Any, Any]:
        """The rows of a batch of `n`, but one at least for each replica."""
        first = n * self.first // self.of
        return first, tf.maximum(n * self.last // self.of, n * (self.last - 1) // self.of + 1)


class Feed:
    """Batches of a recipe's images: augmented for training, normalised, and prepared ahead.

    Args:
        recipe: whose data section counts.
        source: the images.
        seed: for order and augmentation.
        part: of every batch. Each replica of the part gets an element of its own.
    """

    def __init__(self, recipe: Recipe, source: Source, seed: int, part: Part | None = None) -> None:
        self._data = recipe.data
        self._source = source
        self._seed = seed
        self._batch = recipe.schedule.batch
        self._part = part or Part()
        self._size: tuple[int, int] = (source.shape[0], source.shape[1])
        self._boxes = "resized_crop" in recipe.data.augment
        self.mean, self.deviation = self._statistics()

    def train(self, epoch: int, step: int = 0) -> Any:
        """(images, labels) of an epoch, from a step on."""
        seeds = tf.random.split(tf.constant([self._seed, epoch]), 2)

        def resized(image: Any, index: Any) -> Any:
            seed = tf.random.fold_in(seeds[0], tf.cast(index, tf.int32))
            return augment.resized_crop(image, seed, self._size)

        def augmented(images: Any, index: Any, rows: tuple[Any, Any]) -> Any:
            seed = tf.random.fold_in(seeds[1], tf.cast(index, tf.int32))
            return self._augmented(images, seed, rows)

        examples = self._source.examples(self._seed, epoch)
        return self._batches(examples, self._source.counts[0], resized, augmented, step)

    def test(self) -> Any:
        """(images, labels) of the test images; where a part would be empty, `NOTHING`'s."""

        def resized(image: Any, _: Any) -> Any:
            return augment.central_crop(image, self._size)

        def as_they_are(images: Any, *_: Any) -> Any:
            return images

        return self._batches(self._source.tests(), self._source.counts[1], resized, as_they_are)

    def _batches(
        self, examples: Examples, count: int, resized: Any, augmented: Any, step: int = 0
    ) -> Any:
        """Batches of this part: examples chosen and read, batches augmented and normalised."""
        part, batch = self._part, self._batch

        def rows(index: Any) -> tuple[Any, Any, Any]:
            """How many images a batch has, and the first and last of them that are ours."""
            whole = tf.minimum(count - tf.cast(index, tf.int32) * batch, batch)
            return whole, *part.rows(whole)

        def is_ours(index: Any, _: Any) -> Any:
            _, first, last = rows(index // batch)
            row = tf.cast(index % batch, tf.int32)
            return (row >= first) & (row < last)

        def read(index: Any, example: Any) -> Any:
            image, label = examples.read(example)
            return (resized(image, index) if self._boxes else image), label

        order = examples.order.skip(step * batch).enumerate(step * batch)
        if part.last - part.first < part.of:
            order = order.filter(is_ours)
        first, last = part.rows(batch)
        size = int(last - first)
        if isinstance(self._source, Arrays) and not self._boxes:  # Whole batches at once.
            order = order.map(lambda _, example: example)
            batches = order.batch(size).map(examples.read)
        else:
            batches = order.map(read, os.cpu_count()).batch(size)

        def prepared(index: Any, batch: tuple[Any, Any]) -> Any:
            whole, first, _ = rows(index)
            images = augmented(batch[0], index, (first, whole))
            images = (tf.cast(images, tf.float32) - self.mean) / self.deviation
            return images, tf.cast(batch[1], tf.int32)

        batches = batches.enumerate(step).map(prepared, _AHEAD)
        if part.of > 1:
            batches = batches.enumerate(step).flat_map(
                lambda index, batch: self._shared_out(batch, *rows(index)[:2])
            )
        return batches.prefetch(_AHEAD).with_options(steady())

    def _shared_out(self, batch: tuple[Any, Any], whole: Any, first: Any) -> Any:
        """One element for each replica."""
        images, labels = batch

        def of_replica(replica: Any) -> Any:
            begin, end = Part(replica, replica + 1, self._part.of).rows(whole)
            counts = whole * (replica + 1) // self._part.of > begin
            own = labels[begin - first : end - first]
            return images[begin - first : end - first], tf.where(counts, own, NOTHING)

        replicas = tf.data.Dataset.range(self._part.first, self._part.last, output_type=tf.int32)
        return replicas.map(of_replica)

    def _augmented(self, images: Any, seed: Any, rows: tuple[Any, Any]) -> Any:
        seeds = tf.random.split(seed, 3)
        if "crop" in self._data.augment:
            images = augment.crop(images, seeds[0], self._data.pad, rows)
        if "flip" in self._data.augment:
            images = augment.flip(images, seeds[1], rows)
        if "jitter" in self._data.augment:
            images = augment.jitter(images, seeds[2], self._data.jitter, rows)
        return images

    def _statistics(self) -> tuple[Any, Any]:
        """What is subtracted and divided by, from the training images."""
        if self._boxes:
            mean, deviation = np.array(IMAGENET, np.float32)
            return mean, deviation
        axes = {"channel": (0, 1, 2), "global": None, "mean_image": 0}[self._data.normalize]
        if isinstance(self._source, Arrays):
            images = self._source.images[0].images
            mean = images.mean(axis=axes, dtype=np.float64)
            deviation = images.std(axis=axes if axes != 0 else None, dtype=np.float64)
        else:
            mean, deviation = _streamed_statistics(self._source, axes)
        return np.float32(mean), np.float32(np.maximum(deviation, 1e-3))


def _streamed_statistics(source: Source, axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation from one pass over images that do not fit into memory."""
    sums, count = np.zeros((2, *source.shape)), 0
    examples = source.examples(0, 0)
    # Enumerated: an example that is a pair comes as one.
    read = examples.order.enumerate().map(lambda _, each: examples.read(each), os.cpu_count())
    batches = read.batch(_READ)
    total = math.ceil(source.counts[0] / _READ)
    for images, _ in progress(batches.with_options(steady()), desc="mean image", total=total):
        pixels = images.numpy().astype(np.float64)
        sums += np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)])
        count += len(pixels)
    mean, square = sums / count
    if axes == 0:
        return mean, np.sqrt(square.mean() - mean.mean() ** 2)
    kept = (0, 1) if axes is not None else None
    return mean.mean(axis=kept), np.sqrt(square.mean(axis=kept) - mean.mean(axis=kept) ** 2)
