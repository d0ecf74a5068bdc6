"""Where the images of a recipe are, and in what order an epoch shows them.

The order of an epoch depends on the seed and the epoch alone, so a run can go on from any step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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

    shape: tuple[int, int, int]
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

# Images that a stream is shuffled among, after its files have been.
_SHUFFLED = 10_000


class Arrays:
    """Images held in memory.

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

    def train(self, seed: int, epoch: int, first: int) -> Any:
        """(image, label) in the order of an epoch, from the image `first` on."""
        order = np.random.default_rng((seed, epoch)).permutation(self.counts[0])
        return self._dataset(self.images[0], order[first:])

    def test(self) -> Any:
        """(image, label) of the test images, in order."""
        return self._dataset(self.images[1], np.arange(self.counts[1]))

    def _dataset(self, data: Images, order: np.ndarray) -> Any:
        import tensorflow as tf

        images, labels = tf.constant(data.images), tf.constant(data.labels.astype(np.int32))
        return tf.data.Dataset.from_tensor_slices(order).map(
            lambda index: (tf.gather(images, index), tf.gather(labels, index))
        )


class Stream:
    """A prepared set of tensorflow_datasets, read while training.

    Args:
        builder: of the set.
        known: what it is.
    """

    def __init__(self, builder: Any, known: Known) -> None:
        self._builder = builder
        self._splits = known.splits
        self.classes = known.classes
        self.shape = known.shape
        found = builder.info.splits
        self.counts = known.counts
        if found:  # What is there counts: it may be a part.
            train, test = (found[split].num_examples for split in known.splits)
            self.counts = train, test

    def train(self, seed: int, epoch: int, first: int) -> Any:
        """(image, label) in the order of an epoch, from the image `first` on."""
        import tensorflow_datasets as tfds

        draw = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
        config = tfds.ReadConfig(shuffle_seed=draw, interleave_cycle_length=16)
        images = self._builder.as_dataset(
            split=self._splits[0], shuffle_files=True, read_config=config, as_supervised=True
        )
        return images.shuffle(_SHUFFLED, seed=draw, reshuffle_each_iteration=False).skip(first)

    def test(self) -> Any:
        """(image, label) of the test images, in order."""
        return self._builder.as_dataset(split=self._splits[1], as_supervised=True)


def what_of(recipe: DataRecipe) -> Known:
    """Shape, classes and counts of a recipe's images; read only where they are in a folder.

    Raises:
        ValueError: for a set that is not known.
    """
    if recipe.source == "tfds" and recipe.name in KNOWN:
        return KNOWN[recipe.name]
    source = source_of(recipe)
    return Known(source.shape, source.classes, source.counts)


def source_of(recipe: DataRecipe) -> Arrays | Stream:
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
    if recipe.source != "tfds":
        train, test = load_idx(Path(recipe.source))
        return _limited(train, test, recipe, 1 + int(max(train.labels.max(), test.labels.max())))
    if known is None:
        raise ValueError(f"data.name: got {recipe.name!r}; known are {', '.join(KNOWN)}")
    builder = _prepared(recipe.name)
    if known.large:
        return Stream(builder, known)
    train, test = (_read(builder, split) for split in known.splits)
    return _limited(train, test, recipe, known.classes)


def _limited(train: Images, test: Images, recipe: DataRecipe, classes: int) -> Arrays:
    if recipe.limit is not None:
        train = balanced(train, recipe.limit)
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
