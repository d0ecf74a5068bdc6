"""Kinds of arguments: a valid value of each, and bad ones that follow from the kind.

Where an argument does take one of these, `but` says why. All fixed values of a kind are
tried; Hypothesis draws more of them.
"""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

HUGE, MANY_DIGITS, LONG = 10**30, 10**5000, "x" * 100_000


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
