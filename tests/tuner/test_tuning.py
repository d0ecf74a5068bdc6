"""Real searches: the tuner, its hypermodel, and what a hypermodel declares."""

import keras
import keras_tuner
import numpy as np
import pytest
from searches import FC, INNER, build, data, design, every_inner, look, optimum, trials_of, tuner

from ce_keras import search
from ce_keras.tuner import (
    CollegialHyperModel,
    CollegialOracle,
    CollegialTuner,
)


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


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
@every_inner
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


def test_what_is_held_at_its_default_is_said_once(tmp_path, caplog):
    look(tuner(tmp_path, max_trials=2))
    said = [record.getMessage() for record in caplog.records if record.name == "ce_keras"]
    assert len([message for message in said if "rate=0.001" in message]) == 1


def test_a_keras_model_is_a_baseline_of_the_tuner(tmp_path):
    x = keras.Input((6,))
    y = keras.layers.Dense(32, "relu")(x)
    y = keras.layers.Dense(32, "relu")(y)
    model = keras.Model(x, keras.layers.Dense(1)(y))
    expected = search(model, "dual", hard_budget=True).design
    found = CollegialTuner(
        hypermodel_of_paths, "val_loss", model, mode="dual", directory=tmp_path, max_trials=1
    )
    values = found.oracle.create_trial("tuner").hyperparameters.values
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
