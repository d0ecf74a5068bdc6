"""What the shell does with recipes: plan, train, evaluate, export."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from ce_keras import files, zoo
from ce_keras.checks import checked_seed, positive_int
from ce_keras.layers.flops import flops
from ce_keras.training.devices import Devices, find_devices
from ce_keras.training.feed import Feed
from ce_keras.training.recipe import Recipe, recipe_of
from ce_keras.training.run import Trainer, build_model, claim, error_of
from ce_keras.training.sources import source_of, what_of


def plan(recipe: Recipe) -> dict[str, Any]:
    """What a run would be, without its images.

    Returns:
        The model's name, trained parameters, FLOPs for one image, images, steps, and an estimate of
        the memory that training takes, in bytes.
    """
    known = what_of(recipe.data)
    limits = recipe.data.limit, recipe.data.test_limit
    train, test = (
        count if limit is None else min(count, limit)
        for count, limit in zip(known.counts, limits, strict=True)
    )
    model = build_model(recipe, known.shape, known.classes, seed=0)
    steps = math.ceil(train / recipe.schedule.batch)
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


def _memory(model: keras.Model, recipe: Recipe) -> int:
    """Weights with their gradients and velocities, and every layer's output for a batch."""
    size = 4 if recipe.optimizer.precision == "float32" else 2
    outputs = sum(
        math.prod(tensor.shape[1:])
        for layer in model.layers
        for tensor in keras.tree.flatten(layer.output)
    )
    return 3 * 4 * model.count_params() + size * outputs * recipe.schedule.batch


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int = 0,
    runs: int = 1,
    save_every: int | None = None,
    devices: Devices | None = None,
) -> dict[str, Any]:
    """Train a recipe, once or several times, in a folder.

    Args:
        recipe: from `read_recipe`.
        out: the folder; with several runs, each has one inside it. Runs that were begun there go
            on, and those that are done are not repeated.
        seed: of the first run; the next has the next.
        runs: how many.
        save_every: steps between checkpoints, beside the one after every epoch.
        devices: what trains; those of `find_devices` if not given. Of several machines only the
            chief writes.

    Returns:
        The results of one run, as in its `results.json`; of several, their number, mean error and
        its standard error, as in `summary.json`.

    Raises:
        ValueError: for images that are not there, or a folder with another run; before training.
        DivergedError: if the loss is not a number any more.
    """
    checked_seed(seed)
    positive_int("runs", runs)
    if save_every is not None:
        positive_int("save_every", save_every)
    devices = devices or find_devices()
    source = source_of(recipe.data)
    out = Path(out)
    folders = [out / f"run-{index + 1}" for index in range(runs)] if runs > 1 else [out]
    _claim_all(devices, folders, recipe, seed)
    results = []
    for index, folder in enumerate(folders):
        done, _ = devices.chiefs(_results(folder))
        results.append(
            done or Trainer(recipe, source, folder, seed + index, save_every, devices).run()
        )
    if runs == 1:
        return results[0]
    errors = [result["error"] for result in results]
    summary = {
        "runs": runs,
        "error": statistics.mean(errors),
        "standard_error": statistics.stdev(errors) / math.sqrt(runs),
        "errors": errors,
    }
    if devices.chief:
        files.write_json(out / "summary.json", summary)
    return summary


def _claim_all(devices: Devices, folders: list[Path], recipe: Recipe, seed: int) -> None:
    """The chief claims, and all raise what it raises: nobody waits for it."""
    wrong = None
    if devices.chief:
        try:
            for index, folder in enumerate(folders):
                claim(folder, recipe, seed + index)
        except ValueError as error:
            wrong = str(error)
    wrong, _ = devices.chiefs(wrong)
    if wrong is not None:
        raise ValueError(wrong)


def _results(folder: Path) -> dict[str, Any] | None:
    path = folder / "results.json"
    return files.read_json(path) if path.exists() else None


def evaluate(folder: str | Path) -> dict[str, float]:
    """Top-1 and top-5 error of a finished run's model on its test images, in percent.

    Raises:
        ValueError: for a folder without a finished run.
    """
    devices = find_devices()
    with devices.scope():
        recipe, model = _finished(folder)
    feed = Feed(recipe, source_of(recipe.data), 0, devices.part)
    return error_of(devices.tester(model), devices.batches(feed.test))


def export(folder: str | Path, form: str, to: str | Path | None = None) -> Path:
    """Write a finished run's model for use elsewhere.

    Args:
        folder: of the run.
        form: `"keras"`, `"saved_model"`, `"litert"` or `"onnx"`.
        to: where to; beside the model if not given.

    Returns:
        Where it was written.

    Raises:
        ValueError: for a folder without a finished run, an unknown form, or one that needs a
            package which is not installed.
    """
    if form not in _EXPORTS:
        raise ValueError(f"format: got {form!r}; it must be one of {', '.join(_EXPORTS)}")
    suffix, write = _EXPORTS[form]
    _, model = _finished(folder)
    to = Path(to) if to is not None else Path(folder) / f"model{suffix}"
    part = to.with_name(f".{to.name}")
    part.parent.mkdir(parents=True, exist_ok=True)
    # Keras exports what has been called, and loading is not enough.
    model(keras.ops.zeros((1, *model.input_shape[1:])))
    # The suffix is how Keras knows the format.
    part = part if part.suffix == suffix else part.with_name(part.name + suffix)
    try:
        write(model, part)
    except ImportError as error:
        raise ValueError(f"format: {form} needs a package that is not installed: {error}") from None
    if to.is_dir():
        shutil.rmtree(to)
    part.replace(to)
    return to


_EXPORTS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "keras": (".keras", lambda model, path: model.save(path)),
    "saved_model": ("", lambda model, path: model.export(path, verbose=False)),
    "litert": (
        ".tflite",
        lambda model, path: model.export(path, format="litert", verbose=False),
    ),
    "onnx": (".onnx", lambda model, path: model.export(path, format="onnx", verbose=False)),
}


def _finished(folder: str | Path) -> tuple[Recipe, keras.Model]:
    folder = Path(folder)
    missing = [name for name in ("recipe.json", "model.keras") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"run: {folder} has no {missing[0]}; is it a finished run of train?")
    content = files.read_json(folder / "recipe.json")
    recipe = recipe_of(content["recipe"], str(folder / "recipe.json"))
    return recipe, keras.models.load_model(folder / "model.keras")
