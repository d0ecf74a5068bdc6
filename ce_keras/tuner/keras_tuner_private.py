"""Uses of KerasTuner's private names, read in version 1.4.8, each with the public way that lacks.

`tests/tuner/test_keras_tuner_private.py` compares `PRIVATE` and `PLANS` with the installed version,
and says what changed.
"""

from __future__ import annotations

import copy
from typing import Any

import keras
import keras_tuner
from keras_tuner.oracles import GridSearchOracle, HyperbandOracle

VERSION = "1.4.8"

#: Private methods that are called or overridden, with their parameters.
PRIVATE: dict[tuple[type, str], tuple[str, ...]] = {
    (keras_tuner.Oracle, "_random_values"): ("self",),
    (GridSearchOracle, "_get_next_combination"): ("self", "values"),
    (keras_tuner.Tuner, "_build_hypermodel"): ("self", "hp"),
    (keras_tuner.Tuner, "_get_checkpoint_fname"): ("self", "trial_id"),
}

#: Private attributes that hold what an oracle will propose next.
PLANS: dict[type, tuple[str, ...]] = {
    GridSearchOracle: ("_ordered_ids", "_populate_next"),
    HyperbandOracle: ("_brackets", "_current_bracket", "_current_iteration"),
}


def share_state(wrapper: keras_tuner.Oracle, inner: keras_tuner.Oracle) -> None:
    """Let two oracles have the same attributes. KerasTuner has no oracle around another."""
    wrapper.__dict__ = inner.__dict__


def plans(oracle: keras_tuner.Oracle) -> dict[str, Any]:
    """Copy what an oracle will propose next, for `restore_plans`.

    `populate_space` records every proposal, used or not, and the public state of a grid lacks it.
    """
    names = {name for each in PLANS.values() for name in each}
    return copy.deepcopy({k: v for k, v in vars(oracle).items() if k in names})


def restore_plans(oracle: keras_tuner.Oracle, before: dict[str, Any], *, queue: bool) -> None:
    """Undo a proposal: set the plans as they were before it, with or without a grid's queue."""
    vars(oracle).update({k: v for k, v in before.items() if queue or k != "_populate_next"})


def next_combination(grid: GridSearchOracle, values: Any) -> dict[str, Any] | None:
    """Return the values after these in a grid. No public method gives more than a trial's."""
    return grid._get_next_combination(values)


def random_values(oracle: keras_tuner.Oracle) -> dict[str, Any] | None:
    """Draw values by an oracle's own seed. No public method gives more than a trial's."""
    return oracle._random_values()


def project_folder(oracle: keras_tuner.Oracle) -> str:
    """Return the folder of a search. The public `directory` of an oracle is never set."""
    return oracle._project_dir


class ContinuingTuner(keras_tuner.Tuner):
    """A tuner whose trials go on with the weights of earlier ones, as an inner Hyperband asks.

    `keras_tuner.Hyperband` does so too, but makes its own oracle. No public method of a tuner
    builds a trial's model, or names its checkpoint.
    """

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> Any:
        """Train a trial, for the epochs that an inner Hyperband gives."""
        values = trial.hyperparameters.values
        for name in ("epochs", "initial_epoch"):
            if f"tuner/{name}" in values:
                options[name] = values[f"tuner/{name}"]
        return super().run_trial(trial, *arguments, **options)

    def _build_hypermodel(self, hp: Any) -> keras.Model:
        model = super()._build_hypermodel(hp)
        if "tuner/trial_id" in hp.values:
            model.load_weights(self._get_checkpoint_fname(hp.values["tuner/trial_id"]))
        return model
