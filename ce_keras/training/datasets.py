"""Datasets that recipes name: in memory, prepared by tensorflow_datasets, or folders of images.

The order of an epoch is a function of the seed and the epoch alone, so a run resumes at any step.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras.checks import brief, file_path
from ce_keras.progress import progress
from ce_keras.training.image_files import (
    decode_bytes,
    decode_file,
    find_classes,
    labelled_files,
    sides,
    usual_shape,
)
from ce_keras.training.images import (
    Images,
    balanced,
    balanced_rows,
    load_fashion_mnist,
    load_idx,
    read_tfds,
    tfds_builder,
)
from ce_keras.training.recipe import DataRecipe

#: Indices of the splits of a dataset.
TRAIN, TEST = 0, 1


class DatasetInfo(NamedTuple):
    """A description of a dataset.

    Attributes:
        shape: of an image as the network sees it: height, width, channels.
        classes: number of classes.
        counts: numbers of training and test images.
        splits: their names in tensorflow_datasets.
        streamed: whether it is read from disk while training.
    """

    shape: tuple[int, ...]
    classes: int
    counts: tuple[int, int]
    splits: tuple[str, str] = ("train", "test")
    streamed: bool = False


_IMAGENET = DatasetInfo((224, 224, 3), 1000, (1_281_167, 50_000), ("train", "validation"), True)

#: Datasets of tensorflow_datasets that recipes can name.
KNOWN = {
    "cifar10": DatasetInfo((32, 32, 3), 10, (50_000, 10_000)),
    "cifar100": DatasetInfo((32, 32, 3), 100, (50_000, 10_000)),
    "mnist": DatasetInfo((28, 28, 1), 10, (60_000, 10_000)),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10, (60_000, 10_000)),
    "imagenet2012": _IMAGENET,
    "imagenet_resized/32x32": _IMAGENET._replace(shape=(32, 32, 3)),
    "imagenet_resized/64x64": _IMAGENET._replace(shape=(64, 64, 3)),
}

# Shape that a network sees of images of unknown datasets, where they are resized.
_USUAL = (224, 224, 3)

# Images that a stream is shuffled among, after its files have been.
_SHUFFLE_BUFFER = 10_000


class Examples(NamedTuple):
    """A split of a dataset, in an order.

    Attributes:
        order: a `tf.data.Dataset` of examples, which are cheap to skip.
        read: returns the image and the label of an example.
    """

    order: Any
    read: Callable[[Any], tuple[Any, Any]]


def load_dataset(recipe: DataRecipe) -> Dataset:
    """Return the images of a recipe, ready to be read.

    Raises:
        ValueError: for a dataset that is not known, or not there; the message says how to get it.
        ImportError: if tensorflow_datasets is needed and not installed.
    """
    if recipe.source == "embedded":
        if recipe.name != "fashion_mnist":
            raise ValueError(
                f"data.source: {brief(recipe.name)} does not come with the package; fashion_mnist "
                "does"
            )
        return _limited(*load_fashion_mnist(), recipe, 10)
    folder = image_folder(recipe)
    if folder is not None:
        return folder.in_memory() or folder
    if recipe.source != "tfds":
        if not Path(recipe.source).is_dir():
            raise ValueError(
                f"data.source: got {brief(recipe.source)}; it must be 'embedded', 'tfds', or a "
                "folder: of IDX files, or with train/CLASS/ and test/CLASS/ of image files"
            )
        train, test = load_idx(Path(recipe.source))
        return _limited(train, test, recipe, 1 + int(max(train.labels.max(), test.labels.max())))
    known = KNOWN.get(recipe.name)
    if known is None:
        raise ValueError(f"data.name: got {brief(recipe.name)}; known are {', '.join(KNOWN)}")
    builder = _prepared(recipe.name)
    if known.streamed:
        if recipe.limit is not None or recipe.test_limit is not None:
            raise ValueError(
                f"data.limit, data.test_limit: {recipe.name} is read as a stream, all of it; they "
                "are for images in memory or in folders"
            )
        return TfdsDataset(builder, known._replace(shape=_resized_shape(recipe)))
    train, test = (read_tfds(builder, split) for split in known.splits)
    return _limited(train, test, recipe, known.classes)


def describe(recipe: DataRecipe) -> DatasetInfo:
    """Return shape, classes and counts of a recipe's images, reading as few files as can be.

    Raises:
        ValueError: for a dataset that is not known.
    """
    if recipe.source == "tfds" and recipe.name in KNOWN:
        found = KNOWN[recipe.name]._replace(shape=_resized_shape(recipe))
    else:
        dataset: Dataset = image_folder(recipe) or load_dataset(recipe)
        found = DatasetInfo(dataset.shape, dataset.classes, dataset.counts)
    limits = recipe.limit, recipe.test_limit
    train, test = (
        count if limit is None else min(count, limit)
        for count, limit in zip(found.counts, limits, strict=True)
    )
    return found._replace(counts=(train, test))


def sample_images(source: str, count: int = 64) -> np.ndarray:
    """Return some training images, normalised: of the embedded set, or of a folder.

    Args:
        source: `"embedded"`, or a folder as recipes take it.
        count: number of images.

    Raises:
        ValueError: for a folder without images.
    """
    if source == "embedded":
        images = load_fashion_mnist()[0].images[:count]
    else:
        recipe = DataRecipe("images", source, limit=count, test_limit=count)
        folder = image_folder(recipe)
        data = folder.in_memory() if folder else None
        images = (data.splits[TRAIN] if data else load_idx(Path(source))[0]).images[:count]
    return (images - images.mean()) / images.std()


def _limited(train: Images, test: Images, recipe: DataRecipe, classes: int) -> ArrayDataset:
    if recipe.limit is not None and recipe.limit < len(train.labels):
        train = balanced(train, recipe.limit, "data.limit")
    if recipe.test_limit is not None and recipe.test_limit < len(test.labels):
        test = balanced(test, recipe.test_limit, "data.test_limit")
    shape = None if recipe.size is None else (recipe.size, recipe.size, train.images.shape[-1])
    return ArrayDataset(train, test, classes, shape)


def _resized_shape(recipe: DataRecipe) -> tuple[int, ...]:
    """Return the shape of an image as the network sees it."""
    known = KNOWN.get(recipe.name)
    shape = known.shape if known else _USUAL
    return shape if recipe.size is None else (recipe.size, recipe.size, shape[-1])


# Images in memory --------------------------------------------------------------------------------


class ArrayDataset:
    """Images held in memory: an example is an index, and a batch of them can be read at once.

    Args:
        train: the training images.
        test: the test images.
        classes: number of classes.
        shape: of an image as the network sees it, where they are resized.
        names: of the classes, where they are known.

    Attributes:
        shape: of an image as the network sees it.
        counts: numbers of training and test images.
    """

    def __init__(
        self,
        train: Images,
        test: Images,
        classes: int,
        shape: tuple[int, ...] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.splits = train, test
        self.classes = classes
        self.names = names
        self.shape = shape or train.images.shape[1:]
        self.counts = len(train.labels), len(test.labels)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that is another one for other images or labels."""
        arrays = (array for split in self.splits for array in (split.images, split.labels))
        return _digest(np.ascontiguousarray(array).data for array in arrays)

    def examples(self, split: int, draw: tuple[int, int] | None = None) -> Examples:
        """Return the examples of a split.

        Args:
            split: `TRAIN` or `TEST`.
            draw: seed and epoch, of which the order is a function; `None` for their own order.
        """
        import tensorflow as tf

        images = tf.constant(self.splits[split].images)
        labels = tf.constant(self.splits[split].labels.astype(np.int32))
        return Examples(
            tf.data.Dataset.from_tensor_slices(_order(self.counts[split], draw)),
            lambda index: (tf.gather(images, index), tf.gather(labels, index)),
        )


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _order(count: int, draw: tuple[int, int] | None) -> np.ndarray:
    return np.arange(count) if draw is None else np.random.default_rng(draw).permutation(count)


# Datasets of tensorflow_datasets -----------------------------------------------------------------


class TfdsDataset:
    """A prepared dataset of tensorflow_datasets, read while training.

    An example is an encoded image and its label.

    Args:
        builder: of the dataset.
        info: its description.
    """

    names = None

    def __init__(self, builder: Any, info: DatasetInfo) -> None:
        self._builder = builder
        self._splits = info.splits
        self.classes = info.classes
        self.shape: tuple[int, ...] = info.shape
        self.counts = info.counts
        prepared = builder.info.splits
        if prepared:  # It may be a part of the whole.
            train, test = (prepared[split].num_examples for split in info.splits)
            self.counts = train, test

    def examples(self, split: int, draw: tuple[int, int] | None = None) -> Examples:
        """Return the examples of a split, as `ArrayDataset` does; training files are shuffled."""
        import tensorflow_datasets as tfds

        options: dict[str, Any] = {}
        if draw is not None:
            seed = int(np.random.SeedSequence(draw).generate_state(1)[0])
            config = tfds.ReadConfig(shuffle_seed=seed, interleave_cycle_length=16)
            options = {"shuffle_files": True, "read_config": config}
        order = self._builder.as_dataset(
            split=self._splits[split],
            decoders={"image": tfds.decode.SkipDecoding()},
            as_supervised=True,
            **options,
        )
        if draw is not None:
            order = order.shuffle(_SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=False)
        return Examples(order, self._decode)

    @property
    def fingerprint(self) -> str:
        """A text that is another one for another version or part of the dataset."""
        return f"{self._builder.info.full_name} {self.counts}"

    def _decode(self, example: Any) -> tuple[Any, Any]:
        encoded, label = example
        return self._builder.info.features["image"].decode_example(encoded), label


def _prepared(name: str) -> Any:
    """Return the builder of a dataset that has been prepared.

    Raises:
        ValueError: if it has not been; the message says how to.
    """
    builder = tfds_builder(name)
    if not _is_prepared(builder):
        by_hand = (
            "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org into "
            "~/tensorflow_datasets/downloads/manual, then run"
            if name == "imagenet2012"
            else "run"
        )
        raise ValueError(
            f"data.name: {name} is not at {builder.data_path}; {by_hand}: tfds build {name}; or "
            "name a folder of images or of IDX files: --set data.source=FOLDER"
        )
    return builder


def _is_prepared(builder: Any) -> bool:
    return builder.data_path.exists()


# Folders of images -------------------------------------------------------------------------------

# Bytes of images that are held in memory instead of being read again in each epoch.
_FIT = 2**31


class FolderDataset:
    """Image files, read while training: an example is the path of a file and its label.

    Names that begin with a dot are passed over: they are other programs'.

    Args:
        folder: with `train`, and `test`, `val` or `validation`, in each of which every class has
            a folder of its images (JPEG, PNG, BMP, GIF or WebP).
        shape: of an image as the network sees it, after resizing. If not given, all files have
            one size, and the shape is taken from a sample of them.
        channels: of an image; taken from a sample of the files if not given.
        limits: at most so many images for training and for testing.

    Raises:
        ValueError: where folders, or images in them, are missing.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        limits: tuple[int | None, int | None] = (None, None),
    ) -> None:
        splits, names = find_classes(folder)
        arguments = ("data.limit", "data.test_limit")
        self._files = [
            _limited_files(labelled_files(split, names), limit, argument)
            for split, limit, argument in zip(splits, limits, arguments, strict=True)
        ]
        self.counts = len(self._files[TRAIN]), len(self._files[TEST])
        self.classes = len(names)
        self.names = names
        self._folders = splits
        self._resized = shape is not None
        self.shape = shape or usual_shape([path for path, _ in self._files[TRAIN]], channels)

    def examples(self, split: int, draw: tuple[int, int] | None = None) -> Examples:
        """Return the examples of a split, as `ArrayDataset` does."""
        import tensorflow as tf

        order = _order(self.counts[split], draw)
        paths, labels = zip(*(self._files[split][index] for index in order), strict=True)
        # As bytes: names need not be UTF-8.
        encoded = [os.fsencode(path) for path in paths]
        dataset = tf.data.Dataset.from_tensor_slices((encoded, np.array(labels, np.int32)))
        return Examples(dataset, self._read)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that is another one for other names of files; they are not read."""
        named = (
            f"{path.relative_to(folder)}\0{label}\0"
            for folder, files in zip(self._folders, self._files, strict=True)
            for path, label in files
        )
        return _digest(map(os.fsencode, named))

    def _read(self, example: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        path, label = example
        image = decode_bytes(tf.io.read_file(path), self.shape[-1])
        shape = (None, None, self.shape[-1]) if self._resized else self.shape
        return tf.ensure_shape(image, shape), label

    def in_memory(self) -> ArrayDataset | None:
        """Return the images as arrays, where they have one size and fit; `None` otherwise.

        Raises:
            ValueError: for a file that is damaged, or of another size; the message names it.
        """
        if self._resized or sum(self.counts) * math.prod(self.shape) > _FIT:
            return None
        splits = self._read_all(TRAIN), self._read_all(TEST)
        return ArrayDataset(*splits, self.classes, names=self.names)

    def damaged(self) -> str | None:
        """Return an error message for the first file that cannot be read, or `None`."""
        for path, _ in self._files[TRAIN] + self._files[TEST]:
            try:
                self._decoded(path)
            except ValueError as error:
                return str(error)
        return None

    def _read_all(self, split: int) -> Images:
        paths, labels = zip(*self._files[split], strict=True)
        images = np.empty((len(paths), *self.shape), np.uint8)
        with ThreadPoolExecutor() as pool:
            read = pool.map(self._decoded, paths)
            bar = progress(read, desc="images", total=len(paths), unit="file", delay=1, leave=False)
            for index, image in enumerate(bar):
                images[index] = image
        return Images(images, np.array(labels, np.int32))

    def _decoded(self, path: Path) -> np.ndarray:
        image = decode_file(path, self.shape[-1])
        if not self._resized and image.shape != self.shape:
            raise ValueError(
                f"data.source: {path} is {sides(image.shape)}, and most others are "
                f"{sides(self.shape)}; crop them to one size, or set data.augment to have "
                "resized_crop"
            )
        return image


#: Labelled images, in a training and a test split.
Dataset = ArrayDataset | TfdsDataset | FolderDataset


def image_folder(recipe: DataRecipe) -> FolderDataset | None:
    """Return a recipe's folder of image files, if it has one; only names are read."""
    folder = file_path("data.source", recipe.source)
    if recipe.source in ("tfds", "embedded") or not folder.is_dir() or [*folder.glob("*ubyte*")]:
        return None
    known = KNOWN.get(recipe.name)
    shape = _resized_shape(recipe) if "resized_crop" in recipe.augment else None
    channels = known.shape[-1] if known else None
    return FolderDataset(folder, shape, channels, (recipe.limit, recipe.test_limit))


def _limited_files(
    files: list[tuple[Path, int]], limit: int | None, argument: str
) -> list[tuple[Path, int]]:
    if limit is None or limit >= len(files):
        return files
    labels = np.array([label for _, label in files])
    return [files[index] for index in balanced_rows(labels, limit, argument)]
