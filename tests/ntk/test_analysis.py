"""Spectrum and alignment of kernels."""

import numpy as np
import pytest

from ce_keras.ntk import (
    alignment,
    condition_number,
    empirical_ntk,
    label_alignment,
    spectrum,
)


def positive(rng, n=6):
    features = rng.normal(size=(n, 20))
    return features @ features.T


def test_the_spectrum_has_the_singular_values(rng):
    kernel = positive(rng)
    np.testing.assert_allclose(spectrum(kernel), np.linalg.svd(kernel)[1])
    assert condition_number(kernel) == pytest.approx(np.linalg.cond(kernel))
    assert condition_number(np.ones((3, 3))) == np.inf


def test_the_spectrum_of_all_logits(model, rng):
    x = rng.normal(size=(4, 6, 6, 2)).astype("float32")
    kernel = empirical_ntk(model, x, trace_axes=())
    values = spectrum(kernel)
    assert len(values) == 12
    traced = empirical_ntk(model, x)
    assert values.sum() == pytest.approx(3 * np.trace(traced), rel=1e-5)


def test_alignment_is_the_cosine(rng):
    a, b = positive(rng), positive(rng)
    expected = np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]
    centring = np.eye(6) - 1 / 6
    centred = [centring @ kernel @ centring for kernel in (a, b)]
    assert alignment(*centred) == pytest.approx(alignment(a, b, centred=True))
    assert alignment(a, 3 * a) == pytest.approx(1)
    assert alignment(a - a.mean(), b - b.mean()) == pytest.approx(expected)


def test_labels_align_with_a_kernel_that_knows_them(rng):
    labels = np.repeat([0, 1, 2], 10)
    features = np.eye(3)[labels] + 0.1 * rng.normal(size=(30, 3))
    kernel = features @ features.T
    assert label_alignment(kernel, labels) > 0.9
    assert label_alignment(kernel, rng.permutation(labels)) < 0.5
    one_hot = np.eye(3)[labels]
    assert label_alignment(kernel, one_hot) == pytest.approx(label_alignment(kernel, labels))
