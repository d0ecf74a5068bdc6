"""The oracle that proposes what the theory answers, and what wraps another oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras_tuner
import numpy as np

from ce_keras.checks import positive_int
from ce_keras.geometry import Design, Module, Network
from ce_keras.geometry import baseline as named_baseline
from ce_keras.law import FittedAlpha
from ce_keras.ntk import fit_alpha
from ce_keras.optimum import search
from ce_keras.solution import Mode, Solution

#: Under which names a hypermodel asks for a design.
NAMES = ("cardinality", "width")

#: What an oracle answers: a trial to run, or that there are no more.
RUNNING, STOPPED = "RUNNING", "STOPPED"


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


def chain(oracle: Any) -> Iterator[Any]:
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
        if any(type(each) is type(self) for each in chain(inner)):
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
        return {"status": RUNNING, "values": values}


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
            return {"status": STOPPED, "values": None}
        response = self.inner.populate_space(trial_id)
        if response["status"] == RUNNING:
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
