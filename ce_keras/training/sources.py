"""Where the images of a recipe are, and in what order an epoch shows them.

The order of an epoch depends on the seed and the epoch alone, so a run can go on from any step.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ce_keras.checks import brief, file_path, shortened
from ce_keras.progress import progress
from ce_keras.training.data import (
    Images,
    balanced,
    balanced_rows,
    gathered,
    load_fashion_mnist,
    load_idx,
)
from ce_keras.training.recipe import DataRecipe


class Known(NamedTuple):
    """A data set that recipes name.

    Attributes:
        shape: of an image as the network sees it.
        classes: how many.
        counts: training and test images.
        splits: of tensorflow_datasets.
        large: whether it is read from disk while training.
    """

    shape: tuple[int, ...]
    classes: int
    counts: tuple[int, int]
    splits: tuple[str, str] = ("train", "test")
    large: bool = False


_IMAGENET = (1_281_167, 50_000)
KNOWN = {
    "cifar10": Known((32, 32, 3), 10, (50_000, 10_000)),
    "cifar100": Known((32, 32, 3), 100, (50_000, 10_000)),
    "mnist": Known((28, 28, 1), 10, (60_000, 10_000)),
    "fashion_mnist": Known((28, 28, 1), 10, (60_000, 10_000)),
    "imagenet2012": Known((224, 224, 3), 1000, _IMAGENET, ("train", "validation"), True),
    "imagenet_resized/32x32": Known((32, 32, 3), 1000, _IMAGENET, ("train", "validation"), True),
    "imagenet_resized/64x64": Known((64, 64, 3), 1000, _IMAGENET, ("train", "validation"), True),
}

# What a network of unknown images sees of them.
_USUAL = (224, 224, 3)

# Images that a stream is shuffled among, after its files have been.
_SHUFFLED = 10_000


class Examples(NamedTuple):
    """A half of a set, in an order.

    Attributes:
        order: a `tf.data.Dataset` of examples.
        read: the image and label of an example.
    """

    order: Any
    read: Callable[[Any], tuple[Any, Any]]


class Source(Protocol):
    """Images, examples of which are cheap to put in order before they are read.

    Attributes:
        shape: of an image as the network sees it.
        classes: how many there are.
        counts: training and test images.
    """

    shape: tuple[int, ...]
    classes: int
    counts: tuple[int, int]

    def examples(self, seed: int, epoch: int) -> Examples:
        """The training examples, in the order of an epoch."""

    def tests(self) -> Examples:
        """The test examples, in their own order."""


class Arrays:
    """Images held in memory: an example is an index, and a batch of them can be read at once.

    Args:
        train: the training images.
        test: the test images.
        classes: how many there are.
    """

    def __init__(self, train: Images, test: Images, classes: int) -> None:
        self.images = train, test
        self.classes = classes
        self.shape = train.images.shape[1:]
        self.counts = len(train.labels), len(test.labels)

    def examples(self, seed: int, epoch: int) -> Examples:
        """Training examples in the order of an epoch."""
        order = np.random.default_rng((seed, epoch)).permutation(self.counts[0])
        return _indexed(self.images[0], order)

    def tests(self) -> Examples:
        """Test examples in order."""
        return _indexed(self.images[1], np.arange(self.counts[1]))


def _indexed(data: Images, order: np.ndarray) -> Examples:
    import tensorflow as tf

    images, labels = tf.constant(data.images), tf.constant(data.labels.astype(np.int32))
    return Examples(
        tf.data.Dataset.from_tensor_slices(order),
        lambda index: (tf.gather(images, index), tf.gather(labels, index)),
    )


class Stream:
    """A prepared set of tensorflow_datasets, read while training: an example is not yet decoded.

    Args:
        builder: of the set.
        known: what it is.
    """

    def __init__(self, builder: Any, known: Known) -> None:
        self._builder = builder
        self._splits = known.splits
        self.classes = known.classes
        self.shape: tuple[int, ...] = known.shape
        found = builder.info.splits
        self.counts = known.counts
        if found:  # What is there counts: it may be a part.
            train, test = (found[split].num_examples for split in known.splits)
            self.counts = train, test

    def examples(self, seed: int, epoch: int) -> Examples:
        """Training examples in the order of an epoch: files shuffled, then examples in reach."""
        import tensorflow_datasets as tfds

        draw = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
        config = tfds.ReadConfig(shuffle_seed=draw, interleave_cycle_length=16)
        order = self._encoded(0, shuffle_files=True, read_config=config)
        order = order.shuffle(_SHUFFLED, seed=draw, reshuffle_each_iteration=False)
        return Examples(order, self._read)

    def tests(self) -> Examples:
        """Test examples in order."""
        return Examples(self._encoded(1), self._read)

    def _encoded(self, which: int, **options: Any) -> Any:
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        split = self._splits[which]
        return self._builder.as_dataset(
            split=split, decoders=decoders, as_supervised=True, **options
        )

    def _read(self, example: Any) -> tuple[Any, Any]:
        encoded, label = example
        return self._builder.info.features["image"].decode_example(encoded), label


class Folder:
    """Images in folders, read while training: an example is the name of its file.

    Names that begin with a dot are passed over: they are other programs'.

    Args:
        folder: with `train`, and `test`, `val` or `validation`, in each of which every class has
            a folder of its images (JPEG, PNG, BMP, GIF or WebP).
        shape: of an image as the network sees it, which files need not have. If not given, all
            files have one size, and the shape is taken from a sample of them.
        channels: of an image; told from some of the files if not given.
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
        halves = [_half(folder, "train"), _half(folder, "test", "val", "validation")]
        names = [sorted(path.name for path in half.iterdir() if _is_class(path)) for half in halves]
        if names[0] != names[1] or not names[0]:
            raise ValueError(
                f"data.source: {halves[0]} and {halves[1]} must have the same folders, one for "
                f"each class; only one of them has {sorted(set(names[0]) ^ set(names[1]))}"
            )
        self._files = [
            _limited_files(_labelled(half, names[0]), limit, argument)
            for half, limit, argument in zip(
                halves, limits, ("data.limit", "data.test_limit"), strict=True
            )
        ]
        self.counts = len(self._files[0]), len(self._files[1])
        self.classes = len(names[0])
        self._ragged = shape is not None
        self.shape = shape or _usual_shape([path for path, _ in self._files[0]], channels)

    def examples(self, seed: int, epoch: int) -> Examples:
        """Training examples in the order of an epoch."""
        order = np.random.default_rng((seed, epoch)).permutation(self.counts[0])
        return self._named(0, order)

    def tests(self) -> Examples:
        """Test examples in order."""
        return self._named(1, np.arange(self.counts[1]))

    def in_memory(self) -> Arrays | None:
        """Return the images as arrays, where they have one size and fit; `None` otherwise.

        Raises:
            ValueError: for a file that is damaged, or of another size; the message names it.
        """
        if self._ragged or sum(self.counts) * math.prod(self.shape) > _FIT:
            return None
        train, test = (self._read_all(which) for which in (0, 1))
        return Arrays(train, test, self.classes)

    def damaged(self) -> str | None:
        """Return what is wrong with the first file that cannot be read, or `None`."""
        for path, _ in self._files[0] + self._files[1]:
            try:
                self._decoded(path)
            except ValueError as error:
                return str(error)
        return None

    def _read_all(self, which: int) -> Images:
        paths, labels = zip(*self._files[which], strict=True)
        images = np.empty((len(paths), *self.shape), np.uint8)
        with ThreadPoolExecutor() as pool:
            read = pool.map(self._decoded, paths)
            bar = progress(read, desc="images", total=len(paths), unit="file", delay=1, leave=False)
            for index, image in enumerate(bar):
                images[index] = image
        return Images(images, np.array(labels, np.int32))

    def _decoded(self, path: Path) -> np.ndarray:
        image = _decode(path, self.shape[-1])
        if not self._ragged and image.shape != self.shape:
            raise ValueError(
                f"data.source: {path} is {_sides(image.shape)}, and most others are "
                f"{_sides(self.shape)}; crop them to one size, or set data.augment to have "
                "resized_crop"
            )
        return image

    def _named(self, which: int, order: np.ndarray) -> Examples:
        import tensorflow as tf

        names, labels = zip(*(self._files[which][index] for index in order), strict=True)
        # As bytes: not every file system's names are UTF-8.
        encoded = [os.fsencode(name) for name in names]
        dataset = tf.data.Dataset.from_tensor_slices((encoded, np.array(labels, np.int32)))
        return Examples(dataset, self._read)

    def _read(self, example: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        name, label = example
        image = _image(tf.io.read_file(name), self.shape[-1])
        shape = (None, None, self.shape[-1]) if self._ragged else self.shape
        return tf.ensure_shape(image, shape), label


# Bytes of images that are held in memory instead of being read again each epoch.
_FIT = 2**31

# Number of files that the shape of a set is taken from.
_SAMPLE = 25

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _half(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(
        f"data.source: {folder} has no IDX files (train-images-idx3-ubyte and so on), and no "
        f"folder {' or '.join(names)} of images either"
    )


def _labelled(half: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (half / name).rglob("*") if _is_image(path, half))
        if not paths:
            raise ValueError(f"data.source: {half / name} has no images ({', '.join(_SUFFIXES)})")
        found += [(path, label) for path in paths]
    return found


def _is_image(path: Path, half: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(half).parts)
    return path.suffix.lower() in _SUFFIXES and not hidden and path.is_file()


def _limited_files(
    files: list[tuple[Path, int]], limit: int | None, argument: str
) -> list[tuple[Path, int]]:
    if limit is None or limit >= len(files):
        return files
    labels = np.array([label for _, label in files])
    return [files[index] for index in balanced_rows(labels, limit, argument)]


def _usual_shape(paths: Sequence[Path], channels: int | None) -> tuple[int, ...]:
    """Return the size that most of some files have, in colour unless all of them are grey.

    Raises:
        ValueError: if none of them can be read.
    """
    some = [paths[index] for index in np.linspace(0, len(paths) - 1, _SAMPLE).astype(int)]
    shapes, wrong = [], []
    for path in dict.fromkeys(some):
        try:
            shapes.append(_decode(path).shape)
        except ValueError as error:
            wrong.append(str(error))
    if not shapes:
        raise ValueError(wrong[0])
    (size, _), *_ = Counter(shape[:2] for shape in shapes).most_common()
    if channels is None:
        channels = 1 if all(shape[-1] == 1 for shape in shapes) else 3
    return (*size, channels)


def _decode(path: Path, channels: int = 0) -> np.ndarray:
    """Return a file's image, with its own channels if none are asked for.

    Raises:
        ValueError: for a file that is no image, or a damaged one.
    """
    import tensorflow as tf

    try:
        return _image(path.read_bytes(), channels).numpy()
    except (OSError, tf.errors.OpError) as error:
        what = "is empty" if path.exists() and not path.stat().st_size else "is no image"
        message = str(getattr(error, "message", error)).partition("\n")[0]
        # TensorFlow puts where in its graph before what is wrong.
        message = shortened(re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\]", "", message), 200)
        raise ValueError(f"data.source: {path} {what}, or damaged: {message}") from None


def _image(content: Any, channels: int) -> Any:
    """Return the image in a file's bytes, with its own channels for 0."""
    import tensorflow as tf

    def decoded(channels: int) -> Any:
        return tf.io.decode_image(content, channels, expand_animations=False)

    if channels != 1:
        return decoded(channels)
    # Of PNG and JPEG alone TensorFlow makes grey images as it reads them.
    return tf.cond(
        tf.reduce_any(tf.strings.substr(content, 0, 2) == [b"\x89P", b"\xff\xd8"]),
        lambda: decoded(1),
        lambda: tf.image.rgb_to_grayscale(tf.ensure_shape(decoded(3), (None, None, 3))),
    )


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:2]))


def what_of(recipe: DataRecipe) -> Known:
    """Shape, classes and counts of a recipe's images; read only where they are in a folder.

    Raises:
        ValueError: for a set that is not known.
    """
    if recipe.source == "tfds" and recipe.name in KNOWN:
        known = KNOWN[recipe.name]
        side = recipe.size
        return known if side is None else known._replace(shape=(side, side, known.shape[-1]))
    source: Source = _folder_of(recipe) or source_of(recipe)
    return Known(source.shape, source.classes, source.counts)


def sample_images(source: str, count: int = 64) -> np.ndarray:
    """Return some training images, normalised: of the embedded set, or of a folder.

    Args:
        source: `"embedded"`, or a folder as recipes take it.
        count: how many.

    Raises:
        ValueError: for a folder without images.
    """
    if source == "embedded":
        images = load_fashion_mnist()[0].images[:count]
    else:
        recipe = DataRecipe("images", source, limit=count, test_limit=count)
        found = _folder_of(recipe)
        data = None if found is None else found.in_memory()
        images = (load_idx(Path(source))[0] if data is None else data.images[0]).images[:count]
    return (images - images.mean()) / images.std()


def _folder_of(recipe: DataRecipe) -> Folder | None:
    """Return a recipe's folder of image files, if it has one; nothing but names is read."""
    folder = file_path("data.source", recipe.source)
    if recipe.source in ("tfds", "embedded") or not folder.is_dir() or [*folder.glob("*ubyte*")]:
        return None
    known = KNOWN.get(recipe.name)
    shape = _shape_of(recipe) if "resized_crop" in recipe.augment else None
    channels = known.shape[-1] if known else None
    return Folder(folder, shape, channels, (recipe.limit, recipe.test_limit))


def _shape_of(recipe: DataRecipe) -> tuple[int, ...]:
    """Return the shape of an image as the network sees it."""
    known = KNOWN.get(recipe.name)
    shape = known.shape if known else _USUAL
    return shape if recipe.size is None else (recipe.size, recipe.size, shape[-1])


def source_of(recipe: DataRecipe) -> Source:
    """The images of a recipe, ready to be read.

    Raises:
        ValueError: for a set that is not known, or not there; the message says how to get it.
    """
    if recipe.source == "embedded":
        if recipe.name != "fashion_mnist":
            raise ValueError(
                f"data.source: {brief(recipe.name)} does not come with the package; fashion_mnist "
                "does"
            )
        return _limited(*load_fashion_mnist(), recipe, 10)
    folder = _folder_of(recipe)
    if folder is not None:
        return folder.in_memory() or folder
    if recipe.source != "tfds":
        train, test = load_idx(Path(recipe.source))
        return _limited(train, test, recipe, 1 + int(max(train.labels.max(), test.labels.max())))
    known = KNOWN.get(recipe.name)
    if known is None:
        raise ValueError(f"data.name: got {brief(recipe.name)}; known are {', '.join(KNOWN)}")
    builder = _prepared(recipe.name)
    if known.large:
        if recipe.limit is not None or recipe.test_limit is not None:
            raise ValueError(
                f"data.limit, data.test_limit: {recipe.name} is read as a stream, all of it; they "
                "are for images in memory or in folders"
            )
        return Stream(builder, known._replace(shape=_shape_of(recipe)))
    train, test = (_read(builder, split) for split in known.splits)
    return _limited(train, test, recipe, known.classes)


def _limited(train: Images, test: Images, recipe: DataRecipe, classes: int) -> Arrays:
    if recipe.limit is not None and recipe.limit < len(train.labels):
        train = balanced(train, recipe.limit, "data.limit")
    if recipe.test_limit is not None and recipe.test_limit < len(test.labels):
        test = balanced(test, recipe.test_limit, "data.test_limit")
    return Arrays(train, test, classes)


def _prepared(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            "data.source: 'tfds' needs tensorflow_datasets; run: pip install 'ce-keras[tfds]'"
        ) from None

    builder = tfds.builder(name)
    if not _there(builder):
        by_hand = (
            "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org into "
            "~/tensorflow_datasets/downloads/manual, then run"
            if name == "imagenet2012"
            else "run"
        )
        raise ValueError(
            f"data.name: {name} is not at {builder.data_path}; {by_hand}: tfds build {name}; or "
            "name a folder of IDX files: --set data.source=FOLDER"
        )
    return builder


def _there(builder: Any) -> bool:
    return builder.data_path.exists()


def _read(builder: Any, split: str) -> Images:
    import tensorflow_datasets as tfds

    # In batches: all at once (batch_size=-1) aborts the process in TensorFlow 2.21.
    return gathered(tfds.as_numpy(builder.as_dataset(split=split, batch_size=1000)))
