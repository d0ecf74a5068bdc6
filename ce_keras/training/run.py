"""Runs of recipes: plan, train and resume, evaluate."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import keras

from ce_keras import files, zoo
from ce_keras.checks import brief, checked_seed, file_path, instance, positive_int, whole_number
from ce_keras.layers.flops import flops
from ce_keras.saving import load_model
from ce_keras.training.building import build_model
from ce_keras.training.datasets import Dataset, describe, load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import Recipe
from ce_keras.training.records import (
    check_finished,
    claim,
    read_claim,
    read_images,
    read_results,
)
from ce_keras.training.strategy import Strategy, find_strategy
from ce_keras.training.train_step import make_test_step
from ce_keras.training.trainer import Trainer, error_of


def plan(
    recipe: Recipe, dataset: Dataset | None = None, model: keras.Model | None = None
) -> dict[str, Any]:
    """Return the sizes of a run, and what the paper reports for it.

    Args:
        recipe: from `read_recipe`.
        dataset: its images, if they are loaded already; they are not needed.
        model: its model, if it is built already.

    Returns:
        The model's name, trained parameters, FLOPs for one image, images, steps, an estimate of the
        memory that training takes, in bytes, and the paper's errors.
    """
    instance("recipe", recipe, Recipe, "a Recipe, as read_recipe gives")
    _check("dataset", dataset, "examples", "load_dataset")
    _check("model", model, "layers", "build_for")
    info = describe(recipe.data) if dataset is None else dataset
    train, test = info.counts
    model = model or build_model(recipe, info.shape, info.classes, seed=0)
    steps = math.ceil(train / recipe.schedule.batch_size)
    return {
        "model": model.name,
        "parameters": zoo.trained_parameters(model),
        "flops": flops(model),
        "train_images": train,
        "test_images": test,
        "steps_per_epoch": steps,
        "steps": steps * recipe.schedule.epochs,
        "memory": _memory(model, recipe),
        "expected_error": recipe.expected.error.get(model.name),
        "expected_top5_error": recipe.expected.top5_error.get(model.name),
    }


def _check(argument: str, value: Any, attribute: str, maker: str) -> None:
    if value is not None and not hasattr(value, attribute):
        raise ValueError(f"{argument}: got {brief(value)}; it must be what {maker} gives")


def _memory(model: keras.Model, recipe: Recipe) -> int:
    """Return the bytes of weights, gradients, velocities, and all layers' outputs of a batch."""
    size = 4 if recipe.optimizer.precision == "float32" else 2
    outputs = sum(
        math.prod(tensor.shape[1:])
        for layer in model.layers
        for tensor in keras.tree.flatten(layer.output)
    )
    return 3 * 4 * model.count_params() + size * outputs * recipe.schedule.batch_size


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int = 0,
    runs: int = 1,
    save_every: int | None = None,
    strategy: Strategy | None = None,
    dataset: Dataset | None = None,
    model: keras.Model | None = None,
) -> dict[str, Any]:
    """Train a recipe, once or several times, in a folder.

    Args:
        recipe: from `read_recipe`.
        out: the folder; each of several runs has one inside it. Runs that were begun there are
            resumed, and those that are finished are not repeated.
        seed: of the first run; each run after it has the next.
        runs: number of runs.
        save_every: steps between checkpoints, beside the one after every epoch.
        strategy: the devices; that of `find_strategy` if not given. Of several workers only the
            chief writes.
        dataset: the images, if they are loaded already.
        model: of the first run, if it is built already.

    Returns:
        The results of one run, as in its `results.json`; of several, their number, mean error and
        its standard error, as in `summary.json`.

    Raises:
        ValueError: for images that are not there, or a folder with another run; before training.
        DivergedError: if the loss is not finite any more.
    """
    instance("recipe", recipe, Recipe, "a Recipe, as read_recipe gives")
    out = file_path("out", out)
    whole_number("seed", seed, 0)
    checked_seed(seed)
    positive_int("runs", runs)
    if save_every is not None:
        positive_int("save_every", save_every)
    _check("strategy", strategy, "broadcast", "find_strategy")
    _check("dataset", dataset, "examples", "load_dataset")
    _check("model", model, "layers", "build_for")
    strategy = strategy or find_strategy()
    dataset = dataset or load_dataset(recipe.data)
    folders = [out / f"run-{index + 1}" for index in range(runs)] if runs > 1 else [out]
    _claim_all(strategy, folders, recipe, seed, dataset)
    results = []
    for index, folder in enumerate(folders):
        finished, _ = strategy.broadcast(read_results(folder))
        if finished is None:
            own = model if index == 0 else None
            trainer = Trainer(recipe, dataset, folder, seed + index, save_every, strategy, own)
            finished = trainer.run()
        results.append(finished)
    if runs == 1:
        return results[0]
    errors = [result["error"] for result in results]
    summary = {
        "runs": runs,
        "error": statistics.mean(errors),
        "standard_error": statistics.stdev(errors) / math.sqrt(runs),
        "errors": errors,
    }
    if strategy.is_chief:
        files.write_json(out / "summary.json", summary)
    return summary


def _claim_all(
    strategy: Strategy, folders: list[Path], recipe: Recipe, seed: int, dataset: Dataset
) -> None:
    """Have the chief worker claim the folders, and all workers raise what it raises."""
    wrong = None
    if strategy.is_chief:
        try:
            for index, folder in enumerate(folders):
                claim(folder, recipe, seed + index, dataset)
        except ValueError as error:
            wrong = str(error)
    wrong, _ = strategy.broadcast(wrong)
    if wrong is not None:
        raise ValueError(wrong)


def evaluate(folder: str | Path) -> dict[str, float]:
    """Return top-1 and top-5 error of a finished run's model on its test images, in percent.

    Images are normalised as they were in training.

    Raises:
        ValueError: for a folder without a finished run, or images of other classes.
    """
    folder = file_path("folder", folder)
    strategy = find_strategy()
    check_finished(folder)
    recipe, normalization, begun = read_claim(folder), None, read_images(folder)
    if begun is not None:
        if Path(begun["source"]).is_dir():  # The recipe may name it from another folder.
            data = dataclasses.replace(recipe.data, source=begun["source"])
            recipe = dataclasses.replace(recipe, data=data)
        normalization = begun["mean"], begun["std"]
    with strategy.scope():
        model = load_model(folder / "model.keras")
    dataset = load_dataset(recipe.data)
    if begun is not None:
        _check_like(dataset, begun, recipe.data.source)
    pipeline = InputPipeline(recipe, dataset, 0, strategy.shard, normalization)
    return error_of(make_test_step(strategy, model), strategy.batches(pipeline.test))


def _check_like(dataset: Dataset, begun: dict[str, Any], source: str) -> None:
    """Raise where images are of other classes, or of another shape, than a model was trained on."""
    differ = sorted({*(dataset.names or ())} ^ {*begun["classes"]})
    if differ:
        raise ValueError(
            f"run: {source} has other classes than the model was trained on; only one of them has "
            f"{brief(differ)}"
        )
    if list(dataset.shape) != begun["shape"]:
        raise ValueError(
            f"run: the images of {source} have shape {tuple(dataset.shape)}, and those that the "
            f"model was trained on {tuple(begun['shape'])}"
        )
