import gzip
import os
import re

import numpy as np
import pytest
import tensorflow as tf

from ce_keras.cli import main
from ce_keras.training import (
    FASHION_CLASSES,
    Images,
    balanced,
    load_fashion_mnist,
    pipeline,
    plan,
    read_idx,
    shift_and_flip,
    write_idx,
)
from ce_keras.training.datasets import TRAIN, FolderDataset, load_dataset
from ce_keras.training.images import balanced_rows
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import read_recipe
from ce_keras.training.trainer import Trainer


@pytest.fixture(scope="module")
def embedded():
    return load_fashion_mnist()


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


# Sets that are read while training ---------------------------------------------------------------


def write_folder(folder, rng, halves=("train", "val"), sizes=((9, 12), (20, 10))):
    for half in halves:
        for name in ("cat", "dog"):
            (folder / half / name).mkdir(parents=True)
            for index, size in enumerate(sizes):
                image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
                encode = tf.io.encode_png if index % 2 else tf.io.encode_jpeg
                suffix = "png" if index % 2 else "JPG"
                tf.io.write_file(str(folder / half / name / f"{index}.{suffix}"), encode(image))


def test_image_folders(rng, tmp_path):
    write_folder(tmp_path, rng)
    changes = {
        "data.source": str(tmp_path),
        "data.name": "pets",
        "data.augment": '["resized_crop", "flip"]',
        "schedule.batch_size": "3",
    }
    source = load_dataset(read_recipe("fashion_mnist", {**changes, "data.size": "8"}).data)
    assert isinstance(source, FolderDataset)
    assert (source.shape, source.classes, source.counts) == ((8, 8, 3), 2, (4, 4))
    recipe = read_recipe("fashion_mnist", {**changes, "data.size": "8"})
    feed = InputPipeline(recipe, source, seed=1)
    batches = [(x.numpy(), y.numpy()) for x, y in feed.train(0)]
    assert [x.shape for x, _ in batches] == [(3, 8, 8, 3), (1, 8, 8, 3)]
    assert sorted(np.concatenate([y for _, y in batches])) == [0, 0, 1, 1]
    rest = [x.numpy() for x, _ in feed.train(0, step=1)]
    np.testing.assert_array_equal(rest[0], batches[1][0])
    assert np.concatenate([y for _, y in feed.test()]).tolist() == [0, 0, 1, 1]
    assert load_dataset(read_recipe("fashion_mnist", changes).data).shape == (224, 224, 3)


def test_image_folders_of_one_size_need_no_crop(rng, tmp_path):
    write_folder(tmp_path, rng, ("train", "test"), ((6, 5), (6, 5)))
    recipe = read_recipe(
        "fashion_mnist",
        {"data.source": str(tmp_path), "data.name": "pets", "data.augment": "[]"},
    )
    source = load_dataset(recipe.data)
    assert source.shape == (6, 5, 3)
    images = np.concatenate([x for x, _ in InputPipeline(recipe, source, 0).test()])
    files = sorted((tmp_path / "test").rglob("*.*"))
    expected = np.stack([tf.io.decode_image(path.read_bytes()) for path in files]).astype(float)
    train = np.stack(
        [tf.io.decode_image(p.read_bytes()) for p in (tmp_path / "train").rglob("*.*")]
    )
    np.testing.assert_allclose(
        images, (expected - train.mean()) / train.std(), rtol=1e-4, atol=1e-4
    )


def test_folders_that_are_no_sets(rng, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no IDX files .* and no folder train of images"):
        FolderDataset(tmp_path / "empty")
    write_folder(tmp_path / "one", rng, ("train",))
    with pytest.raises(ValueError, match="no folder test or val or validation"):
        FolderDataset(tmp_path / "one")
    write_folder(tmp_path / "odd", rng)
    (tmp_path / "odd/val/cow").mkdir()
    with pytest.raises(ValueError, match=r"the same folders.*only one of them has \['cow'\]"):
        FolderDataset(tmp_path / "odd")
    (tmp_path / "odd/train/cow").mkdir()
    with pytest.raises(ValueError, match="cow has no images"):
        FolderDataset(tmp_path / "odd")


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


# What lies about in folders ----------------------------------------------------------------------


def picture(path, rng, size=(16, 18), channels=3, suffix="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 256, (*size, channels)).astype(np.uint8)
    path.with_suffix(f".{suffix}").write_bytes(tf.io.encode_png(image).numpy())
    return image


def folder_recipe(folder, **changes):
    return read_recipe(
        "fashion_mnist",
        {"data.source": str(folder), "data.name": "pets", "data.augment": "[]", **changes},
    )


def pets(folder, rng, count=6):
    for half in ("train", "test"):
        for name in ("cat", "dog"):
            for index in range(count):
                picture(folder / half / name / f"{index}.png", rng)
    return folder


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_one_odd_file_does_not_decide_the_channels_of_all(channels, rng, tmp_path):
    pets(tmp_path, rng)
    picture(tmp_path / "train/cat/000.png", rng, channels=channels)
    source = load_dataset(folder_recipe(tmp_path).data)
    assert source.shape == (16, 18, 3)
    batches = [x.numpy() for x, _ in InputPipeline(folder_recipe(tmp_path), source, 0).test()]
    assert np.concatenate(batches).shape == (12, 16, 18, 3)


def test_a_set_of_grey_images_is_grey(rng, tmp_path):
    for half in ("train", "test"):
        for index in range(3):
            picture(tmp_path / half / "cat" / f"{index}.png", rng, channels=1)
    assert load_dataset(folder_recipe(tmp_path).data).shape == (16, 18, 1)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "webp"])
def test_a_grey_file_of_any_format_is_read_in_a_grey_set(suffix, rng, tmp_path):
    for half in ("train", "test"):
        for index in range(3):
            picture(tmp_path / half / "cat" / f"{index}.png", rng, channels=1)
    path = tmp_path / f"train/cat/x.{suffix}"
    image = rng.integers(0, 256, (16, 18)).astype(np.uint8)
    exact = {"lossless": True} if suffix == "webp" else {}
    pytest.importorskip("PIL.Image").fromarray(image).save(path, **exact)
    source = FolderDataset(tmp_path, channels=1)
    assert source.counts == (4, 3)
    assert source.shape == (16, 18, 1)
    order, read = source.examples(TRAIN, (0, 0))
    streamed = [x.numpy() for x, _ in order.map(lambda *example: read(example))]
    for images in (np.stack(streamed), source.in_memory().splits[0].images):
        assert image.tolist() in images[..., 0].tolist()


def test_files_of_other_programs_are_passed_over(rng, tmp_path):
    pets(tmp_path, rng)
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    picture(tmp_path / "train/.ipynb_checkpoints/a.png", rng)
    picture(tmp_path / "train/cat/.ipynb_checkpoints/a.png", rng)
    (tmp_path / "train/cat/._0.png").write_bytes(b"resource fork")
    source = load_dataset(folder_recipe(tmp_path).data)
    assert source.counts == (12, 12)
    assert source.classes == 2


DAMAGED = {
    "empty": (b"", "is empty"),
    "junk": (b"not an image", "is no image, or damaged"),
    "cut": (None, "is no image, or damaged: [^{}]*$"),
    "size": ((9, 9), "is 9x9, and most others are 16x18"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_trained(
    name, rng, tmp_path, capsys
):
    damage, message = DAMAGED[name]
    pets(tmp_path / "set", rng)
    path = tmp_path / "set/train/dog/3.png"
    if isinstance(damage, tuple):
        picture(path, rng, size=damage)
    else:
        path.write_bytes(path.read_bytes()[:40] if damage is None else damage)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(folder_recipe(tmp_path / "set").data)
    assert str(path) in str(error.value)
    command = ["train", "fashion_mnist", "--out", str(tmp_path / "run")]
    changes = ["data.augment=[]", f"data.source={tmp_path / 'set'}"]
    assert main([*command, "--set", changes[0], "--set", changes[1]]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_a_stream_is_named_too(rng, tmp_path):
    pets(tmp_path / "set", rng)
    path = tmp_path / "set/train/dog/3.png"
    path.write_bytes(path.read_bytes()[:60])
    changes = {"data.augment": '["resized_crop"]', "data.size": "16", "schedule.epochs": "1"}
    changes |= {"model.cardinality": "1", "model.width": "2", "schedule.divide_at": "[]"}
    recipe = folder_recipe(tmp_path / "set", **changes)
    source = load_dataset(recipe.data)
    assert isinstance(source, FolderDataset)
    with pytest.raises(ValueError, match=r"dog/3\.png is no image, or damaged"):
        Trainer(recipe, source, tmp_path / "run").run()


def test_names_need_not_be_utf_8(rng, tmp_path):
    pets(tmp_path, rng, count=2)
    for half in ("train", "test"):
        other = os.fsdecode(os.fsencode(tmp_path / half / "cat") + b"/caf\xe9.png")
        (tmp_path / half / "cat/0.png").rename(other)
    assert load_dataset(folder_recipe(tmp_path).data).counts == (4, 4)
    changes = {"data.augment": '["resized_crop"]', "data.size": "8"}
    recipe = folder_recipe(tmp_path, **changes)
    batches = [y.numpy() for _, y in InputPipeline(recipe, load_dataset(recipe.data), 0).train(0)]
    assert sorted(np.concatenate(batches)) == [0, 0, 1, 1]


@pytest.mark.parametrize("augment", ["[]", '["resized_crop"]'])
def test_limits_hold_for_folders(augment, rng, tmp_path):
    pets(tmp_path, rng)
    recipe = folder_recipe(
        tmp_path,
        **{"data.limit": "5", "data.test_limit": "4", "data.augment": augment},
    )
    source = load_dataset(recipe.data)
    assert source.counts == (5, 4)
    assert plan(recipe)["train_images"] == 5
    labels = np.concatenate([y for _, y in InputPipeline(recipe, source, 0).train(0)])
    assert np.bincount(labels).tolist() == [3, 2]


def test_a_limit_of_a_stream_is_refused_instead_of_ignored(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr("ce_keras.training.datasets._is_prepared", lambda _: True)
    recipe = read_recipe("imagenet", {"data.limit": "100"})
    with (
        tfds.testing.mock_data(num_examples=4),
        pytest.raises(ValueError, match=r"data\.limit, data\.test_limit: imagenet2012 is read as"),
    ):
        load_dataset(recipe.data)


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
