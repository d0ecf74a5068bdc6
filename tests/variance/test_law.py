import itertools

import numpy as np
import pytest

from ce_keras import law, search
from ce_keras.geometry import bottleneck
from ce_keras.ntk import fit_alpha
from ce_keras.variance.law import ClosedFormLaw, PolynomialLaw


def test_variance_is_the_second_moment_less_one():
    s = np.linspace(0.01, 2, 50)
    np.testing.assert_allclose(law.variance(1.6, s), np.exp(1.6 * s) - 1, rtol=1e-13)
    np.testing.assert_allclose(law.second_moment(1.6, s), np.exp(1.6 * s), rtol=1e-15)


def test_independent_paths_divide_the_variance():
    assert law.variance(1.6, 0.3, cardinality=10) == pytest.approx(law.variance(1.6, 0.3) / 10)
    assert law.second_moment(1.6, 0.3, 10) == pytest.approx(1 + law.variance(1.6, 0.3, 10))


def test_small_exponents_keep_their_digits():
    assert law.variance(1.0, 1e-12) == pytest.approx(1e-12, rel=1e-9)


def test_deep_narrow_paths_have_infinite_variance_not_a_warning():
    assert law.variance(3.4, np.array([1000.0])) == np.inf


def test_means_of_independent_draws_follow_the_law(rng):
    # A log-normal has exactly the moments of the law: check the division by m on draws.
    s, m, draws = 0.2, 8, 200_000
    sigma = np.sqrt(1.6 * s)
    kernels = rng.lognormal(-(sigma**2) / 2, sigma, (draws, m)).mean(axis=1)
    expected = law.variance(1.6, s, m)
    squares = (kernels - kernels.mean()) ** 2
    # Four standard errors: a false alarm once in 16,000 seeds.
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(draws)


# Polynomials in 1 / width ------------------------------------------------------------------------

NARROW = np.array([1, 2, 3, 4, 6, 8, 12, 16])
WIDE = np.array([32, 64, 128, 256])


def test_a_fit_of_narrow_blocks_predicts_wide_ones_within_its_errors():
    fit = fit_alpha(bottleneck(width=256), ratios=NARROW / 256, draws=20_000, seed=0)
    polynomial = fit.polynomial
    exact = ClosedFormLaw(bottleneck(width=256), correlation=0.0).path_variance(WIDE)
    gap = abs(polynomial.path_variance(WIDE) - exact)
    assert (gap < 4 * polynomial.error(WIDE)).all()
    assert (gap < 0.02 * exact).all()
    # Where the exponential law, with its own constant, is off by a half.
    law = np.expm1(fit.alpha * bottleneck().inverse_fan_in(WIDE))
    assert (abs(law / exact - 1) > 0.3).any()


def test_errors_are_those_of_repeated_fits():
    rng = np.random.default_rng(0)
    exact, errors = 3 / NARROW + 5 / NARROW**2, np.full(len(NARROW), 0.02)
    laws = [PolynomialLaw(NARROW, rng.normal(exact, errors), errors) for _ in range(400)]
    laws = [law for law in laws if len(law.coefficients) == 2]
    assert len(laws) > 300
    spread = np.std([law.path_variance(WIDE) for law in laws], axis=0)
    # A standard deviation from n draws is uncertain by one part in sqrt(2 n).
    np.testing.assert_allclose(laws[0].error(WIDE), spread, rtol=5 / np.sqrt(2 * len(laws)))
    relative = np.std([np.log(law.path_variance(8) / law.path_variance(64)) for law in laws])
    found = laws[0].log_error(np.array(8), 64)
    assert found == pytest.approx(relative, rel=5 / np.sqrt(2 * len(laws)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_is_the_lowest_that_fits(order):
    coefficients = [4.0, 9.0, 30.0][:order]
    variance = sum(c / NARROW.astype(float) ** k for k, c in enumerate(coefficients, start=1))
    wanted = [*coefficients, 0.0][: max(order, 2)]  # Two terms at least.
    law = PolynomialLaw(NARROW, variance, 0.001 * variance)
    np.testing.assert_allclose(law.coefficients, wanted, rtol=1e-6, atol=1e-6)
    exact = PolynomialLaw(NARROW, variance, np.zeros(len(NARROW)))
    np.testing.assert_allclose(exact.coefficients, wanted, rtol=1e-4, atol=1e-4)


def test_a_search_takes_a_fit_as_its_law():
    fit = fit_alpha(bottleneck(width=64), draws=2000, seed=0)
    solution = search(bottleneck(width=64), law=fit)
    assert solution.law == fit.polynomial.name
    assert "/n + " in solution.law
    assert solution.alpha is None
    again = search(bottleneck(width=64), law=lambda n: float(fit.polynomial.path_variance(n)))
    np.testing.assert_allclose(solution.curve.variance, again.curve.variance)
    assert solution.curve.log_error.max() > 0


@pytest.mark.parametrize("seed", range(12))
def test_a_search_by_a_fit_comes_near_the_exact_design(seed):
    """The exact optimum at independent positions, which the sampler draws, is 7 wide."""
    block = bottleneck(width=128)
    design = search(block, law=fit_alpha(block, seed=seed)).design
    exact = ClosedFormLaw(block, 0.0)
    variance = exact.path_variance(np.array([design.width, 7])) / np.array([design.cardinality, 53])
    # Of all widths within the errors of the fit, the widest is taken.
    assert variance[0] < 1.35 * variance[1]


def test_no_fit_of_few_draws_gives_a_negative_variance():
    block = bottleneck(width=128)
    for seed in range(12):
        law = fit_alpha(block, draws=300, seed=seed).polynomial
        assert (law.path_variance(np.arange(1, 129)) > 0).all()
        for mode in ("primal", "dual"):
            assert search(block, mode, law=law.path_variance).design.cardinality >= 1


def test_variances_that_are_none_are_refused():
    for variance in ([1.0, -1.0, 2.0], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match=r"variance: got .* above 0"):
            PolynomialLaw([1, 2, 3], variance, [0.1, 0.1, 0.1])


def test_a_fit_is_the_best_of_all_that_leave_terms_out():
    """The fit is compared with those to every subset of four terms, without negative ones."""
    rng = np.random.default_rng(3)
    width = np.array([2.0, 3.0, 5.0, 8.0, 16.0, 64.0])
    for _ in range(50):
        true = rng.exponential(size=4) * 10.0 ** np.arange(4) * (rng.random(4) < 0.5)
        true[0] += 1.0
        design = width[:, None] ** -np.arange(1.0, 5.0)
        error = 0.05 * (design @ true + 0.1)
        target = design @ true + error * rng.standard_normal(6)
        design, target = design / error[:, None], target / error
        found = law._fit(design, target)[0]
        best = min(
            np.sum((design[:, kept] @ solution - target) ** 2)
            for size in range(1, 5)
            for kept in map(list, itertools.combinations(range(4), size))
            if ((solution := np.linalg.lstsq(design[:, kept], target)[0]) >= 0).all()
        )
        assert np.sum((design @ found - target) ** 2) <= best * (1 + 1e-6)


def test_errors_of_a_law_that_does_not_fit_are_enlarged(rng):
    n = np.geomspace(1, 64, 10)
    wrong = PolynomialLaw(n, 1 / np.sqrt(n), np.full(10, 1e-4))
    gap = abs(wrong.path_variance(n) - 1 / np.sqrt(n))
    assert wrong.chi_square > 1e3 * wrong.degrees_of_freedom
    # Near the size of the gaps; the given errors are a thousand times smaller.
    assert np.median(gap / wrong.error(n)) < 30


@pytest.mark.parametrize("error", [np.inf, np.nan, -1.0])
def test_errors_of_a_table_are_numbers(error):
    with pytest.raises(ValueError, match=r"law: got .* for width 8"):
        search("resnext29", law={1: 3.0, 8: (1.0, error), 128: 0.1})
