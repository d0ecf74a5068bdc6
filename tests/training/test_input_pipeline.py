"""Batches: normalised, augmented, shared among replicas, and the same from any step on."""

import numpy as np
import tensorflow as tf
from recipes_for_tests import small

from ce_keras.training import (
    Images,
    balanced,
    pipeline,
    read_recipe,
    shift_and_flip,
)
from ce_keras.training.datasets import load_dataset
from ce_keras.training.input_pipeline import InputPipeline


def test_test_batches_are_in_order_and_normalised_like_the_training_images(embedded):
    train, test = embedded
    batches = list(pipeline(test, 300, like=train))
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_array_equal(labels, test.labels)
    expected = (test.images - train.images.mean()) / train.images.std()
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert len(batches[-1][1]) == 2000 - 6 * 300


def test_training_batches_are_every_image_once_augmented_and_reproducible(embedded):
    train = balanced(embedded[0], 200)

    def epochs(seed, count=2):
        batches = pipeline(train, 32, seed=seed)
        return [[np.concatenate(part) for part in zip(*batches, strict=True)] for _ in range(count)]

    first, second = epochs(1)
    assert sorted(first[1]) == sorted(train.labels)
    assert not np.array_equal(first[1], second[1]), "each epoch has an order of its own"
    assert abs(first[0].sum(axis=(1, 2, 3))).sum() != abs(second[0].sum(axis=(1, 2, 3))).sum()
    again, _ = epochs(1)
    np.testing.assert_array_equal(first[0], again[0])
    other, _ = epochs(2)
    assert not np.array_equal(first[1], other[1])


def test_shift_and_flip_are_shifts_and_flips(rng):
    images = rng.integers(1, 255, (400, 6, 5, 2)).astype(np.uint8)
    moved = shift_and_flip(tf.constant(images), (1, 2), pixels=1).numpy()
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    seen = []
    for image, result in zip(padded, moved, strict=True):
        candidates = {
            (down, across, flipped): image[down : down + 6, across : across + 5][
                :, :: -1 if flipped else 1
            ]
            for down in range(3)
            for across in range(3)
            for flipped in (False, True)
        }
        seen += [key for key, value in candidates.items() if np.array_equal(value, result)]
    assert len(seen) == 400, "every image is one shift and flip of itself"
    # All eighteen are equally likely: chi-squared with 17 degrees; above 52 once in 40,000 seeds.
    counts = np.array([seen.count(key) for key in candidates])
    assert ((counts - 400 / 18) ** 2 / (400 / 18)).sum() < 52


def test_pipeline_works_with_any_shape():
    data = Images(np.zeros((7, 12, 10, 3), np.uint8) + np.arange(3, dtype=np.uint8), np.arange(7))
    images, labels = next(iter(pipeline(data, 4, seed=0)))
    assert images.shape == (4, 12, 10, 3)
    assert labels.shape == (4,)


def test_an_epoch_goes_on_from_any_step(source):
    feed = InputPipeline(small(), source, seed=1)
    whole = [(x.numpy(), y.numpy()) for x, y in feed.train(epoch=1)]
    rest = [(x.numpy(), y.numpy()) for x, y in feed.train(epoch=1, step=2)]
    assert [len(y) for _, y in whole] == [32, 32, 32, 4]
    for one, other in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    other = [y.numpy() for _, y in feed.train(epoch=2)]
    assert (other[0] != whole[0][1]).any()
    assert sorted(np.concatenate(other)) == sorted(np.concatenate([y for _, y in whole]))


def test_images_are_normalised_by_the_training_images(source):
    train = source.splits[0].images.astype(float)
    for kind, axes in {"global": None, "channel": (0, 1, 2), "mean_image": 0}.items():
        feed = InputPipeline(small(**{"data.normalize": kind}), source, seed=0)
        images = np.concatenate([x for x, _ in feed.test()])
        scale = train.std() if kind == "mean_image" else train.std(axis=axes)
        expected = (source.splits[1].images - train.mean(axis=axes)) / scale
        np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)


def test_a_stream_goes_on_from_any_step(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr("ce_keras.training.datasets._is_prepared", lambda _: True)
    monkeypatch.setattr("ce_keras.training.datasets._SHUFFLE_BUFFER", 8)
    recipe = read_recipe("imagenet", {"schedule.batch_size": "4", "data.size": "32"})
    with tfds.testing.mock_data(num_examples=11):
        source = load_dataset(recipe.data)
        feed = InputPipeline(recipe, source, seed=1)
        whole = [(x.numpy(), y.numpy()) for x, y in feed.train(2)]
        rest = [(x.numpy(), y.numpy()) for x, y in feed.train(2, step=1)]
        other = [y.numpy() for _, y in feed.train(3)]
    assert [x.shape for x, _ in whole] == [(4, 32, 32, 3), (4, 32, 32, 3), (3, 32, 32, 3)]
    for one, again in zip(whole[1:], rest, strict=True):
        np.testing.assert_array_equal(one[0], again[0])
        np.testing.assert_array_equal(one[1], again[1])
    assert sorted(np.concatenate(other)) == sorted(np.concatenate([y for _, y in whole]))
    assert any((one != y).any() for one, (_, y) in zip(other, whole, strict=True))
