"""The trainings: every design with every seed, on all images and on few."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras.geometry import Design
from ce_keras.latency import Phase
from ce_keras.progress import progress
from ce_keras.reproduce.cifar10.designs import BASELINE, DUAL, NETWORK, PRIMAL
from ce_keras.reproduce.protocol import Scale
from ce_keras.reproduce.store import Points

RECIPE = "cifar10_short"

ALL_IMAGES = "all images"

#: Names of measured times, and the phases whose steps they are.
TIMES: dict[str, Phase] = {"training time": "train", "inference time": "infer"}

#: Images in a timed step.
TIMED_IMAGES = 64


class Settings(NamedTuple):
    """Settings of the trainings.

    Attributes:
        source: source of the images, as in recipes: `"tfds"`, or a folder.
        designs: designs to train.
        seeds: trainings of every design; those of a seed see the same images in the same order.
        epochs: passes through all images, shifted and mirrored.
        few: number of images in the second regime, which has no augmentation.
        few_epochs: passes through them; enough for the training error to vanish.
    """

    source: str = "tfds"
    designs: tuple[str, ...] = (*PRIMAL, *itertools.chain(*DUAL.items()))
    seeds: int = 5
    epochs: int = 20
    few: int = 5_000
    few_epochs: int = 60


SCALES: dict[Scale, Settings] = {
    "small": Settings(designs=("1x64d", "11x7d", "1x37d"), seeds=1, epochs=8, few_epochs=30),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Train every design with every seed, on all images and on few."""
    try:
        for design in settings.designs:
            Design.parse(design)
    except ValueError as error:
        raise ValueError(f"designs: {error}") from None
    regimes = (ALL_IMAGES, f"{settings.few:,} images")
    cases = list(itertools.product(range(settings.seeds), regimes, settings.designs))
    runs = []
    # The images of a regime are loaded once, and only if something is left to train.
    load = functools.cache(lambda regime: _dataset(_recipe(settings, regime, BASELINE)))
    with points.folder() as folder:
        for number, regime, design in progress(cases, desc="cifar10", delay=1):
            name = f"{design}-{regime.replace(',', '').replace(' ', '-')}-{seed + number}"
            arguments = (_recipe(settings, regime, design), seed + number, folder / name)
            result = points(name, _train, functools.partial(load, regime), *arguments)
            runs.append({"regime": regime, "design": design, "seed": seed + number, **result})
    return {"runs": runs, "times": points("times", step_times, settings.designs)}


def step_times(designs: Sequence[str], batch: int = TIMED_IMAGES) -> dict[str, dict[str, float]]:
    """Return each design's seconds of a training step and of inference, on this machine.

    Networks take turns; medians.
    """
    from ce_keras import zoo
    from ce_keras.rewrite.timing import step_seconds

    models = []
    for design in designs:
        m, n = Design.parse(design)
        models.append(zoo.NETWORKS[NETWORK](cardinality=m, width=n))
    found = {name: step_seconds(models, batch, phase) for name, phase in TIMES.items()}
    return {
        design: {name: times[index] for name, times in found.items()}
        for index, design in enumerate(designs)
    }


def _recipe(settings: Settings, regime: str, design: str) -> Any:
    """Return the recipe of a design in a regime."""
    from ce_keras.training import read_recipe

    m, n = Design.parse(design)
    changes: dict[str, Any] = {
        "model.cardinality": m,
        "model.width": n,
        "data.source": settings.source,
        "schedule.epochs": settings.epochs,
    }
    if regime != ALL_IMAGES:
        changes |= {
            "data.limit": settings.few,
            "data.augment": [],
            "optimizer.learning_rate": 0.1,
            "schedule.epochs": settings.few_epochs,
        }
    written = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in changes.items()
    }
    return read_recipe(RECIPE, written)


def _dataset(recipe: Any) -> Any:
    """Return the images of a recipe, in memory."""
    from ce_keras.training.datasets import ArrayDataset, load_dataset

    dataset = load_dataset(recipe.data)
    if not isinstance(dataset, ArrayDataset):
        raise ValueError(f"source: got {recipe.data.source!r}; its images do not fit into memory")
    return dataset


def _train(load: Callable[[], Any], recipe: Any, seed: int, folder: Path) -> dict[str, float]:
    """Train a recipe in a folder; return its last training loss, and errors in percent."""
    from ce_keras.training import train

    dataset = load()
    last = train(recipe, folder, seed=seed, dataset=dataset)["history"][-1]
    return {
        "train_loss": last["loss"],
        "train_error": _training_error(dataset, folder),
        "test_error": last["error"],
    }


def _training_error(dataset: Any, folder: Path) -> float:
    """Return the error of a finished run on its training images, in percent."""
    import keras

    images, labels = dataset.splits[0]
    pixels = images.astype(np.float32)
    pixels = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    logits = keras.models.load_model(folder / "model.keras").predict(pixels, 500, verbose=0)
    return float(100 * (logits.argmax(1) != labels).mean())
