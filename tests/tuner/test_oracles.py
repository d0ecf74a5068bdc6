"""The oracle of collegial designs, by KerasTuner's own conventions: stub objectives."""

import keras_tuner
import pytest
from searches import FC, INNER, begun, build, design, optimum, score, space

from ce_keras import search
from ce_keras.geometry import fully_connected
from ce_keras.tuner import (
    BudgetOracle,
    CollegialOracle,
    CollegialTuner,
    designs_of,
)


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


@pytest.mark.parametrize("options", [{"target": 0.5}, {"mode": "dual"}])
def test_no_design_costs_more_than_is_asked_for(options):
    oracle = CollegialOracle("val_loss", FC, max_trials=200, **options)
    most = options.get("target", 1.0) * FC.params(1, 24)
    assert len(oracle.designs) > 3
    assert all(FC.params(*each) <= most for each in oracle.designs)


@pytest.mark.parametrize(
    ("values", "options"),
    [(([1, 2], [20, 24]), {"target": 0.5}), (([32, 64], [4, 8, 16]), {"mode": "dual"})],
)
def test_declared_values_that_all_cost_more_are_an_error(values, options):
    oracle = CollegialOracle("val_loss", FC, max_trials=9, **options)
    declared = keras_tuner.HyperParameters()
    for name, choices in zip(("cardinality", "width"), values, strict=True):
        declared.Choice(name, choices)
    oracle.update_space(declared)
    with pytest.raises(ValueError, match="such values and meets the budget"):
        oracle.create_trial("a")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mode", {"mode": "primal"}),
        ("baseline", {"baseline": fully_connected(12, [60] * 3, 4)}),
        ("budget", {"budget": "flops"}),
    ],
)
def test_a_search_of_other_arguments_is_not_resumed(name, options, tmp_path):
    def made(**options):
        oracle = CollegialOracle(
            "val_loss", **{"baseline": FC, "mode": "dual", "max_trials": 3, **options}
        )
        begun(oracle, tmp_path)
        return oracle

    first = made()
    first.update_space(space(64))
    score(first, first.create_trial("a"), 1.0)
    first.save()
    made().reload()
    with pytest.raises(ValueError, match=rf"{name}: .* has a search with .*; give overwrite=True"):
        made(**options).reload()


def test_hyperparameters_that_are_given_beforehand_may_be_some(tmp_path):
    given = keras_tuner.HyperParameters()
    given.Fixed("rate", 0.01)
    oracle = begun(CollegialOracle("val_loss", FC, hyperparameters=given), tmp_path)
    oracle.update_space(space(64))
    assert oracle.create_trial("a").hyperparameters.get("rate") == 0.01
