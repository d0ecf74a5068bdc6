"""Augmentations, against what the words mean and against plain NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.training import augment


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (64, 9, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "change", [augment.crop, augment.flip, augment.jitter], ids=lambda change: change.__name__
)
def test_the_same_seed_does_the_same(change, images):
    once, again, other = (change(images, [1, seed]) for seed in (2, 2, 3))
    np.testing.assert_array_equal(once, again)
    assert (once != other).numpy().any()
    assert once.shape == images.shape


def test_crops_are_windows_of_the_padded_image(images):
    cropped = augment.crop(images, [0, 0], pad=2).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = set()
    for image, whole in zip(cropped, padded, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if (whole[top : top + 9, left : left + 7] == image).all()
        ]
        assert places
        seen.update(places)
    assert len(seen) > 15  # Of 25, each as likely.


def test_half_of_the_images_are_mirrored(rng):
    images = rng.integers(0, 256, (4000, 1, 2, 1)).astype(np.uint8)
    images[:, :, 1] = images[:, :, 0] + 1
    mirrored = (augment.flip(images, [3, 4]).numpy() != images).any(axis=(1, 2, 3)).mean()
    # Five standard errors of 4,000 coins: a false alarm once in 1.7 million.
    assert abs(mirrored - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_boxes_have_the_areas_and_aspects_asked_for():
    drawn = tf.function(lambda draw: augment.crop_box(400, 500, [7, draw]))
    boxes = np.array([drawn(draw) for draw in tf.range(2000)])
    top, left, height, width = boxes.T.astype(float)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 500).all()
    # A pixel's rounding of the shortest side there can be, 98.
    aspect = width / height
    assert aspect.min() > 0.75 * 0.98
    assert aspect.max() < 4 / 3 * 1.02
    area = height * width / (400 * 500)
    assert area.min() > 0.08 * 0.97
    # The aspect is log-uniform where every area fits.
    small = np.log(aspect[area < 0.5])
    spread = np.log(4 / 3)
    assert abs(small.mean()) < 5 * spread / np.sqrt(3 * len(small))
    assert abs((small**2).mean() - spread**2 / 3) < 5 * spread**2 * np.sqrt(4 / 45 / len(small))
    # The area is uniform from 8% up to where the aspect does not matter.
    uniform = area[area < 0.6]
    middle, width = (0.08 + 0.6) / 2, 0.52
    assert abs(uniform.mean() - middle) < 5 * width / np.sqrt(12 * len(uniform)) + 0.002


def test_long_images_have_a_central_box():
    # No draw of 8% of the area or more fits into one row of pixels.
    top, left, height, width = augment.crop_box(1, 1000, [0, 0]).numpy()
    assert (top, height, width) == (0, 1, 1)
    assert left == 499


def by_pillow(image, factors, order):
    """torchvision's jitter of one image of floats: blends with black, mean grey and grey."""
    weights = np.array([0.2989, 0.587, 0.114])
    for kind in order:
        grey = (image @ weights)[..., None]
        other = (np.zeros_like(grey), np.full_like(grey, grey.mean()), grey)[kind]
        image = np.clip(factors[kind] * image + (1 - factors[kind]) * other, 0, 255)
    return image


def test_jitter_changes_each_image_in_its_own_order(images):
    jittered = augment.jitter(images, [5, 6], 0.4).numpy()
    draws = tf.random.stateless_uniform((6, len(images)), [5, 6]).numpy()
    factors, orders = 1 + 0.4 * (2 * draws[:3] - 1), np.argsort(draws[3:], axis=0)
    assert len({tuple(order) for order in orders.T}) == 6
    for index, image in enumerate(images.astype(float)):
        expected = by_pillow(image, factors[:, index], orders[:, index])
        np.testing.assert_allclose(jittered[index], expected, atol=1e-3)


def test_test_images_are_the_middle():
    image = np.zeros((512, 300, 3), np.uint8)
    image[256, 150] = 255
    cropped = augment.central_crop(image, (224, 224)).numpy()
    assert cropped.shape == (224, 224, 3)
    brightest = np.unravel_index(cropped[..., 0].argmax(), (224, 224))
    assert max(abs(np.array(brightest) - 112)) <= 1
