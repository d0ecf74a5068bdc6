"""An oracle within a budget: no model is too large to be tried."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras_tuner

from ce_keras.checks import function, positive_int, shortened
from ce_keras.layers.flops import flops, trained_parameters
from ce_keras.tuner.oracles import RUNNING, STOPPED, WrappedOracle, chain

logger = logging.getLogger("ce_keras")

# How often a proposal beyond the budget is drawn again before the space counts as used up.
_DRAWS = 1000

# A model that outgrows both this and ten budgets is not built to its end, to be counted.
_ABSURD = 10**8

# Where KerasTuner's oracles keep what they mean to do next.
_PLANS = ("_ordered_ids", "_populate_next", "_brackets", "_current_bracket", "_current_iteration")


class BudgetOracle(WrappedOracle):
    """Any oracle, of which no proposal is too large.

    A proposal beyond the budget is replaced before it becomes a trial: by the next combination of
    a grid search, and by a random draw otherwise. So no model is too large to be tried, and none
    fails because it is. To be counted a model must be built, as one with an `Input` is; one that
    is not counts as too large. One that cannot be built at all is handed on, and fails as a trial.

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
                positive_int(name, value, most=2**63 - 1)
        super().__init__(inner)
        self._build = function(
            "build",
            getattr(build, "build", build),
            "a hypermodel, or a function from hyperparameters",
        )
        self._most = max_params, max_flops
        self._known: dict[str, bool] = {}

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """A proposal within the budget."""
        *_, innermost = chain(self)
        is_grid = hasattr(innermost, "_get_next_combination")
        while True:
            before = {k: copy.deepcopy(v) for k, v in self.__dict__.items() if k in _PLANS}
            response = self.inner.populate_space(trial_id)
            if response["status"] != RUNNING:
                return response
            another = innermost._get_next_combination if is_grid else self._redrawn
            values = self._fitting(response["values"], another)
            if values is not None:
                return {"status": RUNNING, "values": values}
            # As if it had not been asked; but a grid goes on from elsewhere.
            if is_grid and self.start_order:
                before.pop("_populate_next")
            self.__dict__.update(before)
            if not (is_grid and self.start_order):
                return {"status": "IDLE" if self.ongoing_trials else STOPPED, "values": None}

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
        """Return whether the model of these values may be tried; each is counted once."""
        key = self._compute_values_hash(values)
        if key not in self._known:
            hp = self.get_space()
            hp.values = dict(values)
            self._known[key] = self._fits(hp)
            gc.collect()  # A model and its layers hold each other.
        return self._known[key]

    def _fits(self, hp: Any) -> bool:
        """Return whether the model can be counted, and is within the budget."""
        max_params, max_flops = self._most
        try:
            with _limited(max_params, max_flops):
                model = self._build(hp)
        except (_TooLargeError, keras_tuner.errors.FailedTrialError):
            return False
        # Whatever the hypermodel raises, it raises again in the trial, where KerasTuner counts it
        # as failed and goes on.
        except Exception as error:
            logger.warning("a model cannot be counted, and is tried: %s", shortened(str(error)))
            return True
        try:
            return (max_params is None or trained_parameters(model) <= max_params) and (
                max_flops is None or flops(model) <= max_flops
            )
        except ValueError as error:
            logger.warning("a model that cannot be counted counts as too large: %s", error)
            return False


class _TooLargeError(Exception):
    """A model that is being built is far beyond the budget already."""


@contextlib.contextmanager
def _limited(max_params: int | None, max_flops: int | None) -> Iterator[None]:
    """Have the building of a model end at the first weight that is far beyond the budget.

    Otherwise a search over sizes would allocate every model in full that it does not try. What is
    trained is known only at the end, as layers may be frozen: so the limit is generous. Every
    number of a kernel costs two FLOPs for each example at least, whether it is trained or not.
    """
    most = max(_ABSURD, min(10 * (max_params or math.inf), (max_flops or math.inf) / 2))
    add_weight = keras.layers.Layer.add_weight
    count = 0

    @functools.wraps(add_weight)
    def counted(layer: Any, shape: Any = None, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        if isinstance(shape, list | tuple):
            count += math.prod(shape)
            if count > most:
                raise _TooLargeError
        return add_weight(layer, shape, *arguments, **options)

    with _BUILDING:
        keras.layers.Layer.add_weight = counted
        try:
            yield
        finally:
            keras.layers.Layer.add_weight = add_weight


# Held while the layers of all models are counted as they are built.
_BUILDING = threading.RLock()
