import numpy as np
import pytest
from keras import Input, Sequential, layers

from ce_keras.layers import CollegialConv2D
from ce_keras.litert import converted, runner


@pytest.fixture(scope="module")
def model():
    convolution = CollegialConv2D(16, 3, cardinality=4, activation="relu")
    rest = [layers.BatchNormalization(), layers.GlobalAveragePooling2D(), layers.Dense(5)]
    return Sequential([Input((8, 8, 8)), convolution, *rest])


@pytest.mark.slow  # Two conversions.
def test_outputs_are_the_models_to_rounding_and_in_int8_nearly(model, rng):
    images = rng.normal(size=(40, 8, 8, 8)).astype("float32")
    expected = model.predict(images[:2], verbose=0)
    exact = runner(converted(model, (8, 8, 8), batch=2), threads=2)(images[:2])
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-6)
    content = converted(model, (8, 8, 8), batch=2, images=images)
    rounded = runner(content)(images[:2])
    # Steps of 1/127 of the largest, in weights and features: some percent in all.
    assert 0 < np.linalg.norm(rounded - expected) < 0.1 * np.linalg.norm(expected)


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match="batch: got 0"):
        converted(model, (8, 8, 8), batch=0)
    with pytest.raises(ValueError, match="threads: got 'two'"):
        runner(b"", threads="two")
