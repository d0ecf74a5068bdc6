"""Where the images of a recipe are, and in what order an epoch shows them.

The order of an epoch depends on the seed and the epoch alone, so a run can go on from any step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ce_keras.training.data import Images, balanced, gathered, load_fashion_mnist, load_idx
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

    Args:
        folder: with `train`, and `test`, `val` or `validation`, in each of which every class has
            a folder of its images (JPEG, PNG, BMP or GIF).
        shape: of an image as the network sees it; that of the first file if not given.

    Raises:
        ValueError: where folders, or images in them, are missing.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...] | None = None) -> None:
        halves = [_half(folder, "train"), _half(folder, "test", "val", "validation")]
        names = [sorted(path.name for path in half.iterdir() if path.is_dir()) for half in halves]
        if names[0] != names[1] or not names[0]:
            raise ValueError(
                f"data.source: {halves[0]} and {halves[1]} must have the same folders, one for "
                f"each class; only one of them has {sorted(set(names[0]) ^ set(names[1]))}"
            )
        self._files = [_labelled(half, names[0]) for half in halves]
        self.counts = len(self._files[0]), len(self._files[1])
        self.classes = len(names[0])
        self._ragged = shape is not None
        self.shape = shape or _image_shape(self._files[0][0][0])

    def examples(self, seed: int, epoch: int) -> Examples:
        """Training examples in the order of an epoch."""
        order = np.random.default_rng((seed, epoch)).permutation(self.counts[0])
        return self._named(0, order)

    def tests(self) -> Examples:
        """Test examples in order."""
        return self._named(1, np.arange(self.counts[1]))

    def _named(self, which: int, order: np.ndarray) -> Examples:
        import tensorflow as tf

        names, labels = zip(*(self._files[which][index] for index in order), strict=True)
        dataset = tf.data.Dataset.from_tensor_slices((list(names), np.array(labels, np.int32)))
        return Examples(dataset, self._read)

    def _read(self, example: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        name, label = example
        image = tf.io.decode_image(tf.io.read_file(name), self.shape[-1], expand_animations=False)
        shape = (None, None, self.shape[-1]) if self._ragged else self.shape
        return tf.ensure_shape(image, shape), label


_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def _half(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(
        f"data.source: {folder} has no IDX files (train-images-idx3-ubyte and so on), and no "
        f"folder {' or '.join(names)} of images either"
    )


def _labelled(half: Path, classes: list[str]) -> list[tuple[str, int]]:
    found = []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (half / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not paths:
            raise ValueError(f"data.source: {half / name} has no images ({', '.join(_SUFFIXES)})")
        found += [(str(path), label) for path in paths]
    return found


def _image_shape(name: str) -> tuple[int, ...]:
    import tensorflow as tf

    return tuple(tf.io.decode_image(tf.io.read_file(name), expand_animations=False).shape)


def what_of(recipe: DataRecipe) -> Known:
    """Shape, classes and counts of a recipe's images; read only where they are in a folder.

    Raises:
        ValueError: for a set that is not known.
    """
    if recipe.source == "tfds" and recipe.name in KNOWN:
        known = KNOWN[recipe.name]
        side = recipe.size
        return known if side is None else known._replace(shape=(side, side, known.shape[-1]))
    source = source_of(recipe)
    return Known(source.shape, source.classes, source.counts)


def source_of(recipe: DataRecipe) -> Source:
    """The images of a recipe, ready to be read.

    Raises:
        ValueError: for a set that is not known, or not there; the message says how to get it.
    """
    if recipe.source == "embedded":
        if recipe.name != "fashion_mnist":
            raise ValueError(
                f"data.source: {recipe.name!r} does not come with the package; fashion_mnist does"
            )
        return _limited(*load_fashion_mnist(), recipe, 10)
    known = KNOWN.get(recipe.name)
    shape = known.shape if known else _USUAL
    if recipe.size is not None:
        shape = (recipe.size, recipe.size, shape[-1])
    if recipe.source != "tfds":
        folder = Path(recipe.source)
        if folder.is_dir() and not list(folder.glob("*-ubyte*")):
            return Folder(folder, shape if "resized_crop" in recipe.augment else None)
        train, test = load_idx(folder)
        return _limited(train, test, recipe, 1 + int(max(train.labels.max(), test.labels.max())))
    if known is None:
        raise ValueError(f"data.name: got {recipe.name!r}; known are {', '.join(KNOWN)}")
    builder = _prepared(recipe.name)
    if known.large:
        return Stream(builder, known._replace(shape=shape))
    train, test = (_read(builder, split) for split in known.splits)
    return _limited(train, test, recipe, known.classes)


def _limited(train: Images, test: Images, recipe: DataRecipe, classes: int) -> Arrays:
    if recipe.limit is not None:
        train = balanced(train, recipe.limit)
    if recipe.test_limit is not None:
        test = balanced(test, recipe.test_limit)
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
