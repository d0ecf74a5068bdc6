"""The tuner with a `CollegialOracle`, and a hypermodel of the zoo."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from ce_keras import zoo
from ce_keras.checks import checked_seed, instance, one_of, positive_int
from ce_keras.geometry import RESNEXTS
from ce_keras.tuner.keras_tuner_private import ContinuingTuner
from ce_keras.tuner.oracles import NAMES, CollegialOracle
from ce_keras.zoo.resnext import checked_image_shape


class CollegialHyperModel(keras_tuner.HyperModel):
    """A ResNeXt of the zoo, whose hyperparameters are its design and learning rate.

    Args:
        network: name of a family of the zoo.
        classes: number of outputs; the family's if not given.
        input_shape: shape of the images; the family's if not given.
        seed: for reproducible weights.

    Raises:
        ValueError: for an unknown network.
    """

    def __init__(
        self,
        network: str = "resnext29",
        classes: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        seed: int | None = None,
    ) -> None:
        one_of("network", network, tuple(RESNEXTS))
        if classes is not None:
            positive_int("classes", classes)
        checked_seed(seed)
        if input_shape is not None:
            checked_image_shape(RESNEXTS[network], input_shape)
        super().__init__(name=network)
        self.network = network
        self._options: dict[str, Any] = {
            "classes": RESNEXTS[network].classes if classes is None else classes,
            "input_shape": input_shape,
            "seed": seed,
        }

    def build(self, hp: Any) -> keras.Model:
        """Return a compiled model."""
        instance("hp", hp, keras_tuner.HyperParameters, "HyperParameters")
        model = zoo.NETWORKS[self.network](
            cardinality=hp.Int("cardinality", 1, 256),
            width=hp.Int("width", 1, RESNEXTS[self.network].width),
            **self._options,
        )
        rate = hp.Float("rate", 1e-3, 1.0, sampling="log", default=0.1)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model


class CollegialTuner(ContinuingTuner):
    """A tuner with a `CollegialOracle`.

    Args:
        hypermodel: `build(hp)`, or a hypermodel.
        objective: as in KerasTuner; of the inner oracle, if there is one, its own.
        baseline: as in `CollegialOracle`, such as a Keras model; that of a
            `CollegialHyperModel` if not given.
        names: of the hyperparameters for cardinality and width, as in `CollegialOracle`.
        options: of `CollegialOracle` by their names; the others are the tuner's (`directory`,
            `project_name`, `overwrite`, `executions_per_trial` and so on).
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        baseline: Any = None,
        names: tuple[str, str] = NAMES,
        **options: Any,
    ) -> None:
        if callable(hypermodel) and not isinstance(hypermodel, keras_tuner.HyperModel):
            _check_takes_hyperparameters(hypermodel)
        if baseline is None:
            if not isinstance(hypermodel, CollegialHyperModel):
                raise ValueError("baseline: is needed, such as 'resnext29'")
            baseline = hypermodel.network
        own: dict[str, Any] = {name: options.pop(name) for name in _ORACLE_OPTIONS & options.keys()}
        own["names"] = names
        directory = options.get("directory")
        options["directory"] = str(directory) if isinstance(directory, Path) else directory
        super().__init__(CollegialOracle(objective, baseline, **own), hypermodel, **options)
        # Workers have a client in place of the oracle, and their chief checks.
        if isinstance(self.oracle, CollegialOracle):
            self.oracle.check_space()


def _check_takes_hyperparameters(hypermodel: Any) -> None:
    try:
        inspect.signature(hypermodel).bind(None)
    except TypeError as error:
        raise ValueError(
            f"hypermodel: it must be a function of the hyperparameters: {error}"
        ) from None


_ORACLE_OPTIONS = {
    *("mode", "alpha", "max_trials", "inner", "seed_designs", "budget", "hard_budget"),
    *("target", "target_params", "family"),
    *("tolerance", "multiple_of", "widths", "seed", "hyperparameters", "allow_new_entries"),
    *("tune_new_entries", "max_retries_per_trial", "max_consecutive_failed_trials"),
}
