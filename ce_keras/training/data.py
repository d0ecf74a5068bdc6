"""Real images: Fashion-MNIST, a part of which comes with the package, and the input pipeline."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.checks import (
    brief,
    checked_seed,
    file_path,
    instance,
    positive_int,
    real_array,
    sequence_of,
    text,
    whole_number,
)
from ce_keras.files import replacing

if TYPE_CHECKING:
    import tensorflow as tf

EMBEDDED = Path(__file__).parent / "fashion_mnist"

# Batches prepared ahead.
_AHEAD = 2

#: What the labels mean.
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class Images(NamedTuple):
    """Images, bytes of shape `(count, height, width, channels)`, and labels, `(count,)`."""

    images: np.ndarray
    labels: np.ndarray


def load_fashion_mnist(source: str | Path = "embedded") -> tuple[Images, Images]:
    """Fashion-MNIST: 28x28 grey images of ten kinds of clothing.

    Args:
        source: `"embedded"`: the subset in this package, 10,000 training and 2,000 test images,
            equally many of each class. `"tfds"`: the whole set through tensorflow_datasets. A
            folder: the whole set, or any other, as IDX files, plain or compressed (`.gz`, `.xz`).

    Returns:
        The training and the test images.

    Raises:
        ValueError: for a folder that does not exist, or files that are not what they should be.
        ImportError: if tensorflow_datasets is asked for and not installed.

    >>> train, test = load_fashion_mnist()
    >>> train.images.shape, np.bincount(test.labels).tolist()[:3]
    ((10000, 28, 28, 1), [200, 200, 200])
    """
    if not isinstance(source, str | Path):
        file_path("source", source)
    if isinstance(source, str) and source == "tfds":
        return _from_tfds("fashion_mnist")
    return load_idx(EMBEDDED if source == "embedded" else file_path("source", source))


def load_idx(folder: Path) -> tuple[Images, Images]:
    """Training and test images from a folder of IDX files, named as MNIST's are.

    Raises:
        ValueError: for a folder that does not exist, or files that are not what they should be.
    """
    if not folder.is_dir():
        raise ValueError(
            f"source: got {brief(str(folder))}; it must be 'embedded', 'tfds', or a folder of IDX "
            "files, such as /usr/share/datasets/fashion-mnist after "
            "'apt-get install dataset-fashion-mnist' on Debian"
        )
    return _from_idx(folder, "train"), _from_idx(folder, "t10k")


def _from_idx(folder: Path, part: str) -> Images:
    images = read_idx(_find(folder, f"{part}-images", "idx3-ubyte"))
    labels = read_idx(_find(folder, f"{part}-labels", "idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"source: {folder} has {part} images of shape {images.shape} and labels of shape "
            f"{labels.shape}; they must be (count, height, width) and (count,)"
        )
    return Images(images[..., None], labels)


def _find(folder: Path, name: str, kind: str) -> Path:
    for separator, suffix in itertools.product("-.", _OPENERS):  # Both spellings are about.
        path = folder / f"{name}{separator}{kind}{suffix}"
        if path.is_file():
            return path
    raise ValueError(f"source: {folder} has no file {name}-{kind} (plain, .gz or .xz)")


_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of bytes, the format of MNIST, compressed or not.

    Raises:
        ValueError: if the file is not a whole IDX file of unsigned bytes.
    """
    path = file_path("path", path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {path}")
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"source: {path} is damaged: {error}") from error
    # Two zeros, the type (8: unsigned byte), the number of axes; then each axis in four bytes.
    axes = content[3] if len(content) > 3 else 0
    header = 4 + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(content[4:header][: 4 * axes], ">u4"))
    if (
        content[:3] != b"\0\0\x08"
        or len(shape) != axes
        or len(content) != header + math.prod(shape)
    ):
        raise ValueError(f"source: {path} is not a complete IDX file of unsigned bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def write_idx(path: str | Path, array: np.ndarray) -> None:
    """Write bytes as an IDX file, compressed as the path's suffix says.

    Raises:
        ValueError: for numbers that are not whole, or not from 0 to 255.
    """
    path = file_path("path", path)
    array = np.asarray(array)
    with np.errstate(invalid="ignore"):  # Of what is not a number.
        whole = array.dtype.kind in "biuf" and np.array_equal(array, array.astype(np.uint8))
    if not whole:
        raise ValueError(f"array: has other than whole numbers from 0 to 255 ({array.dtype})")
    shape = np.array(array.shape, ">u4").tobytes()
    opener = _OPENERS.get(path.suffix, open)
    with replacing(path) as part, opener(part, "wb") as file:
        file.write(b"\0\0\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes())


def balanced(data: Images, count: int, argument: str = "count") -> Images:
    """Return the first `count` images in which classes are as equally frequent as can be.

    Args:
        data: the images.
        count: how many.
        argument: what the count is to the caller, for the message.

    Raises:
        ValueError: for fewer than one of each class, or more than there are.
    """
    instance("data", data, Images, "Images")
    text("argument", argument)
    keep = balanced_rows(data.labels, count, argument)
    return Images(data.images[keep], data.labels[keep])


def balanced_rows(labels: np.ndarray, count: int, argument: str = "count") -> np.ndarray:
    """Return the indices of what `balanced` keeps, in their order.

    >>> balanced_rows(np.array([0, 0, 0, 1, 1, 0]), 3).tolist()
    [0, 1, 3]
    """
    classes, sizes = np.unique(labels, return_counts=True)
    count = whole_number(argument, count, len(classes), len(labels))
    quota = np.zeros_like(sizes)
    while quota.sum() < count:
        room = np.flatnonzero(quota < sizes)
        each, rest = divmod(int(count - quota.sum()), len(room))
        if not each:  # The first classes have one more.
            room, each = room[:rest], 1
        quota[room] += np.minimum(each, (sizes - quota)[room])
    own = [np.flatnonzero(labels == c)[:n] for c, n in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(own))


def _from_tfds(name: str) -> tuple[Images, Images]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            "source: 'tfds' needs tensorflow_datasets; run: pip install 'ce-keras[tfds]'"
        ) from None

    def load(split: str) -> Images:
        # In batches: all at once (batch_size=-1) aborts the process in TensorFlow 2.21.
        return gathered(tfds.as_numpy(tfds.load(name, split=split, batch_size=1000)))

    return load("train"), load("test")


def gathered(batches: Iterable[dict[str, np.ndarray]]) -> Images:
    """All batches of a set of tensorflow_datasets."""
    found = list(batches)
    images, labels = (np.concatenate([each[key] for each in found]) for key in ("image", "label"))
    return Images(images, labels.astype(np.uint8 if labels.max() < 256 else np.int32))


def pipeline(
    data: Images, batch_size: int, *, like: Images | None = None, seed: int | None = None
) -> tf.data.Dataset:
    """Batches for `fit` or `evaluate`: normalised, and for training shuffled and augmented.

    Args:
        data: the images.
        batch_size: images in a batch; the last may have fewer.
        like: whose mean and standard deviation normalise; `data`'s own if not given.
        seed: for training: shuffle, shift by up to two pixels and flip, differently each epoch and
            the same for the same seed. `None`: the images in order, as they are.

    Returns:
        A dataset of (images, labels): float32 `(batch, height, width, channels)`, and integers.
    """
    instance("data", data, Images, "Images")
    if like is not None:
        instance("like", like, Images, "Images")
    positive_int("batch_size", batch_size)
    checked_seed(seed)
    import tensorflow as tf

    reference = (data if like is None else like).images
    mean, deviation = np.float32(reference.mean()), np.float32(reference.std())

    def normalise(images: Any, labels: Any) -> tuple[Any, Any]:
        return (tf.cast(images, tf.float32) - mean) / deviation, labels

    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).with_options(steady())
    if seed is None:
        return dataset.batch(batch_size).map(normalise).prefetch(_AHEAD)

    def augment(draw: Any, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        images, labels = batch
        images = shift_and_flip(images, tf.stack([tf.constant(seed, tf.int64), draw]))
        return normalise(images, labels)

    batches = dataset.shuffle(len(data.labels), seed=seed).batch(batch_size)
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(draws, batches).map(augment).prefetch(_AHEAD)


def steady() -> tf.data.Options:
    """Elements in order, and no autotuning.

    Its thread holds up every iterator that is taken down, by seconds an epoch.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return options


def shift_and_flip(images: Any, seed: Any, pixels: int = 2) -> Any:
    """Move each image by up to `pixels` each way, filling with zeros, and mirror half of them.

    Works on a whole batch at once, by gathering rows and then columns: image by image the same
    costs more than a training step of a small network.

    Args:
        images: `(batch, height, width, channels)`.
        seed: two integers.
        pixels: the largest shift.
    """
    if len(getattr(images, "shape", ())) != 4:
        raise ValueError(
            f"images: got {brief(images)}; it must be (batch, height, width, channels)"
        )
    if isinstance(images, np.ndarray):
        real_array("images", images)
    is_tensor = hasattr(seed, "numpy") or hasattr(seed, "op")  # Or one of a graph.
    if not is_tensor and len(sequence_of("seed", seed, whole_number)) != 2:
        raise ValueError(f"seed: got {brief(seed)}; it must be two whole numbers")
    whole_number("pixels", pixels, 0, 2**13)
    import tensorflow as tf

    count, height, width = tf.unstack(tf.shape(images)[:3])
    padded = tf.pad(images, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]])
    draws = tf.random.stateless_uniform((3, count, 1), seed)
    down, across = tf.unstack(tf.cast(draws[:2] * (2 * pixels + 1), tf.int32))
    columns = across + tf.range(width)
    columns = tf.where(draws[2] < 0.5, columns, columns[:, ::-1])
    rows = tf.gather(padded, down + tf.range(height), axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(rows, columns, axis=2, batch_dims=1), images.shape)
