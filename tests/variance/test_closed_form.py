import numpy as np
import pytest
from brute_force import layer_kernels, position_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from ce_keras.geometry import first_order_alpha
from ce_keras.ntk import stack_kernels
from ce_keras.variance import closed_form
from ce_keras.variance.closed_form import infinite_width_kernel, kernel_moments


def assert_means(samples, expected, errors=5.0):
    """Means within five standard errors: a false alarm once in 1.7 million comparisons."""
    samples = np.asarray(samples)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert (abs(samples.mean(axis=0) - expected) <= errors * error).all()


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("widths", [[8], [6, 12], [12, 10, 16]])
def test_moments_are_those_of_drawn_networks(widths, parameterization, rng):
    x = np.ones((1, 5))
    samples = layer_kernels(x, widths, 40_000, rng, parameterization)[..., 0, 0]
    moments = kernel_moments(widths, parameterization, inputs=5)
    assert_means(samples, moments.layer_mean)
    products = samples[:, :, None] * samples[:, None, :]
    assert_means(products, moments.layer_second_moment)
    total = samples.sum(axis=1)
    assert_means(total, moments.mean)
    assert_means(total**2, moments.second_moment)


def test_the_numbers_of_small_networks():
    # By hand: one hidden unit passes x with probability 1/2, and both matrices' shares are alike.
    assert kernel_moments([1]).relative_variance == pytest.approx(3.0)
    assert kernel_moments([3, 5]).second_moment == pytest.approx(32)
    assert kernel_moments([10] * 5).second_moment == pytest.approx(176.43, abs=0.005)
    assert kernel_moments([100] * 6).second_moment == pytest.approx(60.337, abs=0.0005)


def test_one_matrix_alone_has_the_product_of_the_widths():
    moments = kernel_moments([4, 7, 9])
    expected = np.prod([1 + 5 / n for n in (4, 7, 9)]) - 1
    np.testing.assert_allclose(moments.layer_variance / moments.layer_mean**2, expected)


def test_properties_fit_together():
    moments = kernel_moments([20, 30], "standard", inputs=7)
    assert moments.variance == pytest.approx(moments.second_moment - moments.mean**2)
    assert moments.relative_variance == pytest.approx(moments.variance / moments.mean**2)


def test_many_networks_at_once_are_each_alone():
    widths = np.array([[3, 5], [1, 1], [500, 20]])
    expected = [kernel_moments(row).relative_variance for row in widths]
    np.testing.assert_allclose(closed_form.relative_variance(widths), expected, rtol=1e-12)


def test_wide_networks_keep_their_digits():
    widths = np.full(5, 10**9)
    ours = closed_form.relative_variance(widths)
    assert ours == pytest.approx(first_order_alpha(widths) * 5e-9, rel=1e-6)


def test_first_order_alpha_is_the_slope_at_wide_layers():
    for widths in ([100, 300], [50, 50, 200, 80]):
        wide = 1e4 * np.array(widths)
        slope = closed_form.relative_variance(wide) / (1 / wide).sum()
        assert first_order_alpha(widths) == pytest.approx(float(slope), rel=1e-4)


def test_wide_networks_have_the_infinitely_wide_ones_kernel(rng):
    """Draws of width 300: five standard errors, and the first order in 1/width."""
    x = rng.normal(size=(3, 6))
    kernels = stack_kernels(x, [300] * 3, 400, seed=0)
    limit = infinite_width_kernel(x, x, depth=4)
    errors = kernels.std(0) / np.sqrt(len(kernels))
    assert (abs(kernels.mean(0) - limit) < 5 * errors + 5 / 300 * limit.max()).all()
    np.testing.assert_allclose(np.diag(limit), 4 * (x**2).mean(1), rtol=1e-7)


def test_bad_inputs_of_the_infinitely_wide_kernel():
    with pytest.raises(ValueError, match=r"x1, x2: got shapes \(2,\) and \(2, 3\)"):
        infinite_width_kernel(np.ones(2), np.ones((2, 3)), 3)
    with pytest.raises(ValueError, match="depth: got 0"):
        infinite_width_kernel(np.ones((2, 3)), np.ones((2, 3)), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "widths: got"),
        (([3, 0],), "widths: got 0"),
        (([3], "mean-field"), "parameterization: got 'mean-field'"),
        (([3], "standard"), "inputs: needed"),
        (([3], "standard", 0), "inputs: got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernel_moments(*arguments)


# Several positions, other activations ------------------------------------------------------------


def patches(positions, correlation, channels=64, seed=0):
    """Vectors of mean square 1 whose pairs have this correlation, exactly."""
    gram = closed_form.gram_of(positions, correlation)
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, positions)))[0].T
    return np.sqrt(channels) * root @ basis


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_stack_has_the_moments_of_its_draws(data):
    positions = data.draw(st.integers(1, 9))
    widths = data.draw(st.lists(st.integers(3, 24), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Any Gram matrix, of unequal norms.
    x = rng.normal(size=(positions, 5)) * rng.uniform(0.3, 2, (positions, 1)) + rng.normal(size=5)
    kernels = stack_kernels(x[None], widths, 20_000, seed=rng)[:, 0, 0]
    moments = kernel_moments(widths, gram=x @ x.T / 5)
    assert_means(kernels, moments.mean)
    assert_means(kernels**2, moments.second_moment)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "linear", (1.0, -1.0), (0.5, 0.2)])
@pytest.mark.parametrize(("widths", "positions"), [([4], 3), ([3, 5], 4), ([3, 4, 6], 1)])
def test_every_layer_has_the_moments_of_networks(
    widths, positions, activation, parameterization, rng
):
    x = rng.normal(size=(positions, 6)) + 0.5
    slopes = closed_form.slopes_of(activation)
    samples = position_kernels(x, widths, slopes, 30_000, rng, parameterization)
    moments = kernel_moments(
        widths, parameterization, inputs=6, gram=x @ x.T / 6, activation=activation
    )
    assert_means(samples, moments.layer_mean)
    products = samples[:, :, None] * samples[:, None, :]
    assert_means(products, moments.layer_second_moment)


def test_one_position_is_the_product_formula_of_fully_connected_networks():
    for widths in ([3, 5], [10] * 5, [7, 3, 4, 20], [1, 1, 2]):
        n = np.array(widths, float)
        expected = np.empty((len(n) + 1,) * 2)
        for first in range(len(n) + 1):
            for last in range(len(n) + 1):
                low, high = sorted((first, last))
                between = np.prod((n[low:high] - 1) / (n[low:high] + 5))
                expected[first, last] = np.prod(1 + 5 / n) * (1 / 3 + 2 / 3 * between)
        np.testing.assert_allclose(kernel_moments(widths).layer_second_moment, expected)


@pytest.mark.parametrize(
    ("correlation", "first", "second"), [(0.0, 3.580247, 1.395062), (1.0, 58 / 9, 113 / 9)]
)
def test_the_bottleneck_block_has_two_coefficients(correlation, first, second):
    gram = closed_form.gram_of(9, correlation)
    found = closed_form.variance_coefficients([1, 1], gram)
    np.testing.assert_allclose(found, [first, second], rtol=1e-6)
    n = np.array([1.0, 2, 10, 128, 4096])
    exact = closed_form.relative_variance(np.stack([n, n], -1), gram)
    np.testing.assert_allclose(found[0] / n + found[1] / n**2, exact, rtol=1e-9)


def test_equal_positions_are_one_position():
    for activation in ("relu", "leaky_relu", "linear"):
        for widths in ([5], [3, 7], [2, 3, 4]):
            one = kernel_moments(widths, activation=activation)
            nine = kernel_moments(widths, gram=closed_form.gram_of(9, 1.0), activation=activation)
            np.testing.assert_allclose(nine.layer_second_moment, one.layer_second_moment)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.92])
def test_draws_of_the_block_are_within_five_errors_at_every_width(correlation):
    x = patches(9, correlation)
    np.testing.assert_allclose(x @ x.T / 64, closed_form.gram_of(9, correlation), atol=1e-9)
    for width in (2, 8, 32, 128):
        kernels = stack_kernels(x[None], [width, width], 20_000, seed=width)[:, 0, 0]
        moments = kernel_moments([width, width], gram=x @ x.T / 64)
        assert_means(kernels, moments.mean)
        assert_means(kernels**2, moments.second_moment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation: got 'gelu'; the closed form is for relu"),
        ({"activation": (0, 0)}, "activation: got"),
        ({"gram": [[1.0, 2.0], [2.0, 1.0]]}, "gram: no vectors have these products"),
        ({"gram": np.ones((2, 3))}, "gram: got shape"),
        ({"gram": [[0.0]]}, "gram: no vectors"),
    ],
)
def test_stacks_without_a_closed_form_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        kernel_moments([3, 5], **options)


@pytest.mark.parametrize("correlation", [1.1, -0.2, np.nan, np.ones((2, 2))])
def test_correlations_that_cannot_be(correlation):
    with pytest.raises(ValueError, match="correlation: "):
        closed_form.gram_of(9, correlation)
