import keras
import numpy as np
import pytest
import tensorflow as tf

from ce_keras.geometry import bottleneck
from ce_keras.layers import collegial_bottleneck


def block(**options):
    arguments = {"filters": 32, "cardinality": 4, "width": 3, "name": "b", **options}
    inputs = keras.Input((8, 8, arguments.pop("inputs", 32)))
    return keras.Model(inputs, collegial_bottleneck(inputs, **arguments))


def test_convolutions_are_the_geometrys_module():
    model = block()
    kernels = [weight for weight in model.weights if weight.name == "kernel"]
    assert [tuple(kernel.shape) for kernel in kernels] == [
        (1, 1, 32, 12),
        (3, 3, 3, 12),
        (1, 1, 12, 32),
    ]
    assert sum(np.prod(kernel.shape) for kernel in kernels) == bottleneck(32).params(4, 3)


def test_shortcut_is_projected_only_where_shapes_change():
    names = [[layer.name for layer in model.layers] for model in (block(), block(inputs=16))]
    assert "b_0_conv" not in names[0]
    assert "b_0_conv" in names[1]
    assert "b_0_conv" in [layer.name for layer in block(strides=2).layers]


def test_the_block_is_a_sum_of_independent_paths(rng):
    # Built by hand from one-path convolutions, normalisation at its initial statistics.
    model = block()
    x = rng.standard_normal((2, 8, 8, 32)).astype("float32")
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    scale = 1 / np.sqrt(1 + 1e-5)
    total = 0
    for path in range(4):
        part = slice(3 * path, 3 * path + 3)
        y = tf.nn.relu(scale * tf.nn.conv2d(x, weights["b_1_conv"][0][..., part], 1, "SAME"))
        y = tf.nn.relu(scale * tf.nn.conv2d(y, weights["b_2_conv"][0][..., part], 1, "SAME"))
        total += tf.nn.conv2d(y, weights["b_3_conv"][0][:, :, part], 1, "SAME")
    expected = tf.nn.relu(x + scale * total)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_initial_branch_variance_does_not_depend_on_cardinality(parameterization):
    # Eq. 4: the sum of m paths over sqrt(m). Read before normalisation, averaged over blocks.
    x = tf.random.stateless_normal((16, 8, 8, 32), (1, 2))
    variances = {}
    for m in (1, 16):
        keras.utils.set_random_seed(m)
        draws = []
        for _ in range(12):
            model = block(cardinality=m, width=24, parameterization=parameterization)
            branch = keras.Model(model.input, model.get_layer("b_3_conv").output)
            draws.append(float(tf.math.reduce_variance(branch(x))))
        variances[m] = np.mean(draws), np.std(draws, ddof=1) / np.sqrt(len(draws))
    (one, one_error), (many, many_error) = variances[1], variances[16]
    # Four standard errors of the difference.
    assert abs(one - many) < 4 * np.hypot(one_error, many_error)


def test_strides_pad_all_round_like_everyone_else():
    # Keras' "same" would pad right and bottom only, and shift every strided feature map.
    model = block(strides=2)
    assert model.get_layer("b_2_pad").padding == ((1, 1), (1, 1))
    assert model.output_shape == (None, 4, 4, 32)


def test_seed_makes_weights_reproducible_and_layers_different():
    first, again, other = (block(seed=seed, inputs=16).get_weights() for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_blocks_without_a_name_can_be_stacked():
    inputs = keras.Input((8, 8, 16))
    x = collegial_bottleneck(inputs, 16, cardinality=2, width=3)
    assert keras.Model(inputs, collegial_bottleneck(x, 16, 2, 3)).output_shape == (None, 8, 8, 16)


@pytest.mark.parametrize("argument", ["filters", "cardinality", "width", "strides"])
def test_sizes_are_positive(argument):
    with pytest.raises(ValueError, match=f"{argument}: got 0"):
        block(**{argument: 0})
