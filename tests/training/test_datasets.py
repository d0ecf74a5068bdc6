"""Datasets of recipes: prepared by tensorflow_datasets, or folders of images."""

import os
import re

import numpy as np
import pytest
import tensorflow as tf
from recipes_for_tests import small

from ce_keras.cli import main
from ce_keras.training import (
    plan,
    read_recipe,
)
from ce_keras.training.datasets import KNOWN, TRAIN, ArrayDataset, FolderDataset, load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.trainer import Trainer


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


def test_known_sets_are_what_tensorflow_datasets_says():
    import tensorflow_datasets as tfds

    for name, known in KNOWN.items():
        features = tfds.builder(name).info.features
        assert features["label"].num_classes == known.classes
        shape = features["image"].shape
        assert None in shape or shape == known.shape


def test_arrays_know_their_counts(source):
    assert isinstance(source, ArrayDataset)
    assert source.counts == (100, 200)
    for images, each in zip(source.splits, (10, 20), strict=True):
        assert np.bincount(images.labels).tolist() == [each] * 10
    assert plan(small())["test_images"] == 200
    assert source.shape == (28, 28, 1)
