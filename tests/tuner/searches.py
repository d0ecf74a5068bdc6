"""A small network, stub objectives and short searches, which tests of the tuner share."""

import keras
import keras_tuner
import numpy as np
import pytest

from ce_keras import geometry, search, zoo
from ce_keras.tuner import (
    CollegialTuner,
)

FC = geometry.fully_connected(12, [24] * 3, 4)


def build(hp):
    """The fully connected network that FC describes."""
    m, n = hp.Int("cardinality", 1, 64), hp.Int("width", 1, 64)
    model = zoo.fully_connected((12,), 4, depth=4, base=24, cardinality=m, width=n, seed=0)
    rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
    # Every trial would be traced anew, for longer than it trains.
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", run_eagerly=True)
    return model


def optimum(mode="primal", **options):
    """What `search` says, where that costs no more than the baseline."""
    design = search(FC, mode, **options).design
    if FC.params(*design) <= FC.params(1, 24):
        return design
    return search(FC, mode, hard_budget=True, **options).design


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 12)).astype("float32"), np.arange(32) % 4


def tuner(folder, **options):
    return CollegialTuner(build, "val_loss", FC, directory=folder, project_name="p", **options)


def look(found, epochs=1, **options):
    x, y = data()
    found.search(x, y, validation_data=(x, y), epochs=epochs, verbose=0, **options)


def trials_of(found):
    return [found.oracle.trials[name] for name in found.oracle.start_order]


def score(oracle, trial, value):
    """A stub objective."""
    oracle.update_trial(trial.trial_id, {"val_loss": value})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def begun(oracle, folder):
    oracle._set_project_dir(str(folder), "p")
    oracle.verbose = 0
    return oracle


def design(trial):
    values = trial.hyperparameters.values
    return values["cardinality"], values["width"]


INNER = {
    "random": lambda **o: keras_tuner.oracles.RandomSearchOracle("val_loss", 4, seed=1, **o),
    "bayesian": lambda **o: keras_tuner.oracles.BayesianOptimizationOracle(
        "val_loss", 4, num_initial_points=2, seed=1, **o
    ),
    "grid": lambda **o: keras_tuner.oracles.GridSearchOracle("val_loss", 4, seed=1, **o),
    "hyperband": lambda **o: keras_tuner.oracles.HyperbandOracle("val_loss", 4, seed=1, **o),
}


def space(most=3):
    hp = keras_tuner.HyperParameters()
    hp.Int("cardinality", 1, most)
    hp.Int("width", 1, most)
    hp.Choice("rate", [0.1])
    return hp


def with_space(hypermodel):
    hp = keras_tuner.HyperParameters()
    hypermodel(hp)
    return hp


# Hyperband trains twenty networks.
every_inner = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "hyperband" else ()) for name in INNER],
)
