"""What `collegialize` is asked for, checked before any long work."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from ce_keras.budget import Budget, checked_budget
from ce_keras.checks import checked_seed, checked_tolerance, positive_int
from ce_keras.geometry import Design
from ce_keras.solution import Mode

Per = Literal["network", "stage"]
Patterns = str | Sequence[str] | None


class Options(NamedTuple):
    """The arguments of `collegialize`, known to be good; described there."""

    mode: Mode
    alpha: Any
    budget: Budget
    tolerance: float
    multiple_of: int | None
    design: Design | None
    only: list[str]
    skip: list[str]
    per: Per
    seed: int | None


def checked_options(
    *,
    mode: Any,
    alpha: Any,
    budget: Any,
    tolerance: Any,
    multiple_of: Any,
    design: Any,
    only: Any,
    skip: Any,
    per: Any,
    seed: Any,
) -> Options:
    """The options.

    Raises:
        ValueError: for an argument that cannot be meant.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: got {mode!r}; it must be 'primal' or 'dual'")
    if per not in get_args(Per):
        raise ValueError(f"per: got {per!r}; it must be 'network' or 'stage'")
    return Options(
        mode,
        _alpha(alpha),
        checked_budget(budget),
        checked_tolerance(tolerance),
        None if multiple_of is None else positive_int("multiple_of", multiple_of),
        None if design is None else _design(design),
        _patterns("only", only),
        _patterns("skip", skip),
        per,
        checked_seed(seed),
    )


def _alpha(alpha: Any) -> Any:
    if isinstance(alpha, Mapping):
        if not all(isinstance(pattern, str) for pattern in alpha):
            raise ValueError(f"alpha: got {alpha!r}; its keys are patterns of chains' names")
        return {pattern: _alpha(value) for pattern, value in alpha.items()}
    if alpha is None or (isinstance(alpha, str) and alpha in ("fit", "closed_form")):
        return alpha
    value = getattr(alpha, "alpha", alpha)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and 0 < float(value) < float("inf")):
        raise ValueError(
            f"alpha: got {alpha!r}; it must be a positive number, 'fit', 'closed_form', a fit of "
            "ce_keras.ntk.fit_alpha, or a mapping from patterns of chains' names to any of these"
        )
    return alpha


def _design(design: Any) -> Design:
    if isinstance(design, str):
        return Design.parse(design)
    if not (isinstance(design, Sequence) and len(design) == 2):
        raise ValueError(f"design: got {design!r}; it must be like '12x10d', or (12, 10)")
    return Design(*(positive_int("design", size) for size in design))


def _patterns(argument: str, patterns: Any) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else patterns or []
    if not isinstance(listed, Sequence) or not all(isinstance(each, str) for each in listed):
        raise ValueError(
            f"{argument}: got {patterns!r}; it must be a pattern like 'conv4_*', or a list of them"
        )
    return list(listed)
