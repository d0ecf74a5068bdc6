"""Bad values for every argument of the functions that rewrite a model."""

from bad_input import BadInput, case
from bad_values import choice, count, thing
from valid_values import REWRITTEN

CASES = [
    case("inspect", **REWRITTEN),
    case(
        "collegialize",
        **REWRITTEN,
        init=choice("random", "split", "calibrated"),
        data=thing(),  # Only for `init="calibrated"`: see test_calibration.py.
        measure=count(),
    ),
]


class TestBadInput(BadInput):
    CASES = CASES
