"""Labelled images in memory: Fashion-MNIST, files in the IDX format, and balanced subsets."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras.checks import brief, file_path, instance, text, whole_number
from ce_keras.files import replacing

#: The subset of Fashion-MNIST in this package.
EMBEDDED = Path(__file__).parent / "fashion_mnist"

#: Names of Fashion-MNIST's classes, by label.
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
    """Return Fashion-MNIST: 28x28 grey images of ten kinds of clothing.

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
    folder = file_path("source", source)
    if source == "tfds":
        builder = tfds_builder("fashion_mnist")
        builder.download_and_prepare()
        return read_tfds(builder, "train"), read_tfds(builder, "test")
    return load_idx(EMBEDDED if source == "embedded" else folder)


def load_idx(folder: Path) -> tuple[Images, Images]:
    """Return the training and test images in a folder of IDX files, named as MNIST's are.

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


def _from_idx(folder: Path, split: str) -> Images:
    images = read_idx(_find(folder, f"{split}-images", "idx3-ubyte"))
    labels = read_idx(_find(folder, f"{split}-labels", "idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"source: {folder} has {split} images of shape {images.shape} and labels of shape "
            f"{labels.shape}; they must be (count, height, width) and (count,)"
        )
    return Images(images[..., None], labels)


def _find(folder: Path, name: str, kind: str) -> Path:
    for separator, suffix in itertools.product("-.", _OPENERS):  # Both spellings occur.
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
    with np.errstate(invalid="ignore"):  # NaN has no byte.
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
        count: number of images.
        argument: name of the count in error messages.

    Raises:
        ValueError: for fewer than one of each class, or more than there are.
    """
    instance("data", data, Images, "Images")
    text("argument", argument)
    keep = balanced_rows(data.labels, count, argument)
    return Images(data.images[keep], data.labels[keep])


def balanced_rows(labels: np.ndarray, count: int, argument: str = "count") -> np.ndarray:
    """Return the indices of the images that `balanced` keeps, in increasing order.

    >>> balanced_rows(np.array([0, 0, 0, 1, 1, 0]), 3).tolist()
    [0, 1, 3]
    """
    classes, sizes = np.unique(labels, return_counts=True)
    count = whole_number(argument, count, len(classes), len(labels))
    # Number the images of each class, and keep every class's first, then every class's second, ...
    number = np.empty(len(labels), np.int64)
    by_class = np.argsort(labels, kind="stable")
    number[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(np.lexsort((labels, number))[:count])


def tfds_builder(name: str) -> Any:
    """Return the builder of a dataset of tensorflow_datasets.

    Raises:
        ImportError: if tensorflow_datasets is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            "source: 'tfds' needs tensorflow_datasets; run: pip install 'ce-keras[tfds]'"
        ) from None
    return tfds.builder(name)


def read_tfds(builder: Any, split: str) -> Images:
    """Return a split of a prepared dataset of tensorflow_datasets."""
    # In batches: all at once (batch_size=-1) aborts the process in TensorFlow 2.21.
    batches = list(builder.as_dataset(split=split, batch_size=1000).as_numpy_iterator())
    images, labels = (np.concatenate([each[key] for each in batches]) for key in ("image", "label"))
    return Images(images, labels.astype(np.uint8 if labels.max() < 256 else np.int32))
