"""Bad values for every argument of the law of the variance and its fit."""

import math

import numpy as np
from bad_input import BadInput, Case, case
from bad_values import (
    LEFT_OUT,
    Argument,
    Made,
    array,
    axes,
    choice,
    count,
    function,
    model,
    number,
    seed,
    sizes,
    source,
    text,
    thing,
    whole_numbers,
)
from valid_values import (
    BY_LAW,
    CORRELATION,
    X,
    alpha_argument,
    alpha_fit,
    network_of,
    small_resnext,
)

import ce_keras
from ce_keras.geometry import bottleneck

MOVED = (
    *("AlphaFit", "KernelMoments", "chain_kernels", "fit_alpha", "infinite_width_kernel"),
    *("kernel_moments", "log_moment_ratio", "stack_kernels"),
)

CASES = [
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
    case("ntk.AlphaFit.from_width", of=alpha_fit, width=count(1)),
    case("ntk.AlphaFit.plot", of=alpha_fit, ax=axes()),
    case(
        "ntk.chain_kernels",
        widths=whole_numbers([3, 5]),
        draws=count(4),
        parameterization=choice("ntk", "standard"),
        inputs=count(3),
        seed=seed(0),
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
    case("ntk.log_moment_ratio", kernels=array(np.array([1.0, 2.0, 3.0]))),
    case(
        "ntk.stack_kernels",
        x=array(np.eye(2, 3)),
        widths=whole_numbers([3, 5]),
        draws=count(2),
        parameterization=choice("ntk", "standard"),
        seed=seed(0),
    ),
]

# Names that are not tested, and why.
WITHOUT = {
    "law.Law": "a protocol",
    "law.FittedAlpha": "a protocol",
    "law.FittedLaw": "a protocol",
    "law.polynomial_text": "writes the coefficients that a law has found",
    **{f"variance.{name}": "the same as in `ntk`" for name in MOVED},
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("law", "variance")
    WITHOUT = WITHOUT

    def test_what_two_modules_offer_under_one_name_is_the_same(self):
        for name in MOVED:
            assert getattr(ce_keras.variance, name) is getattr(ce_keras.ntk, name)
