"""No proposal is beyond a budget, and what is too large is not built."""

import keras
import keras_tuner
import numpy as np
import pytest
from searches import (
    INNER,
    begun,
    build,
    data,
    every_inner,
    look,
    score,
    space,
    trials_of,
    with_space,
)

from ce_keras.layers.flops import flops
from ce_keras.tuner import (
    BudgetOracle,
)


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@every_inner
def test_no_proposal_is_beyond_the_budget(name, tmp_path):
    """A space of which about half is too large."""

    def small(hp):
        model = keras.Sequential([keras.Input((12,))])
        model.add(keras.layers.Dense(hp.Int("a", 1, 16)))
        model.add(keras.layers.Dense(hp.Int("b", 1, 16)))
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    oracle = BudgetOracle(INNER[name](), small, max_params=200, max_flops=330)
    x, y = data()
    found = keras_tuner.Tuner(oracle, small, directory=str(tmp_path), project_name="p")
    if name == "hyperband":
        found = keras_tuner.Hyperband(small, "val_loss", directory=str(tmp_path), project_name="q")
        found.oracle = begun(oracle, tmp_path)
    found.search(x, y * 0, validation_data=(x, y * 0), epochs=1, verbose=0)
    seen = trials_of(found)
    assert len(seen) >= 4
    assert {trial.status for trial in seen} == {"COMPLETED"}
    for trial in seen:
        model = small(trial.hyperparameters)
        assert model.count_params() <= 200
        assert flops(model) <= 330


def one_choice(hp):
    """As many parameters as the choice and one more say."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.add(keras.layers.Dense(hp.Choice("size", [10, 1000, 20, 30])))
    return model


@pytest.mark.parametrize("name", ["grid", "hyperband"])
def test_what_is_left_out_of_a_budget_leaves_no_trace(name, tmp_path):
    hp = keras_tuner.HyperParameters()
    hp.Choice("size", [10, 1000, 20, 30])
    oracle = begun(
        BudgetOracle(INNER[name](hyperparameters=hp), one_choice, max_params=50), tmp_path
    )
    seen = []
    for _ in range(6):
        trial = oracle.create_trial("tuner")
        if trial.status == "RUNNING":
            seen.append(trial.hyperparameters.values["size"])
            score(oracle, trial, 1.0)
    if name == "grid":
        assert seen == [10, 20], "each that fits, once"
    else:
        assert set(seen) <= {10, 20}


def test_a_budget_that_nothing_meets_ends_the_search(tmp_path):
    for name in ("random", "grid"):
        oracle = begun(
            BudgetOracle(INNER[name](hyperparameters=space()), build, max_params=3), tmp_path / name
        )
        assert oracle.create_trial("tuner").status == "STOPPED"


def sized(hp):
    """Build a network of 8 to 100,000 units, whose largest takes 40 gigabytes."""
    units = hp.Choice("w", [8, 20_000, 50_000, 100_000])
    stack = [keras.layers.Dense(units), keras.layers.Dense(units), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((12,)), *stack])


def embedded(hp):
    """Build a network with an embedding of 8 to 100 million words."""
    words = hp.Choice("w", [8, 10**8, 2 * 10**8])
    return keras.Sequential([keras.Input((1,)), keras.layers.Embedding(words, 4)])


@pytest.mark.parametrize("hypermodel", [sized, embedded])
@pytest.mark.parametrize("budget", [{"max_params": 20_000}, {"max_flops": 40_000}])
def test_what_is_far_too_large_is_not_allocated(hypermodel, budget, tmp_path, monkeypatch):
    made = []
    initialise = keras.Variable._initialize_with_initializer

    def counted(self, initializer):
        made.append(int(np.prod(self.shape)))
        return initialise(self, initializer)

    monkeypatch.setattr(keras.Variable, "_initialize_with_initializer", counted)
    inner = keras_tuner.oracles.RandomSearchOracle("val_loss", 3, seed=1)
    oracle = begun(BudgetOracle(inner, hypermodel, **budget), tmp_path)
    oracle.update_space(with_space(hypermodel))
    trial = oracle.create_trial("tuner")
    assert trial.status == "RUNNING"
    assert trial.hyperparameters.values["w"] == 8
    score(oracle, trial, 1.0)
    assert oracle.create_trial("tuner").status == "STOPPED", "no other fits"
    assert len(oracle._known) > 2
    assert max(made) < 10**8
    assert keras.layers.Layer.add_weight.__name__ == "add_weight"
    assert not hasattr(keras.layers.Layer.add_weight, "__wrapped__"), "it is Keras' own again"


def test_what_is_frozen_after_it_is_built_counts_as_frozen(tmp_path):
    def hypermodel(hp):
        hp.Choice("rate", [0.1])
        backbone = keras.Sequential([keras.Input((12,)), keras.layers.Dense(30)])
        backbone.trainable = False
        return keras.Sequential([keras.Input((12,)), backbone, keras.layers.Dense(1)])

    for most, status in ((31, "RUNNING"), (30, "STOPPED")):
        inner = keras_tuner.oracles.RandomSearchOracle("val_loss", 3, seed=1)
        oracle = begun(BudgetOracle(inner, hypermodel, max_params=most), tmp_path / status)
        oracle.update_space(with_space(hypermodel))
        assert oracle.create_trial("tuner").status == status


def test_a_model_that_is_not_built_counts_as_too_large(tmp_path, caplog):
    def unbuilt(hp):
        model = keras.Sequential([keras.layers.Dense(hp.Int("w", 1, 64)), keras.layers.Dense(4)])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    inner = keras_tuner.oracles.RandomSearchOracle("val_loss", 3, seed=1)
    oracle = begun(BudgetOracle(inner, unbuilt, max_params=100), tmp_path)
    oracle.update_space(with_space(unbuilt))
    assert oracle.create_trial("tuner").status == "STOPPED"
    assert "is not built; give it an Input" in caplog.text


def test_a_build_that_raises_fails_as_a_trial_and_not_the_search(tmp_path):
    def fragile(hp):
        if hp.Int("w", 1, 4) == 2:
            raise RuntimeError("two is not possible")
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(hp.get("w"))])
        model.add(keras.layers.Dense(4))
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    inner = keras_tuner.oracles.GridSearchOracle(
        "val_loss", seed=1, max_consecutive_failed_trials=3
    )
    found = keras_tuner.Tuner(
        BudgetOracle(inner, fragile, max_params=10_000),
        fragile,
        directory=tmp_path,
        project_name="p",
    )
    look(found)
    states = {trial.hyperparameters.values["w"]: trial.status for trial in trials_of(found)}
    assert states == {1: "COMPLETED", 2: "INVALID", 3: "COMPLETED", 4: "COMPLETED"} or (
        states[2] in ("FAILED", "INVALID") and len(states) == 4
    )
