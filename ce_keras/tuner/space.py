"""Designs of a solution, in their order, and the values of them that a hypermodel declares."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Int

from ce_keras.checks import brief, instance
from ce_keras.geometry import Design
from ce_keras.solution import Solution


class Space(NamedTuple):
    """Values that a hypermodel declares for a design.

    Attributes:
        cardinality: whole numbers, increasing; `None` for any.
        width: likewise.
    """

    cardinality: Sequence[int] | None = None
    width: Sequence[int] | None = None


def designs_of(solution: Solution, space: Space | None = None) -> list[Design]:
    """Return the designs of a solution's curve, the optimum first, then by predicted objective.

    Those of a primal have the baseline's cost; those of a dual its variance. A cardinality that
    the space lacks is replaced by the next lower one for a primal, the next higher for a dual.

    Args:
        solution: from `ce_keras.search`.
        space: the values to choose from; all if not given.

    >>> from ce_keras import search
    >>> [str(design) for design in designs_of(search("resnext29", "dual"))][:3]
    ['10x10d', '15x7d', '13x8d']
    >>> only = Space(cardinality=[8, 16, 32, 64], width=[4, 8, 16])
    >>> [str(design) for design in designs_of(search("resnext29", "dual"), only)]
    ['32x4d', '16x8d', '8x16d']
    """
    instance("solution", solution, Solution, "a Solution of ce_keras.search")
    if space is not None:
        instance("space", space, tuple, "a Space")
    space = space or Space()
    curve = solution.curve
    primal = solution.mode == "primal"
    found: dict[Design, float] = {}
    built = curve.buildable
    for width, wanted, objective in zip(
        curve.width[built].tolist(),
        curve.cardinality[built].tolist(),
        curve.objective[built],
        strict=True,
    ):
        cardinality = _nearest(wanted, space.cardinality, below=primal)
        if cardinality is None or not (space.width is None or width in space.width):
            continue
        # Variance falls and cost grows in proportion to the cardinality.
        ratio = wanted / cardinality
        found[Design(cardinality, width)] = objective * ratio if primal else -objective * ratio
    ordered = sorted(found, key=found.__getitem__)
    if solution.design in found:
        return [solution.design, *(each for each in ordered if each != solution.design)]
    return ordered


def _nearest(wanted: int, allowed: Sequence[int] | None, below: bool) -> int | None:
    """Return the nearest value that is allowed, from below or from above."""
    if wanted < 1:
        return None
    if allowed is None:
        return wanted
    index = bisect_right(allowed, wanted) - 1 if below else bisect_left(allowed, wanted)
    found = allowed[index] if 0 <= index < len(allowed) else 0
    return found if found >= 1 else None


def is_in(design: Design, space: Space) -> bool:
    """Return whether a space has the values of a design."""
    return all(
        values is None or value in values for value, values in zip(design, space, strict=True)
    )


def declared_values(hyperparameters: Any, name: str) -> Sequence[int] | None:
    """Return the whole numbers that a hypermodel declares for a hyperparameter, `None` for any.

    Args:
        hyperparameters: those of the hypermodel, built with their defaults.
        name: the hyperparameter's.

    Raises:
        ValueError: if there is none of this name, it is switched off, or it is never a whole
            number.
    """
    known = [hp for hp in hyperparameters.space if hp.name == name]
    if not known:
        names = ", ".join(dict.fromkeys(repr(hp.name) for hp in hyperparameters.space))
        raise ValueError(
            f"names: the hypermodel has no {name!r} when it is built with its defaults, but "
            f"{names}. Give the names of cardinality and width, such as "
            "names=('block/groups', 'block/width')"
        )
    if not any(hyperparameters.is_active(hp) for hp in known):
        raise ValueError(
            f"names: {name!r} is under a condition that is off by default, so that no model "
            "would have the design; switch it on, or give other names"
        )
    if not all(isinstance(hp, Int | Choice | Fixed | Boolean) for hp in known):
        return None
    values = [_whole_numbers(hp) for hp in known]
    return values[0] if len(values) == 1 else sorted(set().union(*values))


def _whole_numbers(hp: Any) -> Sequence[int]:
    """Return the whole numbers that a hyperparameter can be, increasing.

    Raises:
        ValueError: if it can be none.
    """
    # Where a step is missing any number may be drawn; `values` has ten of them.
    if isinstance(hp, Int) and (hp.step is None or hp.sampling == "linear"):
        return range(hp.min_value, hp.max_value + 1, hp.step or 1)
    values = list(hp.values)
    numbers = [value for value in values if not isinstance(value, str | bool)]
    if found := sorted({int(value) for value in numbers if float(value).is_integer()}):
        return found
    raise ValueError(
        f"names: the hypermodel declares {hp.name!r} with the values {brief(values)}; a "
        "cardinality or width is a whole number, such as hp.Choice(name, [4, 8])"
    )
