"""Arguments, as many rooms read and check them, in the same words."""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import operator
import tomllib
from typing import Any, Literal

#: Of a layer's weights: `"ntk"`, unit normals that the forward pass scales (Eq. 3), or
#: `"standard"`, which have that scale themselves.
Parameterization = Literal["ntk", "standard"]


def value_of(text: str) -> Any:
    """What is meant by a value in a command: JSON, TOML, or else the text itself.

    >>> [value_of(text) for text in ("3", "[5, 12]", "null", "1_000", "mnist")]
    [3, [5, 12], None, 1000, 'mnist']
    """
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {text}")["value"]
    return text


def positive_int(argument: str, value: Any) -> int:
    """The value as a plain `int`.

    Raises:
        ValueError: if it is not a whole number of 1 or more.

    >>> positive_int("width", 7)
    7
    """
    number = whole_number(argument, value)
    if number < 1:
        raise ValueError(f"{argument}: got {value!r}; it must be a whole number of 1 or more")
    return number


def whole_number(argument: str, value: Any) -> int:
    """The value as a plain `int`, from any type of integer.

    Raises:
        ValueError: if it is not one.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{argument}: got {value!r}; it must be a whole number") from None


def checked_tolerance(tolerance: Any) -> float:
    """The value as a `float`.

    Raises:
        ValueError: if it is not a number of 0 or more.
    """
    real = isinstance(tolerance, numbers.Real) and math.isfinite(tolerance)
    if not (real and tolerance >= 0):
        raise ValueError(f"tolerance: got {tolerance!r}; it must be 0 or more, such as 0.02")
    return float(tolerance)


def checked_parameterization(name: str) -> Parameterization:
    """The name itself.

    Raises:
        ValueError: if it is not that of a parameterisation.
    """
    if name not in ("ntk", "standard"):
        raise ValueError(f"parameterization: got {name!r}; it must be 'ntk' or 'standard'")
    return name  # type: ignore[return-value]


def checked_seed(seed: Any) -> int | None:
    """The seed, `None` or a whole number of 0 or more.

    Raises:
        ValueError: for anything else.
    """
    if seed is None:
        return None
    if whole_number("seed", seed) < 0:
        raise ValueError(f"seed: got {seed!r}; it must be a whole number of 0 or more")
    return whole_number("seed", seed)
