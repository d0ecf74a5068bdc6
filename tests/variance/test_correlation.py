"""Correlations of neighbouring positions, against patches that are taken one by one."""

import keras
import numpy as np
import pytest
from keras import layers

import ce_keras
from ce_keras.variance import measure_correlation
from ce_keras.variance.correlation import mean_correlation


def block_model(size=6):
    image = keras.Input((size, size, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(3, 1, name="conv2_block1_1_conv")(x)
    y = layers.Conv2D(3, 3, padding="same", name="conv2_block1_2_conv")(y)
    y = layers.Conv2D(5, 1, name="conv3_block1_1_conv")(y)
    return keras.Model(image, y)


def test_a_gram_matrix_is_the_mean_over_all_whole_patches(rng):
    model = block_model()
    images = rng.normal(size=(3, 6, 6, 2)).astype("float32")
    measured = measure_correlation(model, images, batch_size=2)
    x = keras.Model(model.input, model.get_layer("stem").output)(images).numpy().astype(float)
    sums = np.zeros((9, 9))
    for image in x:
        for top in range(4):
            for left in range(4):
                patch = image[top : top + 3, left : left + 3].reshape(9, -1)
                sums += patch @ patch.T
    expected = 9 * sums / np.trace(sums)
    np.testing.assert_allclose(measured.first, expected, rtol=1e-5)
    assert list(measured.blocks) == ["conv2_block1_1_conv", "conv3_block1_1_conv"]
    assert len(measured.stages) == 2
    assert "conv2_block1_1_conv" in repr(measured)


def test_constant_images_are_fully_correlated():
    model = keras.Sequential(
        [keras.Input((5, 5, 3)), layers.Conv2D(4, 1, name="a_1_conv"), layers.Conv2D(4, 3)]
    )
    images = np.ones((2, 5, 5, 3)) * np.arange(1, 4)
    assert mean_correlation(measure_correlation(model, images).first) == pytest.approx(1)


def test_a_network_of_the_zoo_is_measured_and_searched_by():
    images = ce_keras.training.load_fashion_mnist()[0].images[:32].astype(float)
    measured = measure_correlation("resnext11", images / images.std())
    assert len(measured.stages) == 3
    for gram in measured.stages:
        np.testing.assert_allclose(np.trace(gram), 9)
        assert 0.1 < mean_correlation(gram) < 1
    solution = ce_keras.search("resnext11", alpha="closed_form", correlation=measured, tolerance=0)
    same = ce_keras.search(
        "resnext11", alpha="closed_form", correlation=measured.first, tolerance=0
    )
    assert solution.design == same.design
    assert solution.best_width == pytest.approx(same.best_width)
    assert len(solution.stages) == 3
    assert solution.stages[1].best_width != same.stages[1].best_width


def test_a_model_without_such_layers_says_so():
    model = keras.Sequential([keras.Input((5, 5, 3)), layers.Conv2D(4, 1)])
    with pytest.raises(ValueError, match=r"layers: .* has none of the name '\*_1_conv'"):
        measure_correlation(model, np.ones((1, 5, 5, 3)))


def test_images_that_reach_no_layer_are_refused():
    with pytest.raises(ValueError, match=r"images: with them, all inputs of .* are zero"):
        measure_correlation("resnext11", np.zeros((2, 28, 28, 1)))
