"""Labelled images in memory, and IDX files."""

import gzip

import numpy as np
import pytest

from ce_keras.training import (
    FASHION_CLASSES,
    balanced,
    load_fashion_mnist,
    read_idx,
    read_recipe,
    write_idx,
)
from ce_keras.training.datasets import load_dataset
from ce_keras.training.images import balanced_rows


def test_embedded_images_are_balanced_and_real(embedded):
    for data, count in zip(embedded, (10_000, 2_000), strict=True):
        assert data.images.shape == (count, 28, 28, 1)
        assert data.images.dtype == data.labels.dtype == np.uint8
        assert np.bincount(data.labels).tolist() == [count // 10] * 10
        # Photographs of clothes: every image has black ground, and something bright on it.
        assert (data.images.reshape(count, -1).min(axis=1) == 0).all()
        assert np.median(data.images.reshape(count, -1).max(axis=1)) > 200
    assert len({image.tobytes() for image in embedded[0].images}) > 9_990


def test_a_trivial_classifier_reads_the_labels(embedded):
    # Nearest class mean: about two thirds right on Fashion-MNIST, a tenth if labels were shuffled.
    train, test = embedded
    flat = train.images.reshape(len(train.labels), -1).astype("float32")
    means = np.stack([flat[train.labels == label].mean(axis=0) for label in range(10)])
    unseen = test.images.reshape(len(test.labels), -1).astype("float32")
    distance = ((unseen[:, None] - means[None]) ** 2).sum(axis=-1)
    assert 0.6 < (distance.argmin(axis=1) == test.labels).mean() < 0.8
    assert len(FASHION_CLASSES) == 10


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_idx_files_round_trip(tmp_path, suffix, rng):
    array = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    path = tmp_path / f"array-idx3-ubyte{suffix}"
    write_idx(path, array)
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "corrupted"])
def test_damaged_files_are_named(tmp_path, suffix, damage, rng):
    path = tmp_path / f"array-idx1-ubyte{suffix}"
    write_idx(path, rng.integers(0, 256, 4000).astype(np.uint8))
    whole = bytearray(path.read_bytes())
    if damage == "corrupted":
        whole[1000:1100] = bytes(100)
    path.write_bytes({"truncated": whole[:-50], "garbage": b"none"}.get(damage, whole))
    with pytest.raises(ValueError, match=r"array-idx1-ubyte.*is (damaged|not a complete)"):
        read_idx(path)


def test_a_folder_of_idx_files(tmp_path, embedded):
    for part, data in zip(("train", "t10k"), embedded, strict=True):
        small = balanced(data, 20)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", small.images[..., 0])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", small.labels)
    train, test = load_fashion_mnist(tmp_path)
    np.testing.assert_array_equal(train.images, balanced(embedded[0], 20).images)
    np.testing.assert_array_equal(test.labels, balanced(embedded[1], 20).labels)


def test_tensorflow_datasets():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=12):
        train, test = load_fashion_mnist("tfds")
    for data in (train, test):
        assert data.images.shape == (12, 28, 28, 1)
        assert data.labels.dtype == np.uint8


def test_missing_folder_says_how_to_get_one():
    with pytest.raises(ValueError, match="apt-get install dataset-fashion-mnist"):
        load_fashion_mnist("no/such/folder")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match="no file train-images-idx3-ubyte"):
        load_fashion_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = b"\0\0\x08\x01" + (10).to_bytes(4, "big") + bytes(10)
    for content in (b"", b"\0\0\x08", b"\0\0\x0d\x01" + whole[4:], whole[:-1]):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match="not a complete IDX file"):
            read_idx(path)
    path.write_bytes(gzip.compress(whole))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(10))
    with pytest.raises(ValueError, match="has train images of shape"):
        load_fashion_mnist(tmp_path)


def test_balanced_keeps_order_and_balance(embedded):
    small = balanced(embedded[0], 50)
    assert np.bincount(small.labels).tolist() == [5] * 10
    first = np.flatnonzero(embedded[0].labels == small.labels[0])[0]
    np.testing.assert_array_equal(small.images[0], embedded[0].images[first])


@pytest.mark.parametrize("count", [0, 9, 10_001, 1.5])
def test_balanced_refuses_counts_that_cannot_be(embedded, count):
    with pytest.raises(ValueError, match=f"count: got {count}.* 10 or more, at most 10,000"):
        balanced(embedded[0], count)


@pytest.mark.parametrize("count", [10, 15, 256, 9_999, 10_000])
def test_balanced_gives_the_count_that_is_asked_for(embedded, count):
    sizes = np.bincount(balanced(embedded[0], count).labels)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1


def test_small_classes_are_taken_whole():
    labels = np.array([0] * 2 + [1] * 5 + [2] * 9)
    assert np.bincount(labels[balanced_rows(labels, 12)]).tolist() == [2, 5, 5]
    assert np.bincount(labels[balanced_rows(labels, 13)]).tolist() == [2, 5, 6]


def test_both_spellings_of_idx_files_are_found(tmp_path, rng):
    for part, images in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / f"{part}-images.idx3-ubyte", rng.integers(0, 256, (images, 3, 3)))
        write_idx(tmp_path / f"{part}-labels.idx1-ubyte", np.arange(images))
    train, test = load_fashion_mnist(tmp_path)
    assert (len(train.labels), len(test.labels)) == (4, 2)
    recipe = read_recipe("fashion_mnist", {"data.source": str(tmp_path)})
    assert load_dataset(recipe.data).counts == (4, 2)


@pytest.mark.parametrize("wrong", [300, -1, 1.5, np.nan, "a"])
def test_only_bytes_are_written_as_idx(wrong, tmp_path):
    with pytest.raises(ValueError, match="array: has other than whole numbers from 0 to 255"):
        write_idx(tmp_path / "a-idx1-ubyte", np.array([0, wrong]))
    assert not list(tmp_path.iterdir())
