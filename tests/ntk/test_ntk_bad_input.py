"""Bad values for every argument of kernels of a model."""

import math

import numpy as np
from bad_input import BadInput, case
from bad_values import Made, array, choice, count, flag, model, number, target, thing
from valid_values import KERNEL, X, dense_model, regressor

RECORD = "a plain record; whatever takes one checks what it needs"
MOVED = (
    *("AlphaFit", "KernelMoments", "chain_kernels", "fit_alpha", "infinite_width_kernel"),
    *("kernel_moments", "log_moment_ratio", "stack_kernels"),
)

CASES = [
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
        "ntk.label_alignment",
        kernel=array(KERNEL),
        labels=array(np.array([0, 1])),
        centred=flag(True),
    ),
    case("ntk.max_learning_rate", kernel=array(KERNEL), outputs=count(1)),
    case(
        "ntk.predict",
        kernel_train=array(KERNEL),
        kernel_test=array(KERNEL),
        y=array(np.array([0.0, 1.0])),
        t=thing(1.0).but(
            "times, or none", "3", "None", "a list", "an array", "a long array", "drawn"
        ),
        initial_train=array(np.zeros(2)).but("one for all", "3", "drawn"),
        initial_test=array(np.zeros(2)).but("one for all", "3", "drawn"),
    ),
    case(
        "ntk.ntk_vector_product",
        model=model(Made(dense_model)),
        x1=array(X),
        vector=array(np.ones((4, 2))),
        x2=array(X),
    ),
    case("ntk.spectrum", kernel=array(KERNEL)),
]

# Names that are not tested, and why.
WITHOUT = {
    "ntk.AlphaFit": RECORD,
    "ntk.KernelMoments": RECORD,
    **{f"ntk.{name}": "in tests/variance" for name in MOVED},
}


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("ntk",)
    WITHOUT = WITHOUT
