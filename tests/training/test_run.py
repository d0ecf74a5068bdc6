"""Runs: planned, trained, evaluated, from Python and from the shell."""

import errno
import json
import os
import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from recipes_for_tests import SMALL, small

from ce_keras import files
from ce_keras.cli import main
from ce_keras.geometry import resnext
from ce_keras.training import (
    building,
    datasets,
    evaluate,
    export,
    plan,
    read_recipe,
    run,
    train,
    trainer,
)
from ce_keras.training.datasets import load_dataset
from ce_keras.training.trainer import Trainer


def test_a_finished_run_is_read_where_nothing_can_be_written(finished, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    monkeypatch.setattr("os.open", read_only)
    folder, results = finished
    assert train(small(), folder, seed=3) == results
    assert evaluate(folder)["error"] == results["history"][-1]["error"]


@pytest.mark.parametrize("content", ["{", "[1]", "{}", "\x00"])
@pytest.mark.parametrize("name", ["recipe.json", "results.json"])
def test_damaged_files_of_a_run_are_named(name, content, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        train(small(), folder, seed=3)
    if name == "recipe.json":
        with pytest.raises(ValueError, match=r"recipe\.json"):
            evaluate(folder)


FEW = {"schedule.epochs": "1", "schedule.divide_at": "[]"}


PATHS = {"model.cardinality": "2", "model.width": "2"}
RECIPES = {
    "cifar10": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"},
    "cifar10_short": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"},
    # The same networks as before and after, which are built for the plans.
    "cifar100": {"model.name": "resnext11", "schedule.batch_size": "4", **PATHS},
    "imagenet": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "2"},
    "imagenet32": {"model.name": "resnext11", "schedule.batch_size": "4", **PATHS},
    "imagenet64": {"model.name": "resnext11", "schedule.batch_size": "2", **PATHS},
    "mnist": {"schedule.batch_size": "4"},
    "fashion_mnist": {"data.limit": "30", "data.test_limit": "30", "schedule.batch_size": "10"},
}


@pytest.mark.parametrize(
    "name",
    [
        # A deep ResNeXt is traced for ten seconds and more.
        pytest.param(name, marks=() if name in ("mnist", "fashion_mnist") else pytest.mark.slow)
        for name in RECIPES
    ],
)
def test_every_recipe_takes_three_steps(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    recipe = read_recipe(name, {**FEW, **RECIPES[name]})
    count = 3 * recipe.schedule.batch_size
    monkeypatch.setattr("ce_keras.training.datasets._SHUFFLE_BUFFER", 4)
    with tfds.testing.mock_data(num_examples=count):
        monkeypatch.setattr("ce_keras.training.datasets._is_prepared", lambda _: True)
        trainer = Trainer(recipe, load_dataset(recipe.data), tmp_path)
        if name != "fashion_mnist":
            trainer.steps, trainer._images = 3, count
        results = trainer.run()
    assert int(trainer.optimizer.iterations) == 3
    assert 0 <= results["top5_error"] <= results["error"] <= 100


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_plan(name, capsys):
    assert main(["train", name, "--mode", "dual", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    recipe = read_recipe(name)
    assert planned["steps"] == planned["steps_per_epoch"] * recipe.schedule.epochs
    if name == "cifar10":
        assert planned["model"] == "resnext29_10x10d"
        assert planned["parameters"] == resnext("resnext29").params(10, 10)
        assert planned["expected_error"] == 4.21
    if name == "cifar10_short":
        baseline = plan(read_recipe(name, {"model.mode": "baseline"}))
        assert baseline["parameters"] == 1_216_586


def test_a_command_loads_images_and_builds_the_model_once(tmp_path, monkeypatch):
    calls = []
    for module, name in ((datasets, "load_fashion_mnist"), (building, "build_model")):
        original = getattr(module, name)

        def counted(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        for user in (datasets, run, trainer):
            if hasattr(user, name):
                monkeypatch.setattr(user, name, counted)
    monkeypatch.setattr(Trainer, "run", lambda self: {"error": 50.0})
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", "fashion_mnist", *sets, "--out", str(tmp_path / "run")]) == 0
    assert sorted(calls) == ["build_model", "load_fashion_mnist"]


@pytest.mark.parametrize("key", ["rate", "decay", "smoothing"])
def test_a_run_begun_with_former_keys_is_an_error_that_names_the_new_one(key, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    content = files.read_json(folder / "recipe.json")
    new = {"rate": "learning_rate", "decay": "weight_decay", "smoothing": "label_smoothing"}[key]
    content["recipe"]["optimizer"][key] = content["recipe"]["optimizer"].pop(new)
    files.write_json(folder / "recipe.json", content)
    for resume in (lambda: train(small(), folder, seed=3), lambda: evaluate(folder)):
        with pytest.raises(
            ValueError, match=rf"recipe\.json: optimizer\.{key} is now called .*{new}"
        ):
            resume()
    assert export(folder, "keras") == folder / "model.keras", "an export needs no recipe"


def test_missing_images_are_said_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, what in {"cifar10": "run: tfds build cifar10", "imagenet": "ILSVRC2012"}.items():
        assert main(["train", name, "--out", str(tmp_path / name)]) == 2
        assert what in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_train_evaluate_and_export_from_the_shell(tmp_path, capsys):
    sets = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = [part for each in sets for part in ("--set", each)]
    out = tmp_path / "runs"
    assert main(["train", "fashion_mnist", *arguments, "--runs", "2", "--out", str(out)]) == 0
    assert " ± " in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["runs"] == 2
    assert summary["standard_error"] == pytest.approx(abs(np.diff(summary["errors"])[0]) / 2)
    begun = time.perf_counter()
    # Done already: nothing is trained again.
    assert main(["train", "fashion_mnist", *arguments, "--runs", "2", "--out", str(out)]) == 0
    assert time.perf_counter() - begun < 60
    run = str(out / "run-1")
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert main(["export", run, "--format", "saved_model"]) == 0
    exported = tf.saved_model.load(out / "run-1/model")
    model = keras.models.load_model(out / "run-1/model.keras")
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-4, atol=1e-5)
    for form, suffix in {"onnx": ".onnx", "litert": ".tflite"}.items():
        assert main(["export", run, "--format", form]) == 0
        assert (out / f"run-1/model{suffix}").stat().st_size > 1000
    assert 0 <= errors["error"] <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "fashion_mnist", "--set", "rate"], "--set: got 'rate'; write KEY=VALUE"),
        (["train", "nowhere"], "there is no file nowhere"),
        (["train", "fashion_mnist", "--runs", "0", "--out", "x"], "runs: got 0"),
        (["evaluate", "nowhere"], "run: nowhere has no recipe.json"),
        (["export", "nowhere"], "run: nowhere has no recipe.json"),
    ],
)
def test_bad_commands(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
