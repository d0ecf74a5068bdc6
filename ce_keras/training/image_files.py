"""Image files in folders of classes: finding and decoding them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras.checks import shortened

# Number of files that the shape of the images is taken from.
_SAMPLE = 25

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def find_classes(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the folders of the training and the test split, and the names of their classes.

    Raises:
        ValueError: for a split that is missing, or splits with other classes.
    """
    splits = [_find_split(folder, "train"), _find_split(folder, "test", "val", "validation")]
    train, test = (
        sorted(each.name for each in split.iterdir() if each.is_dir() and each.name[0] != ".")
        for split in splits
    )
    if not train and not test:
        raise ValueError(f"data.source: {splits[0]} has no folders of classes, such as train/cat")
    if train != test:
        raise ValueError(
            f"data.source: {splits[0]} and {splits[1]} must have the same folders, one for each "
            f"class; only one of them has {sorted(set(train) ^ set(test))}"
        )
    return splits, train


def _find_split(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(
        f"data.source: {folder} has no IDX files (train-images-idx3-ubyte and so on), and no "
        f"folder {' or '.join(names)} of images either"
    )


def labelled_files(split: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return the image files of a split with their labels, sorted by class and name.

    Raises:
        ValueError: for a class without images.
    """
    found = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (split / name).rglob("*") if _is_image(path, split))
        if not paths:
            raise ValueError(f"data.source: {split / name} has no images ({', '.join(_SUFFIXES)})")
        found += [(path, label) for path in paths]
    return found


def _is_image(path: Path, split: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(split).parts)
    return path.suffix.lower() in _SUFFIXES and not hidden and path.is_file()


def usual_shape(paths: Sequence[Path], channels: int | None) -> tuple[int, ...]:
    """Return the size that most of some files have, in colour unless all of them are grey.

    Raises:
        ValueError: if none of them can be read.
    """
    some = [paths[index] for index in np.linspace(0, len(paths) - 1, _SAMPLE).astype(int)]
    shapes, wrong = [], []
    for path in dict.fromkeys(some):
        try:
            shapes.append(decode_file(path).shape)
        except ValueError as error:
            wrong.append(str(error))
    if not shapes:
        raise ValueError(wrong[0])
    (size, _), *_ = Counter(shape[:2] for shape in shapes).most_common()
    if channels is None:
        channels = 1 if all(shape[-1] == 1 for shape in shapes) else 3
    return (*size, channels)


def decode_file(path: Path, channels: int = 0) -> np.ndarray:
    """Return a file's image; with the file's own number of channels for 0.

    Raises:
        ValueError: for a file that is no image, or a damaged one.
    """
    import tensorflow as tf

    try:
        return decode_bytes(path.read_bytes(), channels).numpy()
    except (OSError, tf.errors.OpError) as error:
        what = "is empty" if path.exists() and not path.stat().st_size else "is no image"
        message = str(getattr(error, "message", error)).partition("\n")[0]
        # TensorFlow puts the place in its graph before the error.
        message = shortened(re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\]", "", message), 200)
        raise ValueError(f"data.source: {path} {what}, or damaged: {message}") from None


def decode_bytes(content: Any, channels: int) -> Any:
    """Return the image in a file's bytes; with the file's own number of channels for 0."""
    import tensorflow as tf

    def decoded(channels: int) -> Any:
        return tf.io.decode_image(content, channels, expand_animations=False)

    if channels != 1:
        return decoded(channels)
    # TensorFlow converts only PNG and JPEG to grey while reading.
    return tf.cond(
        tf.reduce_any(tf.strings.substr(content, 0, 2) == [b"\x89P", b"\xff\xd8"]),
        lambda: decoded(1),
        lambda: tf.image.rgb_to_grayscale(tf.ensure_shape(decoded(3), (None, None, 3))),
    )


def sides(shape: Sequence[int]) -> str:
    """Return height and width for messages, such as `32x32`."""
    return "x".join(map(str, shape[:2]))
