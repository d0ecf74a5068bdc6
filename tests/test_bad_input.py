"""Bad values for every argument of the public functions, classes, methods and commands.

What is wrong must be said by a `ValueError` or a `TypeError` that names the argument, in fewer
than 2,000 characters, within a second; and by a command on one line, with exit code 2.

`CASES` has a valid value for each argument. What is thrown at it follows from its kind: numbers
that are not finite, texts where a number belongs, objects of no use, and so on. Where an argument
does take one of these, `but` says why. The fixed values of a kind are all thrown; Hypothesis
draws more of them.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import json
import math
import re
import signal
import sys
import time
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import ce_keras
from ce_keras.cli import main
from ce_keras.geometry import Design, ResNeXt, bottleneck, conv
from ce_keras.training.recipe import Recipe

# Characters of a message, and seconds until it comes.
LONGEST, SECONDS = 2000, 1.0

# Seconds after which a call is cut off: it is not going to refuse its argument.
PATIENCE = 4.0

HUGE, MANY_DIGITS, LONG = 10**30, 10**5000, "x" * 100_000

calls = itertools.count()
thrown = set()


class Made:
    """A value that is made anew for each call, by a function without arguments."""

    def __init__(self, make):
        self.make = make


def value_of(value):
    if isinstance(value, Made):
        return value_of(value.make())
    if isinstance(value, list | tuple) and any(isinstance(each, Made) for each in value):
        return type(value)(map(value_of, value))
    return value


# Kinds of arguments ------------------------------------------------------------------------------


@dataclasses.dataclass
class Argument:
    """An argument: a valid value, and bad ones.

    Attributes:
        valid: a small value that is accepted; `LEFT_OUT` where the default is as good.
        bad: values that are not, by what they are.
        drawn: more of them.
        names: any of which the message must have, beside the argument's own.
    """

    valid: object
    bad: dict
    drawn: st.SearchStrategy | None = None
    names: tuple = ()
    excused: tuple = ()

    def but(self, reason, *labels):
        """Leave out values that are valid here."""
        assert reason
        assert set(labels) <= {*self.bad, "drawn"}, set(labels) - set(self.bad)
        bad = {label: value for label, value in self.bad.items() if label not in labels}
        drawn = None if "drawn" in labels else self.drawn
        return dataclasses.replace(self, bad=bad, drawn=drawn, excused=(*self.excused, *labels))

    def also(self, **bad):
        """Add values that are bad here."""
        return dataclasses.replace(
            self, bad={**self.bad, **{k.replace("_", " "): v for k, v in bad.items()}}
        )

    def named(self, *names):
        """Accept messages that call the argument so."""
        return dataclasses.replace(self, names=names)


LEFT_OUT = object()


class _Thing:
    def __repr__(self):
        return "<a thing>"


ODD = {
    "an object": _Thing(),
    "a mapping": {"a": 1},
    "a list": [],
    "a list of objects": [_Thing()],
    "a function": abs,
    "bytes": b"3",
    "a long text": LONG,
    "None": None,
}
NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "a complex": 1j}
ARRAYS = {"an array": np.array([1.0, 2.0]), "a long array": np.zeros(50_000)}

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
not_numbers = st.one_of(texts, st.booleans(), st.lists(st.integers(), max_size=2), st.binary())


def count(valid=LEFT_OUT):
    """A whole number of 1 or more."""
    return Argument(
        valid,
        {
            **ODD,
            **NUMBERS,
            **ARRAYS,
            "0": 0,
            "-1": -1,
            "1.5": 1.5,
            "True": True,
            "a text": "3x",
            "a number as text": "3",
            "a huge number": HUGE,
            "a huge negative number": -HUGE,
            "5,000 digits": MANY_DIGITS,
        },
        st.one_of(st.integers(max_value=0), st.integers(min_value=2**63), st.floats(), not_numbers),
    )


def seed(valid=LEFT_OUT):
    """A whole number of 0 or more."""
    argument = count(valid).but("0 is a seed", "0")
    drawn = st.one_of(st.integers(max_value=-1), st.floats(), not_numbers)
    return dataclasses.replace(argument, drawn=drawn)


def whole(valid=LEFT_OUT):
    """Any whole number."""
    argument = count(valid).but("any whole number will do", "0", "-1", "a huge negative number")
    argument = argument.but("any whole number will do", "a huge number", "5,000 digits")
    return dataclasses.replace(argument, drawn=st.one_of(st.floats(), not_numbers))


def number(valid=LEFT_OUT, **bounds):
    """A finite number; `least`, `above`, `most` and `below` bound it."""
    out = {
        f"{name} {bound}": bound + step
        for (name, step), bound in (
            (pair, bounds[pair[0]])
            for pair in (("least", -0.5), ("above", 0), ("most", 0.5), ("below", 0))
            if pair[0] in bounds
        )
    }
    low = bounds.get("least", bounds.get("above"))
    high = bounds.get("most", bounds.get("below"))
    drawn = [not_numbers]
    if low is not None:
        drawn.append(st.floats(max_value=low, exclude_max="least" in bounds))
    if high is not None:
        drawn.append(st.floats(min_value=high, exclude_min="most" in bounds))
    bad = {**ODD, **NUMBERS, **ARRAYS, **out, "True": True, "a text": "x", "a number as text": "1"}
    bad |= {"too large for a float": 10**400, "5,000 digits": MANY_DIGITS}
    return Argument(valid, bad, st.one_of(drawn))


def choice(valid=LEFT_OUT, *others):
    """One of a few texts."""
    bad = {**ODD, "nan": math.nan, "True": True, "3": 3, "an empty text": "", "unknown": "unknown"}
    bad |= {"an array of texts": np.array(["a", "b"]), "a number": 3.5}
    if isinstance(valid, str) and valid.upper() != valid:
        bad["in capitals"] = valid.upper()
    drawn = st.one_of(
        texts.filter(lambda text: text not in (valid, *others)), st.integers(), st.binary()
    )
    return Argument(valid, bad, drawn)


def text(valid=LEFT_OUT):
    """Any text."""
    bad = {name: value for name, value in ODD.items() if name != "a long text"}
    bad |= {"3": 3, "True": True, "nan": math.nan}
    return Argument(valid, bad, st.one_of(st.integers(), st.floats(), st.booleans(), st.binary()))


def flag(valid=LEFT_OUT):
    """True or False; a text such as "false" is neither."""
    bad = {**ODD, **ARRAYS, "false": "false", "an empty text": "", "3": 3, "nan": math.nan}
    return Argument(valid, bad, st.one_of(texts, st.floats(), st.binary()))


def thing(valid=LEFT_OUT):
    """An object of a class of its own: a model, a module, an oracle."""
    bad = {**ODD, **ARRAYS, "3": 3, "a text": "unknown", "True": True, "nan": math.nan}
    return Argument(valid, bad, st.one_of(st.integers(), st.floats(), texts, st.binary()))


def model(valid):
    """A Keras model."""
    import_keras = functools.partial(__import__, "keras")
    return thing(valid).also(
        a_layer=Made(lambda: import_keras().layers.Dense(1)),
        the_class=Made(lambda: import_keras().Model),
    )


def array(valid):
    """An array of finite real numbers."""
    bad = {
        **ODD,
        "nan": Made(lambda: np.full_like(np.asarray(value_of(valid), float), math.nan)),
        "inf": Made(lambda: np.full_like(np.asarray(value_of(valid), float), math.inf)),
        "texts": Made(lambda: np.full(np.shape(value_of(valid)), "a")),
        "complex numbers": Made(lambda: np.asarray(value_of(valid)) * 1j),
        "ragged lists": [[1.0], [1.0, 2.0]],
        "a text": "x",
        "3": 3,
        "no examples": np.zeros((0, 3)),
        "an axis too many": Made(lambda: np.asarray(value_of(valid))[None, None, None]),
    }
    return Argument(valid, bad, st.one_of(texts, st.integers(), st.binary()))


def source(valid=LEFT_OUT):
    """A file that is read."""
    bad = {**ODD, "3": 3, "True": True, "nan": math.nan, "an empty text": ""}
    bad |= {
        "no file": Made(lambda: Path("nowhere") / "missing.bin"),
        "a folder": Made(lambda: made_file("folder/inside", b"").parent),
        "junk": Made(lambda: made_file("junk", JUNK)),
        "junk with a suffix": Made(lambda: made_file(f"junk{suffix(valid)}", JUNK)),
        "an empty file": Made(lambda: made_file(f"empty{suffix(valid)}", b"")),
        "a null in it": "a\0b",
        "below a file": Made(lambda: made_file("junk", JUNK) / "inside"),
    }
    return Argument(valid, bad, st.one_of(st.integers(), st.floats(), st.binary()))


def target(valid=LEFT_OUT):
    """A file or folder that is written."""
    bad = {**ODD, "3": 3, "True": True, "nan": math.nan}
    bad |= {
        "a null in it": "a\0b",
        "below a file": Made(lambda: made_file("junk", JUNK) / f"inside{suffix(valid)}"),
    }
    return Argument(valid, bad, st.one_of(st.integers(), st.floats(), st.binary()))


def whole_numbers(valid=LEFT_OUT):
    """Whole numbers of 1 or more, one or several."""
    bad = {name: value for name, value in ODD.items() if name != "a list"}
    bad |= {
        "3": 3,
        "nan": math.nan,
        "a text": "abc",
        "an empty list": [],
        "lists in it": [[3, 5]],
        "0 in it": [0],
        "-1 in it": [-1],
        "1.5 in it": [1.5],
        "nan in it": [math.nan],
        "inf in it": [math.inf],
        "True in it": [True],
        "None in it": [None],
        "texts in it": ["3"],
        "a huge number in it": [HUGE],
        "5,000 digits in it": [MANY_DIGITS],
        "a long list": [-1] * 100_000,
    }
    wrong = st.one_of(st.integers(max_value=0), st.floats(), texts, st.booleans(), st.none())
    return Argument(valid, bad, st.one_of(st.lists(wrong, min_size=1, max_size=3), st.integers()))


def function(valid=LEFT_OUT):
    """A function of the arguments that it is called with."""
    bad = {name: value for name, value in ODD.items() if name != "a function"}
    bad |= {
        **ARRAYS,
        "3": 3,
        "a text": "unknown",
        "of no arguments": lambda: 1,
        "that gives a text": lambda *_: "a",
        "that gives nothing": lambda *_: None,
        "that gives NaN": lambda *_: math.nan,
    }
    return Argument(valid, bad, st.one_of(st.integers(), texts, st.binary()))


def sizes(valid=LEFT_OUT):
    """Widths or cardinalities of the theory: numbers above 0, or arrays of them."""
    bad = {name: value for name, value in ODD.items() if name != "a list"}
    bad |= {"nan": math.nan, "0": 0, "-1": -1, "a text": "abc", "a complex": 1j}
    bad |= {"0 in it": np.array([0, 1]), "texts in it": ["a"]}
    return Argument(valid, bad, st.one_of(st.integers(max_value=0), texts, st.binary()))


def axes(valid=LEFT_OUT):
    """Axes of matplotlib's."""
    return thing(valid)


# What the valid values are made of ---------------------------------------------------------------

JUNK = bytes(range(256)) * 8


def made_file(name, content):
    """A file in the present folder, which is the tests' own."""
    path = Path(name).absolute()
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    return path


def suffix(valid):
    path = value_of(valid)
    return Path(path).suffix if isinstance(path, str | Path) else ""


@functools.cache
def dense_model(outputs=2):
    """A small network with two hidden layers."""
    import keras

    layers = [keras.layers.Dense(8, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(outputs)])


@functools.cache
def small_resnext():
    return ce_keras.zoo.create("resnext11_1x2d", classes=3)


def network_of(width):
    import keras

    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(1)]
    )


def tuned(hp):
    import keras

    width = hp.Int("width", 1, 64) * hp.Int("cardinality", 1, 8)
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(width), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    return net


@functools.cache
def solution():
    return ce_keras.search("resnext11")


@functools.cache
def alpha_fit():
    return ce_keras.ntk.fit_alpha(bottleneck(8, 8), draws=20, seed=0)


@functools.cache
def result():
    return ce_keras.reproduce.reproduce("table2")


@functools.cache
def recipe():
    changes = {"model.name": "fully_connected", "model.depth": "2", "model.base": "4"}
    changes |= {"model.mode": "baseline", "data.limit": "20", "data.test_limit": "20"}
    changes |= {"schedule.epochs": "1", "schedule.divide_at": "[]", "schedule.warmup": "0"}
    return ce_keras.training.read_recipe("fashion_mnist", changes)


@functools.cache
def finished_run():
    """A folder as `train` leaves it."""
    from ce_keras.training.building import build_model

    folder = Path("finished").absolute()
    folder.mkdir(exist_ok=True)
    content = {"recipe": recipe().to_dict(), "seed": 0}
    (folder / "recipe.json").write_text(json.dumps(content))
    build_model(recipe(), (28, 28, 1), 10, seed=0).save(folder / "model.keras")
    return folder


@functools.cache
def saved_weights():
    path = Path("weights.safetensors").absolute()
    ce_keras.zoo.save_weights(small_resnext(), path)
    return path


@functools.cache
def saved_model():
    path = Path("model.keras").absolute()
    dense_model().save(path)
    return path


@functools.cache
def saved_result():
    folder = Path("results").absolute()
    result().save(folder)
    return folder / "table2.json"


fresh = itertools.count()


def fresh_path(suffix=""):
    return Path(f"fresh{next(fresh)}{suffix}").absolute()


def lora_layer():
    layer = ce_keras.layers.CollegialDense(4, 2)
    layer.build((None, 4))
    return layer


@functools.cache
def ensemble():
    return ce_keras.layers.CollegialEnsemble(dense_model, 3)


@functools.cache
def regressor():
    made = ce_keras.ntk.NTKRegressor(dense_model())
    return made.fit(X, np.zeros((4, 2)))


def oracle():
    import keras_tuner

    return keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=2)


def hyperparameters():
    import keras_tuner

    return keras_tuner.HyperParameters()


def fixed_hyperparameters():
    hp = hyperparameters()
    hp.Fixed("cardinality", 1)
    hp.Fixed("width", 2)
    return hp


@functools.cache
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    return ce_keras.training.Images(pixels, np.arange(20) % 5)


def keras_input(shape):
    import keras

    return keras.Input(shape)


def plan_path(n):
    return [conv(8, n, 3), conv(n, 8, 3)]


X = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], "float32")
KERNEL = np.array([[2.0, 1.0], [1.0, 3.0]])
TINY = ResNeXt((1,), 4, 4, 8, 3, 1, False, (8, 8, 3), 3)


# Functions, classes and methods ------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    """What is called, and with what.

    Attributes:
        name: below `ce_keras`; of a method, with its class.
        arguments: by name.
        of: makes the object of a method; called anew each time.
        unnamed: arguments that are not given by name.
    """

    name: str
    arguments: dict
    of: object = None
    unnamed: tuple = ()

    def target(self):
        if self.of is not None:
            return getattr(self.of(), self.name.rpartition(".")[2])
        found = ce_keras
        for part in self.name.split("."):
            found = getattr(found, part)
        return found

    def call(self, call, **changed):
        """Call with the valid values, but for those that are changed."""
        given = {name: each.valid for name, each in self.arguments.items()} | changed
        given = {name: value for name, value in given.items() if value is not LEFT_OUT}
        unnamed = [given.pop(name) for name in self.unnamed if name in given]
        return call(*unnamed, **given)


def case(called, /, of=None, unnamed=(), **arguments):
    return Case(called, arguments, of, unnamed)


def alpha_argument(*texts_too):
    """The law's constant."""
    argument = number(1.6, above=0)
    return dataclasses.replace(
        argument, drawn=argument.drawn.filter(lambda value: value not in texts_too)
    )


NO_MAP = sizes(3).but("what stands for no map has none", "0", "0 in it", "drawn")
SEARCHED = {
    "baseline": thing("resnext11").also(an_empty_text="", not_a_path="resnext11-2x3d"),
    "mode": choice("primal", "dual"),
    "alpha": alpha_argument("closed_form"),
    "budget": choice("params", "flops")
    .but("a function is a budget of its own; see below", "a function")
    .also(
        a_function_of_no_arguments=lambda: 1,
        a_function_that_gives_a_text=lambda m, n: "a",
        a_function_that_gives_nothing=lambda m, n: None,
        a_function_that_gives_NaN=lambda m, n: math.nan,
    ),
    "tolerance": number(0.02, least=0),
    "multiple_of": count(2),
    "widths": whole_numbers([4, 8]),
}
# A law is refused beside an alpha, which has a case of its own.
BY_LAW = thing({1: 2.0, 64: 0.1}).also(
    an_empty_table={},
    texts_in_it={"a": "b"},
    a_negative_variance={1: -1.0, 64: 0.1},
    NaN_in_it={1: math.nan, 64: 0.1},
    a_width_of_0={0: 1.0, 64: 0.1},
    of_no_arguments=lambda: 1,
    that_gives_a_text=lambda n: "a",
    that_gives_NaN=lambda n: math.nan,
)
REWRITTEN = {
    "model": model(Made(dense_model)),
    "mode": choice("primal", "dual"),
    "alpha": alpha_argument("closed_form", "fit"),
    "budget": SEARCHED["budget"],
    "tolerance": SEARCHED["tolerance"],
    "multiple_of": count(2),
    "design": choice("2x4d").also(
        zeros=(0, 0), a_pair_of_texts=("a", "b"), one_number=(3,), too_wide="2x900d", huge=(HUGE, 2)
    ),
    "only": choice("*").also(numbers=[3], None_in_it=[None]).but("no pattern", "a list"),
    "skip": choice(LEFT_OUT).also(numbers=[3], None_in_it=[None]).but("no pattern", "a list"),
    "per": choice("network", "stage"),
    "seed": seed(0),
}
ZOO = {
    "weights": source(),
    "input_shape": whole_numbers((28, 28, 1)).also(too_small=(2, 2, 1), two_numbers=(28, 28)),
    "classes": count(3),
    "classifier_activation": choice("softmax")
    .but("Keras takes any function, and logits have none", "a function", "None", "drawn")
    .also(a_text="unknown activation"),
    "seed": seed(0),
    "name": text("a_network"),
    "dtype": choice("float32").but("Keras has more of them", "drawn"),
}
BUILT = {
    **ZOO,
    "include_top": flag(True),
    "input_tensor": thing(),
    "pooling": choice(LEFT_OUT, "avg", "max"),
    "features_only": flag(False),
    "data_format": choice("channels_last"),
}
LINEAR = {
    "cardinality": count(2),
    "shared_input": flag(False),
    "parameterization": choice("ntk", "standard"),
    "gain": number(2.0, above=0),
    "kernel_initializer": choice("zeros").but("Keras takes any function", "a function", "drawn"),
}
OF_KERAS = "Keras takes any function"


def keras_object(valid, *more):
    """What Keras finds by its name: an initialiser, a regulariser, a constraint.

    It knows some under several names, has defaults for `None`, and takes arrays, which it looks at
    when the weights are made.
    """
    return choice(valid).but(OF_KERAS, "a function", "drawn", *more)


CORRELATION = number(0.9, most=1).but("1 by default", "None")

CASES = [
    # ce_keras
    case(
        "search",
        **SEARCHED,
        hard_budget=flag(False),
        law=thing(),
    ),
    Case(
        "search",
        {
            "baseline": SEARCHED["baseline"],
            "law": BY_LAW.but("a law like any other", "a function"),
        },
    ),
    Case(
        "search",
        {
            "baseline": SEARCHED["baseline"],
            "alpha": Argument("closed_form", {}),
            "correlation": CORRELATION,
            "law": Argument(LEFT_OUT, {}),
        },
    ),
    case("inspect", **REWRITTEN),
    case("collegialize", **REWRITTEN, init=choice("random", "split"), measure=count()),
    case("Solution.near_optimal", of=solution, tolerance=number(0.1, least=0)),
    case("Solution.plot", of=solution, ax=axes()),
    # ce_keras.geometry
    case("geometry.Design.parse", text=choice("3x5d").named("design").also(zeros="0x0d")),
    case(
        "geometry.Layer",
        fan_in=NO_MAP.but("what is left of a model may be below 0", "-1"),
        outputs=NO_MAP,
        positions=number(1, least=0),
        bias=flag(False),
        norm=flag(False),
        in_law=flag(True),
    ),
    case(
        "geometry.Module",
        name=text("mine"),
        width=count(4),
        path=function(plan_path)
        .but("it is called later", "of no arguments", "that gives a text")
        .but("it is called later", "that gives nothing", "that gives NaN"),
        alpha=number(1.0, above=0),
        stack=function()
        .but("it is called later", "of no arguments", "that gives a text")
        .but("it is called later", "that gives nothing", "that gives NaN"),
    ),
    case(
        "geometry.Network",
        name=text("mine"),
        module=thing(Made(lambda: bottleneck(8, 4))),
        paths=function(plan_path)
        .but("it is called later", "of no arguments", "that gives a text")
        .but("it is called later", "that gives nothing", "that gives NaN"),
        fixed=thing([]).but("no layer is fixed", "a list"),
        stages=thing([]).but("all of it is one stage", "a list"),
    ),
    case(
        "geometry.Module.params",
        of=lambda: bottleneck(8, 4),
        cardinality=sizes(2).but("of no path, what is fixed is left", "0", "0 in it", "drawn"),
        width=sizes(3).named("widths"),
    ),
    case(
        "geometry.Module.flops",
        of=lambda: bottleneck(8, 4),
        cardinality=sizes(2).but("of no path, what is fixed is left", "0", "0 in it", "drawn"),
        width=sizes(3).named("widths"),
    ),
    case(
        "geometry.Module.inverse_fan_in",
        of=lambda: bottleneck(8, 4),
        width=sizes(3).named("widths"),
    ),
    case("geometry.Module.layers", of=lambda: bottleneck(8, 4), width=sizes(3).named("widths")),
    case(
        "geometry.Network.params",
        of=lambda: ce_keras.geometry.resnext(TINY),
        cardinality=sizes(2).but("of no path, what is fixed is left", "0", "0 in it", "drawn"),
        width=sizes(3),
    ),
    case(
        "geometry.Network.flops",
        of=lambda: ce_keras.geometry.resnext(TINY),
        cardinality=sizes(2).but("of no path, what is fixed is left", "0", "0 in it", "drawn"),
        width=sizes(3),
    ),
    case(
        "geometry.baseline",
        name=choice("resnext11", "figure3").also(paths="resnext11-2x3d").named("baseline"),
    ),
    case(
        "geometry.bottleneck",
        channels=count(8),
        width=count(4),
        positions=count(1),
        alpha=number(1.6, above=0),
    ),
    case("geometry.conv", inputs=NO_MAP, outputs=NO_MAP, kernel=count(3)),
    case("geometry.dense", inputs=NO_MAP, outputs=NO_MAP),
    case(
        "geometry.fully_connected",
        inputs=count(3),
        widths=whole_numbers([4, 4]),
        outputs=count(1),
        bias=flag(False),
        alpha=number(1.0, above=0),
        name=text("mine"),
    ),
    case(
        "geometry.resnext",
        shape=thing(TINY).also(
            no_blocks=TINY._replace(blocks=()),
            blocks_of_0=TINY._replace(blocks=(0,)),
            a_negative_stem=TINY._replace(stem=-1),
            strides_of_0=TINY._replace(stem_strides=0),
            a_shape_of_one=TINY._replace(input_shape=(3,)),
            texts=TINY._replace(blocks="abc"),
            classes_of_0=TINY._replace(classes=0),
            NaN_filters=TINY._replace(filters=math.nan),
        ),
        width=count(4),
    ),
    case(
        "geometry.scaled_widths",
        width=sizes(4),
        hidden=whole_numbers([4, 8]),
        reference=count(8),
    ),
    # ce_keras.variance.law
    case(
        "law.second_moment",
        alpha=number(1.6, above=0),
        inverse_fan_in=sizes(0.1).but("a path without fan-ins has none", "0", "0 in it", "drawn"),
        cardinality=sizes(2),
    ),
    case(
        "law.variance",
        alpha=number(1.6, above=0),
        inverse_fan_in=sizes(0.1).but("a path without fan-ins has none", "0", "0 in it", "drawn"),
        cardinality=sizes(2),
    ),
    case(
        "law.ExponentialLaw",
        module=thing(Made(lambda: bottleneck(8, 4))),
        alpha=number(1.6, above=0),
        alpha_error=number(0.1, least=0),
    ),
    case(
        "law.ClosedFormLaw",
        module=thing(Made(lambda: bottleneck(8, 4))),
        correlation=CORRELATION,
    ),
    case(
        "law.PolynomialLaw",
        width=array(np.array([1.0, 2.0, 4.0])),
        variance=array(np.array([3.0, 1.0, 0.4])),
        error=array(np.array([0.1, 0.1, 0.1])),
    ),
    case(
        "law.MeasuredLaw",
        curve=BY_LAW.named("law").but(
            "a function is called later",
            "a function",
            "of no arguments",
            "that gives a text",
            "that gives NaN",
        ),
    ),
    case(
        "law.law_of",
        module=thing(Made(lambda: bottleneck(8, 4))),
        alpha=alpha_argument("closed_form").but("the module has its own", "None"),
        curve=thing(None)
        .named("law")
        .but("no curve, or one that is called later", "None", "a function"),
    ),
    Case(
        "law.law_of",
        {
            "module": Argument(Made(lambda: bottleneck(8, 4)), {}),
            "alpha": Argument("closed_form", {}),
            "curve": Argument(None, {}),
            "correlation": CORRELATION,
        },
    ),
    # ce_keras.ntk
    case("ntk.AlphaFit.from_width", of=alpha_fit, width=count(1)),
    case("ntk.AlphaFit.plot", of=alpha_fit, ax=axes()),
    case(
        "ntk.NTKRegressor",
        model=model(Made(dense_model)),
        ridge=number(1e-3, least=0),
        traced=flag(True),
        batch_size=count(2),
    ),
    case("ntk.NTKRegressor.fit", of=regressor, x=array(X), y=array(np.zeros((4, 2)))),
    case("ntk.NTKRegressor.predict", of=regressor, x=array(X)),
    case("ntk.alignment", first=array(KERNEL), second=array(KERNEL), centred=flag(False)),
    case(
        "ntk.chain_kernels",
        widths=whole_numbers([3, 5]),
        draws=count(4),
        parameterization=choice("ntk", "standard"),
        inputs=count(3),
        seed=seed(0),
    ),
    case("ntk.condition_number", kernel=array(KERNEL)),
    case(
        "ntk.empirical_ntk",
        model=model(Made(dense_model)),
        x1=array(X),
        x2=array(X),
        trace_axes=thing((-1,))
        .also(out_of_range=(7,), texts_in_it=("a",), NaN_in_it=(math.nan,), twice=(-1, -1))
        .but("no axis is traced, or one", "a list", "drawn"),
        diagonal_axes=thing(())
        .also(out_of_range=(7,), texts_in_it=("a",), NaN_in_it=(math.nan,))
        .but("no axis is diagonal, or one", "a list", "drawn"),
        batch_size=count(2),
        engine=choice("auto", "structured", "tape"),
        variables=thing(),
        out=target(),
    ),
    case(
        "ntk.fit_alpha",
        module=thing(Made(lambda: bottleneck(8, 8))).but(
            "a function of a width needs `width`; see below", "a function"
        ),
        ratios=thing([0.5, 1.0]).also(
            zeros=[0.0, 1.0],
            above_one=[0.5, 2.0],
            NaN_in_it=[0.5, math.nan],
            texts_in_it=["a"],
            lists_in_it=[[0.5], [1.0]],
            ragged=[[0.5], [1.0, 0.5]],
            complex_numbers=[0.5, 1j],
            one=[1.0],
        ),
        draws=count(4).also(one=1),
        x1=array(np.ones((9, 8))),
        x2=array(np.ones((9, 8))),
        readout=function()
        .but("a module has one output", "of no arguments", "that gives a text")
        .but("a module has one output", "that gives nothing", "that gives NaN"),
        method=choice("auto", "closed_form", "sampler", "ensemble", "tape"),
        seed=seed(0),
        width=count(),
        parameterization=choice("ntk", "standard"),
        checkpoint=source().but("a file that is not there is made", "no file"),
    ),
    Case(
        "ntk.fit_alpha",
        {
            "module": function(network_of),
            "width": count(4),
            "ratios": thing([0.5, 1.0]),
            "draws": count(2),
            "method": choice("tape", "auto", "ensemble"),
            "readout": function(LEFT_OUT),
            "x1": array(np.ones(3)),
            "seed": seed(0),
        },
    ),
    case(
        "ntk.infinite_width_kernel",
        x1=array(X).but("no inputs, no kernel", "no examples"),
        x2=array(X).but("no inputs, no kernel", "no examples"),
        depth=count(3),
    ),
    case(
        "ntk.kernel_moments",
        widths=whole_numbers([3, 5]),
        parameterization=choice("ntk", "standard"),
        inputs=count(3),
    ),
    Case(
        "ntk.kernel_moments",
        {
            "widths": whole_numbers([3, 5]),
            "gram": array(np.eye(2)).but("one position, by default", "None"),
            "activation": choice("relu", "linear"),
        },
    ),
    case(
        "variance.variance_coefficients",
        ratios=array(np.array([1.0, 1.0])),
        gram=array(np.eye(2)).but("one position, by default", "None"),
        activation=choice("relu", "linear"),
    ),
    case(
        "variance.measure_correlation",
        model=model(Made(small_resnext)).named("name"),
        images=array(np.zeros((1, 28, 28, 1)) + 1.0),
        layers=text("*_1_conv"),
        kernel_size=count(3),
        batch_size=count(1),
    ),
    case(
        "ntk.label_alignment",
        kernel=array(KERNEL),
        labels=array(np.array([0, 1])),
        centred=flag(True),
    ),
    case("ntk.log_moment_ratio", kernels=array(np.array([1.0, 2.0, 3.0]))),
    case(
        "ntk.ntk_vector_product",
        model=model(Made(dense_model)),
        x1=array(X),
        vector=array(np.ones((4, 2))),
        x2=array(X),
    ),
    case("ntk.spectrum", kernel=array(KERNEL)),
    case(
        "ntk.stack_kernels",
        x=array(np.eye(2, 3)),
        widths=whole_numbers([3, 5]),
        draws=count(2),
        parameterization=choice("ntk", "standard"),
        seed=seed(0),
    ),
    # ce_keras.layers
    case("layers.Aggregate", cardinality=count(2), axis=whole(-1)),
    case(
        "layers.Aggregate.__call__",
        of=lambda: ce_keras.layers.Aggregate(4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case(
        "layers.CollegialConv2D",
        filters=count(4),
        kernel_size=count(3)
        .but("one for each axis", "an array")
        .also(three=(3, 3, 3), zeros=(0, 0), texts=("a", "b")),
        strides=count(1).also(three=(1, 1, 1), zeros=(0, 0), texts=("a", "b")),
        implementation=choice("auto", "native", "split"),
        **LINEAR,
    ),
    case(
        "layers.CollegialConv2D.__call__",
        of=lambda: ce_keras.layers.CollegialConv2D(4, 3, cardinality=4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8, 8, 4), "float32"),
            {"channels that do not divide": np.ones((1, 8, 8, 6), "float32")},
        ),
    ),
    case(
        "layers.CollegialDense",
        units=count(4),
        activation=keras_object("relu"),
        use_bias=flag(True),
        aggregate=flag(False),
        bias_initializer=keras_object("zeros", "None", "an array of texts"),
        kernel_regularizer=keras_object("l2", "in capitals"),
        bias_regularizer=keras_object("l2", "in capitals"),
        kernel_constraint=keras_object("non_neg"),
        bias_constraint=keras_object("non_neg"),
        lora_rank=count(1),
        lora_alpha=number(1.0),
        **LINEAR,
    ),
    case(
        "layers.CollegialDense.__call__",
        of=lambda: ce_keras.layers.CollegialDense(4, 4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case(
        "layers.CollegialDense.enable_lora",
        of=lora_layer,
        rank=count(1),
        lora_alpha=number(1.0),
        a_initializer=keras_object("he_uniform"),
        b_initializer=keras_object("zeros"),
    ),
    case(
        "layers.CollegialEnsemble",
        build_member=function(Made(dense_model))
        .but("it takes none", "of no arguments")
        .also(of_an_argument=lambda n: dense_model(), a_layer=Made(lora_layer), a_number=lambda: 1),
        cardinality=count(2),
        grouped=flag(True),
    ),
    case(
        "layers.CollegialEnsemble.get_member",
        of=ensemble,
        path=count(1).but("the first", "0", "drawn").also(three=3),
    ),
    case(
        "layers.CollegialEnsemble.set_member",
        of=ensemble,
        path=count(1).but("the first", "0", "drawn").also(three=3),
        member=model(Made(dense_model)).also(another=Made(lambda: network_of(3))),
    ),
    case("layers.CollegialLayerNormalization", cardinality=count(2)),
    case(
        "layers.CollegialLayerNormalization.__call__",
        of=lambda: ce_keras.layers.CollegialLayerNormalization(4),
        unnamed=("inputs",),
        inputs=Argument(
            np.ones((1, 8), "float32"), {"channels that do not divide": np.ones((1, 6), "float32")}
        ),
    ),
    case(
        "layers.collegial_bottleneck",
        x=thing(Made(lambda: keras_input((8, 8, 4)))).also(
            of_one_axis=Made(lambda: keras_input((8,)))
        ),
        filters=count(8),
        cardinality=count(2),
        width=count(2),
        strides=count(1),
        parameterization=choice("ntk", "standard"),
        data_format=choice("channels_last", "channels_first"),
        seed=seed(0),
        name=text(),
    ),
    # ce_keras.zoo
    case(
        "zoo.build_resnext",
        shape=thing(TINY),
        design=thing(Design(1, 2))
        .also(
            zeros=Design(0, 0),
            negative=Design(-1, 2),
            NaN=Design(math.nan, 2),
            texts=Design("a", "b"),
            huge=Design(HUGE, 2),
            one_number=(3,),
        )
        .named("cardinality", "width"),
        **{
            **BUILT,
            "name": text("a_network").but("Keras gives it one", "None"),
            "input_shape": whole_numbers((8, 8, 3)).also(two_numbers=(28, 28)),
        },
    ),
    case(
        "zoo.choose_design",
        network=choice("resnext29"),
        mode=choice("dual"),
        cardinality=count(10),
        width=count(10),
    ),
    case("zoo.create", unnamed=("name",), name=choice("resnext11_1x2d")),
    case(
        "zoo.decode_predictions",
        predictions=array(np.eye(10)[:1]),
        top=count(1),
        weights=choice("resnext11_7x7d/fashion_mnist"),
    ),
    case(
        "zoo.from_applications",
        model=model(Made(small_resnext)),
        source=model(Made(small_resnext)).also(another=Made(dense_model)),
    ),
    case(
        "zoo.from_torch",
        model=model(Made(small_resnext)).also(no_resnet=Made(dense_model)),
        state=source(Made(lambda: ce_keras.zoo.to_torch(small_resnext()))).also(
            a_variant={"conv1.0.weight": np.ones(3)},
            other_names={"a": np.ones(3)},
            NaN_in_it=Made(
                lambda: {
                    name: value * math.nan
                    for name, value in ce_keras.zoo.to_torch(small_resnext()).items()
                }
            ),
            texts_in_it=Made(
                lambda: {
                    name: np.full(value.shape, "a")
                    for name, value in ce_keras.zoo.to_torch(small_resnext()).items()
                }
            ),
        ),
        partial=flag(False),
    ),
    case(
        "zoo.fully_connected",
        depth=count(2).also(one=1),
        base=count(4),
        mode=choice(LEFT_OUT, "primal", "dual", "baseline"),
        cardinality=count(2),
        width=count(3),
        **{**ZOO, "input_shape": whole_numbers((4, 4, 1))},
    ),
    case("zoo.list_models", pattern=text("*")),
    case(
        "zoo.load_weights",
        model=model(Made(small_resnext)).also(another=Made(dense_model)).named("weights"),
        path=source(Made(saved_weights)).named("weights"),
        partial=flag(False),
    ),
    case(
        "zoo.preprocess_input",
        x=array(np.zeros((1, 2, 2, 3))).but(
            "any axes before the last", "an axis too many", "no examples"
        ),
        data_format=choice("channels_last", "channels_first"),
        weights=choice(LEFT_OUT),
    ),
    case(
        "zoo.published",
        network=choice("resnext29").but(
            "the answer is that there are none",
            "unknown",
            "an empty text",
            "in capitals",
            "a long text",
            "drawn",
        ),
        mode=choice("dual", "primal", "resnext", "baseline"),
    ),
    case(
        "zoo.published_weights",
        name=choice("resnext11_7x7d").but(
            "the answer is that there are none",
            "unknown",
            "an empty text",
            "in capitals",
            "a long text",
            "drawn",
        ),
    ),
    case(
        "zoo.resnext11",
        mode=choice(LEFT_OUT, "primal", "dual", "baseline"),
        cardinality=count(1),
        width=count(2),
        **{**BUILT, "classes": count(3).but("the family has a number of its own", "None")},
    ),
    case("zoo.save_weights", model=model(Made(small_resnext)), path=target("out.safetensors")),
    case("zoo.to_torch", model=model(Made(small_resnext)).also(no_resnet=Made(dense_model))),
    case("zoo.trained_parameters", model=model(Made(small_resnext))),
    case(
        "zoo.wide_resnet",
        depth=count(10).also(eleven=11),
        widening=count(1),
        data_format=choice("channels_last"),
        **{**ZOO, "input_shape": whole_numbers((8, 8, 3)).also(two_numbers=(28, 28))},
    ),
    # ce_keras.training
    case(
        "training.CoupledSGD",
        learning_rate=number(0.1, above=0).but("Keras takes a function as a rate", "a function"),
        momentum=number(0.9, least=0, below=1),
        decay=number(0.0, least=0),
        name=text("mine").but("Keras gives it one", "None"),
    ),
    case("training.OneCycleSchedule", learning_rate=number(0.1, above=0), steps=count(3)),
    case(
        "training.StepTimer", skip=seed(1).but("all are left out", "a huge number", "5,000 digits")
    ),
    case(
        "training.StepSchedule",
        learning_rate=number(0.1, above=0),
        boundaries=whole_numbers([1, 2])
        .also(decreasing=[2, 1])
        .but("the rate is never divided", "an empty list")
        .but("a step that never comes", "a huge number in it")
        .but("the first step", "0 in it"),
        divide_by=number(10.0, above=0),
        warmup=seed(1).but("it only takes long", "a huge number"),
    ),
    case(
        "training.balanced",
        data=thing(Made(images)),
        count=count(10).also(too_many=21, too_few=4),
        argument=text("count"),
    ),
    case("training.evaluate", folder=source(Made(finished_run)).named("run")),
    case(
        "training.export",
        folder=source(Made(finished_run)).named("run"),
        form=choice("keras", "saved_model", "litert", "onnx").named("format"),
        to=target(Made(lambda: fresh_path(".keras"))),
    ),
    case(
        "training.load_fashion_mnist",
        source=source(LEFT_OUT),
    ),
    case(
        "training.pipeline",
        data=thing(Made(images)),
        batch_size=count(4),
        like=thing(Made(images)),
        seed=seed(0),
    ),
    case("training.plan", recipe=thing(Made(recipe)), dataset=thing(), model=thing()),
    case(
        "training.read_idx",
        path=source(Made(lambda: made_file("a.idx", b"\0\0\x08\1\0\0\0\2ab"))).named("source"),
    ),
    case(
        "training.read_recipe",
        path=source("fashion_mnist")
        .named("recipe")
        .also(
            brackets=Made(lambda: made_file("brackets.toml", b"a = " + b"[" * 5000)),
            TOML_of_something_else=Made(lambda: made_file("else.toml", b"[tool.other]\na = 1\n")),
            a_missing_section=Made(
                lambda: made_file("part.toml", b"[model]\nname = 'resnext11'\n")
            ),
        ),
        changes=thing({})
        .also(
            texts=["a"],
            a_number_as_key={3: "1"},
            an_object_as_value={"optimizer.learning_rate": _Thing()},
            no_key={"": "1"},
            a_long_key={LONG: "1"},
            a_long_value={"optimizer.learning_rate": LONG},
        )
        .named("optimizer.learning_rate", "key", "set"),
    ),
    case(
        "training.shift_and_flip",
        images=array(np.zeros((2, 4, 4, 1), "float32")),
        seed=thing((0, 1)).also(texts=("a", "b"), one=(1,), NaN=(math.nan, 1)),
        pixels=seed(2),
    ),
    case(
        "training.train",
        recipe=thing(Made(recipe)),
        out=target(Made(fresh_path)),
        seed=seed(0),
        runs=count(1),
        save_every=count(2),
        strategy=thing(),
        dataset=thing(),
        model=thing(),
    ),
    case(
        "training.write_idx",
        path=target("out.idx"),
        array=array(np.zeros((2, 2), np.uint8))
        .also(negative=[-1], too_large=[256], broken=[1.5])
        .but("a number is an array without axes", "3", "drawn")
        .but("arrays may have any axes", "an axis too many", "no examples", "a list"),
    ),
    # ce_keras.tuner
    case(
        "tuner.BudgetOracle",
        inner=thing(Made(oracle)),
        build=function(tuned)
        .but("it is called later", "of no arguments", "that gives a text")
        .but("it is called later", "that gives nothing", "that gives NaN"),
        max_params=count(1000),
        max_flops=count(1000),
    ),
    case(
        "tuner.CollegialHyperModel",
        network=choice("resnext11"),
        classes=count(3),
        input_shape=whole_numbers((28, 28, 1)).also(too_small=(2, 2, 1)),
        seed=seed(0),
    ),
    case(
        "tuner.CollegialHyperModel.build",
        of=lambda: ce_keras.tuner.CollegialHyperModel("resnext11"),
        hp=thing(Made(fixed_hyperparameters)),
    ),
    case(
        "tuner.CollegialOracle",
        objective=thing("val_loss").but(
            "KerasTuner takes any name, and several", "a text", "a long text", "a list", "drawn"
        ),
        max_trials=count(2),
        inner=thing(),
        seed_designs=thing(["2x4d"])
        .also(unknown=["unknown"], numbers=[3], zeros=[Design(0, 0)], a_text_alone="12x10d")
        .but("no designs", "a list"),
        names=thing(("cardinality", "width")).also(one=("a",), twice=("a", "a"), numbers=(1, 2)),
        hard_budget=flag(True),
        seed=seed(0),
        **{
            **SEARCHED,
            "alpha": alpha_argument("closed_form", "fit"),
            "budget": choice("params", "flops"),
        },
    ),
    case(
        "tuner.CollegialTuner",
        hypermodel=function(tuned)
        .but("KerasTuner calls it", "that gives a text")
        .but("KerasTuner calls it", "that gives nothing", "that gives NaN"),
        objective=thing("val_loss").but(
            "KerasTuner takes any name, and several", "a text", "a long text", "a list", "drawn"
        ),
        baseline=SEARCHED["baseline"],
        names=thing(("cardinality", "width")).also(one=("a",), twice=("a", "a"), numbers=(1, 2)),
    ),
    case("tuner.WrappedOracle", inner=thing(Made(oracle))),
    case(
        "tuner.designs_of",
        solution=thing(Made(solution)),
        space=thing(),
    ),
    # ce_keras.reproduce
    case(
        "reproduce.reproduce",
        name=choice("table2", *("fig2", "fig3", "fig4", "fig6", "table1", "all")),
        scale=choice("small", "full"),
        out=target(Made(fresh_path)),
        seed=seed(0),
        settings=thing({}).also(unknown={"unknown": 1}, numbers={3: 1}),
    ),
    case("reproduce.Result.load", path=source(Made(saved_result))),
    case("reproduce.Result.save", of=result, folder=target(Made(fresh_path))),
    case(
        "reproduce.Result.save_picture",
        of=result,
        path=target(Made(lambda: fresh_path(".png"))).also(unknown_suffix="picture.xyz"),
    ),
]


# What is not thrown at, and why.
RECORD = "a plain record; whatever takes one checks what it needs"
WITHOUT = {
    "Curve": RECORD,
    "Design": RECORD,
    "Solution": RECORD,
    "geometry.Design": RECORD,
    "geometry.ResNeXt": RECORD,
    "geometry.Stack": RECORD,
    "geometry.Width": "a type",
    "geometry.BASELINES": "a constant",
    "geometry.BOTTLENECK_ALPHA": "a constant",
    "geometry.RESNEXTS": "a constant",
    "law.Law": "a protocol",
    "law.FittedAlpha": "a protocol",
    "law.FittedLaw": "a protocol",
    "layers.FusedBatchNormalization": "its arguments are Keras' own",
    "ntk.AlphaFit": RECORD,
    "ntk.KernelMoments": RECORD,
    "reproduce.Check": RECORD,
    "reproduce.NAMES": "a constant",
    "reproduce.NUMPY_ONLY": "a constant",
    "reproduce.Result": RECORD,
    "reproduce.Scale": "a type",
    "training.DivergedError": "an exception",
    "training.FASHION_CLASSES": "a constant",
    "training.Images": RECORD,
    "training.Preempted": "an exception",
    "training.Recipe": RECORD,
    "tuner.NAMES": "a constant",
    "zoo.Constructor": "a protocol",
    "zoo.Entry": RECORD,
    "zoo.NETWORKS": "a constant",
    "zoo.PUBLISHED": "a constant",
    "zoo.Published": RECORD,
    "zoo.entries": "has no arguments",
    **{
        f"zoo.{name}": "made by the same function as `resnext11`; see below"
        for name in (
            *("resnet50", "resnet101", "resnet152", "resnext29", "resnext38"),
            *("resnext50", "resnext101", "resnext152"),
        )
    },
}
MOVED = (
    *("AlphaFit", "KernelMoments", "chain_kernels", "fit_alpha", "infinite_width_kernel"),
    *("kernel_moments", "log_moment_ratio", "stack_kernels"),
)
WITHOUT |= {"training.Interrupted": "an exception"}
WITHOUT |= {f"variance.{name}": "the same as in `ntk`; see below" for name in MOVED}
AREAS = ("geometry", "law", "layers", "ntk", "reproduce", "training", "tuner", "variance", "zoo")


# Throwing ----------------------------------------------------------------------------------------


class CutOffError(BaseException):
    """A call that takes too long."""


@contextlib.contextmanager
def patience(seconds=PATIENCE):
    """Cut off what takes longer, where the system has such a clock."""

    def cut_off(*_):
        raise CutOffError

    before = signal.signal(signal.SIGALRM, cut_off)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said(call):
    """What a call raises, and how many seconds of the processor it takes."""
    next(calls)
    begun = time.process_time()
    error = None
    try:
        with patience():
            call()
    except (Exception, CutOffError) as raised:
        error = raised
    return error, time.process_time() - begun


def names_it(message, names):
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)


def wrong_with(error, names):
    """Return what is wrong with a refusal; `None` if nothing is."""
    message, kind = str(error), type(error).__name__
    short = " ".join(message[:200].split())
    if not isinstance(error, ValueError | TypeError):
        return f"{kind}: {short}"
    if len(message) >= LONGEST:
        return f"a message of {len(message):,} characters: {kind}: {short[:100]}"
    return None if names_it(message, names) else f"{kind} does not name it: {short}"


def complaint(call, names):
    """Return what is wrong with how a call refuses a bad value; `None` if nothing is."""
    error, seconds = said(call)
    if isinstance(error, CutOffError):
        return f"not refused within {PATIENCE:g} s"
    if error is None:
        return f"accepted, after {seconds:.1f} s" if seconds > SECONDS else "accepted"
    if seconds >= SECONDS:  # Once more: other programs run here too.
        error, seconds = said(call)
    what = wrong_with(error, names)
    if what is None and seconds >= SECONDS:
        return f"refused, but only after {seconds:.1f} s"
    return what


@functools.cache
def warm(index):
    """Call once with valid values: imports and first uses are not timed."""
    each = CASES[index]
    return each.call(each.target(), **{n: value_of(a.valid) for n, a in each.arguments.items()})


@pytest.fixture(scope="module", autouse=True)
def own_folder(tmp_path_factory):
    """Nothing is trained, and files go to a folder of the tests' own."""
    from ce_keras import demo
    from ce_keras.training import run as runs

    class Untrained:
        def __init__(self, *_, **__):
            pass

        def run(self):
            return {"design": "1x4d", "error": 50.0, "history": []}

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("bad_input"))
        patch.setattr(runs, "Trainer", Untrained)
        patch.setattr(demo, "compare", lambda *_, **__: [])
        yield


@pytest.fixture(autouse=True)
def without_pictures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def optional(target, argument):
    parameter = inspect.signature(target).parameters.get(argument)
    return parameter is not None and parameter.default is None


def bad_values(each, target, argument):
    """The fixed bad values of an argument; `None` is none where it is the default."""
    bad = each.arguments[argument].bad
    return {k: v for k, v in bad.items() if k != "None" or not optional(target, argument)}


def throw(index, argument, bad):
    """Call with one bad value, and return what is wrong with how it is refused."""
    each = CASES[index]
    given = {name: value_of(one.valid) for name, one in each.arguments.items()}
    given[argument] = value_of(bad)
    target = each.target()
    names = (argument, *each.arguments[argument].names)
    return complaint(lambda: each.call(target, **given), names)


ARGUMENTS = [
    pytest.param(index, argument, id=f"{each.name}-{argument}")
    for index, each in enumerate(CASES)
    for argument in each.arguments
]
RARELY = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # The values are short as they are.
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("area", ["", *AREAS])
def test_every_public_name_is_thrown_at_or_left_out_for_a_reason(area):
    module = getattr(ce_keras, area) if area else ce_keras
    if area == "reproduce":
        from ce_keras import reproduce as module
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    prefix = f"{area}." if area else ""
    public = {f"{prefix}{name}" for name in names if not area or name not in AREAS} - set(AREAS)
    covered = {each.name for each in CASES} | set(WITHOUT)
    assert not public - covered


@pytest.mark.parametrize("index", range(len(CASES)), ids=[each.name for each in CASES])
def test_the_valid_values_are_accepted_and_no_argument_is_forgotten(index):
    each = CASES[index]
    warm(index)
    if each.name.endswith("__call__") or [one.name for one in CASES[:index]].count(each.name):
        return  # Keras' signature; or the second case of one function.
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(each.target()).parameters
    thrown_at = {name for one in CASES if one.name == each.name for name in one.arguments}
    assert {n for n, one in parameters.items() if one.kind not in kinds} <= thrown_at


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS)
def test_bad_values_are_refused_by_a_short_message_that_names_the_argument(index, argument):
    warm(index)
    thrown.add((index, argument))
    bad = bad_values(CASES[index], CASES[index].target(), argument)
    found = {label: throw(index, argument, value) for label, value in bad.items()}
    wrong = [f"{label}: {what}" for label, what in found.items() if what is not None]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(("index", "argument"), ARGUMENTS)
@RARELY
@given(data=st.data())
def test_values_that_are_drawn_are_refused_in_the_same_way(index, argument, data):
    each = CASES[index]
    if each.arguments[argument].drawn is None:
        return
    warm(index)
    value = data.draw(each.arguments[argument].drawn)
    assert throw(index, argument, value) is None


def test_all_resnexts_of_the_zoo_are_made_by_the_function_that_is_thrown_at():
    from ce_keras import zoo

    for name, why in WITHOUT.items():
        if "same function" in why:
            function = getattr(zoo, name.removeprefix("zoo."))
            assert function.__code__ is zoo.resnext11.__code__


def test_what_two_modules_offer_under_one_name_is_the_same():
    for name in MOVED:
        assert getattr(ce_keras.variance, name) is getattr(ce_keras.ntk, name)


# Recipes and settings ----------------------------------------------------------------------------

NOT_A = {
    int: ["-1", "1.5", "nan", "inf", "true", "x", "[]", "[1]", "{}", "-1e30", "9" * 30, "[" * 5000],
    float: ["nan", "inf", "-inf", "-1", "true", "x", "[]", "{}", "1e400", LONG, "9" * 400],
    str: ["3", "true", "[]", "{}", "nan", LONG, "[" * 5000],
    tuple: ["3", "x", "nan", "true", "{}", "[[]]", "[nan]", "[true]", "[-1.5]", LONG],
    dict: ["3", "x", "nan", "[]", "true", '{"a": "b"}', '{"a": NaN}', LONG],
}
# Values of keys that are good after all.
GOOD = {
    "data.name": (LONG, "[" * 5000),
    "data.source": (LONG, "[" * 5000),  # It is looked for later.
    "data.limit": ("9" * 30,),  # All there are.
    "data.test_limit": ("9" * 30,),
    "expected.source": (LONG, "[" * 5000),
}


def recipe_keys():
    for section, kind in typing.get_type_hints(Recipe).items():
        for key, hint in typing.get_type_hints(kind).items():
            yield f"{section}.{key}", hint


def bad_texts(hint):
    """Texts that are no value of a recipe's key, by its type."""
    kinds = [typing.get_origin(each) or each for each in (typing.get_args(hint) or (hint,))]
    whole = typing.get_origin(hint)
    return NOT_A[whole if whole in NOT_A else next(kind for kind in kinds if kind in NOT_A)]


@pytest.mark.parametrize(
    ("key", "hint"), [pytest.param(*each, id=each[0]) for each in recipe_keys()]
)
def test_bad_values_in_a_recipe_are_refused_by_a_short_message_that_names_the_key(key, hint):
    from ce_keras.training import read_recipe

    wrong = []
    for bad in bad_texts(hint):
        if bad in GOOD.get(key, ()):
            continue
        what = complaint(functools.partial(read_recipe, "fashion_mnist", {key: bad}), [key])
        if what is not None:
            wrong.append(f"{bad[:20]}: {what}")
    assert not wrong, "\n" + "\n".join(wrong)


def reproduction_settings():
    import importlib

    from ce_keras.reproduce import NAMES

    for name in NAMES:
        scale = importlib.import_module(f"ce_keras.reproduce.{name}").SCALES["small"]
        for key, value in scale._asdict().items():
            yield pytest.param(name, key, value, id=f"{name}-{key}")


BAD_SETTINGS = {
    int: [0, -1, 1.5, math.nan, True, "x", None, [], {}, HUGE, LONG],
    float: [0.0, -1.0, math.nan, math.inf, True, "x", None, [], {}],
    str: ["unknown", 3, None, [], {}, True, LONG],
    tuple: [3, "x", None, [], [0], [-1], [1.5], [math.nan], ["x"], [None], [HUGE]],
    dict: [3, "x", None, [], {"unknown": 1}, {3: 3}],
}


@pytest.mark.parametrize(("name", "key", "value"), reproduction_settings())
def test_bad_settings_of_a_reproduction_are_refused_before_anything_is_measured(name, key, value):
    from ce_keras.reproduce import reproduce

    wrong = []
    of_its_own = [[0]] if key == "correlations" else []  # One may be 0.
    for bad in BAD_SETTINGS[type(value)]:
        if bad in of_its_own:
            continue
        what = complaint(functools.partial(reproduce, name, settings={key: bad}), [key, "unknown"])
        if what is not None:
            wrong.append(f"{str(bad)[:20]!r}: {what}")
    assert not wrong, "\n" + "\n".join(wrong)


# Commands ----------------------------------------------------------------------------------------

WHOLE = ["0", "-1", "1.5", "nan", "inf", "three", "", "[", "9" * 30, "9" * 5000, LONG, "1,2", "1e3"]
WIDTHS = [*(value for value in WHOLE if value != "1,2"), "1-100000000000000"]
SEED = [value for value in WHOLE if value != "0"]
REAL = ["-1", "nan", "inf", "-inf", "x", "", "1e400", "9" * 400, LONG, "1,5", "[1]"]
CHOICE = ["", "unknown", "3", LONG, "[", "Primal"]
TO_READ = ["nowhere/missing", "JUNK", "EMPTY", "FOLDER", "", LONG, "JUNK/inside"]
TO_WRITE = ["JUNK/inside", LONG]


@dataclasses.dataclass
class Command:
    """A command that works, and bad values of its options; positional ones have no dashes."""

    words: list
    bad: dict
    names: dict = dataclasses.field(default_factory=dict)


def places(words):
    """Put real paths in place of words in capitals."""
    real = {
        "JUNK": lambda: made_file("junk", JUNK),
        "EMPTY": lambda: made_file("empty.toml", b""),
        "FOLDER": lambda: made_file("folder/inside", b"").parent,
        "MODEL": saved_model,
        "RUN": finished_run,
        "FRESH": fresh_path,
        "BRACKETS": lambda: made_file("brackets.toml", b"a = " + b"[" * 5000),
        "SECTIONS": lambda: made_file("sections.toml", b"[" * 5000),
    }
    return [
        re.sub(r"\b(" + "|".join(real) + r")\b", lambda match: str(real[match[0]]()), word)
        if len(word) < 200
        else word
        for word in words
    ]


COMMANDS = [
    Command(
        ["search", "resnext11"],
        {
            "baseline": ["", "unknown", "resnext11-2x3d", "resnext11-1x0d", LONG, "3", "fc"],
            "--mode": CHOICE,
            "--alpha": [*REAL, "0"],
            "--correlation": [*REAL, "1.5", "0.5"],
            "--budget": CHOICE,
            "--tolerance": REAL,
            "--multiple-of": [*WHOLE, "65"],
            "--widths": [
                *WIDTHS,
                "0-3",
                "3-1",
                "65",
                "4x4x4",
                "-",
                "4-",
                ",",
                "ax3",
            ],
            "--inputs": WHOLE,
            "--outputs": WHOLE,
            "--plot": [*TO_WRITE, "curve.xyz", "FOLDER"],
            "--hard-budget": ["false"],
            "--json": ["false"],
        },
        {"baseline": ("fc",)},
    ),
    Command(
        ["search", "fc", "--inputs=3", "--widths=4x2"],
        {
            "--inputs": WHOLE,
            "--outputs": WHOLE,
            "--widths": [*WIDTHS, "4x100000000000000", "4x0", "4x-1"],
        },
    ),
    Command(
        ["fit-alpha", "fc", "--inputs=3", "--widths=4x2", "--draws=4"],
        {
            "module": CHOICE,
            "--inputs": WHOLE,
            "--widths": [*WIDTHS, "4x100000000000000", "4x0"],
            "--draws": [*WHOLE, "1"],
            "--method": CHOICE,
            "--parameterization": CHOICE,
            "--seed": SEED,
            "--plot": [*TO_WRITE, "curve.xyz", "FOLDER"],
        },
    ),
    Command(
        ["fit-alpha", "bottleneck", "--inputs=8", "--draws=4"],
        {
            "--inputs": WHOLE,
            "--checkpoint": [*TO_WRITE, "JUNK", "EMPTY", "FOLDER", "BRACKETS"],
            "--widths": ["4"],
        },
    ),
    Command(["list"], {"--built": ["x"], "--json": ["x"]}),
    Command(["info", "resnext11_1x2d"], {"name": [*CHOICE, "resnext11_0x0d", "resnext11_"]}),
    Command(
        ["build", "resnext11", "--cardinality=1", "--width=2", "--classes=3"],
        {
            "name": [*CHOICE, "resnext11_0x0d"],
            "--mode": [*CHOICE, "dual"],
            "--cardinality": WHOLE,
            "--width": WHOLE,
            "--classes": WHOLE,
            "--seed": SEED,
            "--save": ["model.h5", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
    ),
    Command(
        ["collegialize", "MODEL", "--save=FRESH.keras", "--design=2x4d"],
        {
            "model": [*TO_READ, "BRACKETS"],
            "--mode": CHOICE,
            "--alpha": [*REAL, "0"],
            "--budget": CHOICE,
            "--tolerance": REAL,
            "--multiple-of": WHOLE,
            "--design": [*CHOICE, "0x0d", "9x900d", f"{'9' * 30}x2d"],
            "--only": ["unknown", LONG],
            "--skip": ["unknown", LONG],
            "--per": CHOICE,
            "--seed": SEED,
            "--init": CHOICE,
            "--measure": WHOLE,
            "--save": ["model.h5", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
    ),
    Command(
        [
            *("train", "fashion_mnist", "--out=FRESH", "--set=model.name=fully_connected"),
            *("--set=model.base=4", "--set=model.depth=2", "--mode=baseline"),
            *("--set=data.limit=20", "--set=data.test_limit=20"),
        ],
        {
            "recipe": [*TO_READ, "BRACKETS", "SECTIONS"],
            "--mode": CHOICE,
            "--set": [
                *(
                    "optimizer.learning_rate=x",
                    "optimizer.learning_rate=nan",
                    "optimizer.learning_rate=-1",
                    "optimizer.learning_rate",
                ),
                *("unknown=3", "optimizer.unknown=3", "=3", "", "optimizer=3", f"{LONG}=3"),
                *(
                    f"optimizer.learning_rate={LONG}",
                    f"optimizer.learning_rate={'[' * 5000}",
                    "a.b.c.d=1",
                ),
                *("data.source=nowhere", "data.name=unknown", f"data.source={LONG}"),
                *(f"schedule.batch_size={HUGE}", f"model.base={HUGE}", f"data.pad={HUGE}"),
            ],
            "--out": [*TO_WRITE, "JUNK"],
            "--seed": SEED,
            "--runs": WHOLE,
            "--save-every": WHOLE,
            "--devices": ["unknown:0", LONG, "gpu:99", ""],
        },
        {
            "--set": (
                "optimizer",
                "data.source",
                "data.name",
                "schedule.batch_size",
                "model.base",
                "data.pad",
                "unknown",
                "a.b",
                "a",
            )
        },
    ),
    Command(["evaluate", "RUN"], {"run_folder": TO_READ}, {"run_folder": ("run",)}),
    Command(
        ["export", "RUN", "--to=FRESH.keras"],
        {
            "run_folder": TO_READ,
            "--format": CHOICE,
            "--to": ["model.xyz", "JUNK", "JUNK/inside.keras", LONG, f"{LONG}.keras"],
        },
        {"run_folder": ("run",)},
    ),
    Command(
        ["reproduce", "fig2", "--out=FRESH", "--set=draws=2", "--set=width=4"],
        {
            "name": CHOICE,
            "--scale": CHOICE,
            "--set": [
                *("draws=x", "draws=nan", "draws=-1", "draws=0", f"draws={HUGE}", "draws=true"),
                *("draws", "", "=3", "unknown=3", f"draws={LONG}", f"{LONG}=3", "paths=3"),
                *("paths=[0]", "paths=x", "depth=0", "depth=1.5", "width=0", f"draws={'[' * 5000}"),
            ],
            "--out": [*TO_WRITE, "JUNK"],
            "--seed": SEED,
        },
        {"--set": ("draws", "paths", "depth", "width", "unknown", "settings")},
    ),
    Command(
        ["demo", "--out=FRESH", "--images=20", "--epochs=1"],
        {
            "--out": [*TO_WRITE, "JUNK"],
            "--epochs": WHOLE,
            "--images": [*WHOLE, "5", "10001"],
            "--batch-size": WHOLE,
            "--source": ["", "unknown", "JUNK", "FOLDER", LONG],
            "--seed": SEED,
        },
    ),
]


def outcome(words):
    """Exit code, standard error and seconds of a command, run in this process."""
    next(calls)
    errors, begun = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            with patience():
                code = main(words)
        except SystemExit as stop:
            code = stop.code
        except (Exception, CutOffError) as error:
            code = f"{type(error).__name__}: {str(error)[:200]}"
    return code, errors.getvalue(), time.process_time() - begun


def with_value(command, option, value):
    """The command's words with one option or argument of another value."""
    if option.startswith("--"):
        words = [word for word in command.words if not word.startswith(f"{option}=")]
        words = command.words if option == "--set" else words
        return places([*words, f"{option}={value}"])
    return places([command.words[0], *command.words[2:], "--", value])


def wrong_with_a_line(errors, names):
    """Return what is wrong with what a command wrote; `None` if nothing is."""
    lines = errors.splitlines()
    last = lines[-1] if lines else ""
    # Above its own message argparse shows the usage.
    if not last.startswith("ce-keras") or (len(lines) > 1 and not errors.startswith("usage:")):
        return f"{len(lines)} lines: {errors[:200]!r}"
    if len(last) >= LONGEST:
        return f"a line of {len(last):,} characters: {last[:100]}"
    told = last.partition(":")[2]
    return None if names_it(told, names) else f"does not name it: {last[:200]}"


def command_complaint(command, option, value):
    """Return what is wrong with how a command refuses a value; `None` if nothing is."""
    words = with_value(command, option, value)
    code, errors, seconds = outcome(words)
    if code != 2:
        return f"exit code {code}" + (f": {errors[-200:]}" if errors else "")
    if seconds >= SECONDS:
        seconds = outcome(words)[2]
    bare = option.removeprefix("--")
    names = {option, bare, bare.replace("-", "_"), *command.names.get(option, ())}
    what = wrong_with_a_line(errors, names | {name.upper() for name in names})
    if what is None and seconds >= SECONDS:
        return f"refused, but only after {seconds:.1f} s"
    return what


OPTIONS = [
    pytest.param(index, option, id=f"{' '.join(command.words[:2])}-{option}")
    for index, command in enumerate(COMMANDS)
    for option in command.bad
]


@functools.cache
def warm_command(index):
    """Run a command once as it should be: imports and first uses are not timed."""
    return outcome(places(COMMANDS[index].words))


@pytest.mark.parametrize(
    "index", range(len(COMMANDS)), ids=[" ".join(c.words[:2]) for c in COMMANDS]
)
def test_the_commands_that_bad_values_are_put_into_work(index):
    code, errors, _ = warm_command(index)
    assert code == 0, errors


def test_every_option_of_every_command_is_thrown_at():
    from ce_keras import cli

    (commands,) = [action for action in cli._parser()._actions if isinstance(action.choices, dict)]
    thrown_at = {(each.words[0], option) for each in COMMANDS for option in each.bad}
    for name, parser in commands.choices.items():
        for action in parser._actions:
            takes_a_value = action.nargs != 0
            called = next(iter(action.option_strings), action.dest)
            if takes_a_value and called not in ("-h", "--help"):
                assert (name, called) in thrown_at


@pytest.mark.parametrize(("index", "option"), OPTIONS)
def test_a_command_refuses_bad_values_on_one_line_that_names_the_option(index, option):
    warm_command(index)
    thrown.add((COMMANDS[index].words[0], index, option))
    wrong = []
    for value in COMMANDS[index].bad[option]:
        what = command_complaint(COMMANDS[index], option, value)
        if what is not None:
            shown = value if len(value) < 40 else f"{value[:20]}... ({len(value):,} characters)"
            wrong.append(f"{shown!r}: {what}")
    assert not wrong, "\n" + "\n".join(wrong)


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("index", "option"),
    [
        each
        for each in OPTIONS
        if COMMANDS[each.values[0]].bad[each.values[1]][:3]
        in (WHOLE[:3], SEED[:3], REAL[:3], CHOICE[:3])
    ],
)
@RARELY
@given(value=texts)
def test_a_command_refuses_texts_that_are_drawn_in_the_same_way(index, option, value):
    assume("\0" not in value)
    assume(not is_number(value))
    assume(not re.fullmatch(r"[\d\s_,x-]*", value) or option != "--widths")
    assume(value not in ("fc", "dual", "flops", "fit", "auto", "ntk", "stage", "split", "full"))
    warm_command(index)
    assert command_complaint(COMMANDS[index], option, value) is None


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        [LONG],
        ["search"],
        ["search", "resnext11", "--unknown"],
        ["search", "resnext11", f"--{LONG}"],
        ["search", "resnext11", "resnext29"],
        ["train"],
        ["reproduce"],
    ],
    ids=lambda words: " ".join(words)[:30] or "nothing",
)
def test_words_that_are_no_command_are_refused_on_one_line(words):
    code, errors, seconds = outcome(words)
    last = errors.splitlines()[-1]
    assert code == 2
    assert last.startswith("ce-keras")
    assert len(last) < LONGEST
    assert "Traceback" not in errors
    assert seconds < SECONDS


def test_thousands_of_bad_values_were_thrown():
    made = next(calls)
    sys.stdout.write(f"{made:,} calls with {len(thrown)} arguments and options\n")
    if len(thrown) == len(ARGUMENTS) + len(OPTIONS):  # All tests ran, and in this process.
        assert made > 5000
