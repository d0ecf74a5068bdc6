"""The demonstration: derive designs, then train them beside their baseline on real images.

Small enough for two CPU cores and a few minutes: a ResNeXt-11 on the embedded Fashion-MNIST.
`derive` needs only NumPy; `compare` trains.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from ce_keras import plotting
from ce_keras.checks import checked_seed, positive_int
from ce_keras.geometry import Design, baseline
from ce_keras.optimum import search
from ce_keras.solution import Solution
from ce_keras.training.data import Images, balanced, load_fashion_mnist

NETWORK = "resnext11"


class Trained(NamedTuple):
    """One line of the demonstration's table.

    Attributes:
        role: `"baseline"`, `"primal"` or `"dual"`.
        design: cardinality and width, such as `7x7d`.
        parameters: trained parameters of the Keras model.
        flops: floating-point operations for one image.
        seconds_per_step: median over the run.
        test_error: percent of the test images.
        test_error_std: its standard error from the number of test images.
    """

    role: str
    design: str
    parameters: int
    flops: int
    seconds_per_step: float
    test_error: float
    test_error_std: float


def derive(picture: str | Path | None = None) -> dict[str, Solution]:
    """The primal and the dual optimum of the demonstration's network; nothing is trained.

    Args:
        picture: where to draw both curves.
    """
    solutions = {mode: search(NETWORK, mode) for mode in ("primal", "dual")}
    if picture is not None:
        plotting.save_curves(list(solutions.values()), picture)
    return solutions


def load(
    *, epochs: int, images: int, batch_size: int, source: str, seed: int
) -> tuple[Images, Images]:
    """The training and test images, once all settings of the demonstration are known to be good.

    The settings are those of `compare`.

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
    epochs: int = 5,
    images: int = 10_000,
    batch_size: int = 64,
    source: str = "embedded",
    seed: int = 0,
) -> list[Trained]:
    """Train the baseline and the solutions' designs alike, and test them.

    Args:
        solutions: what `derive` gave.
        data: what `load` gave for the same settings, if it has been called already.
        epochs: passes through the training images.
        images: how many training images, of each class as many as of the others, or one more.
        batch_size: images in a step.
        source: where the images are; see `load_fashion_mnist`.
        seed: for weights, order and augmentation: the same for every model.

    Raises:
        ValueError: as `load` does.
    """
    if data is None:
        data = load(epochs=epochs, images=images, batch_size=batch_size, source=source, seed=seed)
    train, test = data
    network = baseline(NETWORK)
    designs = {"baseline": Design(1, network.width)}
    designs.update({mode: solution.design for mode, solution in solutions.items()})
    return [
        _train(role, design, network, train, test, epochs, batch_size, seed)
        for role, design in designs.items()
    ]


def _train(
    role: str,
    design: Design,
    network: Any,
    train: Any,
    test: Any,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Trained:
    import keras

    from ce_keras import training, zoo

    model = zoo.NETWORKS[NETWORK](cardinality=design.cardinality, width=design.width, seed=seed)
    steps = epochs * math.ceil(len(train.labels) / batch_size)
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=0.1, warmup_steps=warmup
    )
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    timer = training.StepTimer()
    bar = training.ProgressBar(f"{role:>8} {design}", steps)
    batches = training.pipeline(train, batch_size, seed=seed)
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=[timer, bar])
    unseen = training.pipeline(test, batch_size, like=train)
    error = 1 - model.evaluate(unseen, verbose=0, return_dict=True)["accuracy"]
    return Trained(
        role=role,
        design=str(design),
        parameters=zoo.trained_parameters(model),
        flops=int(network.flops(*design)),
        seconds_per_step=timer.median,
        test_error=100 * error,
        test_error_std=100 * math.sqrt(error * (1 - error) / len(test.labels)),
    )
