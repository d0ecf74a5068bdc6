"""The paper's optimiser, SGD with a coupled L2 penalty, and schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ce_keras.checks import MOST, brief, finite_number, positive_int, whole_number
from ce_keras.layers.collegial import register


@register
class CoupledSGD(keras.optimizers.Optimizer):
    """SGD with momentum, and an L2 penalty in the gradient of every variable.

    The update is that of PyTorch's `SGD(weight_decay=decay)`: `v <- momentum v + g + decay w`, then
    `w <- w - learning_rate v`. It differs from `keras.optimizers.SGD(weight_decay=...)` twice: the
    decay of Keras is decoupled, it shrinks the weights beside the momentum and not through it; and
    its momentum contains earlier learning rates, so that a step of the schedule acts late.

    Args:
        learning_rate: a number, or a schedule.
        momentum: factor of the last update.
        decay: coefficient of the L2 penalty.
        name: of the optimiser.
        options: of every Keras optimiser, such as `global_clipnorm`. `weight_decay` is refused.

    Raises:
        ValueError: for a learning rate that is not above 0, a momentum that is not in [0, 1), a
            negative decay, or `weight_decay`.

    >>> weight = keras.Variable([1.0])
    >>> optimizer = CoupledSGD(0.1, momentum=0.9, decay=0.5)
    >>> optimizer.apply([ops.array([1.0])], [weight])
    >>> round(float(weight[0]), 6)  # 1 - 0.1 (1 + 0.5)
    0.85
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        decay: float = 0.0,
        name: str = "coupled_sgd",
        **options: Any,
    ) -> None:
        if options.pop("weight_decay", None) is not None:
            raise ValueError("weight_decay: Keras' kind is decoupled; give `decay`")
        schedule = keras.optimizers.schedules.LearningRateSchedule
        if not isinstance(learning_rate, schedule | dict) and not callable(learning_rate):
            finite_number("learning_rate", learning_rate, above=0)
        momentum = finite_number("momentum", momentum, 0, below=1)
        decay = finite_number("decay", decay, 0)
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.momentum = momentum
        self.decay = decay

    def build(self, variables: Sequence[Any]) -> None:
        """Create a velocity for every variable."""
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        velocity = self.velocities[self._get_variable_index(variable)]
        pull = ops.add(gradient, ops.multiply(variable, self.decay)) if self.decay else gradient
        new = ops.add(ops.multiply(velocity, self.momentum), pull)
        self.assign(velocity, new)
        self.assign_sub(variable, ops.multiply(new, rate))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the optimiser."""
        config = super().get_config()
        config.pop("weight_decay", None)
        return {**config, "momentum": self.momentum, "decay": self.decay}


@register
class StepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is divided at given steps, after an optional linear warm-up.

    Args:
        learning_rate: at the start, or at the end of the warm-up.
        boundaries: the steps from which on it is divided once more.
        divide_by: the divisor.
        warmup: steps in which it grows linearly, from `learning_rate / warmup`.

    Raises:
        ValueError: for a learning rate or divisor that is not above 0, or steps that are not whole
            numbers of 0 or more.

    >>> schedule = StepSchedule(0.1, [100, 200], divide_by=10)
    >>> [round(float(schedule(step)), 6) for step in (0, 99, 100, 200)]
    [0.1, 0.1, 0.01, 0.001]
    """

    def __init__(
        self,
        learning_rate: float,
        boundaries: Sequence[int] = (),
        divide_by: float = 10.0,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        self.learning_rate = finite_number("learning_rate", learning_rate, above=0)
        if not isinstance(boundaries, list | tuple):
            raise ValueError(f"boundaries: got {brief(boundaries)}; it must be a list of steps")
        self.boundaries = [whole_number("boundaries", each, 1, MOST) for each in boundaries]
        if self.boundaries != sorted(self.boundaries):
            raise ValueError(f"boundaries: got {brief(boundaries)}; they must increase")
        self.divide_by = finite_number("divide_by", divide_by, above=0)
        self.warmup = whole_number("warmup", warmup, 0, MOST)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, "float32")
        for boundary in self.boundaries:
            rate = ops.where(step >= boundary, rate / self.divide_by, rate)
        if self.warmup:
            rate = rate * ops.minimum((step + 1) / self.warmup, 1.0)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the schedule."""
        names = ("learning_rate", "boundaries", "divide_by", "warmup")
        return {name: getattr(self, name) for name in names}


@register
class OneCycleSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from 0 over a quarter of the steps, and falls to 0.

    Args:
        learning_rate: the highest, after a quarter of the steps.
        steps: of the whole run.

    Raises:
        ValueError: for a learning rate that is not above 0, or steps that are not a whole number
            of 1 or more.

    >>> schedule = OneCycleSchedule(0.2, 400)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 250, 400)]
    [0.0, 0.1, 0.2, 0.1, 0.0]
    """

    def __init__(self, learning_rate: float, steps: int) -> None:
        super().__init__()
        self.learning_rate = finite_number("learning_rate", learning_rate, above=0)
        self.steps = positive_int("steps", steps)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        place = ops.cast(step, "float32") / self.steps
        rate = self.learning_rate * ops.minimum(place / 0.25, (1.0 - place) / 0.75)
        return ops.maximum(rate, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild the schedule."""
        return {"learning_rate": self.learning_rate, "steps": self.steps}
