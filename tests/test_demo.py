import json

import pytest

from ce_keras import demo, geometry
from ce_keras.training.images import Images


def test_designs_are_derived_and_drawn(tmp_path):
    solutions = demo.derive(tmp_path / "curve.png")
    assert {mode: str(s.design) for mode, s in solutions.items()} == {
        "primal": "28x7d",
        "dual": "7x7d",
    }
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_everything_is_trained_and_counted():
    how = {"epochs": 1, "images": 100, "batch_size": 50}
    train, test = demo.load(source="embedded", seed=0, **how)
    few = Images(*(part[:100] for part in test))
    rows = demo.compare(demo.derive(), (train, few), **how)
    assert [(row.role, row.design) for row in rows] == [
        ("baseline", "1x64d"),
        ("primal", "28x7d"),
        ("dual", "7x7d"),
        ("narrower", "1x28d"),
    ]
    network = geometry.baseline(demo.NETWORK)
    for row in rows:
        design = geometry.Design.parse(row.design)
        assert row.parameters == network.params(*design)
        assert row.flops == network.flops(*design)
        assert row.seconds_per_step > 0
        assert 0 < row.test_error < 100
        p = row.test_error / 100
        assert row.test_error_std == pytest.approx(100 * (p * (1 - p) / 100) ** 0.5)
        json.dumps(row._asdict())


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
