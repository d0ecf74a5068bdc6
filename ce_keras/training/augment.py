"""Augmentations of training images, a whole batch at a time where sizes allow.

Every function takes two integers as its seed and is a function of it, so a run resumes at any step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

#: First row of some images in the batch that they are a shard of, and the size of that batch.
Rows = tuple[Any, Any]

# Luminance of red, green and blue (ITU-R 601), as torchvision's.
_GREY = (0.2989, 0.587, 0.114)


def _draws(
    kinds: int, images: Any, seed: Any, rows: Rows | None, limits: tuple[Any, ...] = ()
) -> Any:
    """Return uniform random numbers, `(kinds, count)`: the images' rows of the whole batch's."""
    count = tf.shape(images)[0]
    first, whole = rows or (0, count)
    return tf.random.stateless_uniform((kinds, whole), seed, *limits)[:, first : first + count]


def crop(images: Any, seed: Any, pad: int = 4, rows: Rows | None = None) -> Any:
    """Return the images padded by zeros and cropped to their size, each at a random place.

    Args:
        images: `(batch, height, width, channels)`.
        seed: two integers.
        pad: pixels on each side.
        rows: place of the images in the whole batch, so that a shard is augmented as it would be
            there; the images are the whole batch if not given.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    draws = _draws(2, images, seed, rows, (0, 2 * pad + 1, tf.int32))
    top, left = tf.unstack(draws[:, :, None])
    high = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    columns = tf.gather(high, left + tf.range(width), axis=2, batch_dims=1)
    return tf.ensure_shape(columns, images.shape)


def flip(images: Any, seed: Any, rows: Rows | None = None) -> Any:
    """Return the images, each mirrored with probability 1/2. Arguments as in `crop`."""
    mirrored = _draws(1, images, seed, rows)[0] < 0.5
    return tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop_box(height: Any, width: Any, seed: Any) -> Any:
    """Return a random box of 8 to 100% of an image's area and an aspect ratio of 3/4 to 4/3.

    The first of ten draws that fits, or else the largest central box of an allowed aspect ratio.

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
    aspect = tf.exp((2 * draws[1] - 1) * tf.math.log(4 / 3))
    boxes = tf.round(tf.sqrt(tf.stack([area / aspect, area * aspect])))  # Heights and widths.
    fits = tf.reduce_all((boxes >= 1) & (boxes <= size[:, None]), axis=0)
    first = tf.argmax(fits)
    sides = tf.gather(boxes, first, axis=1)
    corner = tf.floor(tf.gather(draws[2:], first, axis=1) * (size - sides + 1))
    # The central box: no side is longer than 4/3 of the other.
    central = tf.minimum(size, tf.round(size[::-1] * (4 / 3)))
    middle = tf.floor((size - central) / 2)
    fitting, failing = tf.concat([corner, sides], 0), tf.concat([middle, central], 0)
    return tf.cast(tf.where(tf.reduce_any(fits), fitting, failing), tf.int32)


def resized_crop(image: Any, seed: Any, size: tuple[int, int]) -> Any:
    """Return one image, cropped to a random box and resized (bilinear, antialiased)."""
    shape = tf.shape(image)
    top, left, height, width = tf.unstack(crop_box(shape[0], shape[1], seed))
    image = image[top : top + height, left : left + width]
    return tf.clip_by_value(tf.image.resize(image, size, antialias=True), 0, 255)


def central_crop(image: Any, size: tuple[int, int], larger: float = 256 / 224) -> Any:
    """Return one test image: shorter side resized to `larger` times `size`, then its centre."""
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = larger * min(size) / tf.reduce_min(shape)
    resized = tf.image.resize(image, tf.cast(tf.round(shape * scale), tf.int32), antialias=True)
    resized = tf.clip_by_value(resized, 0, 255)
    return tf.image.resize_with_crop_or_pad(resized, *size)


def jitter(images: Any, seed: Any, strength: float = 0.4, rows: Rows | None = None) -> Any:
    """Return the images with random brightness, contrast and saturation, in random order.

    Each has a factor of its own for every image, uniform in `1 - strength` to `1 + strength`;
    values are clipped to 0 and 255 after each.

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


#: Images to blend with: black for brightness, the mean grey for contrast, grey for saturation.
_JITTERS: tuple[Callable[[Any], Any], ...] = (
    tf.zeros_like,
    lambda images: tf.reduce_mean(_grey(images), axis=(1, 2, 3), keepdims=True),
    _grey,
)
