"""An ordinary KerasTuner script, in which one line changed.

    python examples/tune_keras_model.py [--images 2000] [--epochs 3]

The hypermodel asks for a cardinality and a width, as it would of any tuner. `RandomSearch` would
train a dozen designs; `CollegialTuner` derives one and trains it. Other hyperparameters, here the
learning rate, are left to any oracle of KerasTuner (`inner=`).
"""

from __future__ import annotations

import argparse
import tempfile

import keras
import keras_tuner

from ce_keras import geometry, zoo
from ce_keras.training import balanced, load_fashion_mnist
from ce_keras.tuner import CollegialTuner


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Six fully connected layers, as in the paper's ablation."""
    model = zoo.fully_connected(
        cardinality=hp.Int("cardinality", 1, 64), width=hp.Int("width", 2, 100), base=100, seed=0
    )
    learning_rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log", default=1e-3)
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Tune the design, then the learning rate, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    train, test = load_fashion_mnist()
    train = balanced(train, options.images)
    x, x_test = train.images / 255.0, test.images / 255.0
    baseline = geometry.fully_connected(28 * 28, [100] * 5, 10)
    with tempfile.TemporaryDirectory() as folder:
        # tuner = keras_tuner.RandomSearch(build, "val_accuracy", max_trials=20, directory=folder)
        tuner = CollegialTuner(build, "val_accuracy", baseline, mode="dual", directory=folder)
        tuner.search(x, train.labels, validation_data=(x_test, test.labels), epochs=options.epochs)
        tuner.results_summary()

        rates = keras_tuner.oracles.RandomSearchOracle("val_accuracy", max_trials=3, seed=1)
        shared = {"mode": "dual", "directory": folder, "project_name": "learning_rate"}
        tuner = CollegialTuner(build, baseline=baseline, inner=rates, **shared)
        tuner.search(x, train.labels, validation_data=(x_test, test.labels), epochs=options.epochs)
        best = tuner.get_best_hyperparameters()[0]
        print("the best learning rate of three:", best.get("learning_rate"))


if __name__ == "__main__":
    main()
