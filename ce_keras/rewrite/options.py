"""The options of `collegialize`, checked before any long work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from ce_keras.checks import (
    brief,
    checked_seed,
    checked_tolerance,
    finite_number,
    one_of,
    positive_int,
)
from ce_keras.cost import checked_budget
from ce_keras.geometry import Design
from ce_keras.latency import Timing
from ce_keras.problem import Mode

Per = Literal["network", "stage"]
Patterns = str | Sequence[str] | None


class Options(NamedTuple):
    """The options of `collegialize` that decide on designs; described there."""

    mode: Mode
    alpha: Any
    budget: Any
    tolerance: float
    multiple_of: int | None
    design: Any
    only: Any
    skip: Any
    per: Per
    seed: int | None
    target: float | None = None
    target_params: int | None = None
    timing: Timing = Timing()

    def checked(self) -> Options:
        """Return the options in one form: a `Design`, lists of patterns.

        Raises:
            ValueError: for an option that is not right.
        """
        one_of("mode", self.mode, get_args(Mode))
        one_of("per", self.per, get_args(Per))
        checked_budget(self.budget)
        if self.target is not None:
            finite_number("target", self.target, above=0)
        if self.target_params is not None:
            positive_int("target_params", self.target_params)
        for name in ("target", "target_params"):
            if self.design is not None and getattr(self, name) is not None:
                raise ValueError(f"{name}: got {getattr(self, name)}, beside a design; give one")
        self.timing.checked()
        if self.multiple_of is not None:
            positive_int("multiple_of", self.multiple_of)
        return self._replace(
            alpha=_alpha(self.alpha),
            tolerance=checked_tolerance(self.tolerance),
            design=None if self.design is None else _design(self.design),
            only=_patterns("only", self.only),
            skip=_patterns("skip", self.skip),
            seed=checked_seed(self.seed),
        )


def _alpha(alpha: Any) -> Any:
    if isinstance(alpha, Mapping):
        if not all(isinstance(pattern, str) for pattern in alpha):
            raise ValueError(f"alpha: got {brief(alpha)}; its keys are patterns of chains' names")
        return {pattern: _alpha(value) for pattern, value in alpha.items()}
    if alpha is None or (isinstance(alpha, str) and alpha in ("fit", "closed_form")):
        return alpha
    try:
        finite_number("alpha", getattr(alpha, "alpha", alpha), above=0)
    except ValueError:
        raise ValueError(
            f"alpha: got {brief(alpha)}; it must be a positive number, 'fit', 'closed_form', a fit "
            "of ce_keras.ntk.fit_alpha, or a mapping from patterns of chains' names to any of these"
        ) from None
    return alpha


def _design(design: Any) -> Design:
    if isinstance(design, str):
        return Design.parse(design)
    if not (isinstance(design, Sequence) and len(design) == 2):
        raise ValueError(f"design: got {brief(design)}; it must be like '12x10d', or (12, 10)")
    return Design(*(positive_int("design", size) for size in design))


def _patterns(argument: str, patterns: Any) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else [] if patterns is None else patterns
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise ValueError(
            f"{argument}: got {brief(patterns)}; it must be a pattern like 'conv4_*', or a list of "
            "them"
        )
    return list(listed)
