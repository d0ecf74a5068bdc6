"""A run's record of its images, and files of no run in its folder."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from recipes_for_tests import SMALL, small

from ce_keras.cli import main
from ce_keras.training import evaluate, read_recipe, train
from ce_keras.training.datasets import ArrayDataset, load_dataset
from ce_keras.training.images import Images
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.interruption import Interrupted, Preempted
from ce_keras.training.recipe import FOLDERS
from ce_keras.training.trainer import Trainer

CYCLE = {"schedule.name": "one_cycle", "schedule.divide_at": "[]"}
STREAMED = {"data.augment": '["resized_crop"]', "data.size": "32"}


def of_folder(folder, **changes):
    named = {"data.name": "images", "data.source": str(folder), "data.augment": "[]"}
    return small(**{**named, "schedule.epochs": "1", "schedule.divide_at": "[]", **changes})


def begun(recipe, out):
    return Trainer(recipe, load_dataset(recipe.data), out)


@pytest.fixture
def changed(colour_images):
    """Add white images to a class of the training images."""

    def change():
        for number in range(100):
            white = Image.new("RGB", (32, 32), "white")
            white.save(colour_images / "train/class-0" / f"white-{number}.png")

    return change


def test_a_model_is_tested_as_it_was_trained(colour_images, changed, tmp_path, monkeypatch):
    monkeypatch.chdir(colour_images.parent)
    recipe = of_folder(colour_images.name, **{"data.limit": "130"})
    error = begun(recipe, tmp_path / "run").run()["error"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert evaluate(tmp_path / "run")["error"] == error
    changed()
    assert evaluate(tmp_path / "run")["error"] == error
    for split in ("train", "test"):
        (colour_images / split / "class-0").rename(colour_images / split / "zebra")
    with pytest.raises(
        ValueError, match=r"run: .*images has other classes .*\['class-0', 'zebra'\]"
    ):
        evaluate(tmp_path / "run")


@pytest.mark.parametrize("options", [{}, STREAMED])
def test_a_run_does_not_go_on_with_other_images(options, colour_images, changed, tmp_path):
    recipe = of_folder(colour_images, **{**options, "data.limit": "1000"})
    begun(recipe, tmp_path / "run")
    begun(recipe, tmp_path / "run")
    changed()
    with pytest.raises(ValueError, match=r"begun with other images .*130 \+ 130.* now 230 \+ 130"):
        begun(recipe, tmp_path / "run")


@pytest.mark.parametrize("name", ["model.keras", "history.csv", "results.json", "checkpoints"])
def test_files_of_no_run_are_not_replaced(name, source, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"has {name}, and no recipe.json: it is of no run"):
        Trainer(small(), source, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_was_killed_at_its_end_has_its_logs(finished, source, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for name in ("results.json", "history.csv", "curves.png", "model.keras"):
        (tmp_path / "run" / name).unlink()
    assert Trainer(small(), source, tmp_path / "run", seed=3).run()["history"]
    for name in ("history.csv", "curves.png"):
        assert (tmp_path / "run" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_an_epoch_is_kept_where_a_test_image_is_damaged(colour_images, tmp_path):
    recipe = of_folder(colour_images, **STREAMED)
    path = next((colour_images / "test/class-0").iterdir())
    content = path.read_bytes()
    trainer = begun(recipe, tmp_path / "run")
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{path.name} is no image, or damaged"):
        trainer.run()
    path.write_bytes(content)
    again = begun(recipe, tmp_path / "run")
    again._train_step = None  # No step is left.
    assert len(again.run()["history"]) == 1


def test_whether_the_state_is_saved_is_told(source, tmp_path, monkeypatch):
    monkeypatch.setattr("ce_keras.training.interruption.Termination.requested", lambda _: True)
    for saved in (True, False):
        trainer = Trainer(small(), source, tmp_path / str(saved))
        monkeypatch.setattr(trainer._checkpoints, "save", lambda *_, saved=saved: saved)
        with pytest.raises(Preempted) as ended:
            trainer.run()
        assert ended.value.saved == saved


def test_a_finished_run_of_other_images_is_not_taken_for_one_of_these(finished, source, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (train_images, test_images) = source.splits
    other = ArrayDataset(train_images._replace(images=255 - train_images.images), test_images, 10)
    assert train(small(), tmp_path / "run", seed=3, dataset=source)["history"]
    with pytest.raises(ValueError, match="was begun with other images"):
        train(small(), tmp_path / "run", seed=3, dataset=other)


@pytest.mark.parametrize(
    "changed",
    [
        *({"mean": None}, {"mean": "abc"}, {"std": float("inf")}, {"source": 3}),
        *({"classes": 5}, {"counts": [1]}, {"shape": "x"}),
    ],
)
def test_damaged_records_of_images_are_named(changed, finished, source, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "images.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=r"images.json is damaged: it does not say what"):
        evaluate(tmp_path / "run")


def test_images_of_another_shape_are_named(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "images.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [9, 9, 1]}))
    with pytest.raises(ValueError, match=r"shape \(28, 28, 1\), and those .* \(9, 9, 1\)"):
        evaluate(tmp_path / "run")


def test_runs_of_adam_of_before_can_be_read(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    content = json.loads(path.read_text())
    content["recipe"]["optimizer"] |= {"name": "adam", "weight_decay": 0.1}
    path.write_text(json.dumps(content))
    assert evaluate(tmp_path / "run")["error"] > 0


def test_what_could_not_be_saved_is_said(source, tmp_path, monkeypatch, capsys):
    def interrupted(self):
        raise Interrupted(saved=False)

    monkeypatch.setattr(Trainer, "run", interrupted)
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", "fashion_mnist", *sets, "--out", str(tmp_path)]) == 130
    assert "the last steps are not saved; the same command goes on" in capsys.readouterr().err


def test_compilation_is_not_a_step(source, tmp_path):
    trainer = Trainer(small(), source, tmp_path)
    delays = iter([0.5, 0, 0, 0] * 2)

    def step(*_):
        time.sleep(next(delays))
        return np.array([1.0, 0.0])

    trainer._train_step = step
    assert trainer.run()["seconds_per_step"] < 0.1


def test_a_mode_replaces_the_design_of_a_recipe(tmp_path, capsys):
    words = ["train", "fashion_mnist", "--dry-run", "--mode", "baseline"]
    sets = [f"--set={key}={SMALL[key]}" for key in ("model.name", "model.depth", "data.limit")]
    (tmp_path / "own.toml").write_text(
        (FOLDERS[0] / "fashion_mnist.toml")
        .read_text()
        .replace("[model]", "[model]\ncardinality = 2\nwidth = 3")
    )
    assert main(["train", str(tmp_path / "own.toml"), *words[2:], *sets]) == 0
    assert "fully_connected_1x200d" in capsys.readouterr().out
    assert main([*words, *sets, "--set=model.cardinality=2", "--set=model.width=3"]) == 2
    assert "--mode: got 'baseline' and --set model.cardinality" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.source", '"2024"', "2024"),
        ("optimizer.learning_rate", ".05", 0.05),
        ("data.limit", "null", None),
    ],
)
def test_texts_are_read_as_what_their_keys_hold(key, text, value):
    section, _, name = key.partition(".")
    assert getattr(getattr(small(**{key: text}), section), name) == value


def test_adam_has_no_weight_decay():
    with pytest.raises(ValueError, match=r"optimizer.weight_decay: got 0.0005; it must be 0 with"):
        read_recipe("cifar10", {"optimizer.name": "adam"})


def test_images_in_memory_are_resized_as_asked():
    recipe = small(**{**STREAMED, "data.size": "14"})
    dataset = load_dataset(recipe.data)
    assert dataset.shape == (14, 14, 1)
    images, _ = next(iter(InputPipeline(recipe, dataset, 0).train(0)))
    assert images.shape == (32, 14, 14, 1)


@pytest.mark.parametrize("normalize", ["channel", "mean_image", "global"])
def test_images_are_normalised_by_their_moments(normalize, rng):
    pixels = rng.integers(0, 256, (1500, 4, 5, 3), dtype=np.uint8)
    images = Images(pixels, np.zeros(1500, np.uint8))
    pipeline = InputPipeline(
        small(**{"data.normalize": normalize}), ArrayDataset(images, images, 10), 0
    )
    axes = {"channel": (0, 1, 2), "mean_image": 0, "global": None}[normalize]
    spread = (0, 1, 2) if normalize == "channel" else None
    np.testing.assert_allclose(pipeline.mean, pixels.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(pipeline.std, pixels.std(spread), rtol=1e-6)
    same = Images(np.full(pixels.shape, 0.9, np.float32), images.labels)  # Rounds below zero.
    recipe = small(**{"data.normalize": normalize})
    assert np.all(InputPipeline(recipe, ArrayDataset(same, same, 10), 0).std == np.float32(1e-3))


def test_the_rate_is_the_one_that_was_used(tmp_path):
    recipe = small(**{"optimizer.precision": "mixed_float16", "schedule.epochs": "1"} | CYCLE)
    trainer = Trainer(recipe, load_dataset(recipe.data), tmp_path)
    trainer.optimizer.dynamic_scale.assign(2.0**40)  # The first steps are skipped.
    rate = trainer.run()["history"][-1]["rate"]
    taken = int(trainer.optimizer.inner_optimizer.iterations.numpy())
    assert 0 <= taken < trainer.steps
    assert rate == pytest.approx(float(trainer._schedule(max(taken - 1, 0))))
