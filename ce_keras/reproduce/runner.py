"""Run a reproduction: check its settings, measure or resume, and write its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ce_keras import files
from ce_keras.checks import brief, checked_seed, file_path, finite_number, one_of, whole_number
from ce_keras.reproduce.protocol import Scale, experiment
from ce_keras.reproduce.result import Result, index
from ce_keras.reproduce.store import Points

_LARGEST_SETTING = 10**9


def reproduce(
    name: str,
    scale: Scale = "small",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Result:
    """Compute a figure or table of the paper again.

    Args:
        name: one of `NAMES`.
        scale: `"small"`: minutes on two CPU cores. `"full"`: the paper's settings.
        out: a folder for `NAME.json`, `NAME.png` and `NAME.md`. Finished points of a long
            measurement are kept there too, and a later call resumes.
        seed: for reproducible random numbers.
        settings: settings of this reproduction that replace the scale's.

    Raises:
        ValueError: for an unknown name, scale or setting; or a folder in which a measurement with
            other settings was begun.

    >>> reproduce("table2").data["rows"][0]["design"]
    '1x64d'
    """
    if out is not None:
        out = file_path("out", out)
    module = experiment(name)
    one_of("scale", scale, get_args(Scale))
    if checked_seed(seed) is None:
        raise ValueError("seed: got None; it must be a number: results can be had again")
    chosen = _changed(name, module.SCALES[scale], settings)
    key = {"name": name, "seed": seed, "settings": chosen._asdict()}
    points = Points(None if out is None else out / f".{name}.part.json", key)
    data = files.plain(
        {"settings": chosen._asdict(), **module.measure(chosen, seed=seed, points=points)}
    )
    result = Result(name, scale, seed, round(points.seconds, 1), data)
    if out is not None:
        result.save(out)
        points.end()
        with files.replacing(out / "index.md") as part:
            part.write_text(index(out))
    return result


def _changed(name: str, defaults: Any, changes: Any) -> Any:
    """Return the settings of a scale with some of them replaced."""
    if changes is not None and not isinstance(changes, Mapping):
        raise ValueError(f"settings: got {brief(changes)}; it must be a dictionary")
    unknown = {*map(str, changes or {})} - {*defaults._fields}
    if unknown:
        raise ValueError(
            f"settings: {name} has no {brief(sorted(unknown))}; it has "
            f"{', '.join(defaults._fields) or 'none'}"
        )
    return defaults._replace(
        **{
            key: _checked_setting(key, value, getattr(defaults, key))
            for key, value in (changes or {}).items()
        }
    )


def _checked_setting(name: str, value: Any, default: Any) -> Any:
    """Return a setting's value, of the type of its default and in its range.

    Raises:
        ValueError: if it is of another type, or a number out of range.
    """
    argument = f"settings.{name}"
    if value is None and default is None:
        return None
    if isinstance(default, tuple | list):
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(f"{argument}: got {brief(value)}; it must be a list, like {default}")
        return tuple(_checked_setting(name, each, default[0]) for each in value)
    if isinstance(default, float):
        bound = {"above": 0.0} if default else {"least": 0.0}
        return finite_number(argument, value, **bound)
    if isinstance(default, int) or default is None:
        return whole_number(argument, value, 1 if default != 0 else 0, _LARGEST_SETTING)
    if not isinstance(value, type(default)):
        raise ValueError(f"{argument}: got {brief(value)}; it must be like {default!r}")
    return value
