"""Input pipelines: batches of a dataset, normalised, augmented, and shared among replicas.

The content of a batch depends on the recipe, the seed and the step alone: not on the number of
devices or machines that share it, and not on the step at which a run was resumed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ce_keras.checks import (
    brief,
    checked_seed,
    instance,
    positive_int,
    real_array,
    sequence_of,
    whole_number,
)
from ce_keras.progress import progress
from ce_keras.training import augment
from ce_keras.training.datasets import TEST, TRAIN, ArrayDataset, Dataset
from ce_keras.training.images import Images
from ce_keras.training.recipe import Recipe
from ce_keras.zoo.images import IMAGENET

#: Label of the images that fill up a shard which would otherwise be empty; they do not count.
PADDING_LABEL = -1

# Batches prepared ahead.
_PREFETCH = 2

# Images that are read at once to compute their mean.
_CHUNK = 1000


class Shard(NamedTuple):
    """The replicas that one process feeds: from `first` up to `last`, of all `of`.

    Replica k has the rows from `n k // of` up to `n (k + 1) // of` of a batch of n: of 33 rows,
    two replicas have rows 0 to 15 and 16 to 32.
    """

    first: int = 0
    last: int = 1
    of: int = 1

    def rows(self, n: Any) -> tuple[Any, Any]:
        """Return the first row, and the one after the last; at least one row for each replica."""
        first = n * self.first // self.of
        return first, tf.maximum(n * self.last // self.of, n * (self.last - 1) // self.of + 1)


class InputPipeline:
    """Batches of a recipe's images: augmented for training, normalised, and prefetched.

    Args:
        recipe: its data section and its batch size are used.
        dataset: the images.
        seed: for order and augmentation.
        shard: the part of every batch that this process feeds; the whole batch if not given. Each
            replica of the shard gets an element of its own.
        statistics: the mean and the standard deviation to normalise by; those of the training
            images if not given.

    Attributes:
        mean: of the training images, which is subtracted.
        std: standard deviation of the training images, which is divided by.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        seed: int,
        shard: Shard | None = None,
        statistics: tuple[Any, Any] | None = None,
    ) -> None:
        self._data = recipe.data
        self._dataset = dataset
        self._seed = seed
        self._batch_size = recipe.schedule.batch_size
        self._shard = shard or Shard()
        self._size: tuple[int, int] = (dataset.shape[0], dataset.shape[1])
        self._resized = "resized_crop" in recipe.data.augment
        self.mean, self.std = statistics or self._statistics()

    @property
    def fingerprint(self) -> str:
        """A text that is another one for other images."""
        return self._dataset.fingerprint

    def train(self, epoch: int, step: int = 0) -> Any:
        """Return a `tf.data.Dataset` of (images, labels) of an epoch, from a step on."""
        seeds = tf.random.split(tf.constant([self._seed, epoch]), 2)

        def resize(image: Any, index: Any) -> Any:
            seed = tf.random.fold_in(seeds[0], tf.cast(index, tf.int32))
            return augment.resized_crop(image, seed, self._size)

        def augmented(images: Any, index: Any, rows: augment.Rows) -> Any:
            seed = tf.random.fold_in(seeds[1], tf.cast(index, tf.int32))
            return self._augmented(images, seed, rows)

        return self._batches(TRAIN, (self._seed, epoch), step, resize, augmented)

    def test(self) -> Any:
        """Return a `tf.data.Dataset` of the test images and labels, in their order.

        A replica without an image in the last batch gets one with `PADDING_LABEL`.
        """

        def resize(image: Any, _: Any) -> Any:
            return augment.central_crop(image, self._size)

        return self._batches(TEST, None, 0, resize, lambda images, *_: images)

    def _batches(
        self, split: int, draw: tuple[int, int] | None, step: int, resize: Any, augmented: Any
    ) -> Any:
        """Return the batches of this shard, from a step on."""
        shard, batch_size = self._shard, self._batch_size
        count = self._dataset.counts[split]
        examples = self._dataset.examples(split, draw)

        def rows(index: Any) -> tuple[Any, Any, Any]:
            """Return the size of a batch, and the first and the end of this shard's rows."""
            whole = tf.minimum(count - tf.cast(index, tf.int32) * batch_size, batch_size)
            return whole, *shard.rows(whole)

        def in_shard(index: Any, _: Any) -> Any:
            _, first, last = rows(index // batch_size)
            row = tf.cast(index % batch_size, tf.int32)
            return (row >= first) & (row < last)

        def read(index: Any, example: Any) -> Any:
            image, label = examples.read(example)
            return (resize(image, index) if self._resized else image), label

        order = examples.order.skip(step * batch_size).enumerate(step * batch_size)
        if shard.last - shard.first < shard.of:
            order = order.filter(in_shard)
        first, last = shard.rows(batch_size)
        size = int(last - first)
        if isinstance(self._dataset, ArrayDataset) and not self._resized:  # Whole batches at once.
            batches = order.map(lambda _, example: example).batch(size).map(examples.read)
        else:
            batches = order.map(read, os.cpu_count()).batch(size)

        def prepare(index: Any, batch: tuple[Any, Any]) -> Any:
            whole, first, _ = rows(index)
            images = augmented(batch[0], index, (first, whole))
            images = (tf.cast(images, tf.float32) - self.mean) / self.std
            return images, tf.cast(batch[1], tf.int32)

        batches = batches.enumerate(step).map(prepare, _PREFETCH)
        if shard.of > 1:
            batches = batches.enumerate(step).flat_map(
                lambda index, batch: self._by_replica(batch, *rows(index)[:2])
            )
        return batches.prefetch(_PREFETCH).with_options(deterministic_options())

    def _by_replica(self, batch: tuple[Any, Any], whole: Any, first: Any) -> Any:
        """Return a dataset with one element for each replica of the shard.

        Args:
            batch: images and labels of the shard's rows.
            whole: size of the batch that all shards share.
            first: the shard's first row in it.
        """
        images, labels = batch

        def of_replica(replica: Any) -> Any:
            begin, end = Shard(replica, replica + 1, self._shard.of).rows(whole)
            has_images = whole * (replica + 1) // self._shard.of > begin
            own = labels[begin - first : end - first]
            return images[begin - first : end - first], tf.where(has_images, own, PADDING_LABEL)

        replicas = tf.data.Dataset.range(self._shard.first, self._shard.last, output_type=tf.int32)
        return replicas.map(of_replica)

    def _augmented(self, images: Any, seed: Any, rows: augment.Rows) -> Any:
        seeds = tf.random.split(seed, 3)
        if "crop" in self._data.augment:
            images = augment.crop(images, seeds[0], self._data.pad, rows)
        if "flip" in self._data.augment:
            images = augment.flip(images, seeds[1], rows)
        if "jitter" in self._data.augment:
            images = augment.jitter(images, seeds[2], self._data.jitter, rows)
        return images

    def _statistics(self) -> tuple[Any, Any]:
        """Return mean and standard deviation of the training images."""
        if self._data.normalize == "none":
            return np.float32(0), np.float32(1)
        if self._resized:
            mean, std = np.array(IMAGENET, np.float32)
            return (mean, std) if self._dataset.shape[-1] == 3 else (mean.mean(), std.mean())
        # Axes of (count, height, width, channels) that the mean is over.
        axes = {"channel": (0, 1, 2), "global": None, "mean_image": 0}[self._data.normalize]
        mean, std = _mean_and_deviation(_chunks(self._dataset), axes)
        return np.float32(mean), np.float32(np.maximum(std, 1e-3))


def _chunks(dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the training images, some at a time."""
    if isinstance(dataset, ArrayDataset):
        images = dataset.splits[TRAIN].images
        yield from (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
        return
    examples = dataset.examples(TRAIN, (0, 0))
    # `enumerate` packs an example that is a pair into one argument.
    read = examples.order.enumerate().map(lambda _, each: examples.read(each), os.cpu_count())
    batches = read.batch(_CHUNK).with_options(deterministic_options())
    total = math.ceil(dataset.counts[TRAIN] / _CHUNK)
    yield from (x.numpy() for x, _ in progress(batches, desc="mean image", total=total))


def _mean_and_deviation(chunks: Iterable[np.ndarray], axes: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation in one pass; by pixel, the mean alone is."""
    sums, count = np.zeros(()), 0
    for images in chunks:
        pixels = images.astype(np.float64)
        sums = sums + np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)])
        count += len(pixels)
    mean, square = sums / count
    kept = (0, 1) if axes not in (0, None) else None
    variance = square.mean(axis=kept) - mean.mean(axis=kept) ** 2
    deviation = np.sqrt(np.maximum(variance, 0))  # Rounding may leave less.
    return (mean if axes == 0 else mean.mean(axis=kept)), deviation


def pipeline(
    data: Images, batch_size: int, *, like: Images | None = None, seed: int | None = None
) -> tf.data.Dataset:
    """Return batches for Keras' `fit` or `evaluate`.

    Args:
        data: the images.
        batch_size: images in a batch; the last may have fewer.
        like: images whose mean and standard deviation normalise; `data` if not given.
        seed: for training: shuffle, shift by up to two pixels and flip, differently in each epoch
            and reproducibly. `None`: the images in their order, not augmented.

    Returns:
        A dataset of (images, labels): float32 `(batch, height, width, channels)`, and integers.
    """
    instance("data", data, Images, "Images")
    if like is not None:
        instance("like", like, Images, "Images")
    positive_int("batch_size", batch_size)
    checked_seed(seed)
    reference = (data if like is None else like).images
    mean, std = np.float32(reference.mean()), np.float32(reference.std())

    def normalise(images: Any, labels: Any) -> tuple[Any, Any]:
        return (tf.cast(images, tf.float32) - mean) / std, labels

    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels))
    dataset = dataset.with_options(deterministic_options())
    if seed is None:
        return dataset.batch(batch_size).map(normalise).prefetch(_PREFETCH)

    def augmented(draw: Any, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        images, labels = batch
        images = shift_and_flip(images, tf.stack([tf.constant(seed, tf.int64), draw]))
        return normalise(images, labels)

    batches = dataset.shuffle(len(data.labels), seed=seed).batch(batch_size)
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(draws, batches).map(augmented).prefetch(_PREFETCH)


def shift_and_flip(images: Any, seed: Any, pixels: int = 2) -> Any:
    """Return the images, each shifted by up to `pixels` each way, and half of them mirrored.

    Args:
        images: `(batch, height, width, channels)`. Zeros fill what is shifted in.
        seed: two integers.
        pixels: the largest shift.

    Raises:
        ValueError: for images of another rank, or a seed that is not two whole numbers.
    """
    if len(getattr(images, "shape", ())) != 4:
        raise ValueError(
            f"images: got {brief(images)}; it must be (batch, height, width, channels)"
        )
    if isinstance(images, np.ndarray):
        real_array("images", images)
    if not tf.is_tensor(seed) and len(sequence_of("seed", seed, whole_number)) != 2:
        raise ValueError(f"seed: got {brief(seed)}; it must be two whole numbers")
    whole_number("pixels", pixels, 0, 2**13)
    seeds = tf.random.split(seed, 2)
    return augment.flip(augment.crop(images, seeds[0], pixels), seeds[1])


def deterministic_options() -> tf.data.Options:
    """Return options for elements in a fixed order, without autotuning.

    The thread of the autotuner delays the teardown of every iterator, by seconds an epoch.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return options
