"""Bad values for every argument of reproductions and of their settings."""

import functools
import math

import pytest
from bad_input import BadInput, case, complaint
from bad_values import HUGE, LONG, Made, choice, seed, source, target, thing
from valid_values import fresh_path, result, saved_result

RECORD = "a plain record; whatever takes one checks what it needs"
CASES = [
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

# Names that are not tested, and why.
WITHOUT = {
    "reproduce.Check": RECORD,
    "reproduce.NAMES": "a constant",
    "reproduce.NUMPY_ONLY": "a constant",
    "reproduce.Result": RECORD,
    "reproduce.Scale": "a type",
}


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


class TestBadInput(BadInput):
    CASES = CASES
    AREAS = ("reproduce",)
    WITHOUT = WITHOUT

    @pytest.mark.parametrize(("name", "key", "value"), reproduction_settings())
    def test_bad_settings_of_a_reproduction_are_refused_before_anything_is_measured(
        self, name, key, value
    ):
        from ce_keras.reproduce import reproduce

        wrong = []
        of_its_own = [[0]] if key == "correlations" else []  # One may be 0.
        for bad in BAD_SETTINGS[type(value)]:
            if bad in of_its_own:
                continue
            what = complaint(
                functools.partial(reproduce, name, settings={key: bad}), [key, "unknown"]
            )
            if what is not None:
                wrong.append(f"{str(bad)[:20]!r}: {what}")
        assert not wrong, "\n" + "\n".join(wrong)
