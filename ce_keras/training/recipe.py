"""Recipes: all settings of a training run, in one short TOML file.

>>> recipe = read_recipe("cifar10", {"optimizer.learning_rate": "0.05"})
>>> recipe.model.name, recipe.optimizer.learning_rate, recipe.schedule.divide_at
('resnext29', 0.05, (150, 225))
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ce_keras.checks import brief, finite_number, shortened, value_of
from ce_keras.designs import DESIGN_MODES
from ce_keras.geometry import RESNEXTS

#: Where recipes are found by name: beside the package in a clone, inside it when installed.
FOLDERS = (Path(__file__).parents[2] / "recipes", Path(__file__).parent / "recipes")

#: Normalisations and augmentations; described at `DataRecipe`.
Normalize = Literal["channel", "mean_image", "global", "none"]
NORMALIZATIONS: tuple[Normalize, ...] = typing.get_args(Normalize)
AUGMENTATIONS = ("crop", "flip", "resized_crop", "jitter")


@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Attributes:
        name: a network of the zoo, or `"fully_connected"`.
        mode: its design: `"primal"`, `"dual"`, `"baseline"` or `"resnext"`.
        cardinality: with `width`, any other design.
        width: path width in the first stage.
        depth: of fully connected networks: number of weight matrices.
        base: of fully connected networks: width of the baseline.
    """

    name: str
    mode: str = "primal"
    cardinality: int | None = None
    width: int | None = None
    depth: int = 6
    base: int = 200


@dataclass(frozen=True)
class DataRecipe:
    """The images.

    Attributes:
        name: of the dataset.
        source: `"tfds"`, `"embedded"`, or a folder: of IDX files, or with `train/CLASS/` and
            `test/CLASS/` (or `val`, `validation`) of image files.
        augment: augmentations of training images: any of `"crop"` (pad by `pad`, crop at random),
            `"flip"`, `"resized_crop"` (an area of 8 to 100% of the image, aspect ratio 3/4 to 4/3)
            and `"jitter"` (brightness, contrast and saturation by up to `jitter`, in random order).
        pad: pixels on each side that `"crop"` pads by.
        jitter: strength of `"jitter"`, from 0 to 1.
        normalize: `"channel"` (mean and standard deviation of every channel), `"mean_image"` (the
            mean image, and one standard deviation), `"global"` (one of each) or `"none"`.
        size: with `"resized_crop"`, the side of the images that the network sees; the dataset's
            own, or 224, if not given.
        limit: largest number of training images, equally many of each class.
        test_limit: largest number of test images.
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
    """The loss and its optimiser.

    Attributes:
        learning_rate: the highest.
        name: `"sgd"` (`CoupledSGD`) or `"adam"`, which has no momentum and no weight decay.
        momentum: of SGD.
        weight_decay: coefficient of SGD's coupled L2 penalty (PyTorch's weight decay, not Keras').
        clip: largest norm of all gradients together; 0 for none.
        precision: `"float32"`, `"mixed_float16"` or `"mixed_bfloat16"`.
        label_smoothing: from 0 to 1.
    """

    learning_rate: float
    name: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 0.0
    precision: str = "float32"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ScheduleRecipe:
    """The length of the run, and the learning rate over it.

    Attributes:
        epochs: passes through the images.
        batch_size: images in a step, over all devices.
        name: `"step"` (divided at epochs; `StepSchedule`), or `"one_cycle"` (linear from 0 over a
            quarter of the steps, and linear to 0; `OneCycleSchedule`).
        divide_at: of `"step"`: epochs at whose start the learning rate is divided.
        divide_by: of `"step"`: the divisor.
        warmup: of `"step"`: epochs in which the learning rate grows from 0.
        reference_batch_size: with another batch size than this, the learning rate is scaled in
            proportion; 0 for no scaling.
    """

    epochs: int
    batch_size: int
    name: str = "step"
    divide_at: tuple[int, ...] = ()
    divide_by: float = 10.0
    warmup: int = 0
    reference_batch_size: int = 0


@dataclass(frozen=True)
class ExpectedRecipe:
    """The paper's results.

    Attributes:
        source: table or figure of the paper, or another source.
        error: test error in percent, by model.
        top5_error: top-5 test error in percent, by model.
    """

    source: str = ""
    error: dict[str, float] = field(default_factory=dict)
    top5_error: dict[str, float] = field(default_factory=dict)


#: Former names of keys.
RENAMED = {
    "optimizer.rate": "optimizer.learning_rate",
    "optimizer.decay": "optimizer.weight_decay",
    "optimizer.smoothing": "optimizer.label_smoothing",
    "schedule.batch": "schedule.batch_size",
    "schedule.rate_for": "schedule.reference_batch_size",
}


@dataclass(frozen=True)
class Recipe:
    """A training run. The sections have classes of their own."""

    model: ModelRecipe
    data: DataRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    expected: ExpectedRecipe = field(default_factory=ExpectedRecipe)

    def to_dict(self) -> dict[str, Any]:
        """Return the effective recipe as plain values."""
        return dataclasses.asdict(self)


def read_recipe(path: str | Path, changes: Mapping[str, str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file, or the name of a recipe that comes with the package.
        changes: values to replace, as text, by dotted key: `{"optimizer.learning_rate": "0.05"}`.

    Raises:
        ValueError: for a file that is not there, a key that does not exist, a value of the wrong
            type or out of range, or a missing one; the message names the file, the key and, for a
            mistyped or renamed key, the right one.
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
    recipe = recipe_of(content, f"recipe: {file}")
    # Not of a run's own recipe: runs of before this was said have it.
    if recipe.optimizer.name == "adam" and recipe.optimizer.weight_decay:
        raise ValueError(
            f"recipe: {file}: optimizer.weight_decay: got {recipe.optimizer.weight_decay}; it must "
            "be 0 with optimizer.name = adam, which has none"
        )
    return recipe


def recipe_of(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the recipe of plain values, checked as by `read_recipe`.

    Args:
        content: sections with their keys, as in a TOML file.
        where: beginning of error messages.
    """
    recipe = _filled(Recipe, content, where, "")
    for key, wanted in (*_wrong_values(recipe), *_wrong_combinations(recipe)):
        section, _, name = key.partition(".")
        value = getattr(getattr(recipe, section), name)
        raise ValueError(f"{where}: {key}: got {brief(value)}; it must be {wanted}")
    return recipe


# For longer paths operating systems raise another error than that there is no such file.
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
    content[name] = _value(key, text)


def _value(key: str, text: str) -> Any:
    """Return the value that a text stands for; of a key that holds a number, `.05` too."""
    section, _, name = key.partition(".")
    kind = typing.get_type_hints(Recipe).get(section)
    hint = typing.get_type_hints(kind).get(name) if kind else None
    value = value_of(text)
    if isinstance(value, str) and hint is float:
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _filled(kind: Any, content: Any, where: str, prefix: str) -> Any:
    """Return an instance of a dataclass from plain values; every key and type is checked."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{where}: {prefix.rstrip('.') or 'content'}: got {brief(content)}; it must be a "
            "section"
        )
    fields = {each.name: each for each in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in content:
        if prefix + str(key) in RENAMED:
            raise ValueError(f"{where}: {prefix + key} is now called {RENAMED[prefix + key]}")
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
    names = {
        float: "a number",
        int: "a whole number",
        str: "text, in quotes if need be",
        tuple: "a list",
    }
    wanted = names.get(origin or kinds[0], "a section")
    raise ValueError(f"{where}: {key}: got {brief(value)}; it must be {wanted}")


_CHOICES: dict[str, Sequence[str]] = {
    "model.name": (*RESNEXTS, "fully_connected"),
    "model.mode": DESIGN_MODES,
    "data.augment": AUGMENTATIONS,
    "data.normalize": NORMALIZATIONS,
    "optimizer.name": ("sgd", "adam"),
    "optimizer.precision": ("float32", "mixed_float16", "mixed_bfloat16"),
    "schedule.name": ("step", "one_cycle"),
}

# Smallest and largest values. Larger sizes are mistakes.
_SIZE = (1, 2**20)
_PIXELS = 2**13
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("model.cardinality", "model.width", "model.base"), _SIZE),
    **dict.fromkeys(("schedule.epochs", "schedule.batch_size"), _SIZE),
    **dict.fromkeys(("schedule.warmup", "schedule.reference_batch_size"), (0, 2**20)),
    "model.depth": (2, 10_000),
    "data.pad": (0, _PIXELS),
    "data.jitter": (0, 1),
    "data.size": (1, _PIXELS),
    **dict.fromkeys(("data.limit", "data.test_limit"), (1, math.inf)),
    **dict.fromkeys(("optimizer.weight_decay", "optimizer.clip"), (0, math.inf)),
}


def _wrong_values(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values are not valid, each with a description of valid ones."""
    values = {
        f"{section}.{name}": value
        for section, content in recipe.to_dict().items()
        for name, value in content.items()
    }
    for key, choices in _CHOICES.items():
        is_list = isinstance(values[key], tuple)
        if not set(values[key] if is_list else [values[key]]) <= set(choices):
            yield key, f"{'a list' if is_list else 'one'} of {', '.join(choices)}"
    for key, (least, most) in _BOUNDS.items():
        if values[key] is not None and not least <= values[key] <= most:
            yield key, f"{least} or more" if most == math.inf else f"from {least} to {most:,}"
    for key in ("optimizer.learning_rate", "schedule.divide_by"):
        if values[key] <= 0:
            yield key, "above 0"
    for key in ("optimizer.momentum", "optimizer.label_smoothing"):
        if not 0 <= values[key] < 1:
            yield key, "at least 0, and below 1"


def _wrong_combinations(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values do not fit the others, each with a description."""
    model, data, schedule = recipe.model, recipe.data, recipe.schedule
    epochs, is_step = list(schedule.divide_at), schedule.name == "step"
    resized = "resized_crop" in data.augment
    increasing = epochs == sorted({*epochs}) and min(epochs, default=1) >= 1
    one_design = (model.width is None) == (model.cardinality is None)
    rules = [
        ("model.width", one_design, "given with model.cardinality"),
        ("data.size", resized or data.size is None, "given with resized_crop among data.augment"),
        ("schedule.divide_at", increasing, "epochs of 1 or more, in increasing order"),
        ("schedule.divide_at", is_step or not epochs, "[] with schedule.name = one_cycle"),
        ("schedule.warmup", is_step or not schedule.warmup, "0 with schedule.name = one_cycle"),
    ]
    yield from ((key, wanted) for key, valid, wanted in rules if not valid)
