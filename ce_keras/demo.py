"""The demonstration: derive designs, then train them beside their baseline on real images.

Small enough for two CPU cores and a few minutes: a ResNeXt-11 on the embedded Fashion-MNIST.
`derive` needs only NumPy; `compare` trains.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras import plotting
from ce_keras.checks import checked_seed, positive_int
from ce_keras.geometry import Design, baseline
from ce_keras.optimum import search
from ce_keras.solution import Solution
from ce_keras.training.images import Images, balanced, load_fashion_mnist
from ce_keras.training.recipe import read_recipe

NETWORK = "resnext11"


class Trained(NamedTuple):
    """A row of the demonstration's table.

    Attributes:
        role: `"baseline"`, `"primal"`, `"dual"`, or `"narrower"`: a single path of the dual's size.
        design: cardinality and width, such as `7x7d`.
        parameters: trained parameters of the Keras model.
        flops: floating-point operations for one image.
        seconds_per_step: median over the run; `None` where an epoch has only one step.
        test_error: percent of the test images.
        test_error_std: its standard error from the number of test images.
    """

    role: str
    design: str
    parameters: int
    flops: int
    seconds_per_step: float | None
    test_error: float
    test_error_std: float


def derive(picture: str | Path | None = None) -> dict[str, Solution]:
    """Return the primal and the dual optimum of the demonstration's network, without training.

    Args:
        picture: path to draw both curves to.
    """
    solutions = {mode: search(NETWORK, mode) for mode in ("primal", "dual")}
    if picture is not None:
        plotting.save_curves(list(solutions.values()), picture)
    return solutions


def load(
    *, epochs: int, images: int, batch_size: int, source: str, seed: int
) -> tuple[Images, Images]:
    """Check the settings of `compare`, and return its training and test images.

    Raises:
        ValueError: for numbers that are not positive, fewer images than classes, or more than there
            are.
    """
    positive_int("epochs", epochs)
    positive_int("batch_size", batch_size)
    checked_seed(seed)
    positive_int("images", images)
    train, test = load_fashion_mnist(source)
    return balanced(train, images, "images"), test


def compare(
    solutions: dict[str, Solution],
    data: tuple[Images, Images] | None = None,
    *,
    epochs: int = 4,
    images: int = 8_000,
    batch_size: int = 64,
    source: str = "embedded",
    seed: int = 0,
) -> list[Trained]:
    """Train the baseline and the solutions' designs by one recipe, and test them.

    With the dual, a narrower baseline of its size is trained: what anybody would try first. The
    recipe is `fashion_mnist`, with a schedule of one cycle.

    Args:
        solutions: from `derive`.
        data: from `load` for the same settings, if it has been called already.
        epochs: passes through the training images.
        images: number of training images, of each class as many as of the others, or one more.
        batch_size: images in a step.
        source: of the images; see `load_fashion_mnist`.
        seed: for weights, order and augmentation, the same for every model.

    Raises:
        ValueError: as by `load`.
    """
    if data is None:
        data = load(epochs=epochs, images=images, batch_size=batch_size, source=source, seed=seed)
    from ce_keras.training.datasets import ArrayDataset

    dataset = ArrayDataset(*data, classes=10)
    changes = {
        "schedule.epochs": str(epochs),
        "schedule.batch_size": str(batch_size),
        "schedule.name": "one_cycle",
        "schedule.divide_at": "[]",
        "schedule.warmup": "0",
    }
    designs = {"baseline": Design(1, baseline(NETWORK).width)}
    designs.update({mode: solution.design for mode, solution in solutions.items()})
    if "dual" in designs:
        designs["narrower"] = narrower_baseline(designs["dual"])
    return [_train(role, design, dataset, changes, seed) for role, design in designs.items()]


def narrower_baseline(design: Design) -> Design:
    """Return the single path that is nearest to a design in parameters.

    >>> print(narrower_baseline(Design(7, 7)))
    1x28d
    """
    network = baseline(NETWORK)
    widths = np.arange(1, network.width + 1)
    away = abs(network.params(1, widths) - network.params(*design))
    return Design(1, int(widths[away.argmin()]))


def _train(role: str, design: Design, dataset: Any, changes: dict[str, str], seed: int) -> Trained:
    from ce_keras.training.trainer import Trainer

    own = {"model.cardinality": str(design.cardinality), "model.width": str(design.width)}
    recipe = read_recipe("fashion_mnist", {**changes, **own})
    with tempfile.TemporaryDirectory() as folder:
        results = Trainer(recipe, dataset, folder, seed).run()
    error = results["history"][-1]["error"] / 100
    return Trained(
        role=role,
        design=str(design),
        parameters=results["parameters"],
        flops=int(baseline(NETWORK).flops(*design)),
        seconds_per_step=results["seconds_per_step"],
        test_error=100 * error,
        test_error_std=100 * math.sqrt(error * (1 - error) / dataset.counts[1]),
    )
