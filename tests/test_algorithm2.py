"""Algorithm 2 with laws other than a known alpha."""

import numpy as np
import pytest

from ce_keras import geometry, law
from ce_keras.geometry import bottleneck, fully_connected
from ce_keras.optimum import search


@pytest.mark.parametrize(
    "module", [fully_connected(748, [500] * 5), geometry.baseline("figure3")], ids=["fc", "figure3"]
)
def test_figure_3_with_nothing_fitted(module):
    primal = search(module, "primal", alpha="closed_form", widths=[48])
    dual = search(module, "dual", alpha="closed_form", widths=[48])
    assert primal.multiplicity == pytest.approx(30.4, abs=0.05)
    assert dual.multiplicity == pytest.approx(12.2, abs=0.05)
    assert dual.unrounded_rho == pytest.approx(2.50, abs=0.01)
    assert dual.alpha is None
    assert "closed form" in repr(dual)
    best = search(module, "dual", alpha="closed_form", tolerance=0)
    assert best.design.width == 44
    near = best.curve.objective[47] / best.unrounded_rho
    assert near == pytest.approx(0.998, abs=0.0005)


def test_the_first_order_alpha_is_near_the_closed_form_where_paths_are_wide():
    module = fully_connected(784, [1000] * 4)
    ours, exact = (search(module, "dual", alpha=a, widths=[500]) for a in (None, "closed_form"))
    assert ours.multiplicity == pytest.approx(exact.multiplicity, rel=0.01)


def test_a_measured_law_that_is_the_exponential_one_gives_its_answer():
    module = bottleneck(width=128)
    expected = search(module, "dual")
    curve = lambda n: law.variance(1.6, module.inverse_fan_in(n))  # noqa: E731
    for measured in (curve, {n: curve(n) for n in range(1, 129)}):
        ours = search(module, "dual", law=measured)
        assert ours.design == expected.design
        np.testing.assert_allclose(ours.curve.objective, expected.curve.objective, rtol=1e-12)
        assert ours.law == "measured law"


def test_a_table_limits_the_widths_to_its_own():
    module = bottleneck(width=64)
    table = {n: law.variance(1.6, module.inverse_fan_in(n)) for n in (4, 8, 16, 32, 64)}
    solution = search(module, law=table)
    assert solution.curve.width[0] == 4
    with pytest.raises(ValueError, match="widths: got 2; widths are 4 to 64"):
        search(module, law=table, widths=[2, 8])
    with pytest.raises(ValueError, match="law: its table spans widths 4 to 64"):
        search(bottleneck(width=128), law=table)


class Fit:
    """As `fit_alpha` returns it."""

    def __init__(self, alpha, alpha_error):
        self.alpha, self.alpha_error = alpha, alpha_error


def test_the_uncertainty_of_a_fit_widens_the_band():
    bare = search("resnext29", alpha=1.6, tolerance=0)
    fitted = search("resnext29", alpha=Fit(1.6, 0.5), tolerance=0)
    assert len(bare.near_optimal()) == 1
    assert len(fitted.near_optimal()) > 1
    assert fitted.design.width > bare.design.width
    np.testing.assert_array_equal(bare.curve.objective, fitted.curve.objective)
    # The error of log v(n) / v(best) is what moving alpha by a standard error does to it.
    moved = search("resnext29", alpha=1.6 + 1e-4, tolerance=0)
    shift = np.log(moved.curve.variance / bare.curve.variance) / 1e-4 * 0.5
    expected = abs(shift - shift[bare.design.width - 1])
    np.testing.assert_allclose(fitted.curve.log_error, expected, rtol=1e-3, atol=1e-6)
    assert "1.6 ± 0.5" in repr(fitted)


def test_the_uncertainty_of_a_measured_law_widens_the_band():
    module = bottleneck(width=64)
    curve = lambda n: float(law.variance(1.6, module.inverse_fan_in(n)))  # noqa: E731
    exact = search(module, law=curve, tolerance=0)
    noisy = search(module, law=lambda n: (curve(n), 0.05 * curve(n)), tolerance=0)
    assert noisy.design.width > exact.design.width
    best = noisy.curve.objective.argmin()
    assert noisy.curve.log_error[best] == 0
    assert noisy.curve.log_error[best + 1] == pytest.approx(0.05 * np.sqrt(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": {}}, "law: the table is empty"),
        ({"law": {1: -1.0, 128: 1.0}}, "law: got -1.0 for width 1"),
        ({"law": lambda n: "much"}, "law: got 'much' for width"),
        ({"law": lambda n: (1.0, -1.0)}, r"law: got \(1.0, -1.0\)"),
        ({"law": 3.0}, "law: got 3.0; it must be a function"),
        ({"law": {1: 1.0}, "alpha": 1.6}, "alpha, law: got"),
        ({"alpha": Fit(-1.0, 0.1)}, "alpha: got"),
    ],
)
def test_laws_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        search("resnext29", **arguments)
