"""Checks of public arguments: each returns the value in its plain type, or raises a `ValueError`.

Every message has one form: `width: got 0; it must be a whole number of 1 or more`.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

#: How a layer's weights are scaled: `"ntk"`, unit normals that the forward pass scales (Eq. 3), or
#: `"standard"`, where the weights themselves have that scale.
Parameterization = Literal["ntk", "standard"]

#: The largest whole number that an argument may be: the largest of 32 bits.
MOST = 2**31 - 1


# Messages ----------------------------------------------------------------------------------------


def brief(value: Any, most: int = 100) -> str:
    """Return the `repr` of a value for a message, cut off after `most` characters.

    >>> print(brief("x" * 1000, most=5))
    'xxxx...
    """
    try:
        if isinstance(value, int) and not -(10**most) < value < 10**most:
            return f"a number of more than {most} digits"
        if isinstance(value, list | tuple) and len(value) > most:
            first = brief(value[0], most)
            return f"a {type(value).__name__} of {len(value):,}, of which the first is {first}"
        if isinstance(value, np.generic):
            value = value.item()
        # The repr of a long text would be built whole before it is cut off.
        shown = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    except Exception as error:  # A class of the user's may raise anything in its `repr`.
        shown = f"a {type(value).__name__} ({type(error).__name__} when shown)"
    return shortened(shown, most)


def shortened(text: str, most: int = 100) -> str:
    """Return a text, cut off after `most` characters.

    >>> shortened("all of it"), shortened("a part of it", most=6)
    ('all of it', 'a part...')
    """
    return text if len(text) <= most else f"{text[:most]}..."


def _refuse(argument: str, value: Any, wanted: str) -> NoReturn:
    raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}")


# Numbers -----------------------------------------------------------------------------------------


def positive_int(argument: str, value: Any, most: int = MOST) -> int:
    """Return a whole number from 1 to `most` as a plain `int`.

    >>> positive_int("width", 7)
    7
    """
    return whole_number(argument, value, 1, most)


def whole_number(
    argument: str, value: Any, least: int | None = None, most: int | None = None
) -> int:
    """Return an integer of any type, within the given bounds, as a plain `int`."""
    wanted = "a whole number"
    wanted += "" if least is None else f" of {least} or more"
    wanted += "" if most is None else f", at most {most:,}"
    try:
        number = math.nan if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = math.nan
    low, high = (-math.inf if least is None else least), (math.inf if most is None else most)
    if not low <= number <= high:  # NaN is not.
        _refuse(argument, value, wanted)
    return int(number)


def finite_number(
    argument: str,
    value: Any,
    least: float | None = None,
    *,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return a real number as a plain `float`.

    Args:
        argument: its name, for the message.
        value: any type of real number.
        least: the smallest that is allowed.
        above: an exclusive lower bound.
        most: the largest that is allowed.
        below: an exclusive upper bound.

    >>> finite_number("learning_rate", 1, above=0)
    1.0
    """
    try:
        is_number = not isinstance(value, bool | np.bool_ | str | bytes)
        number = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    bounds = [
        (least, "at least", operator.ge),
        (above, "above", operator.gt),
        (most, "at most", operator.le),
        (below, "below", operator.lt),
    ]
    given = [(bound, name, holds) for bound, name, holds in bounds if bound is not None]
    if not (math.isfinite(number) and all(holds(number, bound) for bound, _, holds in given)):
        wanted = " and ".join(f"{name} {bound:g}" for bound, name, _ in given)
        _refuse(argument, value, f"a finite number{', ' if wanted else ''}{wanted}")
    return number


def real_values(
    argument: str, value: Any, least: float = -math.inf, above: float = -math.inf
) -> Any:
    """Return a real number, or an array of real numbers, as it is; `above` is exclusive."""
    refused = isinstance(value, bool | str | bytes | list | tuple)
    array = np.array(None) if refused else np.asarray(value)
    good = array.dtype.kind in "iuf"
    if good:
        numbers = array.astype(np.float64)
        good = bool((np.isfinite(numbers) & (numbers >= least) & (numbers > above)).all())
    if not good:
        wanted = "a real number"
        wanted += f" of {least:g} or more" if least > -math.inf else ""
        wanted += f" above {above:g}" if above > -math.inf else ""
        _refuse(argument, value, f"{wanted}, or an array of such")
    return value


def real_array(argument: str, value: Any) -> np.ndarray:
    """Return an array of real, finite numbers in double precision."""
    try:
        array = np.asarray(value)
        numbers = array.astype(np.float64) if array.dtype.kind in "biuf" else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None:
        _refuse(argument, value, "an array of real numbers")
    wrong = numbers.size - np.count_nonzero(np.isfinite(numbers))
    if wrong:
        raise ValueError(f"{argument}: {wrong} of its {numbers.size} numbers are infinite or NaN")
    return numbers


def layer_widths(argument: str, value: Any) -> list[int]:
    """Return the hidden widths of a network, at least one, as plain `int`s."""
    if isinstance(value, str | bytes | dict) or not np.iterable(value):
        _refuse(argument, value, "a list of whole numbers")
    found = [positive_int(argument, width) for width in value]
    if not 1 <= len(found) <= MOST_LAYERS:
        raise ValueError(
            f"{argument}: got {brief(found)}; there must be 1 to {MOST_LAYERS:,} layers"
        )
    return found


#: Deeper networks are taken for a mistake.
MOST_LAYERS = 10_000


def checked_tolerance(tolerance: Any) -> float:
    """Return a tolerance: a number of 0 or more, as a `float`."""
    return finite_number("tolerance", tolerance, 0)


def checked_seed(seed: Any) -> int | None:
    """Return a seed: `None`, or a whole number of 0 or more."""
    return None if seed is None else whole_number("seed", seed, 0, MOST)


# Everything else ---------------------------------------------------------------------------------


def one_of(argument: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return the value if it is one of the choices, and of the same type."""
    # The types are compared first: `==` with an array would be an array.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        _refuse(argument, value, f"one of {', '.join(map(repr, choices))}")
    return value


def checked_parameterization(name: str) -> Parameterization:
    """Return the name of a parameterisation."""
    return one_of("parameterization", name, ("ntk", "standard"))


def boolean(argument: str, value: Any) -> bool:
    """Return a plain `bool`; a text such as "false" is refused."""
    return bool(instance(argument, value, bool | np.bool_, "True or False"))


def text(argument: str, value: Any) -> str:
    """Return a `str`."""
    return instance(argument, value, str, "a text")


def instance(argument: str, value: Any, kind: Any, wanted: str) -> Any:
    """Return the value if it is of the class `kind`; `wanted` names the class in the message."""
    if not isinstance(value, kind):
        _refuse(argument, value, wanted)
    return value


def keras_model(argument: str, value: Any) -> Any:
    """Return a Keras model."""
    import keras

    return instance(argument, value, keras.Model, "a Keras model")


def keras_object(
    argument: str, value: Any, get: Callable[[Any], Any], optional: bool = True
) -> Any:
    """Return the initializer, activation or regularizer that an identifier stands for.

    Args:
        argument: its name, for the message; Keras' own message lacks it.
        value: an object of Keras', its name or its configuration.
        get: the function of Keras that looks it up, such as `keras.initializers.get`.
        optional: allow `None`, for no such object.
    """
    try:
        if isinstance(value, np.ndarray):
            raise TypeError("an array is no identifier")
        found = get(value)
    except Exception as error:  # Keras raises many types, depending on the identifier's.
        raise ValueError(f"{argument}: got {brief(value)}: {shortened(str(error), 200)}") from None
    if found is None and not (value is None and optional):
        raise ValueError(f"{argument}: got {brief(value)}; Keras knows no such thing")
    return found


def function(argument: str, value: Any, wanted: str = "a function") -> Any:
    """Return the value if it can be called."""
    if not callable(value):
        _refuse(argument, value, wanted)
    return value


def called(argument: str, function: Callable[..., Any], *values: Any) -> Any:
    """Return the result of a user's function; its `TypeError` becomes a `ValueError`."""
    try:
        return function(*values)
    except (TypeError, AttributeError) as error:
        shown = ", ".join(brief(value, 30) for value in values)
        raise ValueError(
            f"{argument}: it fails when called with ({shown}): {shortened(str(error), 300)}"
        ) from error


def sequence_of(argument: str, value: Any, check: Callable[[str, Any], Any]) -> list[Any]:
    """Return the elements of a list, tuple, range or array, each passed through `check`."""
    instance(argument, value, list | tuple | np.ndarray | range, "a list")
    return [check(argument, each) for each in value]


def file_path(argument: str, value: Any) -> Path:
    """Return a path, of something that exists or could be written there."""
    try:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise ValueError
        path = Path(value)
        path.exists()  # A name that is too long raises here.
        nearest = next((each for each in path.absolute().parents if each.exists()), path)
    except (OSError, ValueError):
        _refuse(argument, value, "a path")
    if not nearest.is_dir():
        raise ValueError(f"{argument}: got {brief(str(value))}; {nearest} is a file, not a folder")
    return path


def value_of(text: str) -> Any:
    """Return the value that a command's text stands for: JSON, TOML, or else the text itself.

    >>> [value_of(text) for text in ("3", "[5, 12]", "null", "1_000", "mnist")]
    [3, [5, 12], None, 1000, 'mnist']
    """
    # Both parsers recurse, and thousands of nested brackets exceed the limit.
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
        return tomllib.loads(f"value = {text}")["value"]
    return text
