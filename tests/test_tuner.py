"""The oracles, by KerasTuner's own conventions: stub objectives, real searches, real workers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pytest

from ce_keras import geometry, search, zoo
from ce_keras.layers.flops import flops
from ce_keras.tuner import (
    BudgetOracle,
    CollegialHyperModel,
    CollegialOracle,
    CollegialTuner,
    designs_of,
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


def test_trial_0_is_the_optimum(tmp_path):
    for mode in ("primal", "dual"):
        found = tuner(tmp_path / mode, mode=mode)
        look(found)
        (values,) = (trial.hyperparameters.values for trial in trials_of(found))
        solution = search(FC, mode, hard_budget=True)
        assert (values["cardinality"], values["width"]) == solution.design
        assert values["rate"] == 1e-3, "the user's own have their defaults"
        assert {type(values[name]) for name in ("cardinality", "width")} == {int}
        (model,) = found.get_best_models()
        assert model.name == f"fully_connected_{solution.design}"
        assert found.get_best_hyperparameters()[0].values == values
        found.results_summary()


def begun(oracle, folder):
    oracle._set_project_dir(str(folder), "p")
    oracle.verbose = 0
    return oracle


def design(trial):
    values = trial.hyperparameters.values
    return values["cardinality"], values["width"]


def test_more_trials_walk_the_curve_until_it_is_used_up(tmp_path):
    solution = search(FC, "primal", hard_budget=True)
    expected = list(designs_of(solution))
    assert expected[0] == solution.design
    assert len(set(expected)) == len(expected)
    widths, objective = solution.curve.width.tolist(), solution.curve.objective
    predicted = [objective[widths.index(width)] for _, width in expected[1:]]
    assert predicted == sorted(predicted)
    for m, n in expected:
        assert FC.params(m, n) <= FC.params(1, 24) < FC.params(m + 1, n)
    oracle = begun(CollegialOracle("val_loss", FC, max_trials=99, seed_designs=["5x5d"]), tmp_path)
    found = []
    while (trial := oracle.create_trial("tuner")).status == "RUNNING":
        found.append(design(trial))
        score(oracle, trial, 1.0)
    assert trial.status == "STOPPED"
    assert found == [(5, 5), *(each for each in expected if each != (5, 5))]


INNER = {
    "random": lambda **o: keras_tuner.oracles.RandomSearchOracle("val_loss", 4, seed=1, **o),
    "bayesian": lambda **o: keras_tuner.oracles.BayesianOptimizationOracle(
        "val_loss", 4, num_initial_points=2, seed=1, **o
    ),
    "grid": lambda **o: keras_tuner.oracles.GridSearchOracle("val_loss", 4, seed=1, **o),
    "hyperband": lambda **o: keras_tuner.oracles.HyperbandOracle("val_loss", 4, seed=1, **o),
}


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@pytest.mark.parametrize("name", INNER)
def test_the_inner_oracle_searches_the_rest(name, tmp_path):
    def with_choice(hp):
        hp.Choice("decay", [0.0, 1e-4, 1e-3])
        return build(hp)

    x, y = data()
    found = CollegialTuner(
        with_choice, baseline=FC, inner=INNER[name](), directory=tmp_path, project_name="p"
    )
    found.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
    seen = [trial.hyperparameters.values for trial in trials_of(found)]
    optimum = search(FC, hard_budget=True).design
    assert {(values["cardinality"], values["width"]) for values in seen} == {optimum}
    others = {(values["rate"], values["decay"]) for values in seen}
    assert len(seen) >= 4
    assert len(others) >= 3
    assert all(trial.status == "COMPLETED" for trial in trials_of(found))


def test_another_process_goes_on_with_the_same_trials(tmp_path):
    def ask(oracle, count):
        found = []
        for _ in range(count):
            trial = oracle.create_trial("tuner")
            found.append(trial.hyperparameters.values)
            score(oracle, trial, 1.0)
        return found

    def oracles():
        yield lambda: CollegialOracle("val_loss", FC, max_trials=6)
        yield lambda: CollegialOracle(baseline=FC, inner=INNER["random"](hyperparameters=rates()))

    def rates():
        hp = keras_tuner.HyperParameters()
        hp.Float("rate", 0.0, 1.0)
        return hp

    for index, make in enumerate(oracles()):
        whole = ask(begun(make(), tmp_path / f"whole{index}"), 4)
        folder = tmp_path / f"killed{index}"
        first = begun(make(), folder)
        seen = ask(first, 2)
        first.create_trial("tuner")  # It never ends.
        again = begun(make(), folder)
        again.reload()
        assert seen + ask(again, 2) == whole


def test_a_fit_is_made_once_and_kept(tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(options)
        return fit_alpha(*arguments, **options, draws=200)

    from ce_keras.ntk import fit_alpha

    monkeypatch.setattr("ce_keras.tuner.oracles.fit_alpha", counted)
    oracle = begun(CollegialOracle("val_loss", FC, alpha="fit", max_trials=3, seed=5), tmp_path)
    assert oracle.fit is None
    first = oracle.create_trial("tuner")
    expected = fit_alpha(FC, seed=5, draws=200)
    assert oracle.fit["alpha"] == expected.alpha
    assert design(first) == search(FC, alpha=expected, hard_budget=True).design
    score(oracle, first, 1.0)
    again = begun(CollegialOracle("val_loss", FC, alpha="fit", max_trials=3, seed=5), tmp_path)
    again.reload()
    assert again.fit == oracle.fit
    assert design(again.create_trial("tuner")) == tuple(oracle.designs[1])
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@pytest.mark.parametrize("name", INNER)
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


def test_a_fit_fixes_the_design_of_an_inner_oracle(tmp_path, monkeypatch):
    from ce_keras.ntk import fit_alpha

    monkeypatch.setattr(
        "ce_keras.tuner.oracles.fit_alpha",
        lambda module, seed: fit_alpha(module, seed=seed, draws=200),
    )
    x, y = data()
    found = CollegialTuner(
        build,
        baseline=FC,
        alpha="fit",
        seed=0,
        inner=INNER["random"](),
        directory=tmp_path,
        project_name="p",
    )
    found.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
    expected = search(FC, alpha=fit_alpha(FC, seed=0, draws=200), hard_budget=True).design
    assert {design(trial) for trial in trials_of(found)} == {expected}


def test_hyperbands_epochs_are_kept(tmp_path):
    epochs = []

    class Counted(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, *arguments, **options):
            epochs.append((options["initial_epoch"], options["epochs"]))
            return model.fit(*arguments, **options)

    inner = keras_tuner.oracles.HyperbandOracle("val_loss", max_epochs=3, factor=3, seed=1)
    x, y = data()
    found = CollegialTuner(
        Counted(), baseline=FC, inner=inner, directory=tmp_path, project_name="p"
    )
    found.search(x, y, validation_data=(x, y), verbose=0)
    assert {(0, 1), (1, 3), (0, 3)} <= set(epochs)


def test_a_budget_that_nothing_meets_ends_the_search(tmp_path):
    for name in ("random", "grid"):
        oracle = begun(
            BudgetOracle(INNER[name](hyperparameters=space()), build, max_params=3), tmp_path / name
        )
        assert oracle.create_trial("tuner").status == "STOPPED"


def space():
    hp = keras_tuner.HyperParameters()
    hp.Int("cardinality", 1, 3)
    hp.Int("width", 1, 3)
    hp.Choice("rate", [0.1])
    return hp


def test_the_ready_hypermodel(tmp_path):
    model = CollegialHyperModel("resnext11", classes=4, input_shape=(16, 16, 2), seed=0)
    found = CollegialTuner(model, "val_accuracy", mode="dual", directory=tmp_path, project_name="p")
    assert [str(each) for each in found.oracle.designs][:1] == ["7x7d"]
    hp = keras_tuner.HyperParameters()
    built = model.build(hp)
    assert built.output_shape == (None, 4)
    assert set(hp.values) == {"cardinality", "width", "rate"}
    with pytest.raises(ValueError, match="network: got 'resnet'; it must be one of resnext11"):
        CollegialHyperModel("resnet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CollegialOracle("val_loss", "resnext30"), "baseline: unknown name"),
        (lambda: CollegialOracle("val_loss", max_trials=0), "max_trials: got 0"),
        (lambda: CollegialOracle("val_loss", seed_designs=["3x"]), "design: got '3x'"),
        (lambda: CollegialOracle(inner="random"), "inner: got 'random'; it must be a KerasTuner"),
        (
            lambda: CollegialOracle("val_loss", inner=INNER["random"]()),
            "objective: is the inner oracle's; give it there",
        ),
        (
            lambda: CollegialOracle(inner=INNER["random"](hyperparameters=space())),
            "inner: its hyperparameters have 'cardinality' already",
        ),
        (
            lambda: CollegialOracle(inner=INNER["random"](), seed_designs=["3x3d"]),
            "seed_designs: all trials of an inner oracle have the optimum",
        ),
        (
            lambda: BudgetOracle(
                BudgetOracle(INNER["random"](), build, max_params=9), build, max_flops=9
            ),
            "inner: has a BudgetOracle already",
        ),
        (lambda: BudgetOracle(INNER["random"](), build), "give one of them at least"),
        (lambda: BudgetOracle(INNER["random"](), build, max_params=0), "max_params: got 0"),
        (lambda: CollegialTuner(build, "val_loss"), "baseline: is needed"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Chief and workers -------------------------------------------------------------------------------

WORKER = """
import os, sys
sys.path.insert(0, sys.argv[2])
import test_tuner
kill = sys.argv[3] == "kill"
def build(hp):
    if kill and hp.values.get("width", 1) > 1:
        os._exit(9)
    return test_tuner.build(hp)
found = test_tuner.CollegialTuner(
    build, "val_loss", test_tuner.FC, max_trials=4, directory=sys.argv[1], project_name="p"
)
test_tuner.look(found)
"""


def _process(folder, who, port, what="live"):
    environment = {
        **os.environ,
        "KERASTUNER_TUNER_ID": who,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-c", WORKER, folder, Path(__file__).parent, what]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_chief_and_two_workers_of_which_one_dies(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chief = _process(tmp_path, "chief", port)
    try:
        dying = _process(tmp_path, "tuner0", port, "kill")
        output, _ = dying.communicate(timeout=120)
        assert dying.returncode == 9, output
        # The one that died comes back under its name, and its trial with it.
        workers = [_process(tmp_path, f"tuner{index}", port) for index in (0, 1)]
        for worker in workers:
            output, _ = worker.communicate(timeout=180)
            assert worker.returncode == 0, output
        output, _ = chief.communicate(timeout=60)
        assert chief.returncode == 0, output
    finally:
        chief.kill()
        chief.communicate()
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("p/trial_*/trial.json")]
    assert {trial["status"] for trial in trials} == {"COMPLETED"}
    found = []
    for trial in sorted(trials, key=lambda trial: trial["trial_id"]):
        values = trial["hyperparameters"]["values"]
        found.append((values["cardinality"], values["width"]))
    assert found == list(designs_of(search(FC, hard_budget=True)))[:4]
