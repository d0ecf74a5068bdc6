"""The oracle that proposes the analytic design."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import keras_tuner
from keras_tuner.engine.hyperparameters import Fixed

from ce_keras.algorithm2 import solve
from ce_keras.checks import boolean, brief, checked_seed, positive_int, sequence_of
from ce_keras.geometry import Design, Module, Network
from ce_keras.geometry import baseline as named_baseline
from ce_keras.latency import Timing
from ce_keras.ntk import fit_alpha
from ce_keras.optimum import search
from ce_keras.problem import Mode
from ce_keras.rewrite import baselines_of
from ce_keras.rewrite.baselines import ModelBaseline
from ce_keras.solution import Solution
from ce_keras.tuner.keras_tuner_private import project_folder
from ce_keras.tuner.space import Space, declared_values, designs_of, is_in
from ce_keras.tuner.wrapping import RUNNING, STOPPED, WrappedOracle
from ce_keras.variance.law import FittedAlpha

logger = logging.getLogger("ce_keras")

#: Default names of the hyperparameters for a design.
NAMES = ("cardinality", "width")


class _Defaults(keras_tuner.Oracle):
    """An oracle that leaves every hyperparameter at its default."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:  # noqa: ARG002 - The contract.
        space = self.get_space()
        values = {hp.name: hp.default for hp in space.space if space.is_active(hp)}
        return {"status": RUNNING, "values": values}


class CollegialOracle(WrappedOracle):
    """Proposes the analytic design, and then, if asked for more, its neighbours on the curve.

    Trial 0 has the design of `ce_keras.search`, or the best that the hypermodel declares. Later
    trials follow the curve in order of predicted objective, so that the theory can be checked; at
    its end the search stops. None has more parameters (or FLOPs) than the baseline, unless
    `hard_budget` is false or the design is one of `seed_designs`.

    With `inner`, all trials have the optimal design, and that oracle searches the other
    hyperparameters. Without it they have their defaults, and a warning names them.

    Args:
        objective: as in KerasTuner.
        baseline: what is ensembled: a name, a module or network of `ce_keras.geometry`, or a Keras
            model (or the path of its `.keras` file, or a candidate of `ce_keras.inspect`).
        mode: `"primal"` or `"dual"`.
        alpha: the law's constant, a fit of it, `"closed_form"`, or `"fit"`: Algorithm 1 once,
            before the first trial; the module's own if not given.
        max_trials: number of trials; with `inner`, give it there.
        inner: an oracle for the other hyperparameters.
        seed_designs: designs that are tried first, like `["12x10d"]`.
        names: names of the hyperparameters for cardinality and width in the hypermodel:
            `("block/groups", "block/width")` for `hp.Int("groups", ...)` inside
            `hp.name_scope("block")`.
        budget: the cost, as in `ce_keras.search`: `"params"`, `"flops"`, `"latency"`...
        hard_budget: whether no design may cost more than the baseline, or the target. The first
            trial has the design of `ce_keras.search` if that meets the budget, else that of
            `ce_keras.search(hard_budget=True)`.
        target: as in `ce_keras.search`: a design's cost over the baseline's.
        target_params: as in `ce_keras.search`.
        family: of a Keras model with several families of modules, a pattern of one's name.
        tolerance: as in `ce_keras.search`.
        multiple_of: as in `ce_keras.search`.
        widths: as in `ce_keras.search`.
        seed: seed of Algorithm 1; the inner oracle's if not given.
        options: options of every KerasTuner oracle: `hyperparameters`, `max_retries_per_trial`...

    Raises:
        ValueError: for arguments that `search` refuses, malformed designs or names, or options
            that belong to the inner oracle; and, at the first trial, if the hypermodel has no
            hyperparameters of these names, or no design of the curve is among its values.

    >>> oracle = CollegialOracle("val_loss", "resnext29", mode="dual", max_trials=3)
    >>> oracle.populate_space("0")["values"]
    {'cardinality': 10, 'width': 10}
    """

    def __init__(
        self,
        objective: Any = None,
        baseline: Any = "resnext29",
        mode: Mode = "primal",
        alpha: float | Literal["closed_form", "fit"] | FittedAlpha | None = None,
        max_trials: int | None = None,
        inner: keras_tuner.Oracle | None = None,
        seed_designs: Sequence[str | Design] = (),
        names: tuple[str, str] = NAMES,
        budget: Any = "params",
        hard_budget: bool = True,
        target: float | None = None,
        target_params: int | None = None,
        family: str | None = None,
        tolerance: float = 0.02,
        multiple_of: int | None = None,
        widths: Sequence[int] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        if inner is None:
            if max_trials is not None:
                positive_int("max_trials", max_trials)
            checked_seed(seed)
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
        self._names = _checked_names(names)
        self._hard = boolean("hard_budget", hard_budget)
        self._seen: Any = None
        self._space_is_checked = False
        checked_seed(seed)
        self._fit_seed = int(self.seed if seed is None else seed)
        self._fit: dict[str, float] | None = None
        self._of_model = _of_model(baseline, family)
        self._ask: dict[str, Any] = {
            "baseline": self._of_model.network if self._of_model else baseline,
            "mode": mode,
            "alpha": alpha,
            "budget": self._of_model.budget(budget, Timing()) if self._of_model else budget,
            "target": target,
            "target_params": target_params,
            "tolerance": tolerance,
            "multiple_of": multiple_of,
            "widths": widths,
        }
        self._first = sequence_of("seed_designs", seed_designs, _checked_design)
        self._designs: list[Design] = []
        self._solution: Solution | None = None
        given = self.hyperparameters
        taken = [hp.name for hp in given.space if hp.name in self._names]
        if taken and not self._walks:
            raise ValueError(
                f"inner: its hyperparameters have {taken[0]!r} already; leave it to the theory"
            )
        if given.space and self._walks:
            self._seen = given.copy()
        if not (isinstance(alpha, str) and alpha == "fit"):
            self._solve()

    def create_trial(self, tuner_id: str) -> Any:
        """Return the next trial."""
        # Before KerasTuner takes its lock, which it does not release when something raises.
        self.check_space()
        return super().create_trial(tuner_id)

    def update_space(self, hyperparameters: Any) -> None:
        """Add new hyperparameters to the space: for an inner oracle, all but the design's."""
        if not self._space_is_checked and hyperparameters.space:
            if self._seen is None:
                self._seen = keras_tuner.HyperParameters()
            self._seen.merge(hyperparameters)
        if not self._walks:
            others = keras_tuner.HyperParameters()
            others.merge([self._settled(hp) for hp in hyperparameters.space])
            hyperparameters = others
        self.inner.update_space(hyperparameters)

    def _settled(self, hp: Any) -> Any:
        """Return a hyperparameter of the design with the one value that it has; others as is."""
        if hp.name not in self._names:
            return hp
        value = self._designs[0][self._names.index(hp.name)] if self._designs else 1
        return Fixed(hp.name, int(value), conditions=hp.conditions)

    def check_space(self) -> None:
        """Restrict the designs to the declared values, once those are known.

        Raises:
            ValueError: if no model would have any of the designs.
        """
        if self._space_is_checked or self._seen is None:
            return
        solution = self._solve()
        declared = Space(*(declared_values(self._seen, name) for name in self._names))
        designs = [design for design in self._first if is_in(design, declared)]
        designs += self._within_budget(designs_of(solution, declared))
        if not designs:
            told = " and ".join(
                f"{name} in {brief(values)}"
                for name, values in zip(self._names, declared, strict=True)
            )
            meets = " and meets the budget" if self._hard else ""
            raise ValueError(
                f"names: the hypermodel declares {told}; no design of the curve has such values"
                f"{meets}. The optimum is {solution.design}"
            )
        if not self.start_order:  # A resumed search keeps its own.
            self._designs = list(dict.fromkeys(designs))
            if not self._walks:
                self._reserve(self._designs[0])
        if self._walks:
            self._warn_of_defaults()
        self._space_is_checked = True

    def _within_budget(self, designs: Sequence[Design]) -> list[Design]:
        """Return the designs that cost no more than is asked for, if that is required."""
        solution = self._solve()
        if not self._hard:
            return list(designs)
        most = solution.problem.fraction * (1 + 1e-9)
        return [each for each in designs if solution.problem.cost_of(each) <= most]

    def _warn_of_defaults(self) -> None:
        space = self._seen
        others = [hp.name for hp in space.space if hp.name not in self._names]
        held = [f"{name}={space.get(name)}" for name in others if space.is_active(name)]
        if held:
            logger.warning(
                "every trial has %s, the defaults; give inner=, such as a "
                "keras_tuner.oracles.RandomSearchOracle, to search them",
                ", ".join(dict.fromkeys(held)),
            )

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return a trial's values: its design, and the inner oracle's for the rest."""
        self._solve()
        if self._walks and len(self.start_order) >= len(self._designs):
            return {"status": STOPPED, "values": None}
        response = self.inner.populate_space(trial_id)
        if response["status"] == RUNNING:
            index = len(self.start_order) if self._walks else 0
            design = map(int, self._designs[index])  # NumPy's integers break the protocol.
            response["values"].update(zip(self._names, design, strict=True))
        return response

    def get_state(self) -> dict[str, Any]:
        """Return the inner oracle's state, the designs, and the fit of alpha."""
        designs = [str(design) for design in self._designs]
        own = {"designs": designs, "fit": self._fit, "search": self._arguments()}
        return {**super().get_state(), "collegial": own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume a search with the designs it was begun with."""
        if "collegial" not in state:
            raise ValueError(
                f"directory: {project_folder(self)} has a search by another oracle; give "
                "overwrite=True, or another project_name"
            )
        own = state["collegial"]
        now = self._arguments()
        for name, value in own.get("search", now).items():
            if value != now[name]:
                raise ValueError(
                    f"{name}: {project_folder(self)} has a search with {brief(value)}, and this "
                    f"one has {brief(now[name])}; give overwrite=True, or another project_name"
                )
        super().set_state(state)
        self._designs = [Design.parse(text) for text in own["designs"]]
        self._fit = own["fit"]

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that decide the designs, as plain values."""
        ask = self._ask
        network = ask["baseline"]
        network = named_baseline(network) if isinstance(network, str) else network
        one_path = [int(count(1, network.width)) for count in (network.params, network.flops)]
        alpha, widths = ask["alpha"], ask["widths"]
        if not isinstance(alpha, str | None):
            alpha = float(alpha.alpha) if hasattr(alpha, "alpha") else repr(alpha)
        return {
            **{name: ask[name] for name in ("mode", "target", "target_params", "tolerance")},
            "baseline": [network.name, network.width, *one_path],
            "alpha": alpha,
            "budget": _plain(ask["budget"]),
            "hard_budget": self._hard,
            "multiple_of": ask["multiple_of"],
            "widths": None if widths is None else [int(width) for width in widths],
        }

    @property
    def fit(self) -> Mapping[str, float] | None:
        """Alpha and its standard error, where Algorithm 1 was run."""
        return self._fit

    @property
    def designs(self) -> list[Design]:
        """Designs in the order they are proposed; empty before the fit of alpha."""
        return list(self._designs)

    def _solve(self) -> Solution:
        """Return the solution, computed once; set the designs, unless a resumed search has them."""
        if self._solution is not None:
            return self._solution
        ask = dict(self._ask)
        fits = isinstance(ask["alpha"], str) and ask["alpha"] == "fit"
        if fits:
            ask["alpha"] = self._fitted()
        elif self._of_model:
            ask["alpha"] = self._of_model.alpha(ask["alpha"], self._fit_seed)
        find = solve if self._of_model else search
        solution = answer = find(**ask)
        if self._hard:
            solution = find(**ask, hard_budget=True)
            if answer.rho * (answer.target or 1) >= 1:  # Costs no more than is asked for.
                self._first.append(answer.design)
        self._solution = solution
        if not self._designs:
            curve = self._within_budget(designs_of(solution))
            self._designs = list(dict.fromkeys([*self._first, *curve]))
        if not self._designs:
            raise ValueError(
                f"hard_budget: no design of the curve costs as little as is asked for; the optimum "
                f"is {solution.design}"
            )
        if not self._walks:
            self._reserve(self._designs[0])
        return solution

    def _fitted(self) -> FittedAlpha:
        """Return alpha by Algorithm 1; a resumed search keeps its first fit."""
        if self._fit is None:
            if self._of_model:
                found = self._of_model.alpha("fit", self._fit_seed)
            else:
                baseline = self._ask["baseline"]
                network = named_baseline(baseline) if isinstance(baseline, str) else baseline
                found = fit_alpha(network.module, seed=self._fit_seed)
            self._fit = {"alpha": found.alpha, "alpha_error": found.alpha_error}
        return SimpleNamespace(**self._fit)

    def _reserve(self, design: Design) -> None:
        """Give the hyperparameters of the design their only value, where the space has them."""
        for name, value in zip(self._names, design, strict=True):
            for hp in self.hyperparameters.space:
                if hp.name == name:
                    hp.value = self.hyperparameters.values[name] = int(value)


def _plain(budget: Any) -> Any:
    """Return the names of a budget's costs."""
    if isinstance(budget, tuple | list):
        return [_plain(each) for each in budget]
    return budget if isinstance(budget, str) else getattr(budget, "name", "a function")


def _of_model(baseline: Any, family: str | None) -> ModelBaseline | None:
    """Return the family of a Keras model that is searched for; `None` for another baseline.

    Raises:
        ValueError: for a model with several families, of which none is named.
    """
    named = isinstance(baseline, str) and not baseline.endswith(".keras")
    if named or isinstance(baseline, Module | Network):
        if family is not None:
            raise ValueError(f"family: got {brief(family)}; only a Keras model has families")
        return None
    if not isinstance(baseline, str | Path) and not hasattr(baseline, "layers"):
        search(baseline)  # Which says what a baseline can be.
    found = baselines_of(baseline, family)
    if len(found) > 1:
        names = ", ".join(repr(each.network.name) for each in found)
        raise ValueError(f"family: the baseline has {names}; name one, by a pattern")
    return found[0]


def _checked_design(argument: str, design: Any) -> Design:
    try:
        found = design if isinstance(design, Design) else Design.parse(design)
        return Design(*(positive_int(argument, size) for size in found))
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def _checked_names(names: Any) -> tuple[str, str]:
    if (
        not isinstance(names, list | tuple)
        or len({*map(str, names)}) != 2
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise ValueError(
            f"names: got {brief(names)}; it must be two different names, of the hyperparameters "
            "for cardinality and width"
        )
    return names[0], names[1]
