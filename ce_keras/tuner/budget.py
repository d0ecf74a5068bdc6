"""An oracle within a budget of parameters or FLOPs, around any other."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras_tuner
from keras_tuner.oracles import GridSearchOracle

from ce_keras.checks import function, positive_int, shortened
from ce_keras.layers.flops import flops, trained_parameters
from ce_keras.tuner.keras_tuner_private import next_combination, plans, random_values, restore_plans
from ce_keras.tuner.wrapping import RUNNING, STOPPED, WrappedOracle, chain

logger = logging.getLogger("ce_keras")

# Number of proposals beyond the budget after which the space counts as used up.
_DRAWS = 1000

# Building a model stops, before its end, at a size beyond both this and ten budgets.
_ABSURD = 10**8


class BudgetOracle(WrappedOracle):
    """Any oracle, restricted to models within a budget.

    A proposal beyond the budget is replaced before it becomes a trial: by the next combination of
    a grid search, and by a random draw otherwise. A model that has no shapes yet (no `Input`)
    cannot be counted, and is replaced too. A model whose building fails is passed on, and fails as
    a trial.

    Args:
        inner: the oracle that proposes.
        build: the hypermodel, from hyperparameters to a model to be counted.
        max_params: the largest number of trained parameters.
        max_flops: the largest number of FLOPs for one example.

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
        self._known: dict[Any, bool] = {}

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return a proposal within the budget."""
        *_, innermost = chain(self)
        grid = innermost if isinstance(innermost, GridSearchOracle) else None
        another = self._redrawn if grid is None else functools.partial(next_combination, grid)
        while True:
            before = plans(self)
            response = self.inner.populate_space(trial_id)
            if response["status"] != RUNNING:
                return response
            values = self._fitting(response["values"], another)
            if values is not None:
                return {"status": RUNNING, "values": values}
            # Undo the proposal; a grid that has begun goes on from the next trial in its queue.
            goes_on = grid is not None and bool(self.start_order)
            restore_plans(self, before, queue=not goes_on)
            if not goes_on:
                return {"status": "IDLE" if self.ongoing_trials else STOPPED, "values": None}

    def _fitting(
        self, values: dict[str, Any] | None, another: Callable[[Any], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Return values within the budget that are new: these, or others until some are."""
        tried = {_key(trial.hyperparameters.values) for trial in self.trials.values()}
        for _ in range(_DRAWS):
            if values is None:
                return None
            if self._within(values) and _key(values) not in tried:
                return values
            values = another(values)
        return None

    def _redrawn(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        drawn = random_values(self)
        if drawn is None:
            return None
        # Values for the tuner, such as Hyperband's epochs, are not drawn.
        return {**drawn, **{k: v for k, v in values.items() if k.startswith("tuner/")}}

    def _within(self, values: Mapping[str, Any]) -> bool:
        """Return whether the model of these values is within the budget; build it only once."""
        key = _key(values)
        if key not in self._known:
            hp = self.get_space()
            hp.values = dict(values)
            self._known[key] = self._fits(hp)
            gc.collect()  # A model and its layers refer to each other.
        return self._known[key]

    def _fits(self, hp: Any) -> bool:
        """Return whether the model can be counted, and is within the budget."""
        max_params, max_flops = self._most
        try:
            with _limited(max_params, max_flops):
                model = self._build(hp)
        except (_TooLargeError, keras_tuner.errors.FailedTrialError):
            return False
        # The trial will raise the same error, and KerasTuner counts it as failed and goes on.
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


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return hyperparameters in a form to compare, without Hyperband's epochs and rounds."""
    names = sorted(k for k in values if not k.startswith("tuner/") or k == "tuner/trial_id")
    return tuple((name, str(values[name])) for name in names)


class _TooLargeError(Exception):
    """Raised while a model is being built that is far beyond the budget."""


@contextlib.contextmanager
def _limited(max_params: int | None, max_flops: int | None) -> Iterator[None]:
    """Stop building a model at the first weight that is far beyond the budget.

    Otherwise a search over sizes would allocate in full every model that it rejects. The limit is
    generous, as layers may be frozen later. Every weight of a kernel costs at least two FLOPs for
    each example.
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


# Held while `add_weight` is replaced.
_BUILDING = threading.RLock()
