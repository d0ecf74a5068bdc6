"""Bad values for every argument of the functions that rewrite a model."""

from bad_input import BadInput, case
from bad_values import choice, count
from valid_values import REWRITTEN

CASES = [
    case("inspect", **REWRITTEN),
    case("collegialize", **REWRITTEN, init=choice("random", "split"), measure=count()),
]


class TestBadInput(BadInput):
    CASES = CASES
