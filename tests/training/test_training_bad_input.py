"""Bad values for every argument of training, and of recipes."""

import functools
import math
import typing

import numpy as np
import pytest
from bad_input import BadInput, case, complaint
from bad_values import (
    LEFT_OUT,
    LONG,
    Made,
    _Thing,
    array,
    choice,
    count,
    made_file,
    number,
    seed,
    source,
    target,
    text,
    thing,
    whole_numbers,
)
from valid_values import finished_run, fresh_path, images, recipe

from ce_keras.training.recipe import Recipe

RECORD = "a plain record; whatever takes one checks what it needs"
CASES = [
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
]

# Names that are not tested, and why.
WITHOUT = {
    "training.DivergedError": "an exception",
    "training.FASHION_CLASSES": "a constant",
    "training.Images": RECORD,
    "training.Preempted": "an exception",
    "training.Recipe": RECORD,
    "training.Interrupted": "an exception",
}


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


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("training",)
    WITHOUT = WITHOUT

    @pytest.mark.parametrize(
        ("key", "hint"), [pytest.param(*each, id=each[0]) for each in recipe_keys()]
    )
    def test_bad_values_in_a_recipe_are_refused_by_a_short_message_that_names_the_key(
        self, key, hint
    ):
        from ce_keras.training import read_recipe

        wrong = []
        for bad in bad_texts(hint):
            if bad in GOOD.get(key, ()):
                continue
            what = complaint(functools.partial(read_recipe, "fashion_mnist", {key: bad}), [key])
            if what is not None:
                wrong.append(f"{bad[:20]}: {what}")
        assert not wrong, "\n" + "\n".join(wrong)
