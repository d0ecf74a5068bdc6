import pytest

from ce_keras import designs, geometry
from ce_keras.designs import PUBLISHED, choose_design, published


@pytest.mark.parametrize(
    ("network", "mode", "design"),
    [
        ("resnext29", "primal", "37x10d"),
        ("resnext29", "dual", "10x10d"),
        ("resnext29", "baseline", "1x128d"),
        ("resnext29", "resnext", "3x64d"),
        ("resnext50", "primal", "12x10d"),
        ("resnext50", "dual", "4x16d"),
        ("resnext50", "baseline", "1x64d"),
        ("resnext50", "resnext", "32x4d"),
        ("resnext101", "primal", "12x10d"),
        ("resnext101", "dual", "5x12d"),
        ("resnext101", "baseline", "1x64d"),
        ("resnext101", "resnext", "32x4d"),
        ("resnext11", "primal", "28x7d"),
        ("resnext11", "dual", "7x7d"),
        ("resnext11", "baseline", "1x64d"),
    ],
)
def test_default_designs(network, mode, design):
    assert str(choose_design(network, mode)) == design


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.network}_{row.design}")
def test_published_parameters_are_the_counted_ones_as_far_as_printed(row):
    millions = geometry.resnext(row.network).params(*row.design) / 1e6
    decimals = len(str(row.millions).partition(".")[2])
    # Printed figures are rounded or cut: one unit in the last place.
    assert abs(millions - row.millions) < 10**-decimals


def test_mode_is_primal_unless_asked_for():
    assert choose_design("resnext29") == choose_design("resnext29", "primal")


def test_any_design_without_a_mode():
    assert choose_design("resnext29", cardinality=5, width=17) == (5, 17)


def test_with_a_mode_cardinality_or_width_choose_among_its_designs():
    assert str(choose_design("resnext29", "resnext", cardinality=8)) == "8x64d"
    assert str(choose_design("resnext29", "primal", width=12)) == "28x12d"
    assert str(choose_design("resnext29", "primal", 37, 10)) == "37x10d"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "dual", "cardinality": 32, "width": 4}, "mode: 'dual' contradicts .*10x10d"),
        ({"mode": "smallest"}, "mode: got 'smallest'; it must be one of 'primal'"),
        ({"cardinality": 3}, "width: needed too, since cardinality=3 is given"),
        ({"width": 3}, "cardinality: needed too, since width=3 is given"),
        ({"cardinality": 0, "width": 3}, "cardinality: got 0"),
        ({"cardinality": 3, "width": -1}, "width: got -1"),
    ],
)
def test_contradictions_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_design("resnext29", **arguments)


def test_nobody_published_a_grid_search_for_the_small_network():
    with pytest.raises(ValueError, match="nobody has published one for resnext11"):
        choose_design("resnext11", "resnext")


def test_published_rows_by_network_and_mode():
    assert [str(row.design) for row in published("resnext50", "dual")] == ["4x16d", "3x23d"]
    assert published("resnext11", "dual") == []
    assert {row.mode for row in PUBLISHED} == set(designs.DESIGN_MODES)
