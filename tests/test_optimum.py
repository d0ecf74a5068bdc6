import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ce_keras import geometry, law
from ce_keras.geometry import Design, Module, bottleneck, conv, dense, fully_connected
from ce_keras.optimum import search


@pytest.mark.parametrize(
    ("baseline", "mode", "design"),
    [
        ("resnext29", "primal", "37x10d"),
        ("resnext29-1x226d", "primal", "101x10d"),
        ("resnext50", "primal", "12x10d"),
        ("resnext50-1x64d", "primal", "12x10d"),
        ("resnext101", "primal", "12x10d"),
        ("resnext29", "dual", "10x10d"),
        ("resnext29-1x226d", "dual", "14x10d"),
    ],
)
def test_the_papers_optima_by_default(baseline, mode, design):
    assert str(search(baseline, mode).design) == design


@pytest.mark.parametrize(
    ("baseline", "design", "multiplicity"),
    [
        ("resnext29", "10x10d", 9.93),
        ("resnext29", "8x12d", 8.21),
        ("resnext29-1x226d", "14x10d", 14.2),
        ("resnext29-1x226d", "6x25d", 5.66),
        ("resnext29-1x226d", "3x58d", 2.64),
        ("resnext29-1x226d", "2x98d", 1.74),
        ("resnext50", "3x23d", 2.52),
        ("resnext50", "4x16d", 3.60),
        ("resnext50", "5x12d", 4.82),
        ("resnext101", "5x12d", 4.82),
    ],
)
def test_the_papers_dual_multiplicities_at_a_given_width(baseline, design, multiplicity):
    solution = search(baseline, "dual", widths=[Design.parse(design).width])
    assert str(solution.design) == design
    assert solution.multiplicity == pytest.approx(multiplicity, abs=0.051)


@pytest.mark.parametrize(
    ("baseline", "design"),
    [("resnext50", "15x8d"), ("resnext101", "15x8d")],
)
def test_the_papers_neighbours_on_the_primal_curve(baseline, design):
    assert str(search(baseline, widths=[Design.parse(design).width]).design) == design


def test_figure_3():
    primal = search("figure3", "primal", tolerance=0)
    dual = search("figure3", "dual", tolerance=0)
    assert str(primal.design) == "30x48d"
    assert str(dual.design) == "12x48d"
    assert primal.multiplicity == pytest.approx(30.4, abs=0.05)
    assert dual.unrounded_rho == pytest.approx(2.45, abs=0.01)


def test_figure_3s_law_is_six_terms_of_alpha_307():
    module = geometry.baseline("figure3")
    for n in (10, 48, 500):
        assert module.alpha * module.inverse_fan_in(n) == pytest.approx(3.07 * 6 / n)


def test_table_1s_efficiency_is_that_of_the_whole_network():
    assert search("resnext29", "dual").rho == pytest.approx(3.3, abs=0.05)
    assert search("resnext29-1x226d", "dual").rho == pytest.approx(6.5, abs=0.051)


def test_the_minimum_is_flat_and_the_widest_near_it_is_taken():
    bare = search("resnext29", tolerance=0)
    assert bare.design.width == 7
    assert [design.width for design in search("resnext29").near_optimal()] == list(range(5, 11))
    assert [design.width for design in bare.near_optimal()] == [7]
    assert len(bare.near_optimal(0.1)) > len(bare.near_optimal(0.02))


modules = st.builds(
    lambda channels, kernels, width: Module(
        "random",
        width,
        lambda n: [
            conv(channels, n),
            *(conv(n, n, kernel) for kernel in kernels),
            conv(n, channels),
        ],
    ),
    channels=st.integers(1, 2000),
    kernels=st.lists(st.integers(1, 7), max_size=6),
    width=st.integers(2, 300),
) | st.builds(
    fully_connected,
    inputs=st.integers(1, 3000),
    widths=st.lists(st.integers(1, 400), min_size=1, max_size=8),
)
alphas = st.floats(0.01, 20)


@settings(deadline=None)  # A loaded machine is slow.
@given(modules, alphas, st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from(["params", "flops"]))
def test_strong_duality(module, alpha, tolerance, budget):
    primal, dual = (
        search(module, mode, alpha=alpha, tolerance=tolerance, budget=budget)
        for mode in ("primal", "dual")
    )
    # The two objectives are one quantity, computed in two ways: equal but for rounding, which
    # can decide only between widths that are level to the last few bits.
    product = law.variance(alpha, module.inverse_fan_in(primal.curve.width))
    product = product * getattr(module, budget)(1, primal.curve.width)
    if primal.design.width != dual.design.width:
        bound = (1 + tolerance) * product.min()
        wider = max(primal.design.width, dual.design.width)
        assert product[wider - 1] == pytest.approx(bound, rel=1e-12)


@settings(deadline=None)  # A loaded machine is slow.
@given(modules, alphas)
def test_the_constraints_hold_before_rounding(module, alpha):
    primal, dual = (search(module, mode, alpha=alpha) for mode in ("primal", "dual"))
    n, base = primal.curve.width, module.width
    np.testing.assert_allclose(primal.curve.m * module.params(1, n), module.params(1, base))
    finite = np.isfinite(dual.curve.m)
    np.testing.assert_allclose(
        law.variance(alpha, module.inverse_fan_in(n))[finite] / dual.curve.m[finite],
        law.variance(alpha, module.inverse_fan_in(base)),
    )


@settings(deadline=None)  # A loaded machine is slow.
@given(modules, alphas)
def test_the_baseline_itself_is_on_both_curves(module, alpha):
    for mode in ("primal", "dual"):
        curve = search(module, mode, alpha=alpha).curve
        assert curve.m[-1] == pytest.approx(1)
        assert curve.cardinality[-1] == 1
        assert curve.rho[-1] == pytest.approx(1)


def test_primal_cardinality_is_the_integer_nearest_the_baselines_parameters():
    network = geometry.baseline("resnext29")
    m, n = search(network).design
    distances = {k: abs(network.params(k, n) - network.params(1, 128)) for k in (m - 1, m, m + 1)}
    assert min(distances, key=distances.get) == m


@pytest.mark.parametrize("budget", ["params", "flops"])
@pytest.mark.parametrize("name", ["resnext29", "resnext50"])
def test_no_design_is_above_a_hard_budget(name, budget):
    nearest = search(name, budget=budget)
    hard = search(name, budget=budget, hard_budget=True)

    def cost(solution):
        curve = solution.curve
        return curve.parameters if budget == "params" else curve.flops

    most = cost(hard)[-1]  # The baseline: one path of its own width.
    assert (cost(nearest) > most).any(), "or there would be nothing to keep"
    assert (cost(hard) <= most).all()
    assert set(nearest.curve.cardinality - hard.curve.cardinality) == {0, 1}
    built = hard.curve.variance / hard.curve.cardinality * hard.curve.m
    np.testing.assert_allclose(built, hard.curve.variance)
    assert hard.variance <= 1.02 * built.min()
    dual = search(name, "dual", hard_budget=True)
    assert dual.to_dict() == search(name, "dual").to_dict(), "a dual's cost is what it minimises"


def test_flops_budget_matches_flops():
    solution = search("resnext29", budget="flops")
    path = solution.flops - geometry.baseline("resnext29").flops(
        solution.design.cardinality - 1, solution.design.width
    )
    assert abs(solution.flops - solution.baseline_flops) <= path / 2
    assert solution.rho == pytest.approx(solution.baseline_flops / solution.flops)


def test_a_callable_budget_that_counts_parameters_is_the_parameter_budget():
    network = geometry.baseline("resnext29")
    block = bottleneck(256, 128)
    for mode in ("primal", "dual"):
        by_name = search(block, mode)
        by_function = search(block, mode, budget=lambda m, n: float(block.params(m, n)))
        assert by_function.design == by_name.design
        assert by_function.rho == pytest.approx(by_name.rho)
        np.testing.assert_allclose(by_function.curve.m, by_name.curve.m)
    whole = search(network, budget=lambda m, n: float(network.params(m, n)), widths=[10])
    assert whole.multiplicity == pytest.approx(37.09, abs=0.01)


def test_a_callable_budget_may_be_any_growing_cost():
    # A path costs at least one unit: latency that saturates for narrow paths.
    solution = search(bottleneck(256, 128), budget=lambda m, n: m * max(20, n))
    assert solution.design.width >= 16
    assert solution.design.cardinality * max(20, solution.design.width) <= 128 + 20


def test_multiple_of_keeps_widths_that_hardware_likes():
    solution = search("resnext29", multiple_of=8)
    assert set(solution.curve.width % 8) == {0}
    assert solution.design.width == 8


def test_widths_and_multiple_of_combine():
    solution = search("resnext29", widths=range(20, 50), multiple_of=16)
    assert solution.curve.width.tolist() == [32, 48]


def test_curve_has_an_entry_for_every_width():
    solution = search("resnext29")
    assert len(solution.curve) == 128
    for name in ("m", "objective", "rho", "variance", "cardinality", "parameters", "flops"):
        values = getattr(solution.curve, name)
        assert values.shape == (128,)
        assert np.isfinite(values).all()
    index = solution.design.width - 1
    assert solution.curve.cardinality[index] == solution.design.cardinality
    assert solution.curve.parameters[index] == solution.params


def test_solution_reports_the_real_network():
    network = geometry.baseline("resnext29")
    solution = search(network, "dual")
    assert solution.params == network.params(10, 10) == 4_223_986
    assert solution.flops == network.flops(10, 10)
    assert solution.baseline_params == 13_775_178
    assert solution.rho == pytest.approx(13_775_178 / 4_223_986)
    variance = law.variance(1.6, bottleneck().inverse_fan_in(10), 10)
    assert solution.variance == pytest.approx(variance)
    # Ten paths, not 9.93: as smooth as the baseline, to the rounding.
    assert solution.variance == pytest.approx(solution.baseline_variance * 9.93 / 10, rel=1e-3)


def test_repr_and_html_tell_the_answer():
    solution = search("resnext29", "dual")
    for text in (repr(solution), solution._repr_html_()):
        for word in ("10x10d", "dual", "resnext29", "4,223,986", "13,775,178", "9.93", "3.26"):
            assert word in text
    assert solution._repr_html_().startswith("<table>")


def test_to_dict_is_json_and_complete():
    content = json.loads(json.dumps(search("resnext29", "dual").to_dict(), allow_nan=False))
    assert content["design"] == "10x10d"
    assert content["cardinality"] == content["width"] == 10
    assert content["baseline"] == "resnext29-1x128d"
    assert content["near_optimal"][-1] == "10x10d"


def test_a_module_without_a_known_alpha_asks_for_one():
    module = Module("mine", 8, lambda n: [conv(8, n), conv(n, 8)])
    with pytest.raises(ValueError, match="alpha: none given and none known for 'mine'"):
        search(module)
    assert search(module, alpha=2.0).alpha == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, r"alpha: got -1.0; it must be a positive number"),
        ({"alpha": 0.0}, "alpha: got 0.0"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"mode": "both"}, "mode: got 'both'; it must be one of 'primal', 'dual'"),
        ({"tolerance": -0.1}, "tolerance: got -0.1"),
        ({"widths": [10, 129]}, "widths: got 129; widths are 1 to 128"),
        ({"widths": [0]}, "widths: got 0"),
        ({"widths": []}, "widths: no width is left"),
        ({"widths": [2.5]}, "widths: got .* whole numbers"),
        ({"multiple_of": 0}, "multiple_of: got 0"),
        ({"multiple_of": 200}, "widths: no width is left.*multiple_of=200"),
        ({"budget": "time"}, "budget: got 'time'; it must be one of 'params', 'flops', 'latency'"),
        ({"budget": ()}, "budget: got .*name one cost"),
        ({"target": 0.5, "mode": "dual"}, "target: got 0.5 with mode='dual'"),
        ({"target": 0.5, "target_params": 10**6}, "give one of them"),
        ({"target_params": 10**6, "budget": "flops"}, "target_params: .* budget is 'flops'"),
        ({"target_params": 600_000}, "target_params: no design .* smallest, 1x1d, costs 728341"),
        ({"family": "dense*"}, "family: got 'dense"),
        ({"dtype": "float32"}, "dtype: got 'float32'"),
        ({"budget": lambda m, n: -1.0}, "budget: the cost of 1x128d is -1.0"),
        ({"alpha": "1.6"}, "alpha: got '1.6'"),
        ({"alpha": 1e5}, "alpha: too large: with alpha = 1e.05"),
        ({"tolerance": None}, "tolerance: got None"),
        ({"multiple_of": 1.5}, "multiple_of: got 1.5"),
        ({"budget": lambda m, n: None}, "budget: the cost of 1x128d is None"),
        ({"budget": lambda m, n: 1.0 if n == 128 else 9.0, "widths": [4, 8]}, "no design of width"),
        (
            {"budget": lambda m, n: 1.0 if n == 128 else 1.9 * m, "widths": [8]},
            "no design of width",
        ),
        ({"budget": lambda m, n: 1e6 / (m * n), "mode": "dual"}, "must not fall"),
        ({"budget": lambda m, n: float(n)}, "must grow with cardinality"),
    ],
)
def test_bad_input_raises_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        search("resnext29", **arguments)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"resnext30.*did you mean.*resnext38"):
        search("resnext30")
    with pytest.raises(ValueError, match="baseline: got 3"):
        search(3)


def test_near_optimal_refuses_a_negative_tolerance():
    with pytest.raises(ValueError, match="tolerance"):
        search("resnext29").near_optimal(-1)


def test_very_deep_and_narrow_paths_saturate():
    solution = search(fully_connected(10, [64] * 300), "dual")
    assert solution.curve.m[0] == np.inf
    assert solution.curve.cardinality[0] == 2**31
    assert solution.design.width > 16


def test_a_width_that_is_not_buildable_is_never_the_answer():
    with pytest.raises(ValueError, match="no design of widths 1 to 1"):
        search("figure3", "dual", alpha=100.0, widths=[1])


def test_a_law_or_a_cost_that_does_not_depend_on_the_width():
    constant = Module("constant", 16, lambda n: [dense(10, n)], 2.0)
    assert search(constant, "primal").design == Design(16, 1)
    assert search(constant, "dual").design == Design(1, 1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (lambda n: [dense(10, max(n // 2, 1))], "path: that of 'bad' fails .*write np.maximum"),
        (lambda n: [], "path: that of 'bad' has no layers"),
    ],
)
def test_bad_paths(path, message):
    with pytest.raises(ValueError, match=message):
        search(Module("bad", 16, path, 2.0))


@pytest.mark.parametrize("name", ["resnext29", "figure3"])
def test_solutions_cross_processes(name):
    solution = search(name, "dual")
    copy = pickle.loads(pickle.dumps(solution))
    assert copy.to_dict() == solution.to_dict()
    assert repr(copy) == repr(solution)
    assert solution == solution  # noqa: PLR0124 (comparing arrays must not be attempted)
    assert len({solution, copy}) == 2


# Sizes. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["params", "flops"])
def test_a_target_is_the_smoothest_design_of_that_size(budget):
    network = geometry.baseline("resnext29")
    whole, half = search(network, budget=budget), search(network, budget=budget, target=0.5)
    assert half.design.width == whole.design.width, "the best width does not depend on the size"
    cost = getattr(network, budget)
    path = cost(2, half.design.width) - cost(1, half.design.width)
    assert abs(cost(*half.design) - 0.5 * cost(1, 128)) <= path / 2
    assert f"0.5 of the {'parameters' if budget == 'params' else 'FLOPs'}" in repr(half)
    hard = search(network, budget=budget, target=0.5, hard_budget=True)
    assert cost(*hard.design) <= 0.5 * cost(1, 128)


def test_a_number_of_parameters_is_a_target():
    solution = search("resnext29", target_params=2_000_000, hard_budget=True, tolerance=0)
    network = geometry.baseline("resnext29")
    # Against every design there is of that size.
    n, m = np.meshgrid(np.arange(1, 129), np.arange(1, 200))
    variances = law.variance(1.6, bottleneck(width=128).inverse_fan_in(n), m)
    least = variances[network.params(m, n) <= 2_000_000].min()
    assert solution.variance == pytest.approx(least)


def test_several_budgets_are_all_kept():
    network = geometry.baseline("resnext29")
    both = search(network, budget=("params", "flops"), hard_budget=True)
    assert both.params <= both.baseline_params
    assert both.flops <= both.baseline_flops
    assert both.budget == "parameters and FLOPs"
    single = [search(network, budget=name, hard_budget=True) for name in ("params", "flops")]
    assert both.variance >= max(each.variance for each in single) * 0.97
    dual = search(network, "dual", budget=("params", "flops"))
    least = min(dual.baseline_params / dual.params, dual.baseline_flops / dual.flops)
    assert dual.rho == pytest.approx(least)


def test_what_cannot_be_built_is_not_near_the_optimum():
    found = search("resnext29", target=0.06, hard_budget=True)
    near = found.near_optimal()
    assert found.design in near
    network = geometry.baseline("resnext29")
    assert all(network.params(*each) <= 0.06 * network.params(1, 128) for each in near)
    soft = search("resnext29", target=0.06)
    assert soft.design in soft.near_optimal()


def test_a_law_of_large_errors_keeps_to_what_can_be_built():
    curve = {1: (50, 1.0), 8: (1, 0.01), 64: (0.2, 0.01), 128: (0.1, 40)}
    network = geometry.baseline("resnext29")
    found = search("resnext29", law=curve, target=0.3)
    assert network.params(*found.design) < 0.35 * network.params(1, 128)


def test_tables_may_begin_between_widths():
    assert search("resnext29", law={1.5: 3.0, 128: 0.1}).curve.width[0] == 2


def test_sizes_of_any_number_are_a_target():
    network = geometry.baseline("resnext29-1x8192d")
    found = search("resnext29-1x8192d", target_params=5_000_000_000)
    assert network.params(*found.design) == pytest.approx(5e9, rel=0.01)


def test_constants_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="alpha: got 1e-320; it must be a positive number"):
        search("resnext29", "dual", alpha=1e-320)
