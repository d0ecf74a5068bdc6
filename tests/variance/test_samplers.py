import numpy as np
import pytest
from brute_force import assert_same_means, bottleneck_kernels, layer_kernels

from ce_keras.ntk import chain_kernels, stack_kernels
from ce_keras.variance.closed_form import kernel_moments

DRAWS = 40_000


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("widths", [[1], [2, 1, 3], [6, 12], [12, 10, 16]])
def test_the_chain_has_the_exact_moments(widths, parameterization):
    kernels = chain_kernels(
        widths, 400_000, parameterization=parameterization, inputs=5, seed=sum(widths)
    )
    moments = kernel_moments(widths, parameterization, inputs=5)
    products = kernels[:, :, None] * kernels[:, None, :]
    for sample, expected in (
        (kernels, moments.layer_mean),
        (products, moments.layer_second_moment),
    ):
        # Five standard errors: a false alarm once in 1.7 million comparisons.
        error = sample.std(axis=0) / np.sqrt(len(sample))
        assert (abs(sample.mean(axis=0) - expected) <= 5 * error).all()


def test_the_chain_has_the_distribution_of_drawn_networks(rng):
    # Beyond moments: quantiles, whose standard error is sqrt(q (1 - q) / draws) in probability.
    ours = np.sort(chain_kernels([6, 12], DRAWS, seed=1).sum(axis=1))
    theirs = layer_kernels(np.ones((1, 4)), [6, 12], DRAWS, rng)[..., 0, 0].sum(axis=1)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        reached = np.searchsorted(ours, np.quantile(theirs, q)) / DRAWS
        assert abs(reached - q) <= 5 * np.sqrt(2 * q * (1 - q) / DRAWS)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("widths", [[4], [3, 5], [12, 10, 16], [2, 1, 8]])
def test_several_inputs_have_the_moments_of_drawn_networks(widths, parameterization, rng):
    x = rng.normal(size=(3, 5))
    ours = stack_kernels(x, widths, DRAWS, parameterization=parameterization, seed=0)
    theirs = layer_kernels(x, widths, DRAWS, rng, parameterization).sum(axis=1)
    assert_same_means(ours, theirs)
    products = [k.reshape(DRAWS, 9, 1) * k.reshape(DRAWS, 1, 9) for k in (ours, theirs)]
    assert_same_means(*products)


def test_inputs_that_depend_on_each_other(rng):
    # Twice the same input, and one of zeros: the activations span fewer directions than inputs.
    x = rng.normal(size=(1, 5)) * np.array([[1.0], [1.0], [2.0], [0.0]])
    kernels = stack_kernels(x, [6, 7], 2000, seed=0)
    np.testing.assert_allclose(kernels[:, 0, 0], kernels[:, 0, 1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(2 * kernels[:, 0, 1], kernels[:, 0, 2], rtol=1e-3, atol=1e-4)
    assert (kernels[:, 3] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 8])
def test_the_bottleneck_has_the_moments_of_drawn_blocks(width, rng):
    x = rng.normal(size=(2, 9, 6))
    ours = stack_kernels(x, [width, width], DRAWS, seed=0)
    theirs = bottleneck_kernels(x, width, DRAWS, rng)
    assert_same_means(ours, theirs)
    assert_same_means(ours**2, theirs**2)


def test_one_input_by_either_sampler(rng):
    x = np.ones((1, 5))
    assert_same_means(
        stack_kernels(x, [6, 4], DRAWS, seed=0)[:, 0, 0] ** 2,
        chain_kernels([6, 4], DRAWS, seed=1).sum(axis=1) ** 2,
    )


def test_the_same_seed_gives_the_same_draws():
    for draw in (
        lambda seed: chain_kernels([5, 3], 100, seed=seed),
        lambda seed: stack_kernels(np.eye(2), [5, 3], 100, seed=seed),
    ):
        np.testing.assert_array_equal(draw(3), draw(3))
        assert (draw(3) != draw(4)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), [4], 5), "x: got shape"),
        ((np.ones((2, 3)), [], 5), "widths: got"),
        ((np.ones((2, 3)), [0], 5), "widths: got 0"),
        ((np.ones((2, 3)), [4], 0), "draws: got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        stack_kernels(*arguments)


@pytest.mark.parametrize("exponent", [-100, 70])
def test_inputs_of_any_size_scale_the_kernel(exponent, rng):
    x = rng.normal(size=(2, 8))
    kernels, scaled = (stack_kernels(each, [8, 8], 4, seed=0) for each in (x, x * 2.0**exponent))
    np.testing.assert_array_equal(scaled, kernels * 2.0 ** (2 * exponent))
