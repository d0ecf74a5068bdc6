"""Compare a short training from `collegialize(..., init="split")` with one from new weights.

    python benchmarks/split_init.py [--seeds 3] [--images 4000]

A baseline is trained on the embedded images; its ensembles are then trained for an epoch or two,
from random weights and from a split of the baseline's, alike in everything else.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np
from timing import begin_with
from tqdm import tqdm

import ce_keras
from ce_keras import files
from ce_keras.training import balanced, load_fashion_mnist

EPOCHS = 2


def dense(seed: int) -> keras.Model:
    """Return a network of four hidden layers of 200."""
    del seed
    hidden = [keras.layers.Dense(200, "relu", kernel_initializer="he_normal") for _ in range(4)]
    flat = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    head = keras.layers.Dense(10, "softmax")
    return keras.Sequential([keras.Input((28, 28, 1)), *flat, *hidden, head])


def convolutional(seed: int) -> keras.Model:
    """Return three bottleneck blocks with batch normalisation."""
    return ce_keras.zoo.resnext11(mode="baseline", seed=seed)


#: The function that builds each network, and the epochs it is trained for.
NETWORKS = {"dense 200x4": (dense, 10), "ResNet-11 1x64d": (convolutional, 4)}


class Data:
    """Images, and training on them."""

    def __init__(self, images: int) -> None:
        train, test = load_fashion_mnist()
        train = balanced(train, images)
        self.train = train.images.astype("float32"), train.labels
        self.test = test.images.astype("float32"), test.labels

    def fit(self, model: keras.Model, epochs: int, seed: int) -> list[float]:
        """Train, and return the test error in percent after every epoch."""
        keras.utils.set_random_seed(seed)
        adam = keras.optimizers.Adam(1e-3)
        # Compiling by XLA would take longer than so short a training.
        model.compile(adam, "sparse_categorical_crossentropy", jit_compile=False)
        errors: list[float] = []
        noted = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: errors.append(self.error(self.probabilities(model)))
        )
        model.fit(*self.train, batch_size=100, epochs=epochs, verbose=0, callbacks=[noted])
        return errors

    def probabilities(self, model: keras.Model) -> np.ndarray:
        """Return the probabilities that the model gives the test images' classes."""
        return model.predict(self.test[0], batch_size=500, verbose=0)

    def error(self, probabilities: np.ndarray) -> float:
        """Return the test error in percent."""
        return float(100 * (probabilities.argmax(-1) != self.test[1]).mean())


def trial(build: Any, epochs: int, mode: str, seed: int, data: Data) -> dict[str, Any]:
    """Train a baseline, and its ensemble from both starts."""
    keras.utils.set_random_seed(seed)
    model = build(seed)
    row: dict[str, Any] = {"baseline": data.fit(model, epochs, seed)[-1]}
    wanted = data.probabilities(model)
    for init in ("random", "split"):
        keras.utils.set_random_seed(seed + 100)
        ensemble = ce_keras.collegialize(model, mode, init=init, seed=seed)
        given = data.probabilities(ensemble)
        apart = np.linalg.norm(given - wanted) / np.linalg.norm(wanted - wanted.mean(0))
        errors = [data.error(given), *data.fit(ensemble, EPOCHS, seed + 200)]
        row[init] = {"distance": float(apart), "errors": errors}
    row["design"] = str(ensemble.report.decisions[0].design)
    return row


def report(rows: list[dict[str, Any]], settings: argparse.Namespace) -> str:
    """Return the table, in Markdown."""
    lines = [
        '# `init="split"` beside new weights',
        "",
        f"Fashion-MNIST, {settings.images:,} embedded images, Adam; test error in percent, mean of "
        f"{settings.seeds} seeds ± one standard error. Distance: of the ensemble's probabilities "
        "from the baseline's, over their spread, before any training.",
        "",
        "| baseline | its error | ensemble | start | distance | untrained | 1 epoch | 2 epochs |",
        "|---|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        for init in ("random", "split"):
            starts = [each[init] for each in row["trials"]]
            errors = [_told([s["errors"][i] for s in starts]) for i in range(EPOCHS + 1)]
            cells = [
                row["network"],
                _told([each["baseline"] for each in row["trials"]]),
                f"{row['mode']} {row['trials'][0]['design']}",
                init,
                _told([start["distance"] for start in starts]),
                *errors,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    gains = [
        statistics.mean(
            each["random"]["errors"][1] - each["split"]["errors"][1] for each in row["trials"]
        )
        for row in rows
    ]
    return "\n".join(begin_with(_verdict(gains), lines)) + "\n"


def _verdict(gains: list[float]) -> str:
    """Return the outcome, from the points of error that splitting gains after one epoch."""
    return (
        "Before training neither start keeps the baseline's function; after one epoch, split "
        f"weights are {min(gains):.1f} to {max(gains):.1f} points better than random ones."
    )


def _told(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    data, rows = Data(options.images), []
    cases = [(name, mode) for name in options.only for mode in ("primal", "dual")]
    for name, mode in tqdm(cases):
        build, epochs = NETWORKS[name]
        trials = [trial(build, epochs, mode, seed, data) for seed in range(options.seeds)]
        rows.append({"network": name, "mode": mode, "trials": trials})
        with files.replacing(options.out / "split_init.md") as part:
            part.write_text(report(rows, options))


if __name__ == "__main__":
    main()
