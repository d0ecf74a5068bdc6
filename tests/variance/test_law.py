import numpy as np
import pytest

from ce_keras import law


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
