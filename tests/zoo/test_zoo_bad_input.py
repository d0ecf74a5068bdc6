"""Bad values for every argument of the zoo."""

import math

import numpy as np
from bad_input import BadInput, case
from bad_values import (
    HUGE,
    LEFT_OUT,
    Made,
    array,
    choice,
    count,
    flag,
    model,
    source,
    target,
    text,
    thing,
    whole_numbers,
)
from valid_values import BUILT, TINY, ZOO, dense_model, saved_weights, small_resnext

import ce_keras
from ce_keras.geometry import Design

RECORD = "a plain record; whatever takes one checks what it needs"
RESNEXTS = (
    *("resnet50", "resnet101", "resnet152", "resnext29", "resnext38"),
    *("resnext50", "resnext101", "resnext152", "resnext11c"),
)
CASES = [
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
]

# Names that are not tested, and why.
WITHOUT = {
    "zoo.Constructor": "a protocol",
    "zoo.Entry": RECORD,
    "zoo.NETWORKS": "a constant",
    "zoo.PUBLISHED": "a constant",
    "zoo.Preprocessing": RECORD,
    "zoo.Published": RECORD,
    "zoo.entries": "has no arguments",
    "zoo.preprocessing": "needs a repository: test_hub.py tries it",
    **{f"zoo.{name}": "made by the same function as `resnext11`" for name in RESNEXTS},
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("zoo",)
    WITHOUT = WITHOUT

    def test_all_resnexts_of_the_zoo_are_made_by_the_function_that_is_tested(self):
        for name in RESNEXTS:
            assert getattr(ce_keras.zoo, name).__code__ is ce_keras.zoo.resnext11.__code__
