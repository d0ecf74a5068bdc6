"""Arguments, as many rooms read and check them, in the same words."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

#: Of a layer's weights: `"ntk"`, unit normals that the forward pass scales (Eq. 3), or
#: `"standard"`, which have that scale themselves.
Parameterization = Literal["ntk", "standard"]

#: The largest whole number that an argument may be: what fits 32 bits.
MOST = 2**31 - 1


def value_of(text: str) -> Any:
    """Return the value that a text in a command stands for: JSON, TOML, or else the text itself.

    >>> [value_of(text) for text in ("3", "[5, 12]", "null", "1_000", "mnist")]
    [3, [5, 12], None, 1000, 'mnist']
    """
    # Thousands of nested brackets are beyond both readers.
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
        return tomllib.loads(f"value = {text}")["value"]
    return text


def brief(value: Any, most: int = 100) -> str:
    """Return how a value is shown in a message: its `repr`, cut off.

    >>> print(brief("x" * 1000, most=5))
    'xxxx...
    """
    try:
        if isinstance(value, int) and not -(10**most) < value < 10**most:
            return f"a number of more than {most} digits"
        if isinstance(value, list | tuple) and len(value) > most:
            return f"a {type(value).__name__} of {len(value):,}, of which the first is " + brief(
                value[0], most
            )
        if isinstance(value, np.generic):
            value = value.item()
        # Of a long text only as much as is shown.
        shown = repr(value[: most + 1] if isinstance(value, str | bytes) else value)
    except Exception as error:  # Somebody else's `repr`: whatever it raises is not the point.
        shown = f"a {type(value).__name__} ({type(error).__name__} when shown)"
    return shortened(shown, most)


def shortened(text: str, most: int = 100) -> str:
    """Return a text, cut off.

    >>> shortened("all of it"), shortened("a part of it", most=6)
    ('all of it', 'a part...')
    """
    return text if len(text) <= most else f"{text[:most]}..."


def positive_int(argument: str, value: Any, most: int = MOST) -> int:
    """Return the value as a plain `int`.

    Raises:
        ValueError: if it is not a whole number from 1 to `most`.

    >>> positive_int("width", 7)
    7
    """
    return whole_number(argument, value, 1, most)


def whole_number(
    argument: str, value: Any, least: int | None = None, most: int | None = None
) -> int:
    """Return the value as a plain `int`, from any type of integer.

    Raises:
        ValueError: if it is not one, or out of the bounds that are given.
    """
    wanted = "a whole number"
    if least is not None:
        wanted += f" of {least} or more"
    if most is not None:
        wanted += f", at most {most:,}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}")
    return number


def finite_number(
    argument: str,
    value: Any,
    least: float | None = None,
    *,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return the value as a plain `float`.

    Args:
        argument: its name, for the message.
        value: any type of real number.
        least: the smallest that is allowed.
        above: what it must exceed.
        most: the largest that is allowed.
        below: what it must stay under.

    Raises:
        ValueError: if it is not a real number, not finite, or out of the bounds.

    >>> finite_number("rate", 1, above=0)
    1.0
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    wanted = " and ".join(
        f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None
    )
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    good = (
        math.isfinite(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not good:
        wanted = f"a finite number{', ' if wanted else ''}{wanted}"
        raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}")
    return number


def one_of(argument: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return the value itself.

    Raises:
        ValueError: if it is none of the choices.
    """
    # Of an array, `==` would be an array.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument}: got {brief(value)}; it must be one of {known}")
    return value


def boolean(argument: str, value: Any) -> bool:
    """Return the value as a plain `bool`: a text such as "false" is not one.

    Raises:
        ValueError: if it is not one.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{argument}: got {brief(value)}; it must be True or False")
    return bool(value)


def text(argument: str, value: Any) -> str:
    """Return the value itself.

    Raises:
        ValueError: if it is not a text.
    """
    return instance(argument, value, str, "a text")


def instance(argument: str, value: Any, kind: Any, wanted: str) -> Any:
    """Return the value itself.

    Args:
        argument: its name, for the message.
        value: anything.
        kind: a class, or several.
        wanted: what is right, for the message.

    Raises:
        ValueError: if it is not of the kind.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}")
    return value


def keras_model(argument: str, value: Any) -> Any:
    """Return the value itself.

    Raises:
        ValueError: if it is not a Keras model.
    """
    import keras

    return instance(argument, value, keras.Model, "a Keras model")


def function(argument: str, value: Any, wanted: str = "a function") -> Any:
    """Return the value itself.

    Raises:
        ValueError: if it cannot be called.
    """
    if not callable(value):
        raise ValueError(f"{argument}: got {brief(value)}; it must be {wanted}")
    return value


def called(argument: str, function: Callable[..., Any], *values: Any) -> Any:
    """Return what a function of the user's gives.

    Raises:
        ValueError: if it cannot be called like this; the message has its own.
    """
    try:
        return function(*values)
    except (TypeError, AttributeError) as error:
        shown = ", ".join(brief(value, 30) for value in values)
        raise ValueError(
            f"{argument}: it fails when called with ({shown}): {shortened(str(error), 300)}"
        ) from error


def file_path(argument: str, value: Any) -> Path:
    """Return the value as a path, whether or not there is anything.

    Raises:
        ValueError: if it is none, or no file system takes it.
    """
    try:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise ValueError
        path = Path(value)
        path.exists()  # A name that is too long is refused here.
        nearest = next((each for each in path.absolute().parents if each.exists()), path)
    except (OSError, ValueError):
        raise ValueError(f"{argument}: got {brief(value)}; it must be a path") from None
    if not nearest.is_dir():
        raise ValueError(f"{argument}: got {brief(str(value))}; {nearest} is a file, not a folder")
    return path


def sequence_of(argument: str, value: Any, check: Callable[[str, Any], Any]) -> list[Any]:
    """Return the elements of a list or tuple, each checked.

    Raises:
        ValueError: if it is no list, or an element is not right.
    """
    if not isinstance(value, list | tuple | np.ndarray | range):
        raise ValueError(f"{argument}: got {brief(value)}; it must be a list")
    return [check(argument, each) for each in value]


def real_values(
    argument: str, value: Any, least: float = -math.inf, above: float = -math.inf
) -> Any:
    """Return the value itself: a real number, or an array of such.

    Raises:
        ValueError: if it is neither, or one of them is not finite or out of the bounds.
    """
    array = value if isinstance(value, np.ndarray) else None
    if array is None and isinstance(value, bool | str | bytes | list | tuple):
        array = np.array(None)
    kind = np.asarray(value).dtype.kind if array is None else array.dtype.kind
    good = kind in "iuf"
    if good:
        numbers = np.asarray(value, dtype=np.float64)
        good = bool((np.isfinite(numbers) & (numbers >= least) & (numbers > above)).all())
    if not good:
        bounds = [f"of {least:g} or more"] * (least > -math.inf) + [f"above {above:g}"] * (
            above > -math.inf
        )
        wanted = " ".join(["a real number", *bounds])
        raise ValueError(
            f"{argument}: got {brief(value)}; it must be {wanted}, or an array of such"
        )
    return value


def keras_object(
    argument: str, value: Any, get: Callable[[Any], Any], optional: bool = True
) -> Any:
    """Return what Keras makes of an identifier: an initializer, activation, regularizer.

    Args:
        argument: its name, for the message, which Keras' own does not have.
        value: an object of Keras', its name or its configuration.
        get: of Keras, such as `keras.initializers.get`.
        optional: whether `None` stands for none of them.

    Raises:
        ValueError: for what Keras does not know.
    """
    try:
        if isinstance(value, np.ndarray):
            raise TypeError("an array has no name")
        found = get(value)
    # Whatever an identifier of the wrong type makes Keras raise.
    except Exception as error:
        raise ValueError(f"{argument}: got {brief(value)}: {shortened(str(error), 200)}") from None
    if found is None and not (value is None and optional):
        raise ValueError(f"{argument}: got {brief(value)}; Keras knows no such thing")
    return found


def real_array(argument: str, value: Any) -> np.ndarray:
    """Return the value as an array in double precision.

    Raises:
        ValueError: if it is not an array of real, finite numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{argument}: got {brief(value)}; it must be an array of real numbers"
        ) from None
    wrong = array.size - np.count_nonzero(np.isfinite(array))
    if wrong:
        raise ValueError(f"{argument}: {wrong} of its {array.size} numbers are infinite or NaN")
    return array


def checked_tolerance(tolerance: Any) -> float:
    """Return the value as a `float`.

    Raises:
        ValueError: if it is not a number of 0 or more.
    """
    return finite_number("tolerance", tolerance, 0)


def checked_parameterization(name: str) -> Parameterization:
    """Return the name itself.

    Raises:
        ValueError: if it is not that of a parameterisation.
    """
    return one_of("parameterization", name, ("ntk", "standard"))


def checked_seed(seed: Any) -> int | None:
    """Return the seed, `None` or a whole number of 0 or more.

    Raises:
        ValueError: for anything else.
    """
    return None if seed is None else whole_number("seed", seed, 0, MOST)
