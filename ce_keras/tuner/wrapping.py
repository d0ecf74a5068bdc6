"""The base class of oracles around another: they share its state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras_tuner

from ce_keras.checks import brief
from ce_keras.tuner.keras_tuner_private import share_state

#: Statuses of an oracle's answer: a trial to run, or no more trials.
RUNNING, STOPPED = "RUNNING", "STOPPED"


def chain(oracle: Any) -> Iterator[Any]:
    """Yield an oracle, and those inside it."""
    yield oracle
    while isinstance(oracle, WrappedOracle):
        oracle = oracle.inner
        yield oracle


class WrappedOracle(keras_tuner.Oracle):
    """Base class of an oracle that changes another's proposals.

    The two share their state, so that the inner oracle's seed, retries and reloading keep working.

    Args:
        inner: any KerasTuner oracle.

    Raises:
        ValueError: for something else.
    """

    # Not in the shared state: each wrapper has an inner oracle of its own.
    __slots__ = ("inner",)

    def __init__(self, inner: keras_tuner.Oracle) -> None:
        if not isinstance(inner, keras_tuner.Oracle):
            raise ValueError(f"inner: got {brief(inner)}; it must be a KerasTuner oracle")
        if any(type(each) is type(self) for each in chain(inner)):
            raise ValueError(f"inner: has a {type(self).__name__} already; one is enough")
        share_state(self, inner)
        self.inner = inner
        # Either of the two saves the state of both.
        self.save = super().save  # type: ignore[misc]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the inner oracle's proposal."""
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
        """Return the state that a new process resumes from."""
        return self.inner.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self.inner.set_state(state)
