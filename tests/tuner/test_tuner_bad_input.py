"""Bad values for every argument of the oracles."""

from bad_input import BadInput, case
from bad_values import Made, choice, count, flag, function, seed, text, thing, whole_numbers
from valid_values import (
    SEARCHED,
    TIMED,
    alpha_argument,
    fixed_hyperparameters,
    oracle,
    solution,
    tuned,
)

import ce_keras
from ce_keras.geometry import Design

CASES = [
    case(
        "tuner.BudgetOracle",
        inner=thing(Made(oracle)),
        build=function(tuned)
        .but("it is called later", "of no arguments", "that gives a text")
        .but("it is called later", "that gives nothing", "that gives NaN"),
        max_params=count(1000),
        max_flops=count(1000),
    ),
    case(
        "tuner.CollegialHyperModel",
        network=choice("resnext11"),
        classes=count(3),
        input_shape=whole_numbers((28, 28, 1)).also(too_small=(2, 2, 1)),
        seed=seed(0),
    ),
    case(
        "tuner.CollegialHyperModel.build",
        of=lambda: ce_keras.tuner.CollegialHyperModel("resnext11"),
        hp=thing(Made(fixed_hyperparameters)),
    ),
    case(
        "tuner.CollegialOracle",
        objective=thing("val_loss").but(
            "KerasTuner takes any name, and several", "a text", "a long text", "a list", "drawn"
        ),
        max_trials=count(2),
        inner=thing(),
        seed_designs=thing(["2x4d"])
        .also(unknown=["unknown"], numbers=[3], zeros=[Design(0, 0)], a_text_alone="12x10d")
        .but("no designs", "a list"),
        names=thing(("cardinality", "width")).also(one=("a",), twice=("a", "a"), numbers=(1, 2)),
        hard_budget=flag(True),
        seed=seed(0),
        **{
            **SEARCHED,
            "alpha": alpha_argument("closed_form", "fit"),
            "target": TIMED["target"],
            "target_params": count(),
            "family": text(),
        },
    ),
    case(
        "tuner.CollegialTuner",
        hypermodel=function(tuned)
        .but("KerasTuner calls it", "that gives a text")
        .but("KerasTuner calls it", "that gives nothing", "that gives NaN"),
        objective=thing("val_loss").but(
            "KerasTuner takes any name, and several", "a text", "a long text", "a list", "drawn"
        ),
        baseline=SEARCHED["baseline"],
        names=thing(("cardinality", "width")).also(one=("a",), twice=("a", "a"), numbers=(1, 2)),
    ),
    case("tuner.WrappedOracle", inner=thing(Made(oracle))),
    case(
        "tuner.designs_of",
        solution=thing(Made(solution)),
        space=thing(),
    ),
]

# Names that are not tested, and why.
WITHOUT = {
    "tuner.NAMES": "a constant",
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("tuner",)
    WITHOUT = WITHOUT
