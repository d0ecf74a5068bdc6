"""Layer normalisation by path, against Keras' of each path."""

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.layers import CollegialLayerNormalization


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")  # Keras deprecates it.
@pytest.mark.parametrize("rms_scaling", [False, True])
def test_every_path_is_normalised_as_keras_does_it(rms_scaling, rng):
    x = rng.normal(1, 2, size=(3, 4, 10)).astype("float32")
    ours = CollegialLayerNormalization(2, rms_scaling=rms_scaling)
    theirs = layers.LayerNormalization(rms_scaling=rms_scaling)
    expected = np.concatenate([theirs(x[..., :5]), theirs(x[..., 5:])], -1)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-5, atol=1e-6)
    again = CollegialLayerNormalization.from_config(ours.get_config())
    np.testing.assert_allclose(again(x), expected, rtol=1e-5, atol=1e-6)
    assert keras.ops.shape(ours.gamma) == (10,)
