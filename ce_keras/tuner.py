"""KerasTuner without the sweep: oracles that propose what the theory answers.

    tuner = CollegialTuner(build, "val_accuracy", baseline="resnext29", mode="dual")
    tuner.search(x, y, validation_data=...)

`build(hp)` is an ordinary hypermodel that asks for `hp.Int("cardinality", ...)` and
`hp.Int("width", ...)`. KerasTuner comes with `pip install 'ce-keras[tuner]'`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import keras_tuner
import numpy as np

from ce_keras import zoo
from ce_keras.checks import positive_int
from ce_keras.geometry import RESNEXTS, Design, Module, Network
from ce_keras.geometry import baseline as named_baseline
from ce_keras.layers.flops import flops
from ce_keras.ntk import fit_alpha
from ce_keras.optimum import FittedAlpha, Mode, Solution, search

#: Under which names a hypermodel asks for a design.
NAMES = ("cardinality", "width")

# How often a proposal beyond the budget is drawn again before the space counts as used up.
_DRAWS = 1000

# Where KerasTuner's oracles keep what they mean to do next.
_PLANS = ("_ordered_ids", "_populate_next", "_brackets", "_current_bracket", "_current_iteration")

_RUNNING, _STOPPED = "RUNNING", "STOPPED"


def designs_of(solution: Solution) -> Iterator[Design]:
    """The optimum, and then the other designs of its curve, in order of predicted objective.

    A primal's cost what the baseline does; a dual's are as smooth as it.

    >>> [str(design) for design in designs_of(search("resnext29", "dual"))][:3]
    ['10x10d', '15x7d', '13x8d']
    """
    yield solution.design
    curve = solution.curve
    badness = curve.objective if solution.mode == "primal" else -curve.objective
    for index in np.argsort(badness, kind="stable"):
        design = Design(int(curve.cardinality[index]), int(curve.width[index]))
        if design.cardinality > 0 and design != solution.design:
            yield design


def _chain(oracle: Any) -> Iterator[Any]:
    """An oracle, and all those inside it."""
    yield oracle
    while isinstance(oracle, WrappedOracle):
        oracle = oracle.inner
        yield oracle


class WrappedOracle(keras_tuner.Oracle):
    """Another oracle, of which proposals are changed.

    The two have one state: what one of them records, the other has recorded. So the inner
    oracle's seed, retries and reloading keep working.

    Args:
        inner: any KerasTuner oracle.

    Raises:
        ValueError: for something else.
    """

    # Not part of the common state: each wrapper has an inner oracle of its own.
    __slots__ = ("inner",)

    def __init__(self, inner: keras_tuner.Oracle) -> None:
        if not isinstance(inner, keras_tuner.Oracle):
            raise ValueError(f"inner: got {inner!r}; it must be a KerasTuner oracle")
        if any(type(each) is type(self) for each in _chain(inner)):
            raise ValueError(f"inner: has a {type(self).__name__} already; one is enough")
        self.__dict__ = inner.__dict__  # type: ignore[misc]
        self.inner = inner
        # Whichever of the two saves, saves the state of both.
        self.save = super().save  # type: ignore[misc]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """What the inner oracle proposes."""
        return self.inner.populate_space(trial_id)

    def score_trial(self, trial: Any) -> None:
        """Give a trial its score."""
        self.inner.score_trial(trial)

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """Record a trial's end."""
        self.inner.end_trial(trial)
        # KerasTuner saves while the trial still counts as running, and would repeat it.
        self.save()

    def get_state(self) -> dict[str, Any]:
        """What a new process needs to go on."""
        return self.inner.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.inner.set_state(state)


class _Defaults(keras_tuner.Oracle):
    """Every hyperparameter at its default: the oracle of whoever searches nothing else."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:  # noqa: ARG002 - The contract.
        space = self.get_space()
        values = {hp.name: hp.default for hp in space.space if space.is_active(hp)}
        return {"status": _RUNNING, "values": values}


class CollegialOracle(WrappedOracle):
    """Proposes the analytic design, and then, if asked for more, its neighbours on the curve.

    Trial 0 is the answer of `ce_keras.search`. The next ones walk the same curve in order of
    predicted objective, so that the theory can be checked; when it is used up, the search stops.
    None has more parameters (or FLOPs) than the baseline, unless `hard_budget` is false or the
    design is one of `seed_designs`.

    With `inner`, all trials have the optimal design, and the other hyperparameters are searched by
    that oracle, in a space of two dimensions less. Without it they have their defaults.

    Args:
        objective: as in KerasTuner.
        baseline: what is ensembled: a name, or a module or network of `ce_keras.geometry`.
        mode: `"primal"` or `"dual"`.
        alpha: the law's constant, a fit of it, `"closed_form"`, or `"fit"`: Algorithm 1 once,
            before the first trial; the module's own if not given.
        max_trials: how many. Of the inner oracle, if there is one, its own.
        inner: an oracle for the other hyperparameters.
        seed_designs: tried before all others, like `["12x10d"]`.
        names: of the two hyperparameters.
        budget: the cost: `"params"` or `"flops"`.
        hard_budget: as in `ce_keras.search`, where it is not the default: KerasTuner's users mean
            a budget. Without it the first trial is the paper's design.
        tolerance: as in `ce_keras.search`.
        multiple_of: as in `ce_keras.search`.
        widths: as in `ce_keras.search`.
        seed: of Algorithm 1; the inner oracle's if not given.
        options: of every KerasTuner oracle: `hyperparameters`, `max_retries_per_trial` and so on.

    Raises:
        ValueError: for what `search` refuses, designs that are none, or options that belong to
            the inner oracle.

    >>> oracle = CollegialOracle("val_loss", "resnext29", mode="dual", max_trials=3)
    >>> oracle.populate_space("0")["values"]
    {'cardinality': 10, 'width': 10}
    """

    def __init__(
        self,
        objective: Any = None,
        baseline: str | Module | Network = "resnext29",
        mode: Mode = "primal",
        alpha: float | Literal["closed_form", "fit"] | FittedAlpha | None = None,
        max_trials: int | None = None,
        inner: keras_tuner.Oracle | None = None,
        seed_designs: Sequence[str | Design] = (),
        names: tuple[str, str] = NAMES,
        budget: Literal["params", "flops"] = "params",
        hard_budget: bool = True,
        tolerance: float = 0.02,
        multiple_of: int | None = None,
        widths: Sequence[int] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        if inner is None:
            if max_trials is not None:
                positive_int("max_trials", max_trials)
            super().__init__(_Defaults(objective, max_trials or 1, seed=seed, **options))
            self._walks = True
        else:
            super().__init__(inner)
            given = {"objective": objective, "max_trials": max_trials, **options}
            wrong = [name for name, value in given.items() if value is not None]
            if seed_designs:
                raise ValueError("seed_designs: all trials of an inner oracle have the optimum")
            if wrong:
                raise ValueError(f"{wrong[0]}: is the inner oracle's; give it there")
            self._walks = False
        self._names = tuple(names)
        self._fit_seed = int(self.seed if seed is None else seed)
        self._fit: dict[str, float] | None = None
        self._ask: dict[str, Any] = {
            "baseline": named_baseline(baseline) if isinstance(baseline, str) else baseline,
            "mode": mode,
            "alpha": alpha,
            "budget": budget,
            "hard_budget": hard_budget,
            "tolerance": tolerance,
            "multiple_of": multiple_of,
            "widths": widths,
        }
        self._first = [d if isinstance(d, Design) else Design.parse(d) for d in seed_designs]
        self._designs: list[Design] = []
        if not self._walks:
            self._reserve()
        if alpha != "fit":
            self._solve()

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """A trial's values: its design, and what the inner oracle says of the rest."""
        self._solve()
        if self._walks and len(self.start_order) >= len(self._designs):
            return {"status": _STOPPED, "values": None}
        response = self.inner.populate_space(trial_id)
        if response["status"] == _RUNNING:
            index = len(self.start_order) if self._walks else 0
            design = map(int, self._designs[index])  # NumPy's integers break the protocol.
            response["values"].update(zip(self._names, design, strict=True))
        return response

    def get_state(self) -> dict[str, Any]:
        """The inner oracle's state, and the designs, with the fit that they are from."""
        designs = [str(design) for design in self._designs]
        return {**super().get_state(), "collegial": {"designs": designs, "fit": self._fit}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with the designs that were begun with."""
        own = state["collegial"]
        super().set_state(state)
        self._designs = [Design.parse(text) for text in own["designs"]]
        self._fit = own["fit"]

    @property
    def fit(self) -> Mapping[str, float] | None:
        """Alpha and its standard error, where Algorithm 1 was run."""
        return self._fit

    @property
    def designs(self) -> list[Design]:
        """What is proposed, in order; empty before the fit of alpha."""
        return list(self._designs)

    def _solve(self) -> None:
        """Find the designs, once."""
        if self._designs:
            return
        ask = dict(self._ask)
        if ask["alpha"] == "fit":
            found = fit_alpha(ask["baseline"].module, seed=self._fit_seed)
            self._fit = {"alpha": found.alpha, "alpha_error": found.alpha_error}
            ask["alpha"] = found
        best_first = [*self._first, *designs_of(search(**ask))]
        self._designs = list(dict.fromkeys(best_first))
        if not self._walks:
            self._reserve(self._designs[0])

    def _reserve(self, design: Design | None = None) -> None:
        """Take the design out of the inner oracle's space: one value each, known or not yet."""
        for name, value in zip(self._names, design or (1, 1), strict=True):
            own = [hp for hp in self.hyperparameters.space if hp.name == name]
            if design is None and own:
                raise ValueError(
                    f"inner: its hyperparameters have {name!r} already; leave it to the theory"
                )
            for hp in own or [self.hyperparameters.Fixed(name, 1)]:
                if design is not None:
                    hp.value = self.hyperparameters.values[name] = int(value)


class BudgetOracle(WrappedOracle):
    """Any oracle, of which no proposal is too large.

    A proposal beyond the budget is replaced before it becomes a trial: by the next combination of
    a grid search, and by a random draw otherwise. So no model is too large to be tried, and none
    fails because it is.

    Args:
        inner: the oracle that proposes.
        build: the hypermodel: from hyperparameters to a model whose parameters and FLOPs are
            counted.
        max_params: trained parameters, at most.
        max_flops: FLOPs for one example, at most.

    Raises:
        ValueError: without a budget, or one that is not a positive number.
    """

    def __init__(
        self,
        inner: keras_tuner.Oracle,
        build: Callable[[Any], keras.Model],
        *,
        max_params: int | None = None,
        max_flops: int | None = None,
    ) -> None:
        if max_params is None and max_flops is None:
            raise ValueError("max_params, max_flops: give one of them at least")
        for name, value in {"max_params": max_params, "max_flops": max_flops}.items():
            if value is not None:
                positive_int(name, value)
        super().__init__(inner)
        self._build = getattr(build, "build", build)
        self._most = max_params, max_flops
        self._known: dict[str, bool] = {}

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """A proposal within the budget."""
        *_, innermost = _chain(self)
        is_grid = hasattr(innermost, "_get_next_combination")
        while True:
            before = {k: copy.deepcopy(v) for k, v in self.__dict__.items() if k in _PLANS}
            response = self.inner.populate_space(trial_id)
            if response["status"] != _RUNNING:
                return response
            another = innermost._get_next_combination if is_grid else self._redrawn
            values = self._fitting(response["values"], another)
            if values is not None:
                return {"status": _RUNNING, "values": values}
            # As if it had not been asked; but a grid goes on from elsewhere.
            if is_grid and self.start_order:
                before.pop("_populate_next")
            self.__dict__.update(before)
            if not (is_grid and self.start_order):
                return {"status": "IDLE" if self.ongoing_trials else _STOPPED, "values": None}

    def _fitting(
        self, values: dict[str, Any] | None, another: Callable[[Any], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Values within the budget that are new: these, or others until some are."""
        for _ in range(_DRAWS):
            if values is None:
                return None
            if self._within(values) and not self._duplicate(values):
                return values
            values = another(values)
        return None

    def _redrawn(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        drawn = self._random_values()
        if drawn is None:
            return None
        # What an oracle tells the tuner, such as Hyperband's epochs, is not up to chance.
        told = {name: value for name, value in values.items() if name.startswith("tuner/")}
        return {**drawn, **told}

    def _within(self, values: Mapping[str, Any]) -> bool:
        """Whether the model of these values may be tried; each is built once."""
        key = self._compute_values_hash(values)
        if key not in self._known:
            hp = self.get_space()
            hp.values = dict(values)
            try:
                model = self._build(hp)
            except keras_tuner.errors.FailedTrialError:
                return self._known.setdefault(key, False)
            max_params, max_flops = self._most
            self._known[key] = (
                max_params is None or zoo.trained_parameters(model) <= max_params
            ) and (max_flops is None or flops(model) <= max_flops)
        return self._known[key]


class CollegialHyperModel(keras_tuner.HyperModel):
    """A ResNeXt of the zoo, ready to be tuned: its design, and the rate of its training.

    Args:
        network: a family of the zoo.
        classes: outputs.
        input_shape: of the images; the family's if not given.
        seed: for reproducible weights.

    Raises:
        ValueError: for a network that is no family.
    """

    def __init__(
        self,
        network: str = "resnext29",
        classes: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(name=network)
        if network not in RESNEXTS:
            raise ValueError(f"network: got {network!r}; it must be one of {', '.join(RESNEXTS)}")
        self.network = network
        self._options: dict[str, Any] = {
            "classes": classes or RESNEXTS[network].classes,
            "input_shape": input_shape,
            "seed": seed,
        }

    def build(self, hp: Any) -> keras.Model:
        """A compiled model."""
        model = zoo.NETWORKS[self.network](
            cardinality=hp.Int("cardinality", 1, 256),
            width=hp.Int("width", 1, RESNEXTS[self.network].width),
            **self._options,
        )
        rate = hp.Float("rate", 1e-3, 1.0, sampling="log", default=0.1)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model


class CollegialTuner(keras_tuner.Tuner):
    """A tuner with a `CollegialOracle`.

    Args:
        hypermodel: `build(hp)`, or a hypermodel.
        objective: as in KerasTuner; of the inner oracle, if there is one, its own.
        baseline: as in `CollegialOracle`; that of a `CollegialHyperModel` if not given.
        options: of `CollegialOracle` by their names; the others are the tuner's (`directory`,
            `project_name`, `overwrite`, `executions_per_trial` and so on).
    """

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        baseline: str | Module | Network | None = None,
        **options: Any,
    ) -> None:
        if baseline is None:
            if not isinstance(hypermodel, CollegialHyperModel):
                raise ValueError("baseline: is needed, such as 'resnext29'")
            baseline = hypermodel.network
        own = {name: options.pop(name) for name in _ORACLE_OPTIONS & options.keys()}
        directory = options.get("directory")
        options["directory"] = str(directory) if isinstance(directory, Path) else directory
        super().__init__(CollegialOracle(objective, baseline, **own), hypermodel, **options)

    def run_trial(self, trial: Any, *arguments: Any, **options: Any) -> Any:
        """Train a trial: for as many epochs as an inner Hyperband says."""
        values = trial.hyperparameters.values
        for name in ("epochs", "initial_epoch"):
            if f"tuner/{name}" in values:
                options[name] = values[f"tuner/{name}"]
        return super().run_trial(trial, *arguments, **options)

    def _build_hypermodel(self, hp: Any) -> keras.Model:
        model = super()._build_hypermodel(hp)
        if "tuner/trial_id" in hp.values:  # Hyperband goes on with this trial's weights.
            model.load_weights(self._get_checkpoint_fname(hp.values["tuner/trial_id"]))
        return model


_ORACLE_OPTIONS = {
    *("mode", "alpha", "max_trials", "inner", "seed_designs", "names", "budget", "hard_budget"),
    *("tolerance", "multiple_of", "widths", "seed", "hyperparameters", "allow_new_entries"),
    *("tune_new_entries", "max_retries_per_trial", "max_consecutive_failed_trials"),
}
