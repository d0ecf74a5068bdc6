"""Recipes: everything a training run is made of, in one short TOML file.

>>> recipe = read_recipe("cifar10", {"optimizer.rate": "0.05"})
>>> recipe.model.name, recipe.optimizer.rate, recipe.schedule.divide_at
('resnext29', 0.05, (150, 225))
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ce_keras.checks import brief, finite_number, shortened, value_of
from ce_keras.designs import DESIGN_MODES
from ce_keras.geometry import RESNEXTS

#: Where recipes are found by name: beside the package in a clone, inside it when installed.
FOLDERS = (Path(__file__).parents[2] / "recipes", Path(__file__).parent / "recipes")


@dataclass(frozen=True)
class ModelRecipe:
    """What is trained.

    Attributes:
        name: a network of the zoo, or `"fully_connected"`.
        mode: which design: `"primal"`, `"dual"`, `"baseline"` or `"resnext"`.
        cardinality: with `width`, any other design.
        width: path width in the first stage.
        depth: of fully connected networks: weight matrices.
        base: of fully connected networks: the baseline's width.
    """

    name: str
    mode: str = "primal"
    cardinality: int | None = None
    width: int | None = None
    depth: int = 6
    base: int = 200


@dataclass(frozen=True)
class DataRecipe:
    """Which images.

    Attributes:
        name: of the set.
        source: `"tfds"`, `"embedded"`, or a folder: of IDX files, or with `train/CLASS/` and
            `test/CLASS/` (or `val`, `validation`) of image files.
        augment: what is done to training images: any of `"crop"` (pad by `pad`, crop at random),
            `"flip"`, `"resized_crop"` (an area of 8 to 100% of the image, aspect 3/4 to 4/3) and
            `"jitter"` (brightness, contrast and saturation by up to `jitter`, in random order).
        pad: pixels on each side that `"crop"` pads by.
        jitter: how far `"jitter"` goes.
        normalize: `"channel"` (mean and deviation of every channel), `"mean_image"` (the mean
            image subtracted, and one deviation), or `"global"` (one mean and deviation).
        size: with `"resized_crop"`, the side of what the network sees; the set's own, or 224, if
            not given.
        limit: of images in memory, only so many for training, equally many of each class.
        test_limit: the same, for testing.
    """

    name: str
    source: str = "tfds"
    augment: tuple[str, ...] = ()
    pad: int = 4
    jitter: float = 0.4
    normalize: str = "channel"
    size: int | None = None
    limit: int | None = None
    test_limit: int | None = None


@dataclass(frozen=True)
class OptimizerRecipe:
    """How weights are changed.

    Attributes:
        name: `"sgd"` (`CoupledSGD`) or `"adam"`.
        rate: learning rate.
        momentum: of SGD.
        decay: coefficient of the coupled L2 penalty.
        clip: largest norm of all gradients together; 0 for none.
        precision: `"float32"`, `"mixed_float16"` or `"mixed_bfloat16"`.
        smoothing: of the labels.
    """

    rate: float
    name: str = "sgd"
    momentum: float = 0.9
    decay: float = 0.0
    clip: float = 0.0
    precision: str = "float32"
    smoothing: float = 0.0


@dataclass(frozen=True)
class ScheduleRecipe:
    """How long, and in what steps.

    Attributes:
        epochs: passes through the images.
        batch: images in a step, over all devices.
        divide_at: epochs at whose start the rate is divided.
        divide_by: by what.
        warmup: epochs in which the rate grows from nothing.
        rate_for: the batch that the rate is for: with another one it is scaled in proportion; 0
            for no scaling.
    """

    epochs: int
    batch: int
    divide_at: tuple[int, ...] = ()
    divide_by: float = 10.0
    warmup: int = 0
    rate_for: int = 0


@dataclass(frozen=True)
class ExpectedRecipe:
    """What the paper reports.

    Attributes:
        source: its table or figure; or what else was measured.
        error: test error in percent, by model.
        top5_error: the same of five guesses.
    """

    source: str = ""
    error: dict[str, float] = field(default_factory=dict)
    top5_error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A training run. The sections have classes of their own."""

    model: ModelRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    expected: ExpectedRecipe = field(default_factory=ExpectedRecipe)

    def to_dict(self) -> dict[str, Any]:
        """The effective recipe, as plain values."""
        return dataclasses.asdict(self)


def read_recipe(path: str | Path, changes: Mapping[str, str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file, or the name of a recipe that comes with the package.
        changes: values to replace, as text, by dotted key: `{"optimizer.rate": "0.05"}`.

    Raises:
        ValueError: for a file that is not there, a key that does not exist, a value of the wrong
            type or out of range, or a missing one; the message names the file, the key and, for a
            mistyped key, the nearest right one.
    """
    file = _find(path)
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"recipe: the file at the path {file} is not TOML: {shortened(str(error))}"
        ) from None
    if changes is not None and not isinstance(changes, Mapping):
        raise ValueError(f"changes: got {brief(changes)}; it must be a dictionary of texts by key")
    for key, text in (changes or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(
                f"changes: got {brief(key)}: {brief(text)}; keys and values must be texts"
            )
        _set(content, key, text)
    return recipe_of(content, f"recipe: {file}")


def recipe_of(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values, checked as `read_recipe` does; `where` begins its messages."""
    recipe = _filled(Recipe, content, where, "")
    for key, good, what in _rules(recipe):
        if not good:
            section, _, name = key.partition(".")
            value = getattr(getattr(recipe, section), name)
            raise ValueError(f"{where}: {key}: got {brief(value)}; it must be {what}")
    return recipe


# Beyond it operating systems raise something else than that there is no such file.
_LONGEST_PATH = 255


def _find(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or len(str(path)) > _LONGEST_PATH or "\0" in str(path):
        raise ValueError(
            f"recipe: got {brief(path)}; it must be the path of a file, or the name of a recipe"
        )
    candidates = [Path(path), *(folder / f"{path}.toml" for folder in FOLDERS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted({file.stem for folder in FOLDERS for file in folder.glob("*.toml")})
    path = shortened(str(path))
    raise ValueError(f"recipe: there is no file {path}; those by name are {', '.join(names)}")


def _set(content: dict[str, Any], key: str, text: str) -> None:
    """Replace one value, given as text."""
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"--set {key}: {section} is a value, not a section")
    content[name] = value_of(text)


def _filled(kind: Any, content: Any, where: str, prefix: str) -> Any:
    """An instance of a dataclass from plain values; every key and type is checked."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{where}: {prefix.rstrip('.') or 'content'}: got {brief(content)}; it must be a "
            "section"
        )
    fields = {each.name: each for each in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in fields:
            wrong = shortened(str(key))
            close = difflib.get_close_matches(wrong, fields, 1, cutoff=0)
            raise ValueError(
                f"{where}: there is no key {prefix + wrong}; did you mean {prefix + close[0]}?"
            )
    values = {}
    for name, each in fields.items():
        if name in content:
            values[name] = _typed(hints[name], content[name], where, prefix + name)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: {prefix + name} is missing")
    return kind(**values)


def _typed(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _filled(hint, value, where, key + ".")
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(hint)[0], item, where, key) for item in value)
    if origin is dict and isinstance(value, Mapping):
        kind = typing.get_args(hint)[1]
        return {name: _typed(kind, item, where, f"{key}.{name}") for name, item in value.items()}
    kinds = typing.get_args(hint) if origin is types.UnionType else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return finite_number(f"{where}: {key}", value)
        if isinstance(kind, type) and isinstance(value, kind) and not isinstance(value, bool):
            return value
    names = {float: "a number", int: "a whole number", str: "text", tuple: "a list"}
    wanted = names.get(origin or kinds[0], "a section")
    raise ValueError(f"{where}: {key}: got {brief(value)}; it must be {wanted}")


# Larger numbers are a slip: of anything, of layers, of pixels.
_MOST_SIZE = 2**20
_MOST_LAYERS = 10_000
_MOST_PIXELS = 2**13

_SIZE = f"from 1 to {_MOST_SIZE:,}"

_AUGMENTATIONS = ("crop", "flip", "resized_crop", "jitter")
_NETWORKS = (*RESNEXTS, "fully_connected")


def _rules(recipe: Recipe) -> list[tuple[str, bool, str]]:
    """Key, whether its value is good, and what would be."""
    model, data = recipe.model, recipe.data
    optimizer, schedule = recipe.optimizer, recipe.schedule
    precisions = ("float32", "mixed_float16", "mixed_bfloat16")
    boundaries = list(schedule.divide_at)
    increasing = boundaries == sorted({*boundaries}) and min(boundaries, default=1) >= 1

    def fits(value: int | None) -> bool:
        return value is None or 1 <= value <= _MOST_SIZE

    return [
        ("model.name", model.name in _NETWORKS, f"one of {', '.join(_NETWORKS)}"),
        ("model.mode", model.mode in DESIGN_MODES, f"one of {', '.join(DESIGN_MODES)}"),
        ("model.depth", 2 <= model.depth <= _MOST_LAYERS, f"from 2 to {_MOST_LAYERS:,}"),
        ("model.base", fits(model.base), _SIZE),
        ("model.cardinality", fits(model.cardinality), _SIZE),
        ("model.width", fits(model.width), _SIZE),
        (
            "model.width",
            (model.width is None) == (model.cardinality is None),
            "given with model.cardinality",
        ),
        (
            "data.augment",
            set(data.augment) <= set(_AUGMENTATIONS),
            f"a list of {', '.join(_AUGMENTATIONS)}",
        ),
        ("data.pad", 0 <= data.pad <= _MOST_PIXELS, f"from 0 to {_MOST_PIXELS:,}"),
        ("data.jitter", 0 <= data.jitter <= 1, "from 0 to 1"),
        (
            "data.normalize",
            data.normalize in ("channel", "mean_image", "global"),
            "channel, mean_image or global",
        ),
        (
            "data.size",
            data.size is None
            or (1 <= data.size <= _MOST_PIXELS and "resized_crop" in data.augment),
            f"from 1 to {_MOST_PIXELS:,}, with resized_crop among data.augment",
        ),
        ("data.limit", data.limit is None or data.limit > 0, "1 or more"),
        ("data.test_limit", data.test_limit is None or data.test_limit > 0, "1 or more"),
        ("optimizer.name", optimizer.name in ("sgd", "adam"), "sgd or adam"),
        ("optimizer.rate", 0 < optimizer.rate < math.inf, "above 0, and finite"),
        ("optimizer.momentum", 0 <= optimizer.momentum < 1, "at least 0, and below 1"),
        ("optimizer.decay", 0 <= optimizer.decay < math.inf, "0 or more, and finite"),
        ("optimizer.clip", 0 <= optimizer.clip < math.inf, "0 or more, and finite"),
        ("optimizer.precision", optimizer.precision in precisions, f"one of {precisions}"),
        ("optimizer.smoothing", 0 <= optimizer.smoothing < 1, "at least 0, and below 1"),
        ("schedule.epochs", fits(schedule.epochs), _SIZE),
        ("schedule.batch", fits(schedule.batch), _SIZE),
        ("schedule.divide_at", increasing, "epochs of 1 or more, in increasing order"),
        ("schedule.divide_by", 0 < schedule.divide_by < math.inf, "above 0, and finite"),
        ("schedule.warmup", 0 <= schedule.warmup <= _MOST_SIZE, "0 or more"),
        ("schedule.rate_for", 0 <= schedule.rate_for <= _MOST_SIZE, "0 or more"),
    ]
