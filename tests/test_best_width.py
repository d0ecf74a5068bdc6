"""The exact law in the search: where its optimum lies, and what the stages of a network say."""

import numpy as np
import pytest

import ce_keras
from ce_keras import search
from ce_keras.best_width import best_width
from ce_keras.cli import main
from ce_keras.geometry import Design, bottleneck, fully_connected
from ce_keras.variance.law import ClosedFormLaw


def exact(mode="primal", **options):
    return search("resnext29", mode, alpha="closed_form", **options)


@pytest.mark.parametrize(("correlation", "widths"), [(None, {10, 11}), (1, {10, 11}), (0, {4, 5})])
def test_the_paper_s_width_follows_with_nothing_fitted(correlation, widths):
    for mode in ("primal", "dual"):
        assert exact(mode, correlation=correlation, tolerance=0).design.width in widths


def test_the_exact_dual_at_the_paper_s_width_is_larger_than_the_paper_s():
    solution = exact("dual", widths=[10])
    assert solution.design == Design(15, 10)
    assert solution.multiplicity == pytest.approx(15.06, abs=0.01)
    assert solution.unrounded_rho == pytest.approx(2.35, abs=0.005)
    assert search("resnext29", "dual", widths=[10]).design == Design(10, 10)


def test_the_real_valued_optimum_is_part_of_the_solution():
    solution = exact()
    assert solution.coefficients == pytest.approx((58 / 9, 113 / 9))
    assert solution.best_width == pytest.approx(np.sqrt(512 * 113 / (9 * 58)))
    assert "6.44/n + 12.6/n^2" in repr(solution)
    assert "10.53" in repr(solution)
    assert "10.53" in solution._repr_html_()
    assert solution.to_dict()["best_width"] == solution.best_width
    labels = [line.get_label() for line in solution.plot().get_lines()]
    assert "best width 10.5" in labels
    assert "6.44/n + 12.6/n^2" in solution.plot().get_legend().get_title().get_text()
    for other in (search("resnext29"), search("figure3")):
        assert other.coefficients is None
        assert other.stages == ()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.92, 1.0])
def test_the_real_valued_optimum_is_where_the_product_is_least(correlation):
    module = bottleneck(width=128)
    law = ClosedFormLaw(module, correlation)
    n = np.linspace(1, 40, 4000)
    product = law.path_variance(n) * module.params(1, n)
    found = search(module, alpha="closed_form", correlation=correlation)
    assert found.best_width == pytest.approx(n[product.argmin()], abs=0.02)


def test_a_deep_network_s_optimum_is_found_too():
    module = fully_connected(748, [500] * 5)
    n = np.arange(1, 501)
    product = ClosedFormLaw(module).path_variance(n) * module.params(1, n)
    found = search(module, alpha="closed_form").best_width
    assert abs(found - n[product.argmin()]) < 1


def test_costs_of_another_form_have_no_best_width():
    assert best_width(np.array([1.0, 2.0]), lambda n: n**3) is None
    assert best_width(np.array([1.0, 2.0]), lambda n: n) is None


def test_stages_have_optima_of_their_own_and_lose_little():
    solution = exact(widths=[10])
    assert [stage.width for stage in solution.stages] == [10, 20, 40]
    best = [stage.best_width for stage in solution.stages]
    assert best == pytest.approx([10.53, 14.89, 21.06], abs=0.01)
    losses = [stage.loss for stage in solution.stages]
    assert losses == sorted(losses)
    assert 0 <= losses[0] < 1e-3
    assert losses[-1] == pytest.approx(0.035, abs=0.005)
    assert "10, 20, 40 by stage; best in each 10.5, 14.9, 21.1" in repr(solution)


@pytest.mark.parametrize("network", ["resnext11", "resnext29", "resnext38", "resnext50"])
def test_no_network_of_the_zoo_loses_a_tenth_to_one_design_for_all_stages(network):
    solution = search(network, alpha="closed_form", tolerance=0)
    assert max(stage.loss for stage in solution.stages) < 0.1


@pytest.mark.parametrize("budget", ["params", "flops"])
def test_strong_duality_and_options_hold_for_the_exact_law(budget):
    module = bottleneck(width=128)
    options = {"alpha": "closed_form", "correlation": 0.9, "budget": budget}
    primal, dual = (search(module, mode, tolerance=0, **options) for mode in ("primal", "dual"))
    assert primal.design.width == dual.design.width
    eights = search(module, multiple_of=8, **options)
    assert eights.design.width % 8 == 0
    hard = exact(hard_budget=True, budget=budget)
    count = hard.params if budget == "params" else hard.flops
    assert count <= (hard.baseline_params if budget == "params" else hard.baseline_flops)
    wide = search(module, tolerance=0.05, **options)
    assert wide.design.width > primal.design.width


def test_the_default_is_still_the_paper_s():
    assert search("resnext29").design == Design(37, 10)
    assert search("resnext29", "dual").design == Design(10, 10)


def test_correlations_without_the_closed_form_are_refused():
    with pytest.raises(ValueError, match=r"correlation: got 0\.9 with alpha=None"):
        search("resnext29", correlation=0.9)
    with pytest.raises(ValueError, match="has one position"):
        search(fully_connected(10, [5]), alpha="closed_form", correlation=0.9)


def test_the_exact_law_from_the_shell(capsys):
    command = ["search", "resnext29", "--alpha", "closed_form", "--correlation", "0.92"]
    assert main([*command, "--tolerance", "0", "--mode", "dual"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("15x10d: dual optimum of resnext29 (closed form, correlation 0.92)")
    assert ce_keras.law.ClosedFormLaw is ClosedFormLaw
