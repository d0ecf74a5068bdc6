"""What is done to training images, a batch at a time: image by image costs more than the training.

Every function takes two integers as its seed and draws the same for the same seed, whatever came
before: that is what lets a run go on from any step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

#: Of the whole batch that images are a part of: the first row that is theirs, and its size.
Rows = tuple[Any, Any]

# Luminance of red, green and blue (ITU-R 601), as torchvision's.
_GREY = (0.2989, 0.587, 0.114)


def _draws(
    kinds: int, images: Any, seed: Any, rows: Rows | None, limits: tuple[Any, ...] = ()
) -> Any:
    """Uniform numbers, `(kinds, count)`: those of the whole batch, of which the rows' are taken."""
    count = tf.shape(images)[0]
    first, whole = rows or (0, count)
    return tf.random.stateless_uniform((kinds, whole), seed, *limits)[:, first : first + count]


def crop(images: Any, seed: Any, pad: int = 4, rows: Rows | None = None) -> Any:
    """Pad by zeros and crop at random to the size they had, each image by itself.

    Rows are gathered, and then columns.

    Args:
        images: `(batch, height, width, channels)`.
        seed: two integers.
        pad: pixels on each side.
        rows: of the batch that the images are a part of, so that each is changed as it would be
            in the whole; all of it if not given.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    draws = _draws(2, images, seed, rows, (0, 2 * pad + 1, tf.int32))
    top, left = tf.unstack(draws[:, :, None])
    high = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    columns = tf.gather(high, left + tf.range(width), axis=2, batch_dims=1)
    return tf.ensure_shape(columns, images.shape)


def flip(images: Any, seed: Any, rows: Rows | None = None) -> Any:
    """Mirror half of the images. Arguments as in `crop`."""
    mirrored = _draws(1, images, seed, rows)[0] < 0.5
    return tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop_box(height: Any, width: Any, seed: Any) -> Any:
    """A random box of 8 to 100% of an image's area and an aspect of 3/4 to 4/3.

    Of ten draws the first that fits; failing all, the largest central box of an allowed aspect.

    Args:
        height: of the image, in pixels.
        width: of the image.
        seed: two integers.

    Returns:
        Top, left, height and width, integers.
    """
    draws = tf.random.stateless_uniform((4, 10), seed)
    size = tf.cast(tf.stack([height, width]), tf.float32)
    area = size[0] * size[1] * (0.08 + 0.92 * draws[0])
    spread = tf.math.log(4 / 3)
    aspect = tf.exp((2 * draws[1] - 1) * spread)
    wide, high = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    fits = (wide >= 1) & (high >= 1) & (wide <= size[1]) & (high <= size[0])
    at = tf.argmax(fits)  # The first that does.
    top = tf.floor(draws[2][at] * (size[0] - high[at] + 1))
    left = tf.floor(draws[3][at] * (size[1] - wide[at] + 1))
    drawn = tf.stack([top, left, high[at], wide[at]])
    central_high = tf.minimum(size[0], tf.round(size[1] / (3 / 4)))
    central_wide = tf.minimum(size[1], tf.round(size[0] * (4 / 3)))
    central = tf.stack(
        [
            tf.floor((size[0] - central_high) / 2),
            tf.floor((size[1] - central_wide) / 2),
            central_high,
            central_wide,
        ]
    )
    return tf.cast(tf.where(tf.reduce_any(fits), drawn, central), tf.int32)


def resized_crop(image: Any, seed: Any, size: tuple[int, int]) -> Any:
    """One image, cropped to a random box and resized (bilinear, antialiased)."""
    shape = tf.shape(image)
    top, left, height, width = tf.unstack(crop_box(shape[0], shape[1], seed))
    image = image[top : top + height, left : left + width]
    return tf.clip_by_value(tf.image.resize(image, size, antialias=True), 0, 255)


def central_crop(image: Any, size: tuple[int, int], larger: float = 256 / 224) -> Any:
    """One image for testing: its shorter side resized to `larger` times `size`, and the middle."""
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = larger * min(size) / tf.reduce_min(shape)
    resized = tf.image.resize(image, tf.cast(tf.round(shape * scale), tf.int32), antialias=True)
    resized = tf.clip_by_value(resized, 0, 255)
    return tf.image.resize_with_crop_or_pad(resized, *size)


def jitter(images: Any, seed: Any, strength: float = 0.4, rows: Rows | None = None) -> Any:
    """Brightness, contrast and saturation changed by up to `strength`, in random order.

    Each by a factor of its own for every image, uniform in `1 - strength` to `1 + strength`;
    values are cut off at 0 and 255 after each.

    Args:
        images: `(batch, height, width, 3)`, values 0 to 255.
        seed: two integers.
        strength: at most 1.
        rows: as in `crop`.
    """
    count = tf.shape(images)[0]
    draws = _draws(6, images, seed, rows)
    factors = tf.reshape(1 + strength * (2 * draws[:3] - 1), [3, count, 1, 1, 1])
    order = tf.argsort(draws[3:], axis=0)
    images = tf.cast(images, tf.float32)
    for place in range(3):
        turn = tf.reshape(order[place], [count, 1, 1, 1])
        blended = images
        for kind, other in enumerate(_JITTERS):
            changed = other(images) + factors[kind] * (images - other(images))
            blended = tf.where(turn == kind, changed, blended)
        images = tf.clip_by_value(blended, 0, 255)
    return images


def _grey(images: Any) -> Any:
    return tf.reduce_sum(images * tf.constant(_GREY), axis=-1, keepdims=True)


#: What an image is blended with: black, its mean grey, its own grey.
_JITTERS: tuple[Callable[[Any], Any], ...] = (
    tf.zeros_like,
    lambda images: tf.reduce_mean(_grey(images), axis=(1, 2, 3), keepdims=True),
    _grey,
)
