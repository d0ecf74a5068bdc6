"""The demonstration's designs and settings; test_cli.py trains them."""

import pytest

from ce_keras import demo


def test_designs_are_derived_and_drawn(tmp_path):
    solutions = demo.derive(tmp_path / "curve.png")
    assert {mode: str(s.design) for mode, s in solutions.items()} == {
        "primal": "28x7d",
        "dual": "7x7d",
    }
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"images": 5}, "images: got 5"),
        ({"source": "nowhere"}, "source: got 'nowhere'"),
    ],
)
def test_bad_settings_raise_before_anything_is_trained(settings, message):
    with pytest.raises(ValueError, match=message):
        demo.compare(demo.derive(), **settings)
