"""The oracles, by KerasTuner's own conventions: stub objectives, real searches, real workers."""

import inspect
import json
import os
import socket
from pathlib import Path

import fresh
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
from ce_keras.tuner import keras_tuner_private as private

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


def test_trial_0_is_the_optimum(tmp_path):
    for mode in ("primal", "dual"):
        found = tuner(tmp_path / mode, mode=mode)
        look(found)
        (values,) = (trial.hyperparameters.values for trial in trials_of(found))
        assert (values["cardinality"], values["width"]) == optimum(mode)
        assert values["rate"] == 1e-3, "the user's own have their defaults"
        assert {type(values[name]) for name in ("cardinality", "width")} == {int}
        (model,) = found.get_best_models()
        assert model.name == f"fully_connected_{optimum(mode)}"
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
    expected = list(dict.fromkeys([optimum(), *designs_of(solution)]))
    assert designs_of(solution)[0] == solution.design
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
    assert {(values["cardinality"], values["width"]) for values in seen} == {optimum()}
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
    options = {"alpha": "fit", "max_trials": 3, "seed": 5}
    oracle = begun(CollegialOracle("val_loss", FC, **options), tmp_path)
    assert oracle.fit is None
    first = oracle.create_trial("tuner")
    expected = fit_alpha(FC, seed=5, draws=200)
    assert oracle.fit["alpha"] == expected.alpha
    assert design(first) == optimum(alpha=expected)
    score(oracle, first, 1.0)
    for given in ({}, {"hyperparameters": space(64)}):
        again = begun(CollegialOracle("val_loss", FC, **options, **given), tmp_path)
        again.reload()
        assert again.fit == oracle.fit
        assert design(again.create_trial("tuner")) == tuple(oracle.designs[1])
    assert len(calls) == 1


def test_the_search_of_another_oracle_is_named(tmp_path):
    begun(INNER["random"](), tmp_path).save()
    oracle = begun(CollegialOracle("val_loss", FC), tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/p has .* another oracle; give overwrite="):
        oracle.reload()


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
    expected = optimum(alpha=fit_alpha(FC, seed=0, draws=200))
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


def space(most=3):
    hp = keras_tuner.HyperParameters()
    hp.Int("cardinality", 1, most)
    hp.Int("width", 1, most)
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
    with pytest.raises(ValueError, match="network: got 'resnet'; it must be one of 'resnext11'"):
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


def test_keras_tuners_private_names_are_as_they_were_read():
    changed = []
    for (owner, name), wanted in private.PRIVATE.items():
        method = getattr(owner, name, None)
        found = method and tuple(inspect.signature(method).parameters)
        if found != wanted:
            changed.append(f"{owner.__name__}.{name} has the parameters {found}, not {wanted}")
    if not isinstance(getattr(keras_tuner.Oracle, "_project_dir", None), property):
        changed.append("Oracle._project_dir is no property")
    for owner, names in private.PLANS.items():
        if missing := set(names) - vars(owner("val_loss")).keys():
            changed.append(f"{owner.__name__} has no {missing}")
    assert not changed, (
        f"KerasTuner {keras_tuner.__version__} differs from {private.VERSION}: "
        f"{'; '.join(changed)}; adapt ce_keras/tuner/keras_tuner_private.py"
    )


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
    return fresh.Process(["-c", WORKER, folder, Path(__file__).parent, what], environment)


def test_a_chief_and_two_workers_of_which_one_dies(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chief = _process(tmp_path, "chief", port)
    try:
        dying = _process(tmp_path, "tuner0", port, "kill")
        _, errors = dying.communicate(timeout=120)
        assert dying.returncode == 9, errors
        # The one that died comes back under its name, and its trial with it.
        workers = [_process(tmp_path, f"tuner{index}", port) for index in (0, 1)]
        for worker in workers:
            _, errors = worker.communicate(timeout=180)
            assert worker.returncode == 0, errors
        _, errors = chief.communicate(timeout=60)
        assert chief.returncode == 0, errors
    finally:
        chief.kill()
        chief.communicate()
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("p/trial_*/trial.json")]
    assert {trial["status"] for trial in trials} == {"COMPLETED"}
    found = []
    for trial in sorted(trials, key=lambda trial: trial["trial_id"]):
        values = trial["hyperparameters"]["values"]
        found.append((values["cardinality"], values["width"]))
    walk = dict.fromkeys([optimum(), *designs_of(search(FC, hard_budget=True))])
    assert found == list(walk)[:4]


# What the hypermodel declares --------------------------------------------------------------------


def named(first, second, wrap=None, **values):
    """A hypermodel that asks for a design by other names, or other values."""

    def hypermodel(hp):
        asked = values.get("cardinality", lambda name: hp.Int(name, 1, 64))
        wanted = values.get("width", lambda name: hp.Int(name, 1, 64))
        if wrap == "scope":
            with hp.name_scope("block"):
                m, n = asked(first), wanted(second)
        elif wrap == "condition":
            hp.Boolean("grouped")
            with hp.conditional_scope("grouped", [True]):
                m, n = asked(first) or 1, wanted(second) or 1
        else:
            m, n = asked(first), wanted(second)
        stack = [keras.layers.Dense(m * n), keras.layers.Dense(4)]
        model = keras.Sequential([keras.Input((12,)), *stack])
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        return model

    return hypermodel


def of(hypermodel, folder, **options):
    return CollegialTuner(hypermodel, "val_loss", FC, directory=folder, project_name="p", **options)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    ("hypermodel", "message"),
    [
        (named("cardinality", "width", "scope"), r"has 'block/cardinality', 'block/width'|but "),
        (named("cardinality", "width", "condition"), r"names: .*'cardinality'"),
        (named("groups", "width"), r"names: the hypermodel has no 'cardinality' .* but 'groups'"),
    ],
)
def test_a_design_that_reaches_no_model_is_an_error(hypermodel, message, inner, tmp_path):
    options = {"inner": INNER["random"]()} if inner else {}
    objective = None if inner else "val_loss"
    with pytest.raises(ValueError, match=message):
        CollegialTuner(hypermodel, objective, FC, directory=tmp_path, project_name="p", **options)
    # The oracle alone, in a tuner of KerasTuner's: at the first trial, and without holding a lock.
    oracle = CollegialOracle(objective, FC, **({"inner": INNER["random"]()} if inner else {}))
    plain = keras_tuner.Tuner(oracle, hypermodel, directory=tmp_path / "2", project_name="p")
    for _ in range(2):
        with pytest.raises(ValueError, match="names: "):
            plain.search(*data(), verbose=0)


@pytest.mark.parametrize("inner", [False, True])
def test_names_can_be_given(inner, tmp_path):
    options = {"inner": INNER["random"]()} if inner else {}
    found = CollegialTuner(
        named("groups", "size", "scope"),
        None if inner else "val_loss",
        FC,
        names=("block/groups", "block/size"),
        directory=tmp_path,
        project_name="p",
        **options,
    )
    look(found)
    for trial in trials_of(found):
        values = trial.hyperparameters.values
        m, n = optimum()
        assert (values["block/groups"], values["block/size"]) == (m, n)
        assert found.hypermodel.build(trial.hyperparameters).layers[0].units == m * n


@pytest.mark.parametrize("inner", [False, True])
def test_the_best_design_among_declared_values_is_proposed(inner, tmp_path):
    def hypermodel(hp):
        return named(
            "cardinality",
            "width",
            cardinality=lambda name: hp.Choice(name, [1, 2, 4, 8]),
            width=lambda name: hp.Choice(name, [4, 8, 16]),
        )(hp)

    options = {"inner": INNER["random"]()} if inner else {"max_trials": 9}
    found = CollegialTuner(
        hypermodel,
        None if inner else "val_loss",
        FC,
        directory=tmp_path,
        project_name="p",
        **options,
    )
    look(found)
    seen = [design(trial) for trial in trials_of(found)]
    # By brute force: the least variance among those that cost no more than the baseline.
    law = search(FC).curve
    variance = dict(zip(law.width.tolist(), law.variance * law.m, strict=True))
    allowed = [
        (m, n) for m in (1, 2, 4, 8) for n in (4, 8, 16) if FC.params(m, n) <= FC.params(1, 24)
    ]
    assert seen[0] == min(allowed, key=lambda each: variance[each[1]] / each[0])
    assert set(seen) <= set(allowed)
    assert inner or len(seen) == 3, "one for each width"


def test_values_of_which_none_is_a_design_are_an_error(tmp_path):
    def hypermodel(hp):
        return named("cardinality", "width", width=lambda name: hp.Choice(name, [100, 200]))(hp)

    with pytest.raises(
        ValueError, match=r"names: the hypermodel declares .* width in \[100, 200\]"
    ):
        of(hypermodel, tmp_path)


@pytest.mark.parametrize("mode", ["primal", "dual"])
def test_sampling_does_not_change_the_design(mode, tmp_path):
    def log(hp):
        ask = [lambda name: hp.Int(name, 1, 256, sampling="log")] * 2
        return named("cardinality", "width", cardinality=ask[0], width=ask[1])(hp)

    found = of(log, tmp_path, mode=mode)
    look(found)
    (trial,) = trials_of(found)
    assert design(trial) == optimum(mode)
    assert found.hypermodel.build(trial.hyperparameters).layers[0].units == np.prod(optimum(mode))


def test_a_huge_range_is_not_listed():
    hp = keras_tuner.HyperParameters()
    hp.Int("cardinality", 1, 10**12)
    hp.Int("width", 1, 10**12)
    oracle = CollegialOracle("val_loss", FC, hyperparameters=hp)
    oracle.check_space()
    assert oracle.designs[0] == optimum()


@pytest.mark.parametrize(
    ("ask", "values"),
    [
        (lambda hp: hp.Choice("cardinality", ["few", "many"]), r"\['few', 'many'\]"),
        (lambda hp: hp.Choice("cardinality", ["4", "8"]), r"\['4', '8'\]"),
        (lambda hp: hp.Choice("cardinality", [0.5, float("nan")]), r"\[0.5, nan\]"),
        (lambda hp: hp.Fixed("cardinality", "x"), r"\['x'\]"),
        (lambda hp: hp.Boolean("cardinality"), r"\[True, False\]"),
    ],
)
def test_values_that_are_no_whole_numbers_are_an_error(ask, values):
    hp = keras_tuner.HyperParameters()
    ask(hp)
    hp.Int("width", 1, 64)
    oracle = CollegialOracle("val_loss", FC, hyperparameters=hp)
    with pytest.raises(ValueError, match=f"names: .* 'cardinality' with the values {values}"):
        oracle.check_space()


def test_what_is_held_at_its_default_is_said_once(tmp_path, caplog):
    look(tuner(tmp_path, max_trials=2))
    said = [record.getMessage() for record in caplog.records if record.name == "ce_keras"]
    assert len([message for message in said if "rate=0.001" in message]) == 1


def test_the_first_trial_is_what_search_says_where_that_meets_the_budget():
    for network in ("resnext29", "resnext29-1x226d", "resnext50", "resnext101", "resnext11"):
        solution = search(network)
        oracle = CollegialOracle("val_loss", network)
        if solution.params <= solution.baseline_params:
            assert oracle.designs[0] == solution.design
        else:
            assert oracle.designs[0] == search(network, hard_budget=True).design
        baseline = solution.baseline
        assert all(baseline.params(*each) <= solution.baseline_params for each in oracle.designs)
    assert str(CollegialOracle("val_loss", "resnext29").designs[0]) == "37x10d"


@pytest.mark.parametrize("names", [("a", "a"), ("a",), "ab", ("a", 3), None])
def test_names_are_two(names):
    with pytest.raises(ValueError, match="names: got"):
        CollegialOracle("val_loss", FC, names=names)


# Budgets -----------------------------------------------------------------------------------------


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


def with_space(hypermodel):
    hp = keras_tuner.HyperParameters()
    hypermodel(hp)
    return hp


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


def test_a_keras_model_is_a_baseline_of_the_tuner(tmp_path):
    x = keras.Input((6,))
    y = keras.layers.Dense(32, "relu")(x)
    y = keras.layers.Dense(32, "relu")(y)
    model = keras.Model(x, keras.layers.Dense(1)(y))
    expected = search(model, "dual", hard_budget=True).design
    tuner = CollegialTuner(
        hypermodel_of_paths, "val_loss", model, mode="dual", directory=tmp_path, max_trials=1
    )
    values = tuner.oracle.create_trial("tuner").hyperparameters.values
    assert (values["cardinality"], values["width"]) == expected
    half = CollegialOracle("val_loss", model, target=0.5)
    assert (
        half.populate_space("0")["values"]
        == search(model, target=0.5, hard_budget=True).design._asdict()
    )
    with pytest.raises(ValueError, match=r"family: got .dense..; only a Keras model"):
        CollegialOracle("val_loss", "resnext11", family="dense*")


def hypermodel_of_paths(hp):
    x = keras.Input((6,))
    y = keras.layers.Dense(hp.Int("cardinality", 1, 64) * hp.Int("width", 1, 32), "relu")(x)
    model = keras.Model(x, keras.layers.Dense(1)(y))
    model.compile("sgd", "mse")
    return model
