"""Files in the folder of a run: its recipe, its logs and its results."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras import files, plotting
from ce_keras.training.datasets import Dataset
from ce_keras.training.recipe import Recipe, recipe_of

logger = logging.getLogger("ce_keras")

#: Files of a run, beside its checkpoints.
NAMES = (
    *("recipe.json", "images.json"),
    *("history.csv", "curves.png", "model.keras", "results.json"),
)


def claim(folder: Path, recipe: Recipe, seed: int, dataset: Dataset) -> None:
    """Write a run's recipe and seed into its folder, or check those, and the images, of before.

    Raises:
        ValueError: if the folder holds a run of another recipe or seed, or of other images, one
            that was begun with keys that have other names now, or files of no run that a run would
            replace.
    """
    path = folder / "recipe.json"
    if not path.exists():
        others = [name for name in (*NAMES, "checkpoints") if (folder / name).exists()]
        if others:
            raise ValueError(
                f"out: {folder} has {others[0]}, and no recipe.json: it is of no run, and would be "
                "replaced; name another folder"
            )
        files.write_json(path, {"recipe": recipe.to_dict(), "seed": seed})
        return
    found = files.read_json(path, dict)
    if not {"recipe", "seed"} <= found.keys():
        raise ValueError(f"out: {path} is damaged: it has no recipe and seed")
    if found["seed"] != seed or recipe_of(found["recipe"], f"out: {path}") != recipe:
        raise ValueError(
            f"out: {folder} holds a run of another recipe or seed; name another folder"
        )
    check_images(folder, dataset)


def check_images(folder: Path, dataset: Dataset) -> None:
    """Check that a run reads the images that it was begun with.

    Raises:
        ValueError: for others.
    """
    begun = read_images(folder)
    if begun is not None and begun["fingerprint"] != dataset.fingerprint:
        before, now = ("{:,} + {:,}".format(*each) for each in (begun["counts"], dataset.counts))
        raise ValueError(
            f"out: {folder} was begun with other images than {begun['source']} has now ({before} "
            f"training and test images, now {now}); restore them, or name another folder"
        )


def write_images(folder: Path, recipe: Recipe, dataset: Dataset, mean: Any, std: Any) -> None:
    """Write what a run reads into its folder."""
    source = recipe.data.source
    content = {
        "source": source if source in ("tfds", "embedded") else str(Path(source).resolve()),
        "classes": list(dataset.names or ()),
        "shape": list(dataset.shape),
        "counts": list(dataset.counts),
        "fingerprint": dataset.fingerprint,
        "mean": np.asarray(mean).tolist(),
        "std": np.asarray(std).tolist(),
    }
    files.write_json(folder / "images.json", content)


def read_images(folder: Path) -> dict[str, Any] | None:
    """Return what the run in a folder reads; `None` for one of before that was written.

    Mean and standard deviation are arrays.

    Raises:
        ValueError: for a damaged file.
    """
    path = folder / "images.json"
    if not path.exists():
        return None
    content = files.read_json(path, dict)
    try:
        for name in ("mean", "std"):
            content[name] = np.array(content[name], np.float32)
        fits = (
            all(np.isfinite(content[name]).all() for name in ("mean", "std"))
            and all(isinstance(content[name], str) for name in ("source", "fingerprint"))
            and all(isinstance(each, str) for each in content["classes"])
            and [type(each) for each in content["counts"]] == [int, int]
            and [type(each) for each in content["shape"]] == [int, int, int]
        )
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{path} is damaged: it does not say what the run reads")
    return content


def read_claim(folder: Path) -> Recipe:
    """Return the recipe of the run in a folder.

    Raises:
        ValueError: for a damaged file, or one with keys that have other names now.
    """
    path = folder / "recipe.json"
    content = files.read_json(path, dict)
    if "recipe" not in content:
        raise ValueError(f"{path} is damaged: it has no recipe")
    return recipe_of(content["recipe"], str(path))


def check_finished(folder: Path) -> None:
    """Check that a folder holds a finished run.

    Raises:
        ValueError: if it does not.
    """
    for name in ("recipe.json", "model.keras"):
        if not (folder / name).is_file():
            raise ValueError(f"run: {folder} has no {name}; is it a finished run of train?")


def read_results(folder: Path) -> dict[str, Any] | None:
    """Return the results of the run in a folder, or `None` if it is not finished.

    Raises:
        ValueError: for a damaged file.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    content = files.read_json(path, dict)
    if not {"design", "error", "history"} <= content.keys():
        raise ValueError(f"{path} is damaged: it has no results; delete it to end the run again")
    return content


def write_logs(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write `history.csv`, `curves.png`, and the last epoch for TensorBoard if it is installed.

    A log that cannot be written, as on a full disk, is reported and does not end the run.
    """
    writers: tuple[Callable[[Path, list[dict[str, Any]]], None], ...]
    writers = (_write_history, _draw_history, _write_tensorboard)
    for write in writers:
        try:
            write(folder, history)
        except (OSError, tf.errors.OpError) as error:
            logger.warning("a log is not written, and the run goes on: %s", error)


def _write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    with files.replacing(folder / "history.csv") as part:
        rows = [",".join(history[0]), *(",".join(map(str, row.values())) for row in history)]
        part.write_text("\n".join(rows) + "\n")


def _draw_history(folder: Path, history: list[dict[str, Any]]) -> None:
    plotting.save_learning_curves(history, folder / "curves.png")


def _write_tensorboard(folder: Path, history: list[dict[str, Any]]) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        return
    with tf.summary.create_file_writer(str(folder / "tensorboard")).as_default():
        last = history[-1]
        for name in ("loss", "rate", "error", "top5_error"):
            tf.summary.scalar(name, last[name], step=last["epoch"])


def versions() -> dict[str, str]:
    """Return the versions of this package, Keras and its backend."""
    names = {"ce_keras", "keras", "tensorflow", keras.backend.backend()}
    return {name: importlib.import_module(name).__version__ for name in sorted(names)}


def revision() -> str | None:
    """Return the commit of the git repository that the run was started in, or `None`.

    Changes to its files are not looked for: git would run commands that the repository's
    configuration names, and the folder need not be one that anybody trusts.
    """
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-c", "core.fsmonitor=false", "rev-parse", "--verify", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
