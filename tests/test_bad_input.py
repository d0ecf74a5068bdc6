"""Bad values for every argument of search, its solutions and the theory's modules."""

import math

from bad_input import BadInput, Case, case
from bad_values import (
    LEFT_OUT,
    Argument,
    Made,
    axes,
    choice,
    count,
    flag,
    function,
    number,
    sizes,
    text,
    thing,
    whole_numbers,
)
from valid_values import BY_LAW, CORRELATION, NO_MAP, SEARCHED, TIMED, TINY, plan_path, solution

import ce_keras
from ce_keras.geometry import bottleneck

RECORD = "a plain record; whatever takes one checks what it needs"
CASES = [
    case(
        "search",
        **SEARCHED,
        **TIMED,
        hard_budget=flag(False),
        law=thing(),
        family=text(),
        input_shape=sizes(),
        target_params=count(),
        dtype=text(),
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
    case("Solution.near_optimal", of=solution, tolerance=number(0.1, least=0)),
    case("Solution.plot", of=solution, ax=axes()),
    case("Frontier.plot", of=lambda: solution().frontier(), ax=axes()),
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
]

# Names that are not tested, and why.
WITHOUT = {
    "Curve": RECORD,
    "Frontier": RECORD,
    "Design": RECORD,
    "Solution": RECORD,
    "geometry.Design": RECORD,
    "geometry.ResNeXt": RECORD,
    "geometry.Stack": RECORD,
    "geometry.Width": "a type",
    "geometry.BASELINES": "a constant",
    "geometry.BOTTLENECK_ALPHA": "a constant",
    "geometry.RESNEXTS": "a constant",
    "geometry.first_order_alpha": "sees widths that `fully_connected` has checked",
    **dict.fromkeys(("collegialize", "inspect"), "in tests/rewrite"),
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("", "geometry")
    WITHOUT = WITHOUT
