"""What the shell does with recipes: plan, train, evaluate, export."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras

from ce_keras import files, zoo
from ce_keras.checks import (
    brief,
    checked_seed,
    file_path,
    instance,
    one_of,
    positive_int,
    whole_number,
)
from ce_keras.layers.flops import flops
from ce_keras.saving import load_model
from ce_keras.training.devices import Devices, find_devices
from ce_keras.training.feed import Feed
from ce_keras.training.recipe import Recipe, recipe_of
from ce_keras.training.run import (
    Trainer,
    build_model,
    claim,
    error_of,
)
from ce_keras.training.sources import source_of, what_of


def plan(recipe: Recipe) -> dict[str, Any]:
    """What a run would be, without its images.

    Returns:
        The model's name, trained parameters, FLOPs for one image, images, steps, and an estimate of
        the memory that training takes, in bytes.
    """
    instance("recipe", recipe, Recipe, "a Recipe, as read_recipe gives")
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
    instance("recipe", recipe, Recipe, "a Recipe, as read_recipe gives")
    out = file_path("out", out)
    whole_number("seed", seed, 0)
    checked_seed(seed)
    positive_int("runs", runs)
    if save_every is not None:
        positive_int("save_every", save_every)
    if devices is not None and not hasattr(devices, "trainer"):
        raise ValueError(f"devices: got {brief(devices)}; it must be what find_devices gives")
    devices = find_devices() if devices is None else devices
    source = source_of(recipe.data)
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
    if not path.exists():
        return None
    content = files.read_json(path, dict)
    if not {"design", "error", "history"} <= content.keys():
        raise ValueError(f"{path} is damaged: it has no results; delete it to end the run again")
    return content


def evaluate(folder: str | Path) -> dict[str, float]:
    """Top-1 and top-5 error of a finished run's model on its test images, in percent.

    Raises:
        ValueError: for a folder without a finished run.
    """
    folder = file_path("folder", folder)
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
        to: a file (for a SavedModel, a folder) to write, or a folder that is there to write
            `model` with the format's suffix into; the run's own if not given.

    Returns:
        Where it was written. The run's own `model.keras` is left as it is.

    Raises:
        ValueError: for a folder without a finished run, an unknown form, a place that is another
            run's or taken by anything but an earlier export, or a form that needs a package which
            is not installed.
    """
    folder = file_path("folder", folder)
    if to is not None:
        to = file_path("to", to)
    kind = _EXPORTS[one_of("format", form, tuple(_EXPORTS))]
    _checked_run(folder)
    to = _free_place(Path(folder if to is None else to), form, kind)
    _check_no_other_run(to, folder)
    _, model = _finished(folder)
    if to.exists() and to.samefile(folder / "model.keras"):
        return to
    # Keras exports what has been called, and loading is not enough.
    model(keras.ops.zeros((1, *model.input_shape[1:])))
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.stem}-") as scratch:
        part = Path(scratch) / f"model{kind.suffix}"  # The suffix is how Keras knows the format.
        try:
            kind.write(model, part)
        except ImportError as error:
            raise ValueError(
                f"format: {form} needs a package that is not installed: {error}"
            ) from None
        _replace(part, to, Path(scratch) / "earlier")
    return to


def _replace(part: Path, to: Path, aside: Path) -> None:
    """Move `part` to `to`, or leave there what is there."""
    if not to.is_dir():
        part.replace(to)
        return
    try:
        to.rename(aside)  # Folders are not replaced by a rename: the earlier one steps aside.
        part.replace(to)
    except BaseException:
        if not to.exists():
            with contextlib.suppress(FileNotFoundError):  # It had not left yet.
                aside.rename(to)
        raise


def _check_no_other_run(to: Path, folder: Path) -> None:
    """Check that a place is not in the folder of another run, whose model has the same name."""
    parent = to.parent.resolve()
    run = next(
        (each for each in (parent, *parent.parents) if (each / "recipe.json").exists()), None
    )
    if run is not None and not run.samefile(folder):
        raise ValueError(f"to: {to} is in {run}, the folder of another run; name another place")


def _free_place(to: Path, form: str, kind: _Export) -> Path:
    """Return where to write, which nothing but an earlier export of the form is at.

    Raises:
        ValueError: if something else is.
    """
    if to.is_dir() and not kind.recognised(to):
        to = to / f"model{kind.suffix}"
    elif to.suffix != kind.suffix and kind.suffix:
        raise ValueError(f"to: got {str(to)!r}; it must end in {kind.suffix}, or be a folder")
    if to.exists() and not kind.recognised(to):
        raise ValueError(f"to: {to} is there, and no earlier export ({form}); name another place")
    return to


class _Export(NamedTuple):
    """A format: its suffix, what writes it, and what tells an earlier export."""

    suffix: str
    write: Callable[[Any, Path], Any]
    recognised: Callable[[Path], bool]


def _exporting(form: str | None) -> Callable[[Any, Path], Any]:
    options = {} if form is None else {"format": form}
    return lambda model, path: model.export(path, verbose=False, **options)


# All that an export writes into the folder of a SavedModel; folders end in a slash.
_IN_SAVED_MODEL = re.compile(
    r"saved_model\.pb|fingerprint\.pb|assets/|variables/"
    r"|variables/variables\.(index|data-\d+-of-\d+)"
)


def _is_saved_model(path: Path) -> bool:
    names = [each.relative_to(path).as_posix() + "/" * each.is_dir() for each in path.rglob("*")]
    # Its first fields: the schema's version, which is 1, and the model.
    whole = _begins(path / "saved_model.pb", b"\x08\x01\x12")
    return whole and all(map(_IN_SAVED_MODEL.fullmatch, names))


def _is_keras_file(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == {"config.json", "metadata.json", "model.weights.h5"}
    except (OSError, zipfile.BadZipFile):
        return False


def _begins(path: Path, content: bytes, at: int = 0) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(at + len(content))[at:] == content


_EXPORTS = {
    "keras": _Export(".keras", lambda model, path: model.save(path), _is_keras_file),
    "saved_model": _Export("", _exporting(None), _is_saved_model),
    "litert": _Export(".tflite", _exporting("litert"), lambda path: _begins(path, b"TFL3", 4)),
    # Its first fields: a version, and what wrote it.
    "onnx": _Export(".onnx", _exporting("onnx"), lambda path: _begins(path, b"\x12\x07tf2onnx", 2)),
}


def _finished(folder: str | Path) -> tuple[Recipe, keras.Model]:
    folder = _checked_run(folder)
    path = folder / "recipe.json"
    content = files.read_json(path, dict)
    if "recipe" not in content:
        raise ValueError(f"{path} is damaged: it has no recipe")
    return recipe_of(content["recipe"], str(path)), load_model(folder / "model.keras")


def _checked_run(folder: str | Path) -> Path:
    folder = Path(folder)
    missing = [name for name in ("recipe.json", "model.keras") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"run: {folder} has no {missing[0]}; is it a finished run of train?")
    return folder
